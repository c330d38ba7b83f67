"""A Triton kernel for the attention of a step: rotary embedding, the write into the cache, looking, joining.

Sums are always taken in the same order, so that equal ids give equal bits: each warp's alone, then a chunk's, then all.
"""

import triton
import triton.language as tl

from yue_cli.engines.native import cache
from yue_cli.engines.native.kernels import ASSEMBLY, narrow

TOGETHER = tl.constexpr(cache.TOGETHER)
_STEPS = tl.constexpr(32512.0)  # on either side of zero, of a number in two bytes: 127 * 256
_SHIFT = tl.constexpr(12582912.0)  # 1.5 * 2^23: added to a number, it leaves its whole part in the lowest bits
_SMALLEST = tl.constexpr(1e-20)  # product of a weight and a scale that is told from zero
_LOWEST = tl.constexpr(-1e30)  # a peak where nothing was seen yet: finite, so that differences are no NaN


@triton.jit
def attend(
    qkv,  # [rows * COUNT, HEADS + 2 * SHARED, SIZE], as the product leaves it
    cosine,  # float32 [length, SIZE / 2]
    sine,
    keys,  # [rows, SHARED, places, SIZE], with room for BLOCK more behind; those of the new ids are written
    values,  # the same; EIGHT_BIT: [rows, SHARED, places / TOGETHER, SIZE, TOGETHER]
    key_scales,  # float32 [rows, SHARED, places]; used if EIGHT_BIT
    value_scales,
    filled,  # int64 [rows]: ids in the cache before these
    sums,  # float32 [rows, SHARED, CHUNKS, GROUPS * COUNT, SIZE]
    peaks,  # float32 [rows, SHARED, CHUNKS, GROUPS * COUNT, 2]: highest score, sum of weights
    arrived,  # int32 [rows, SHARED]: chunks that are done; zeros before and after
    y,  # [rows * COUNT, SHARED * GROUPS, SIZE]
    places,
    sharpness,  # of the scores, for powers of two
    COUNT: tl.constexpr,  # queries a row
    GROUPS: tl.constexpr,  # heads that share a key
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    QUERIES: tl.constexpr,  # GROUPS * COUNT, rounded up to what tensor cores take
    CHUNKS: tl.constexpr,  # that a row's keys are cut into, at most
    BLOCK: tl.constexpr,  # keys at once; a chunk is some of these
    WARPS: tl.constexpr,  # each looks at its own part of a block, so that none waits for another
    EIGHT_BIT: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Let the queries of one key head look at one chunk of its keys; whoever is last joins all chunks, in their order.

    How long chunks are depends on the row's length alone. The last one also looks at the new ids' own keys, which it
    has at hand, and writes them into the cache, where nobody reads them before the next step.
    """
    chunk, shared, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    old = tl.load(filled + row).to(tl.int32)
    known = old + COUNT
    size = tl.cdiv(known, CHUNKS * BLOCK) * BLOCK  # keys of a chunk
    first, stop = chunk * size, tl.minimum(chunk * size + size, old)
    head = row * SHARED + shared
    slots = head * places.to(tl.int64)
    # Two columns for a query in two bytes.
    COLUMNS: tl.constexpr = QUERIES * 2 if EIGHT_BIT else QUERIES
    column = tl.arange(0, COLUMNS) // (COLUMNS // QUERIES)
    query, feature = tl.arange(0, QUERIES), tl.arange(0, SIZE)
    # Angles are there already; what the kernel before this one makes, is not.
    cos, sin = _angles(cosine, sine, old + column % COUNT, SIZE)
    if CHAINED:
        tl.extra.cuda.gdc_wait()  # the next kernel begins late: its programs would take the place of these
    if first < known:
        own = (row * COUNT + column % COUNT) * (GROUPS + 2) * SHARED + shared * GROUPS + column // COUNT
        q = _turned(qkv, own, column < GROUPS * COUNT, cos, sin, SIZE)
        peak = tl.full((QUERIES,), _LOWEST, tl.float32)
        weights = tl.zeros((QUERIES,), tl.float32)
        total = tl.zeros((SIZE, QUERIES), tl.float32)
        if first + size >= known:
            for new in tl.static_range(COUNT):
                score, value = _remember(
                    q, qkv, cosine, sine, keys, values, key_scales, value_scales, row * COUNT + new, shared, slots,
                    old + new, sharpness, GROUPS, SHARED, SIZE, QUERIES, EIGHT_BIT,
                )  # fmt: skip
                score = tl.where(new <= query % COUNT, score, _LOWEST)
                higher = tl.maximum(peak, score)
                fade, weight = tl.exp2(peak - higher), tl.exp2(score - higher)
                peak, weights = higher, weights * fade + weight
                total = total * fade[None, :] + value * weight[None, :]
        if EIGHT_BIT:
            peak, weights, total = _look_at_bytes(
                q, peak, weights, total, keys, values, key_scales, value_scales, slots, first, stop, sharpness,
                SIZE, QUERIES, BLOCK, WARPS,
            )  # fmt: skip
        else:
            peak, weights, total = _look(
                q, peak, weights, total, keys, values, slots, first, stop, sharpness, SIZE, QUERIES, BLOCK, WARPS
            )
        if CHAINED:
            tl.extra.cuda.gdc_launch_dependents()
        is_query = query < GROUPS * COUNT
        if known <= size:
            answer = ((row * COUNT + query % COUNT) * SHARED + shared) * GROUPS + query // COUNT
            whole = narrow(total / weights[None, :], y.dtype.element_ty)
            tl.store(y + answer[None, :] * SIZE + feature[:, None], whole, mask=is_query[None, :])
        else:
            part = (head * CHUNKS + chunk) * GROUPS * COUNT + query
            tl.store(sums + part[None, :] * SIZE + feature[:, None], total, mask=is_query[None, :])
            tl.store(peaks + part * 2, peak, mask=is_query)
            tl.store(peaks + part * 2 + 1, weights, mask=is_query)
            tl.debug_barrier()
            if tl.atomic_add(arrived + head, 1, sem="acq_rel") == tl.cdiv(known, size) - 1:
                tl.store(arrived + head, 0)
                _join(sums, peaks, y, head, tl.cdiv(known, size), row, shared, COUNT, GROUPS, SHARED, SIZE, CHUNKS)


@triton.jit
def _look(
    q,  # [SIZE, QUERIES]
    peak,  # [QUERIES], and so on: what was found among the new keys
    weights,
    total,  # [SIZE, QUERIES]
    keys,
    values,
    slots,
    first,
    stop,
    sharpness,
    SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Look at the keys from `first` to `stop` too: the highest scores, sums of weights and of values.

    Keys and values are the left operands, which fill the long side of the tensor cores' tiles. No load has a mask: what
    lies behind the keys is finite, and counts nothing.
    """
    PART: tl.constexpr = BLOCK // WARPS
    feature, place = tl.arange(0, SIZE), tl.arange(0, PART)
    begin = (tl.arange(0, WARPS) * PART)[:, None]
    key = begin + _order(place, 2)[None, :]
    key_at = key[:, :, None] * SIZE + feature[None, None, :]
    value_at = (begin + place[None, :])[:, None, :] * SIZE + feature[None, :, None]
    q = tl.broadcast_to(q[None], (WARPS, SIZE, QUERIES))
    peak, weights, total = _dealt(peak, weights, total, WARPS, PART)
    for start in range(first, stop, BLOCK):
        k = tl.load(keys + (slots + start) * SIZE + key_at)
        scores = tl.dot(k, q, input_precision="ieee") * sharpness
        scores = tl.where((start + key < stop)[:, :, None], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        fade = tl.exp2(peak - higher)
        weight = tl.exp2(scores - higher[:, None, :])
        weights = weights * fade[:, None, :] + weight
        peak = higher
        v = tl.load(values + (slots + start) * SIZE + value_at)
        weight = _in_order(weight.to(v.dtype), 2)
        total = tl.dot(v, weight, total * fade[:, None, :], input_precision="ieee")
    return _joined(peak, weights, total)


@triton.jit
def _look_at_bytes(
    q,  # [SIZE, 2 * QUERIES]: each twice
    peak,
    weights,
    total,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    first,
    stop,
    sharpness,
    SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Do the same with bytes, which tensor cores multiply as they are.

    Queries and weights become whole numbers of two bytes, whose products are summed without an error: a column for the
    high bytes and one for the low.
    """
    PART: tl.constexpr = BLOCK // WARPS
    feature, place = tl.arange(0, SIZE), tl.arange(0, PART)
    begin = tl.arange(0, WARPS) * PART
    tl.static_assert(TOGETHER % PART == 0)
    key = begin[:, None] + _order(place, 4)[None, :]
    key_at = key[:, :, None] * SIZE + feature[None, None, :]
    # Tensor cores want keys side by side. Features come first, so that a line of memory is read at once.
    block_at = begin // TOGETHER * (TOGETHER * SIZE) + begin % TOGETHER
    value_at = feature[:, None, None] * TOGETHER + block_at[None, :, None] + place[None, None, :]
    largest = tl.max(tl.abs(q.to(tl.float32)), 0)
    step = tl.where(largest > 0, largest, 1.0) / _STEPS
    number = (q.to(tl.float32) * (1 / step)[None, :] + _SHIFT).to(tl.int32, bitcast=True)
    is_high = (tl.arange(0, 2 * QUERIES) % 2 == 0)[None, :]
    q = tl.where(is_high, (number + 128) >> 8, number).to(tl.int8)
    q = tl.broadcast_to(q[None], (WARPS, SIZE, 2 * QUERIES))
    steep, _ = tl.split(tl.reshape(step * sharpness, (QUERIES, 2)))
    peak, weights, total = _dealt(peak, weights, total, WARPS, PART)
    largest = tl.full((WARPS, QUERIES), _SMALLEST, tl.float32)
    total *= _STEPS / _SMALLEST
    for start in range(first, stop, BLOCK):
        k = tl.load(keys + (slots + start) * SIZE + key_at)
        key_scale = tl.load(key_scales + (slots + start) + key)
        scores = _whole(tl.dot(k, q), QUERIES) * key_scale[:, :, None] * steep[None, None, :]
        scores = tl.where((start + key < stop)[:, :, None], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        fade = tl.exp2(peak - higher)
        weight = tl.exp2(scores - higher[:, None, :])
        weights = weights * fade[:, None, :] + weight
        peak = higher
        # Scales of values go with the weights. The total is in steps of the largest of these so far.
        weight *= tl.load(value_scales + (slots + start) + key)[:, :, None]
        fade *= largest
        largest = tl.maximum(tl.maximum(fade, tl.max(weight, 1)), _SMALLEST)
        steps = _STEPS / largest
        fade *= steps * (1 / _STEPS)
        bits = (weight * steps[:, None, :] + _SHIFT).to(tl.int32, bitcast=True)
        weight = _in_order(_two_bytes(bits), 4)
        v = tl.permute(tl.load(values + (slots + start) * SIZE + value_at), (1, 0, 2))
        total = total * fade[:, None, :] + _whole(tl.dot(v, weight), QUERIES)
    return _joined(peak, weights, total * (largest * (1 / _STEPS))[:, None, :])


@triton.jit
def _dealt(peak, weights, total, WARPS: tl.constexpr, PART: tl.constexpr):
    """Give the first warp what was found already, the others nothing."""
    warp, place = tl.arange(0, WARPS), tl.arange(0, PART)
    peak = tl.where((warp == 0)[:, None], peak[None, :], _LOWEST)
    is_first = (warp[:, None] == 0) & (place[None, :] == 0)
    weights = tl.where(is_first[:, :, None], weights[None, None, :], 0.0)
    return peak, weights, tl.where((warp == 0)[:, None, None], total[None], 0.0)


@triton.jit
def _joined(peak, weights, total):
    """Join what the warps found, in their order: [WARPS, QUERIES], [WARPS, PART, QUERIES], [WARPS, SIZE, QUERIES]."""
    top, weights = tl.reduce((peak, tl.sum(weights, 1)), 0, _higher)
    return top, weights, tl.sum(total * tl.exp2(peak - top[None, :])[:, None, :], 0)


@triton.jit
def _higher(peak, weights, other_peak, other_weights):
    top = tl.maximum(peak, other_peak)
    return top, weights * tl.exp2(peak - top) + other_weights * tl.exp2(other_peak - top)


@triton.jit
def _order(place, TOGETHER: tl.constexpr):
    """Say which key of a warp's part stands at a place of the product with the queries.

    Tensor cores leave the scores of every eighth row to the same thread, and want the weights of TOGETHER keys that
    follow each other from it. With the keys in this order few numbers need to go from thread to thread.
    """
    group, turn, lane = place // (8 * TOGETHER), place // 8 % TOGETHER, place % 8
    return group * 8 * TOGETHER + (lane % 2) * 4 * TOGETHER + lane // 2 * TOGETHER + turn


@triton.jit
def _in_order(weight, TOGETHER: tl.constexpr):
    """Put [WARPS, PART, columns] in the order of the keys again."""
    WARPS: tl.constexpr = weight.shape[0]
    PART: tl.constexpr = weight.shape[1]
    COLUMNS: tl.constexpr = weight.shape[2]
    weight = tl.reshape(weight, (WARPS, PART // (8 * TOGETHER), TOGETHER, 4, 2, COLUMNS))
    return tl.reshape(tl.permute(weight, (0, 1, 4, 3, 2, 5)), (WARPS, PART, COLUMNS))


@triton.jit
def _two_bytes(bits):
    """Split the lowest 16 bits of [WARPS, PART, QUERIES] into signed bytes, high and low, side by side."""
    WARPS: tl.constexpr = bits.shape[0]
    PART: tl.constexpr = bits.shape[1]
    QUERIES: tl.constexpr = bits.shape[2]
    pair = tl.join(((bits + 128) >> 8).to(tl.int8), bits.to(tl.int8))
    if ASSEMBLY:
        # It does nothing, but hides the joining from Triton, which would lay out the product for half bytes.
        pair = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [pair], tl.int8, is_pure=False, pack=4)
    return tl.reshape(pair, (WARPS, PART, 2 * QUERIES))


@triton.jit
def _whole(sums, QUERIES: tl.constexpr):
    """Add up sums [WARPS, n, 2 * QUERIES] of high and of low bytes."""
    high, low = tl.split(tl.reshape(sums, (sums.shape[0], sums.shape[1], QUERIES, 2)))
    return (high * 256 + low).to(tl.float32)


@triton.jit
def _angles(cosine, sine, position, SIZE: tl.constexpr):
    """Load cosines and sines [SIZE, n] of n positions; the sines as those features need them that they are added to."""
    HALF: tl.constexpr = SIZE // 2
    feature = tl.arange(0, SIZE)
    place = position[None, :] * HALF + (feature % HALF)[:, None]
    sin = tl.load(sine + place)
    return tl.load(cosine + place), tl.where((feature < HALF)[:, None], -sin, sin)


@triton.jit
def _turned(
    qkv,
    own,  # [n]: heads, among all tokens'
    is_there,
    cos,
    sin,
    SIZE: tl.constexpr,
):
    """Load heads [SIZE, n], each turned by the angle of its position."""
    feature = tl.arange(0, SIZE)
    place = qkv + own[None, :] * SIZE
    x = tl.load(place + feature[:, None], mask=is_there[None, :], other=0.0).to(tl.float32)
    # Features turn in pairs: one of the first half with one of the second.
    other = ((feature + SIZE // 2) % SIZE)[:, None]
    other = tl.load(place + other, mask=is_there[None, :], other=0.0).to(tl.float32)
    return (x * cos + other * sin).to(qkv.dtype.element_ty)  # rounded as the eager path rounds


@triton.jit
def _remember(
    q,  # [SIZE, columns]
    qkv,
    cosine,
    sine,
    keys,
    values,
    key_scales,
    value_scales,
    token,
    shared,
    slots,
    position,
    sharpness,
    GROUPS: tl.constexpr,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    EIGHT_BIT: tl.constexpr,
):
    """Put key and value of one head of a new id into the cache, the key turned by the angle of its position.

    Returns the scores of the queries with it, and the value: what they would find in the cache.
    """
    feature = tl.arange(0, SIZE)[:, None]
    column, query = tl.arange(0, q.shape[1]), tl.arange(0, QUERIES)
    own = token * (GROUPS + 2) * SHARED + GROUPS * SHARED + shared
    slot = slots + position
    # Key and value stand in every column, so that threads have all that they need without asking others.
    cos, sin = _angles(cosine, sine, position + column * 0, SIZE)
    key = _turned(qkv, own + column * 0, column >= 0, cos, sin, SIZE)
    value = tl.load(qkv + (own + SHARED + query * 0)[None, :] * SIZE + feature)
    key_at = keys + (slot + column * 0)[None, :] * SIZE + feature
    if EIGHT_BIT:  # see cache.to_bytes
        key, byte, scale = _rounded(key)
        tl.store(key_at, byte, mask=(column == 0)[None, :])
        tl.store(key_scales + slot + column * 0, scale, mask=column == 0)
        value, byte, scale = _rounded(value)
        block_at = (slots + position // TOGETHER * TOGETHER) * SIZE + position % TOGETHER
        value_at = values + block_at + feature * TOGETHER + (query * 0)[None, :]
        tl.store(value_at, byte, mask=(query == 0)[None, :])
        tl.store(value_scales + slot + query * 0, scale, mask=query == 0)
    else:
        tl.store(key_at, key, mask=(column == 0)[None, :])
        tl.store(values + (slot + query * 0)[None, :] * SIZE + feature, value, mask=(query == 0)[None, :])
    score = tl.sum(q.to(tl.float32) * key.to(tl.float32), 0) * sharpness
    if EIGHT_BIT:
        score, _ = tl.split(tl.reshape(score, (QUERIES, 2)))
    return score, value.to(tl.float32)


@triton.jit
def _rounded(numbers):
    """Round columns [SIZE, n] to bytes: what these stand for, they, and their scales."""
    wide = numbers.to(tl.float32)
    scale = tl.max(tl.abs(wide), 0) / 127
    steps = tl.floor(wide / tl.where(scale > 0, scale, 1.0)[None, :] + 0.5)
    return steps * scale[None, :], steps.to(tl.int8), scale


@triton.jit
def _join(
    sums,
    peaks,
    y,
    head,  # of all rows'
    used,  # chunks
    row,
    shared,
    COUNT: tl.constexpr,
    GROUPS: tl.constexpr,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Join what the queries of one key head found in all chunks. What others wrote is not in this one's own cache."""
    query, feature = tl.arange(0, GROUPS * COUNT), tl.arange(0, SIZE)
    part = head * CHUNKS * GROUPS * COUNT + query
    top = tl.load(peaks + part * 2, cache_modifier=".cg")
    for chunk in tl.static_range(1, CHUNKS):
        place = peaks + (part + chunk * GROUPS * COUNT) * 2
        top = tl.maximum(top, tl.load(place, mask=chunk < used, other=_LOWEST, cache_modifier=".cg"))
    weights = tl.zeros((GROUPS * COUNT,), tl.float32)
    total = tl.zeros((GROUPS * COUNT, SIZE), tl.float32)
    # A chunk after the other: each thread adds up what it has loaded itself.
    for chunk in tl.static_range(CHUNKS):
        place = part + chunk * GROUPS * COUNT
        height = tl.load(peaks + place * 2, mask=chunk < used, other=_LOWEST, cache_modifier=".cg")
        found = tl.load(peaks + place * 2 + 1, mask=chunk < used, other=0.0, cache_modifier=".cg")
        places = sums + place[:, None] * SIZE + feature[None, :]
        values = tl.load(places, mask=chunk < used, other=0.0, cache_modifier=".cg")
        share = tl.exp2(height - top)
        weights += found * share
        total += values * share[:, None]
    place = ((row * COUNT + query % COUNT) * SHARED + shared) * GROUPS + query // COUNT
    whole = narrow(total / weights[:, None], y.dtype.element_ty)
    tl.store(y + place[:, None] * SIZE + feature[None, :], whole)
