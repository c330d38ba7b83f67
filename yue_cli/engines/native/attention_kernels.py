"""A Triton kernel for the attention of a step: rotary embedding, the write into the cache, looking, joining.

Sums are always taken in the same order, so that equal ids give equal bits: each warp's alone, then a chunk's, then all.
"""

import triton
import triton.language as tl

from yue_cli.engines.native.kernels import narrow
from yue_cli.engines.native.looking_kernels import LOWEST, TOGETHER, look, look_at_bytes
from yue_cli.engines.native.packed_kernels import look_at_packed, quarter_angles


@triton.jit
def attend(
    qkv,  # [rows * COUNT, HEADS + 2 * SHARED, SIZE], as the product leaves it
    cosine,  # float32 [length, SIZE / 2]
    sine,
    keys,  # [rows, SHARED, places, SIZE], with room for BLOCK more behind; those of the new ids are written
    values,  # the same; BITS 8: [rows, SHARED, places / TOGETHER, SIZE, TOGETHER]; fewer: both as in look_at_packed
    key_scales,  # float32 [rows, SHARED, places]; used if there are 8 BITS or fewer
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
    BITS: tl.constexpr,  # of a number in the cache
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
    COLUMNS: tl.constexpr = QUERIES * 2 if BITS <= 8 else QUERIES
    column = tl.arange(0, COLUMNS) // (COLUMNS // QUERIES)
    query = tl.arange(0, QUERIES)
    # Angles are there already; what the kernel before this one makes, is not.
    if BITS < 8:
        QUARTER: tl.constexpr = SIZE // 4 if SIZE >= 128 else 32  # features, or what tensor cores take
        cos, sin = quarter_angles(cosine, sine, old + column % COUNT, SIZE, QUARTER)
    else:
        cos, sin = _angles(cosine, sine, old + column % COUNT, SIZE)
    if CHAINED:
        tl.extra.cuda.gdc_wait()  # the next kernel begins late: its programs would take the place of these
    if first < known:
        if BITS < 8:
            peak, weights, total = look_at_packed(
                qkv, cosine, sine, keys, values, key_scales, value_scales, cos, sin, row, shared, slots, old, first,
                size, sharpness, COUNT, GROUPS, SHARED, SIZE, QUARTER, QUERIES, BLOCK, WARPS, BITS,
            )  # fmt: skip
        else:
            own = (row * COUNT + column % COUNT) * (GROUPS + 2) * SHARED + shared * GROUPS + column // COUNT
            q = _turned(qkv, own, column < GROUPS * COUNT, cos, sin, SIZE)
            peak = tl.full((QUERIES,), LOWEST, tl.float32)
            weights = tl.zeros((QUERIES,), tl.float32)
            total = tl.zeros((SIZE, QUERIES), tl.float32)
            if first + size >= known:
                for new in tl.static_range(COUNT):
                    score, value = _remember(
                        q, qkv, cosine, sine, keys, values, key_scales, value_scales, row * COUNT + new, shared, slots,
                        old + new, sharpness, GROUPS, SHARED, SIZE, QUERIES, BITS,
                    )  # fmt: skip
                    score = tl.where(new <= query % COUNT, score, LOWEST)
                    higher = tl.maximum(peak, score)
                    fade, weight = tl.exp2(peak - higher), tl.exp2(score - higher)
                    peak, weights = higher, weights * fade + weight
                    total = total * fade[None, :] + value * weight[None, :]
            if BITS == 8:
                peak, weights, total = look_at_bytes(
                    q, peak, weights, total, keys, values, key_scales, value_scales, slots, first, stop, sharpness,
                    SIZE, QUERIES, BLOCK, WARPS,
                )  # fmt: skip
            else:
                peak, weights, total = look(
                    q, peak, weights, total, keys, values, slots, first, stop, sharpness, SIZE, QUERIES, BLOCK, WARPS,
                )  # fmt: skip
        if CHAINED:
            tl.extra.cuda.gdc_launch_dependents()
        feature = tl.arange(0, total.shape[0])
        is_told = (query < GROUPS * COUNT)[None, :]
        if BITS < 8 and SIZE < 4 * QUARTER:
            is_told &= (feature % QUARTER < SIZE // 4)[:, None]
            feature = feature // QUARTER * (SIZE // 4) + feature % QUARTER
        if known <= size:
            answer = ((row * COUNT + query % COUNT) * SHARED + shared) * GROUPS + query // COUNT
            whole = narrow(total / weights[None, :], y.dtype.element_ty)
            tl.store(y + answer[None, :] * SIZE + feature[:, None], whole, mask=is_told)
        else:
            part = (head * CHUNKS + chunk) * GROUPS * COUNT + query
            tl.store(sums + part[None, :] * SIZE + feature[:, None], total, mask=is_told)
            tl.store(peaks + part * 2, peak, mask=query < GROUPS * COUNT)
            tl.store(peaks + part * 2 + 1, weights, mask=query < GROUPS * COUNT)
            tl.debug_barrier()
            if tl.atomic_add(arrived + head, 1, sem="acq_rel") == tl.cdiv(known, size) - 1:
                tl.store(arrived + head, 0)
                _join(sums, peaks, y, head, tl.cdiv(known, size), row, shared, COUNT, GROUPS, SHARED, SIZE, CHUNKS)


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
    BITS: tl.constexpr,
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
    if BITS == 8:  # see cache.to_bytes
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
    if BITS == 8:
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
        top = tl.maximum(top, tl.load(place, mask=chunk < used, other=LOWEST, cache_modifier=".cg"))
    weights = tl.zeros((GROUPS * COUNT,), tl.float32)
    total = tl.zeros((GROUPS * COUNT, SIZE), tl.float32)
    # A chunk after the other: each thread adds up what it has loaded itself.
    for chunk in tl.static_range(CHUNKS):
        place = part + chunk * GROUPS * COUNT
        height = tl.load(peaks + place * 2, mask=chunk < used, other=LOWEST, cache_modifier=".cg")
        found = tl.load(peaks + place * 2 + 1, mask=chunk < used, other=0.0, cache_modifier=".cg")
        places = sums + place[:, None] * SIZE + feature[None, :]
        values = tl.load(places, mask=chunk < used, other=0.0, cache_modifier=".cg")
        share = tl.exp2(height - top)
        weights += found * share
        total += values * share[:, None]
    place = ((row * COUNT + query % COUNT) * SHARED + shared) * GROUPS + query // COUNT
    whole = narrow(total / weights[:, None], y.dtype.element_ty)
    tl.store(y + place[:, None] * SIZE + feature[None, :], whole)
