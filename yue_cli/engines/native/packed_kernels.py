"""Attention over keys and values in 6 or 4 bits: what differs from that over bytes.

Features stand in four quarters, for a byte holds some of several (`packing.py`). A quarter has WIDTH features, some of
them zeros where tensor cores take no fewer. Queries are turned as keys and values are; what was found is turned back.
"""

import triton
import triton.language as tl

from yue_cli.engines.native.kernels import ASSEMBLY
from yue_cli.engines.native.looking_kernels import (
    LOWEST,
    SMALLEST,
    STEPS,
    TOGETHER,
    dealt,
    dealt_weights,
    heights,
    in_two_bytes,
    order,
    shares,
    whole,
)

# Four bytes at once: the halves of $4 and $5, behind them bits of $6.
_FOUR = tl.constexpr(
    "shl.b32 $0, $4, 4; and.b32 $0, $0, 0xf0f0f0f0; shl.b32 $1, $5, 4; and.b32 $1, $1, 0xf0f0f0f0;"
    " and.b32 $2, $4, 0xf0f0f0f0; and.b32 $3, $5, 0xf0f0f0f0;"
)
_SIX = tl.constexpr(
    "{ .reg .b32 more;"
    " shl.b32 more, $6, 2; and.b32 more, more, 0x0c0c0c0c; shl.b32 $0, $4, 4; lop3.b32 $0, $0, 0xf0f0f0f0, more, 0xea;"
    " and.b32 more, $6, 0x0c0c0c0c; shl.b32 $1, $5, 4; lop3.b32 $1, $1, 0xf0f0f0f0, more, 0xea;"
    " shr.b32 more, $6, 2; and.b32 more, more, 0x0c0c0c0c; lop3.b32 $2, $4, 0xf0f0f0f0, more, 0xea;"
    " shr.b32 more, $6, 4; and.b32 more, more, 0x0c0c0c0c; lop3.b32 $3, $5, 0xf0f0f0f0, more, 0xea; }"
)


@triton.jit
def quarter_angles(cosine, sine, position, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Load cosines and sines [WIDTH, 4, n] of n positions; the sines with the signs that features add them with."""
    feature = _features(SIZE, WIDTH)
    place = position[None, None, :] * (SIZE // 2) + feature % (SIZE // 2)
    sin = tl.load(sine + place)
    return tl.load(cosine + place), tl.where(feature < SIZE // 2, -sin, sin)


@triton.jit
def look_at_packed(
    qkv,
    cosine,
    sine,
    keys,  # uint8 [rows, SHARED, places, SIZE * BITS / 8]
    values,  # uint8 [rows, SHARED, places / TOGETHER, SIZE * BITS / 8, TOGETHER]
    key_scales,
    value_scales,
    cos,
    sin,
    row,
    shared,
    slots,
    old,
    first,
    size,
    sharpness,
    COUNT: tl.constexpr,
    GROUPS: tl.constexpr,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    WARPS: tl.constexpr,
    BITS: tl.constexpr,
):
    """Let queries look at a chunk of keys, and at the new ones, which are written, if it is the last.

    Returns what `look` does, the sums of values as [4 * WIDTH, QUERIES].
    """
    column, query = tl.arange(0, 2 * QUERIES) // 2, tl.arange(0, QUERIES)
    own = (row * COUNT + column % COUNT) * (GROUPS + 2) * SHARED + shared * GROUPS + column // COUNT
    q = _turned_heads(qkv, own, column < GROUPS * COUNT, cos, sin, SIZE, WIDTH)
    peak = tl.full((QUERIES,), LOWEST, tl.float32)
    weights = tl.zeros((QUERIES,), tl.float32)
    nothing = tl.zeros((WIDTH, QUERIES), tl.float32)
    t0, t1, t2, t3 = nothing, nothing, nothing, nothing
    if first + size >= old + COUNT:
        for new in tl.static_range(COUNT):
            key = (row * COUNT + new) * (GROUPS + 2) * SHARED + GROUPS * SHARED + shared
            score, v0, v1, v2, v3 = _remember(
                q, qkv, cosine, sine, keys, values, key_scales, value_scales, key, SHARED, slots, old + new,
                SIZE, WIDTH, QUERIES, BITS,
            )  # fmt: skip
            score = tl.where(new <= query % COUNT, score * sharpness, LOWEST)
            higher = tl.maximum(peak, score)
            fade, weight = tl.exp2(peak - higher), tl.exp2(score - higher)
            peak, weights = higher, weights * fade + weight
            t0, t1 = t0 * fade[None, :] + v0 * weight[None, :], t1 * fade[None, :] + v1 * weight[None, :]
            t2, t3 = t2 * fade[None, :] + v2 * weight[None, :], t3 * fade[None, :] + v3 * weight[None, :]
    return _look(
        q, peak, weights, t0, t1, t2, t3, keys, values, key_scales, value_scales, slots, first,
        tl.minimum(first + size, old), sharpness, SIZE, WIDTH, QUERIES, BLOCK, WARPS, BITS,
    )  # fmt: skip


@triton.jit
def _features(SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Number the features of four quarters: [WIDTH, 4, 1]."""
    return (tl.arange(0, WIDTH) % (SIZE // 4))[:, None, None] + (tl.arange(0, 4) * (SIZE // 4))[None, :, None]


@triton.jit
def _turned_heads(
    qkv,
    own,  # [n]: heads, among all tokens'
    is_there,
    cos,  # [WIDTH, 4, n]
    sin,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Load heads, each turned by the angle of its position, then by the Hadamard matrix: four [WIDTH, n]."""
    feature = _features(SIZE, WIDTH)
    place = qkv + own[None, None, :] * SIZE
    x = tl.load(place + feature, mask=is_there[None, None, :], other=0.0).to(tl.float32)
    other = tl.load(place + (feature + SIZE // 2) % SIZE, mask=is_there[None, None, :], other=0.0).to(tl.float32)
    x = (x * cos + other * sin).to(qkv.dtype.element_ty).to(tl.float32)  # rounded as the eager path rounds
    n: tl.constexpr = own.shape[0]
    y = _times_signs(tl.reshape(x, (WIDTH, 4 * n)), SIZE, "tf32")  # which has all of a number of 16 bits
    first, second = tl.split(tl.permute(tl.reshape(y, (WIDTH, 2, 2, n)), (0, 3, 2, 1)))  # halves of the features
    y0, y1 = tl.split(first)
    y2, y3 = tl.split(second)
    return _crossed(y0, y1, y2, y3, SIZE**-0.5)


@triton.jit
def _times_signs(x, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """Multiply columns [WIDTH, n] of quarters by the Hadamard matrix of their size: float32."""
    WIDTH: tl.constexpr = x.shape[0]
    feature = tl.arange(0, WIDTH)
    odd = feature[:, None] & feature[None, :]
    odd ^= odd >> 4
    odd ^= odd >> 2
    odd ^= odd >> 1
    signs = 1.0 - 2 * (odd & 1).to(tl.float32)
    if WIDTH == SIZE // 4:
        return tl.dot(signs, x, input_precision=PRECISION)
    # What fills up counts nothing, before and after.
    is_there = (feature < SIZE // 4)[:, None]
    return tl.where(is_there, tl.dot(signs, tl.where(is_there, x, 0.0), input_precision=PRECISION), 0.0)


@triton.jit
def _crossed(x0, x1, x2, x3, factor):
    """Multiply four quarters by the Hadamard matrix of four rows: with that of a quarter, it is that of all."""
    sum0, sum1, difference0, difference1 = x0 + x1, x2 + x3, x0 - x1, x2 - x3
    y0, y1 = (sum0 + sum1) * factor, (difference0 + difference1) * factor
    return y0, y1, (sum0 - sum1) * factor, (difference0 - difference1) * factor


@triton.jit
def _remember(
    q,  # four [WIDTH, columns]
    qkv,
    cosine,
    sine,
    keys,
    values,
    key_scales,
    value_scales,
    own,
    SHARED: tl.constexpr,
    slots,
    position,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    BITS: tl.constexpr,
):
    """Put key and value of one head of a new id into the cache.

    Returns the queries' products with it, and the value, four [WIDTH, QUERIES]: what they would find in the cache.
    """
    # Key and value stand in every pair of columns, so that threads have all that they need without asking others.
    column = tl.arange(0, 4 * QUERIES)
    is_key = column % 2 == 0
    cos, sin = quarter_angles(cosine, sine, position + column * 0, SIZE, WIDTH)
    cos, sin = tl.where(is_key[None, None, :], cos, 1.0), tl.where(is_key[None, None, :], sin, 0.0)
    both = _turned_heads(qkv, tl.where(is_key, own, own + SHARED), column >= 0, cos, sin, SIZE, WIDTH)
    both, scale = _rounded(both, BITS)
    block_at = (slots + position // TOGETHER * TOGETHER) * (SIZE * BITS // 8) + position % TOGETHER
    _store(keys + (slots + position) * (SIZE * BITS // 8), 1, both, column == 0, SIZE, BITS)
    _store(values + block_at, TOGETHER, both, column == 1, SIZE, BITS)
    tl.store(key_scales + slots + position + column * 0, scale, mask=column == 0)
    tl.store(value_scales + slots + position + column * 0, scale, mask=column == 1)
    k0, v0 = _key_and_value(both[0] * scale[None, :])
    k1, v1 = _key_and_value(both[1] * scale[None, :])
    k2, v2 = _key_and_value(both[2] * scale[None, :])
    k3, v3 = _key_and_value(both[3] * scale[None, :])
    score, _ = tl.split(tl.reshape(tl.sum(q[0] * k0 + q[1] * k1 + q[2] * k2 + q[3] * k3, 0), (QUERIES, 2)))
    return score, v0, v1, v2, v3


@triton.jit
def _key_and_value(both):
    """Part columns [WIDTH, 4 * QUERIES]: the key, in two for each query, and the value, in one."""
    key, value = tl.split(tl.reshape(both, (both.shape[0], both.shape[1] // 2, 2)))
    value, _ = tl.split(tl.reshape(value, (both.shape[0], both.shape[1] // 4, 2)))
    return key, value


@triton.jit
def _rounded(x, BITS: tl.constexpr):
    """Round columns of four [WIDTH, n] to whole steps: these, and the columns' scales. See `cache.to_bytes`."""
    largest = tl.maximum(tl.maximum(tl.abs(x[0]), tl.abs(x[1])), tl.maximum(tl.abs(x[2]), tl.abs(x[3])))
    scale = tl.max(largest, 0) / (2 ** (BITS - 1) - 1)
    step = tl.where(scale > 0, scale, 1.0)[None, :]
    y0, y1 = tl.floor(x[0] / step + 0.5), tl.floor(x[1] / step + 0.5)
    return (y0, y1, tl.floor(x[2] / step + 0.5), tl.floor(x[3] / step + 0.5)), scale


@triton.jit
def _store(place, PITCH: tl.constexpr, steps, is_stored, SIZE: tl.constexpr, BITS: tl.constexpr):
    """Pack steps, four [WIDTH, n], and store the columns that are to be. PITCH: from one byte to the next."""
    feature = tl.arange(0, steps[0].shape[0])
    place += (feature * PITCH)[:, None] + tl.zeros(steps[0].shape, tl.int32)
    mask = (feature < SIZE // 4)[:, None] & is_stored[None, :]
    s0, s1 = steps[0].to(tl.int32), steps[1].to(tl.int32)
    s2, s3 = steps[2].to(tl.int32), steps[3].to(tl.int32)
    if BITS == 6:
        low = s0 & 3 | (s1 & 3) << 2 | (s2 & 3) << 4 | (s3 & 3) << 6
        tl.store(place + SIZE // 2 * PITCH, low.to(tl.uint8), mask=mask)
        s0, s1, s2, s3 = s0 >> 2, s1 >> 2, s2 >> 2, s3 >> 2
    tl.store(place, (s0 & 15 | (s2 & 15) << 4).to(tl.uint8), mask=mask)
    tl.store(place + SIZE // 4 * PITCH, (s1 & 15 | (s3 & 15) << 4).to(tl.uint8), mask=mask)


@triton.jit
def _look(
    q,  # four [WIDTH, 2 * QUERIES]: each twice
    peak,
    weights,
    t0,  # [WIDTH, QUERIES], and so on: the sums of values
    t1,
    t2,
    t3,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    first,
    stop,
    sharpness,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    WARPS: tl.constexpr,
    BITS: tl.constexpr,
):
    """Do what `look_at_bytes` does with bytes that are made of each quarter's steps, and turn back what was found."""
    PART: tl.constexpr = BLOCK // WARPS
    BYTES: tl.constexpr = SIZE * BITS // 8
    NEXT: tl.constexpr = SIZE // 4  # bytes from one quarter to the next
    RAISED: tl.constexpr = 2 ** (8 - BITS)  # steps stand at the upper end of their bytes
    feature, place = tl.arange(0, WIDTH) % NEXT, tl.arange(0, PART)
    begin = tl.arange(0, WARPS) * PART
    tl.static_assert(TOGETHER % PART == 0)
    key = begin[:, None] + order(place, 4)[None, :]
    key_at = key[:, :, None] * BYTES + feature[None, None, :]
    block_at = begin // TOGETHER * (TOGETHER * BYTES) + begin % TOGETHER
    value_at = feature[:, None, None] * TOGETHER + block_at[None, :, None] + place[None, None, :]
    largest = tl.maximum(tl.maximum(tl.abs(q[0]), tl.abs(q[1])), tl.maximum(tl.abs(q[2]), tl.abs(q[3])))
    largest = tl.max(largest, 0)
    step = tl.where(largest > 0, largest, 1.0) / STEPS
    q0, q1 = in_two_bytes(q[0], step, WARPS), in_two_bytes(q[1], step, WARPS)
    q2, q3 = in_two_bytes(q[2], step, WARPS), in_two_bytes(q[3], step, WARPS)
    steep, _ = tl.split(tl.reshape(step * (sharpness / RAISED), (QUERIES, 2)))
    t0, t1, t2, t3 = dealt(t0, WARPS), dealt(t1, WARPS), dealt(t2, WARPS), dealt(t3, WARPS)
    peak, weights = dealt_weights(peak, weights, WARPS, PART)
    largest = tl.full((WARPS, QUERIES), SMALLEST, tl.float32)
    unit = STEPS / SMALLEST * RAISED
    t0, t1, t2, t3 = t0 * unit, t1 * unit, t2 * unit, t3 * unit
    for start in range(first, stop, BLOCK):
        at = keys + (slots + start) * BYTES + key_at
        k0, k1, k2, k3 = _apart(at, NEXT, BITS, False)
        scores = tl.dot(k0, q0) + tl.dot(k1, q1) + tl.dot(k2, q2) + tl.dot(k3, q3)
        key_scale = tl.load(key_scales + (slots + start) + key)
        scores = whole(scores, QUERIES) * key_scale[:, :, None] * steep[None, None, :]
        scores = tl.where((start + key < stop)[:, :, None], scores, float("-inf"))
        scale_at = value_scales + (slots + start) + key
        peak, weights, largest, fade, weight = shares(scores, scale_at, peak, weights, largest)
        v0, v1, v2, v3 = _apart(values + (slots + start) * BYTES + value_at, NEXT * TOGETHER, BITS, True)
        t0 = t0 * fade[:, None, :] + whole(tl.dot(v0, weight), QUERIES)
        t1 = t1 * fade[:, None, :] + whole(tl.dot(v1, weight), QUERIES)
        t2 = t2 * fade[:, None, :] + whole(tl.dot(v2, weight), QUERIES)
        t3 = t3 * fade[:, None, :] + whole(tl.dot(v3, weight), QUERIES)
    top, weights, share = heights(peak, weights)
    share = (share * largest * (1 / (STEPS * RAISED) * SIZE**-0.5))[:, None, :]
    t0, t1, t2, t3 = _crossed(t0, t1, t2, t3, share)
    found = tl.reshape(tl.sum(tl.join(tl.join(t0, t2), tl.join(t1, t3)), 0), (WIDTH, QUERIES * 4))
    # In three parts of a float32 nothing is lost.
    found = tl.reshape(_times_signs(found, SIZE, "tf32x3"), (WIDTH, QUERIES, 4))
    return top, weights, tl.reshape(tl.permute(found, (2, 0, 1)), (4 * WIDTH, QUERIES))


@triton.jit
def _apart(place, NEXT: tl.constexpr, BITS: tl.constexpr, SWAPPED: tl.constexpr):
    """Load bytes, and make four of each pair of them, or of three: int8 of the steps of a quarter's features.

    NEXT: from one quarter of the highest bits to the next. SWAPPED: the first dimension of three with the second.
    """
    high0, high1 = tl.load(place), tl.load(place + NEXT)
    low = tl.load(place + 2 * NEXT) if BITS == 6 else high1
    if SWAPPED:
        high0, high1, low = tl.permute(high0, (1, 0, 2)), tl.permute(high1, (1, 0, 2)), tl.permute(low, (1, 0, 2))
    if ASSEMBLY:  # four at once
        return tl.inline_asm_elementwise(
            _SIX if BITS == 6 else _FOUR,
            "=&r,=&r,=&r,=&r,r,r,r",
            [high0, high1, low],
            (tl.int8, tl.int8, tl.int8, tl.int8),
            is_pure=True,
            pack=4,
        )
    x0, x1, x2, x3 = high0 << 4, high1 << 4, high0 & 240, high1 & 240
    if BITS == 6:
        x0, x1, x2, x3 = x0 | low << 2 & 12, x1 | low & 12, x2 | low >> 2 & 12, x3 | low >> 4 & 12
    x0, x1 = x0.to(tl.int8, bitcast=True), x1.to(tl.int8, bitcast=True)
    return x0, x1, x2.to(tl.int8, bitcast=True), x3.to(tl.int8, bitcast=True)
