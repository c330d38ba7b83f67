"""Triton kernels for a step of a few rows: products, rotary embedding with the cache's write, attention.

Sums are always taken in the same order, so that equal ids give equal bits: no atomics, chunks of fixed size.
`fused.py` launches them; each has its twin in PyTorch's operations in `model.py`, `cache.py` and `attention.py`.
"""

import triton
import triton.language as tl


@triton.jit
def normalize(
    x,  # [rows, INS]
    norm,  # [INS]
    y,  # [rows, INS]
    epsilon,
    INS: tl.constexpr,
    COLUMNS: tl.constexpr,  # INS, rounded up to a power of two
    CHAINED: tl.constexpr,
):
    """Normalize a row and scale it: RMSNorm."""
    begin(CHAINED)
    place = tl.program_id(0) * INS
    column = tl.arange(0, COLUMNS)
    is_column = column < INS
    values = tl.load(x + place + column, mask=is_column, other=0.0).to(tl.float32)
    values *= 1 / tl.sqrt(tl.sum(values * values, 0) / INS + epsilon)
    scale = tl.load(norm + column, mask=is_column, other=0.0).to(tl.float32)
    tl.store(y + place + column, (values * scale).to(y.dtype.element_ty), mask=is_column)


@triton.jit
def product(
    x,  # [rows, INS]
    weight,  # [outs, INS]; GATED: gates [outs, INS], then as many others
    y,  # [rows, outs]
    rows,
    outs,
    INS: tl.constexpr,
    ROWS: tl.constexpr,  # rows, rounded up to what tensor cores take
    BLOCK_OUT: tl.constexpr,  # divides outs
    BLOCK_IN: tl.constexpr,  # divides INS
    GATED: tl.constexpr,  # y is silu(gate) * other: SwiGLU
    ADD: tl.constexpr,  # to what y holds
    AHEAD: tl.constexpr,  # bytes of each row of the weight that are asked for before x is there
    CHAINED: tl.constexpr,
):
    """Compute y = x @ weight.T for BLOCK_OUT columns, all rows.

    The weights are the left operand: they fill the long side of the tensor cores' tiles, the few rows the short one.
    """
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    begin_product(weight, out, outs, INS, AHEAD, GATED, CHAINED)
    row = tl.arange(0, ROWS)
    inner = tl.arange(0, BLOCK_IN)
    weights = weight + out[:, None] * INS + inner[None, :]
    inputs = x + row[None, :] * INS + inner[:, None]
    is_row = row < rows
    total = tl.zeros((BLOCK_OUT, ROWS), tl.float32)
    other = tl.zeros((BLOCK_OUT, ROWS), tl.float32)
    for start in range(0, INS, BLOCK_IN):
        tile = tl.load(weights + start, eviction_policy="evict_first")
        columns = tl.load(inputs + start, mask=is_row[None, :], other=0.0)
        total = tl.dot(tile, columns, total, input_precision="ieee")
        if GATED:
            tile = tl.load(weights + outs * INS + start, eviction_policy="evict_first")
            other = tl.dot(tile, columns, other, input_precision="ieee")
    if GATED:
        total = total / (1 + tl.exp(-total)) * other
    place = y + row[None, :] * outs + out[:, None]
    if ADD:
        total += tl.load(place, mask=is_row[None, :], other=0.0).to(tl.float32)
    tl.store(place, total.to(y.dtype.element_ty), mask=is_row[None, :])


@triton.jit
def begin(CHAINED: tl.constexpr):
    """CHAINED: let the next kernel begin, then wait until all that the one before wrote is there."""
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def begin_product(
    weight,
    out,  # [n]: rows of the weight that will be read
    outs,
    SIZE: tl.constexpr,  # elements of a row
    AHEAD: tl.constexpr,  # bytes of it
    GATED: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """CHAINED: begin, but bring weights, which nobody writes, into the GPU's cache while the kernel before works."""
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        line = tl.arange(0, AHEAD // 128) * (1024 // weight.dtype.element_ty.primitive_bitwidth)
        lines = weight + out[:, None] * SIZE + line[None, :]
        _fetch(lines)
        if GATED:
            _fetch(lines + outs * SIZE)
        tl.extra.cuda.gdc_wait()


@triton.jit
def _fetch(places):
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [places.to(tl.int64)], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def rotate_and_write(
    qkv,  # [tokens, HEADS + 2 * SHARED, 2 * HALF]; its queries are rotated in place
    cosine,  # float32 [length, HALF]
    sine,
    filled,  # int64 [rows]: ids in the cache before these
    keys,  # [rows, SHARED, length, 2 * HALF]
    values,
    key_scales,  # float32 [rows, SHARED, length]; written if EIGHT_BIT
    value_scales,
    length,
    COUNT: tl.constexpr,  # tokens a row
    HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    HALF: tl.constexpr,
    EIGHT_BIT: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Turn one head of one token by its position's angle, and put keys and values into the cache."""
    begin(CHAINED)
    token, head = tl.program_id(0), tl.program_id(1)
    row = token // COUNT
    position = tl.load(filled + row) + token % COUNT
    half = tl.arange(0, HALF)
    place = qkv + (token * (HEADS + 2 * SHARED) + head) * 2 * HALF + half
    first = tl.load(place).to(tl.float32)
    second = tl.load(place + HALF).to(tl.float32)
    if head < HEADS + SHARED:
        cos = tl.load(cosine + position * HALF + half)
        sin = tl.load(sine + position * HALF + half)
        turned = first * cos - second * sin
        second = second * cos + first * sin
        first = turned
    if head < HEADS:
        tl.store(place, first.to(qkv.dtype.element_ty))
        tl.store(place + HALF, second.to(qkv.dtype.element_ty))
    else:
        # Rounded as the eager path rounds them before it makes bytes of them.
        low = first.to(qkv.dtype.element_ty)
        high = second.to(qkv.dtype.element_ty)
        if head < HEADS + SHARED:
            slot = (row * SHARED + head - HEADS) * length.to(tl.int64) + position
            _write(keys, key_scales, slot, low, high, half, HALF, EIGHT_BIT)
        else:
            slot = (row * SHARED + head - HEADS - SHARED) * length.to(tl.int64) + position
            _write(values, value_scales, slot, low, high, half, HALF, EIGHT_BIT)


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
def attend(
    qkv,  # [rows * COUNT, HEADS + 2 * SHARED, SIZE]: queries are rotated
    keys,  # [rows, SHARED, length, SIZE]
    values,
    key_scales,  # float32 [rows, SHARED, length]; read if EIGHT_BIT
    value_scales,
    filled,  # int64 [rows]: ids in the cache before these
    sums,  # float32 [rows, SHARED, chunks, GROUPS * COUNT, SIZE]
    peaks,  # float32 [rows, SHARED, chunks, GROUPS * COUNT, 2]: highest score, sum of weights
    length,
    sharpness,  # of the scores, for powers of two
    COUNT: tl.constexpr,  # queries a row
    GROUPS: tl.constexpr,  # heads that share a key
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    QUERIES: tl.constexpr,  # GROUPS * COUNT, rounded up to what tensor cores take
    CHUNK: tl.constexpr,  # keys of a program
    BLOCK: tl.constexpr,  # keys at once; divides CHUNK
    EIGHT_BIT: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Let the queries of one key head look at one chunk of its keys. Chunks behind the last id do nothing."""
    if CHAINED:
        tl.extra.cuda.gdc_wait()  # the next kernel begins late: its programs would take the place of these
    chunk, shared, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    known = tl.load(filled + row).to(tl.int32) + COUNT
    first = chunk * CHUNK
    if first < known:
        query, feature, place = tl.arange(0, QUERIES), tl.arange(0, SIZE), tl.arange(0, BLOCK)
        is_query = query < GROUPS * COUNT
        last = known - COUNT + query % COUNT  # the last key that a query may see
        head = shared * GROUPS + query // COUNT
        token = row * COUNT + query % COUNT
        q = tl.load(
            qkv + (token * (GROUPS + 2) * SHARED + head)[:, None] * SIZE + feature[None, :],
            mask=is_query[:, None],
            other=0.0,
        )
        if EIGHT_BIT:
            q = q.to(tl.float16)
        slots = (row * SHARED + shared) * length.to(tl.int64)
        total = tl.zeros((QUERIES, SIZE), tl.float32)
        peak = tl.full((QUERIES,), float("-inf"), tl.float32)
        weights = tl.zeros((QUERIES,), tl.float32)
        for start in range(0, CHUNK, BLOCK):  # what lies behind the last id is not loaded
            key = first + start + place
            is_key = key < known
            at = (slots + key)[:, None] * SIZE + feature[None, :]
            k = tl.load(keys + at, mask=is_key[:, None], other=0)
            v = tl.load(values + at, mask=is_key[:, None], other=0)
            if EIGHT_BIT:
                k = _widen(k)
                v = _widen(v)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * sharpness
            if EIGHT_BIT:
                scores *= tl.load(key_scales + slots + key, mask=is_key, other=0.0)[None, :]
            scores = tl.where(key[None, :] <= last[:, None], scores, float("-inf"))
            higher = tl.maximum(peak, tl.max(scores, 1))
            safe = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet
            fade = tl.exp2(peak - safe)
            weight = tl.exp2(scores - safe[:, None])
            weights = weights * fade + tl.sum(weight, 1)
            total *= fade[:, None]
            if EIGHT_BIT:
                # Scales go with the weights, relative to the largest, so that float16 does not lose small ones.
                scale = tl.load(value_scales + slots + key, mask=is_key, other=0.0)
                largest = tl.max(scale, 0)
                share = scale / tl.where(largest > 0, largest, 1.0)
                total += tl.dot((weight * share[None, :]).to(tl.float16), v, input_precision="ieee") * largest
            else:
                total = tl.dot(weight.to(v.dtype), v, total, input_precision="ieee")
            peak = higher
        if CHAINED:
            tl.extra.cuda.gdc_launch_dependents()
        chunks = tl.num_programs(0)
        part = ((row * SHARED + shared) * chunks + chunk) * GROUPS * COUNT + query
        tl.store(sums + part[:, None] * SIZE + feature[None, :], total, mask=is_query[:, None])
        tl.store(peaks + part * 2, peak, mask=is_query)
        tl.store(peaks + part * 2 + 1, weights, mask=is_query)


@triton.jit
def _widen(byte):
    """Turn a byte without a sign, 128 more than its number, into float16: put it behind the exponent of 1024."""
    return (byte.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - 1152.0


@triton.jit
def combine(
    sums,  # as `attend` leaves them
    peaks,
    filled,  # int64 [rows]
    y,  # [rows * COUNT, SHARED * GROUPS, SIZE]
    COUNT: tl.constexpr,
    GROUPS: tl.constexpr,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,  # chunks at once
    CHAINED: tl.constexpr,
):
    """Join what one query found in all chunks, in their order."""
    begin(CHAINED)
    token, head = tl.program_id(0), tl.program_id(1)
    row = token // COUNT
    known = tl.load(filled + row).to(tl.int32) + COUNT
    used = tl.cdiv(known, CHUNK)
    feature, chunk = tl.arange(0, SIZE), tl.arange(0, BLOCK)
    first = (row * SHARED + head // GROUPS) * CHUNKS * GROUPS * COUNT + head % GROUPS * COUNT + token % COUNT
    total = tl.zeros((SIZE,), tl.float32)
    weights = 0.0
    peak = float("-inf")
    for start in range(0, CHUNKS, BLOCK):
        if start < used:
            is_used = start + chunk < used
            part = first + (start + chunk) * GROUPS * COUNT
            heights = tl.load(peaks + part * 2, mask=is_used, other=float("-inf"))
            found = tl.load(peaks + part * 2 + 1, mask=is_used, other=0.0)
            values = tl.load(sums + part[:, None] * SIZE + feature[None, :], mask=is_used[:, None], other=0.0)
            higher = tl.maximum(peak, tl.max(heights, 0))  # the first chunk is seen by every query
            fade = tl.exp2(peak - higher)
            share = tl.exp2(heights - higher)
            weights = weights * fade + tl.sum(found * share, 0)
            total = total * fade + tl.sum(values * share[:, None], 0)
            peak = higher
    place = (token * SHARED * GROUPS + head) * SIZE + feature
    tl.store(y + place, (total / weights).to(y.dtype.element_ty))


# With TRITON_INTERPRET=1 in the environment kernels run on a CPU: slow, to be checked.
INTERPRETED = type(product).__name__ == "InterpretedFunction"
