"""A Triton kernel for the attention of a step: rotary embedding, the write into the cache, looking, joining.

Sums are always taken in the same order, so that equal ids give equal bits: each chunk's alone, then the chunks'.
"""

import triton
import triton.language as tl

from yue_cli.engines.native.kernels import ASSEMBLY, narrow


@triton.jit
def attend(
    qkv,  # [rows * COUNT, HEADS + 2 * SHARED, SIZE], as the product leaves it
    cosine,  # float32 [length, SIZE / 2]
    sine,
    keys,  # [rows, SHARED, length, SIZE]; those of the new ids are written first
    values,
    key_scales,  # float32 [rows, SHARED, length]; used if EIGHT_BIT
    value_scales,
    filled,  # int64 [rows]: ids in the cache before these
    sums,  # float32 [rows, SHARED, CHUNKS, GROUPS * COUNT, SIZE]
    peaks,  # float32 [rows, SHARED, CHUNKS, GROUPS * COUNT, 2]: highest score, sum of weights
    arrived,  # int32 [rows, SHARED]: chunks that are done; zeros before and after
    y,  # [rows * COUNT, SHARED * GROUPS, SIZE]
    length,
    sharpness,  # of the scores, for powers of two
    COUNT: tl.constexpr,  # queries a row
    GROUPS: tl.constexpr,  # heads that share a key
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    QUERIES: tl.constexpr,  # GROUPS * COUNT, rounded up to what tensor cores take
    CHUNKS: tl.constexpr,  # that a row's keys are cut into, at most
    BLOCK: tl.constexpr,  # keys at once; a chunk is some of these
    EIGHT_BIT: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Let the queries of one key head look at one chunk of its keys; whoever is last joins all chunks, in their order.

    How long chunks are depends on the row's length alone. The one that a new id belongs to writes its key and value.
    """
    chunk, shared, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    known = tl.load(filled + row).to(tl.int32) + COUNT
    size = tl.cdiv(known, CHUNKS * BLOCK) * BLOCK  # keys of a chunk
    first, stop = chunk * size, tl.minimum(chunk * size + size, known)
    head = row * SHARED + shared
    slots = head * length.to(tl.int64)
    if CHAINED:
        tl.extra.cuda.gdc_wait()  # the next kernel begins late: its programs would take the place of these
    if first < known:
        for new in tl.static_range(COUNT):
            if first <= known - COUNT + new and known - COUNT + new < stop:
                _remember(
                    qkv, cosine, sine, keys, values, key_scales, value_scales, row * COUNT + new, shared, slots,
                    known - COUNT + new, GROUPS, SHARED, SIZE, EIGHT_BIT,
                )  # fmt: skip
        if known - COUNT < stop:
            tl.debug_barrier()  # what one thread wrote, others read
        query, feature = tl.arange(0, QUERIES), tl.arange(0, SIZE)
        is_query = query < GROUPS * COUNT
        last = known - COUNT + query % COUNT  # the last key that a query may see
        q = _queries(qkv, cosine, sine, row, shared, known - COUNT, COUNT, GROUPS, SHARED, SIZE, QUERIES)
        if EIGHT_BIT:
            q = q.to(tl.float16)
        HALF: tl.constexpr = SIZE // 2
        total = tl.zeros((QUERIES, SIZE), tl.float32)
        even = tl.zeros((QUERIES, HALF), tl.float32)  # EIGHT_BIT: every second feature of the total
        odd = tl.zeros((QUERIES, HALF), tl.float32)
        peak = tl.full((QUERIES,), float("-inf"), tl.float32)
        weights = tl.zeros((QUERIES,), tl.float32)
        place, pair = tl.arange(0, BLOCK), tl.arange(0, HALF)
        for start in range(first, stop, BLOCK):
            key = start + place
            is_key = key < known
            k = tl.load(keys + (slots + key)[:, None] * SIZE + feature[None, :], mask=is_key[:, None], other=0)
            if EIGHT_BIT:
                k = _widen(k)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * sharpness
            if EIGHT_BIT:
                scores *= tl.load(key_scales + slots + key, mask=is_key, other=0.0)[None, :]
            scores = tl.where(key[None, :] <= last[:, None], scores, float("-inf"))
            higher = tl.maximum(peak, tl.max(scores, 1))
            safe = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet
            fade = tl.exp2(peak - safe)
            weight = tl.exp2(scores - safe[:, None])
            weights = weights * fade + tl.sum(weight, 1)
            peak = higher
            if EIGHT_BIT:
                # Neighbouring features come as a pair: tensor cores want keys side by side, not features.
                places = values.to(tl.pointer_type(tl.uint16)) + (slots + key)[:, None] * HALF + pair[None, :]
                pairs = tl.load(places, mask=is_key[:, None], other=0)
                # Scales go with the weights, relative to the largest, so that float16 does not lose small ones.
                scale = tl.load(value_scales + slots + key, mask=is_key, other=0.0)
                largest = tl.max(scale, 0)
                share = scale / tl.where(largest > 0, largest, 1.0)
                weight = (weight * share[None, :]).to(tl.float16)
                even = even * fade[:, None] + tl.dot(weight, _widen_low(pairs), input_precision="ieee") * largest
                odd = odd * fade[:, None] + tl.dot(weight, _widen_high(pairs), input_precision="ieee") * largest
            else:
                v = tl.load(values + (slots + key)[:, None] * SIZE + feature[None, :], mask=is_key[:, None], other=0)
                total = tl.dot(weight.to(v.dtype), v, total * fade[:, None], input_precision="ieee")
        if EIGHT_BIT:
            total = tl.reshape(tl.join(even, odd), (QUERIES, SIZE))
        if CHAINED:
            tl.extra.cuda.gdc_launch_dependents()
        answer = (
            y + ((row * COUNT + query % COUNT) * SHARED * GROUPS + shared * GROUPS + query // COUNT)[:, None] * SIZE
        )
        if known <= size:
            whole = narrow(total / weights[:, None], y.dtype.element_ty)
            tl.store(answer + feature[None, :], whole, mask=is_query[:, None])
        else:
            part = (head * CHUNKS + chunk) * GROUPS * COUNT + query
            tl.store(sums + part[:, None] * SIZE + feature[None, :], total, mask=is_query[:, None])
            tl.store(peaks + part * 2, peak, mask=is_query)
            tl.store(peaks + part * 2 + 1, weights, mask=is_query)
            tl.debug_barrier()
            if tl.atomic_add(arrived + head, 1, sem="acq_rel") == tl.cdiv(known, size) - 1:
                tl.store(arrived + head, 0)
                _join(sums, peaks, y, head, tl.cdiv(known, size), row, shared, COUNT, GROUPS, SHARED, SIZE, CHUNKS)


@triton.jit
def _queries(
    qkv,
    cosine,
    sine,
    row,
    shared,
    position,  # of the row's first query
    COUNT: tl.constexpr,
    GROUPS: tl.constexpr,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """Load the queries of one key head, [QUERIES, SIZE], each turned by the angle of its position."""
    query, feature = tl.arange(0, QUERIES), tl.arange(0, SIZE)
    HALF: tl.constexpr = SIZE // 2
    is_query = (query < GROUPS * COUNT)[:, None]
    token = row * COUNT + query % COUNT
    place = qkv + (token * (GROUPS + 2) * SHARED + shared * GROUPS + query // COUNT)[:, None] * SIZE
    own = tl.load(place + feature[None, :], mask=is_query, other=0.0).to(tl.float32)
    # Features turn in pairs: one of the first half with one of the second.
    other = tl.load(place + ((feature + HALF) % SIZE)[None, :], mask=is_query, other=0.0).to(tl.float32)
    if COUNT == 1:
        angle = position * HALF + feature % HALF
        cos, sin = tl.load(cosine + angle)[None, :], tl.load(sine + angle)[None, :]
    else:
        angle = (position + query % COUNT)[:, None] * HALF + (feature % HALF)[None, :]
        cos, sin = tl.load(cosine + angle), tl.load(sine + angle)
    turned = own * cos + tl.where(feature < HALF, -1.0, 1.0)[None, :] * other * sin
    return turned.to(qkv.dtype.element_ty)


@triton.jit
def _remember(
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
    GROUPS: tl.constexpr,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    EIGHT_BIT: tl.constexpr,
):
    """Put key and value of one head of a new id into the cache, the key turned by the angle of its position."""
    HALF: tl.constexpr = SIZE // 2
    half = tl.arange(0, HALF)
    place = qkv + (token * (GROUPS + 2) * SHARED + GROUPS * SHARED + shared) * SIZE + half
    first = tl.load(place).to(tl.float32)
    second = tl.load(place + HALF).to(tl.float32)
    cos = tl.load(cosine + position * HALF + half)
    sin = tl.load(sine + position * HALF + half)
    kind = qkv.dtype.element_ty  # rounded as the eager path rounds before it makes bytes
    low, high = (first * cos - second * sin).to(kind), (second * cos + first * sin).to(kind)
    _write(keys, key_scales, slots + position, low, high, half, HALF, EIGHT_BIT)
    place += SHARED * SIZE
    _write(values, value_scales, slots + position, tl.load(place), tl.load(place + HALF), half, HALF, EIGHT_BIT)


@triton.jit
def _write(cache, scales, slot, first, second, half, HALF: tl.constexpr, EIGHT_BIT: tl.constexpr):
    if EIGHT_BIT:  # see cache.to_bytes
        low = first.to(tl.float32)
        high = second.to(tl.float32)
        scale = tl.max(tl.maximum(tl.abs(low), tl.abs(high)), 0) / 127
        divisor = tl.where(scale > 0, scale, 1.0)
        tl.store(scales + slot, scale)
        tl.store(cache + slot * 2 * HALF + half, tl.floor(low / divisor + 128.5).to(tl.uint8))
        tl.store(cache + slot * 2 * HALF + HALF + half, tl.floor(high / divisor + 128.5).to(tl.uint8))
    else:
        tl.store(cache + slot * 2 * HALF + half, first)
        tl.store(cache + slot * 2 * HALF + HALF + half, second)


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
    chunk, query, feature = tl.arange(0, CHUNKS), tl.arange(0, GROUPS * COUNT), tl.arange(0, SIZE)
    is_used = (chunk < used)[:, None]
    part = (head * CHUNKS + chunk)[:, None] * GROUPS * COUNT + query[None, :]
    heights = tl.load(peaks + part * 2, mask=is_used, other=float("-inf"), cache_modifier=".cg")
    found = tl.load(peaks + part * 2 + 1, mask=is_used, other=0.0, cache_modifier=".cg")
    places = sums + part[:, :, None] * SIZE + feature[None, None, :]
    values = tl.load(places, mask=is_used[:, :, None], other=0.0, cache_modifier=".cg")
    share = tl.exp2(heights - tl.max(heights, 0)[None, :])  # every query has seen the first chunk
    total = tl.sum(values * share[:, :, None], 0)
    weights = tl.sum(found * share, 0)
    place = ((row * COUNT + query % COUNT) * SHARED + shared) * GROUPS + query // COUNT
    whole = narrow(total / weights[:, None], y.dtype.element_ty)
    tl.store(y + place[:, None] * SIZE + feature[None, :], whole)


@triton.jit
def _widen(byte):
    """Turn bytes without a sign, each 128 more than its number, into float16: put them behind the exponent of 1024."""
    if ASSEMBLY:  # four at once
        return tl.inline_asm_elementwise(
            "{ .reg .b32 zero; mov.b32 zero, 0x64806480;"
            " prmt.b32 $0, $2, 0x64646464, 0x4140; prmt.b32 $1, $2, 0x64646464, 0x4342;"
            " sub.f16x2 $0, $0, zero; sub.f16x2 $1, $1, zero; }",
            "=r,=r,r",
            [byte],
            tl.float16,
            is_pure=True,
            pack=4,
        )
    return _behind_1024(byte)


@triton.jit
def _widen_low(pairs):
    """Do the same with the low bytes of pairs of bytes."""
    if ASSEMBLY:  # two at once
        return tl.inline_asm_elementwise(
            "{ .reg .b32 zero; mov.b32 zero, 0x64806480; prmt.b32 $0, $1, 0x64646464, 0x4240;"
            " sub.f16x2 $0, $0, zero; }",
            "=r,r",
            [pairs],
            tl.float16,
            is_pure=True,
            pack=2,
        )
    return _behind_1024(pairs & 255)


@triton.jit
def _widen_high(pairs):
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 zero; mov.b32 zero, 0x64806480; prmt.b32 $0, $1, 0x64646464, 0x4341;"
            " sub.f16x2 $0, $0, zero; }",
            "=r,r",
            [pairs],
            tl.float16,
            is_pure=True,
            pack=2,
        )
    return _behind_1024(pairs >> 8)


@triton.jit
def _behind_1024(byte):
    return (byte.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - 1152.0
