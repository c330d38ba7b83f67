"""How some queries look at some keys, in the attention of a step: what keys and values of 16 bits and of bytes share.

Each warp looks at its own part of a block of keys, and they are joined at the end: [WARPS, …] are a warp's own.
"""

import triton
import triton.language as tl

from yue_cli.engines.native import cache
from yue_cli.engines.native.kernels import ASSEMBLY

TOGETHER = tl.constexpr(cache.TOGETHER)
LOWEST = tl.constexpr(-1e30)  # a peak where nothing was seen yet: finite, so that differences are no NaN
STEPS = tl.constexpr(32512.0)  # on either side of zero, of a number in two bytes: 127 * 256
_SHIFT = tl.constexpr(12582912.0)  # 1.5 * 2^23: added to a number, it leaves its whole part in the lowest bits
SMALLEST = tl.constexpr(1e-20)  # product of a weight and a scale that is told from zero


@triton.jit
def look(
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
    key = begin + order(place, 2)[None, :]
    key_at = key[:, :, None] * SIZE + feature[None, None, :]
    value_at = (begin + place[None, :])[:, None, :] * SIZE + feature[None, :, None]
    q = tl.broadcast_to(q[None], (WARPS, SIZE, QUERIES))
    peak, weights = dealt_weights(peak, weights, WARPS, PART)
    total = dealt(total, WARPS)
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
def look_at_bytes(
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
    key = begin[:, None] + order(place, 4)[None, :]
    key_at = key[:, :, None] * SIZE + feature[None, None, :]
    # Tensor cores want keys side by side. Features come first, so that a line of memory is read at once.
    block_at = begin // TOGETHER * (TOGETHER * SIZE) + begin % TOGETHER
    value_at = feature[:, None, None] * TOGETHER + block_at[None, :, None] + place[None, None, :]
    largest = tl.max(tl.abs(q.to(tl.float32)), 0)
    step = tl.where(largest > 0, largest, 1.0) / STEPS
    q = in_two_bytes(q, step, WARPS)
    steep, _ = tl.split(tl.reshape(step * sharpness, (QUERIES, 2)))
    peak, weights = dealt_weights(peak, weights, WARPS, PART)
    total = dealt(total, WARPS)
    largest = tl.full((WARPS, QUERIES), SMALLEST, tl.float32)
    total *= STEPS / SMALLEST
    for start in range(first, stop, BLOCK):
        k = tl.load(keys + (slots + start) * SIZE + key_at)
        key_scale = tl.load(key_scales + (slots + start) + key)
        scores = whole(tl.dot(k, q), QUERIES) * key_scale[:, :, None] * steep[None, None, :]
        scores = tl.where((start + key < stop)[:, :, None], scores, float("-inf"))
        scale_at = value_scales + (slots + start) + key
        peak, weights, largest, fade, weight = shares(scores, scale_at, peak, weights, largest)
        v = tl.permute(tl.load(values + (slots + start) * SIZE + value_at), (1, 0, 2))
        total = total * fade[:, None, :] + whole(tl.dot(v, weight), QUERIES)
    return _joined(peak, weights, total * (largest * (1 / STEPS))[:, None, :])


@triton.jit
def in_two_bytes(q, step, WARPS: tl.constexpr):
    """Round columns, each of which stands there twice, to steps: int8 [WARPS, …], one the high bytes, one the low."""
    number = (q.to(tl.float32) * (1 / step)[None, :] + _SHIFT).to(tl.int32, bitcast=True)
    is_high = (tl.arange(0, q.shape[1]) % 2 == 0)[None, :]
    q = tl.where(is_high, (number + 128) >> 8, number).to(tl.int8)
    return tl.broadcast_to(q[None], (WARPS, q.shape[0], q.shape[1]))


@triton.jit
def shares(scores, scale_at, peak, weights, largest):
    """Weigh values by scores [WARPS, PART, QUERIES] in the order of the product. scale_at: where their scales are.

    Returns the new peak, weights and largest, what the total has to be multiplied by, and weights of two bytes.
    """
    higher = tl.maximum(peak, tl.max(scores, 1))
    fade = tl.exp2(peak - higher)
    weight = tl.exp2(scores - higher[:, None, :])
    weights = weights * fade[:, None, :] + weight
    # Scales of values go with the weights. The total is in steps of the largest of these so far.
    weight *= tl.load(scale_at)[:, :, None]
    fade *= largest
    largest = tl.maximum(tl.maximum(fade, tl.max(weight, 1)), SMALLEST)
    steps = STEPS / largest
    fade *= steps * (1 / STEPS)
    bits = (weight * steps[:, None, :] + _SHIFT).to(tl.int32, bitcast=True)
    return higher, weights, largest, fade, _in_order(_two_bytes(bits), 4)


@triton.jit
def dealt_weights(peak, weights, WARPS: tl.constexpr, PART: tl.constexpr):
    """Give the first warp what was found already, the others nothing."""
    warp, place = tl.arange(0, WARPS), tl.arange(0, PART)
    peak = tl.where((warp == 0)[:, None], peak[None, :], LOWEST)
    is_first = (warp[:, None] == 0) & (place[None, :] == 0)
    return peak, tl.where(is_first[:, :, None], weights[None, None, :], 0.0)


@triton.jit
def dealt(total, WARPS: tl.constexpr):
    """Do the same with a total."""
    return tl.where((tl.arange(0, WARPS) == 0)[:, None, None], total[None], 0.0)


@triton.jit
def _joined(peak, weights, total):
    """Join what the warps found, in their order: [WARPS, QUERIES], [WARPS, PART, QUERIES], [WARPS, SIZE, QUERIES]."""
    top, weights, share = heights(peak, weights)
    return top, weights, tl.sum(total * share[:, None, :], 0)


@triton.jit
def heights(peak, weights):
    """Find the highest peak, the sums of weights from there, and each warp's share of sums [WARPS, QUERIES]."""
    top, weights = tl.reduce((peak, tl.sum(weights, 1)), 0, _higher)
    return top, weights, tl.exp2(peak - top[None, :])


@triton.jit
def _higher(peak, weights, other_peak, other_weights):
    top = tl.maximum(peak, other_peak)
    return top, weights * tl.exp2(peak - top) + other_weights * tl.exp2(other_peak - top)


@triton.jit
def order(place, RUN: tl.constexpr):
    """Say which key of a warp's part stands at a place of the product with the queries.

    Tensor cores leave the scores of every eighth row to the same thread, and want the weights of RUN keys that
    follow each other from it. With the keys in this order few numbers need to go from thread to thread.
    """
    group, turn, lane = place // (8 * RUN), place // 8 % RUN, place % 8
    return group * 8 * RUN + (lane % 2) * 4 * RUN + lane // 2 * RUN + turn


@triton.jit
def _in_order(weight, RUN: tl.constexpr):
    """Put [WARPS, PART, columns] in the order of the keys again."""
    WARPS: tl.constexpr = weight.shape[0]
    PART: tl.constexpr = weight.shape[1]
    COLUMNS: tl.constexpr = weight.shape[2]
    weight = tl.reshape(weight, (WARPS, PART // (8 * RUN), RUN, 4, 2, COLUMNS))
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
def whole(sums, QUERIES: tl.constexpr):
    """Add up sums [WARPS, n, 2 * QUERIES] of high and of low bytes."""
    high, low = tl.split(tl.reshape(sums, (sums.shape[0], sums.shape[1], QUERIES, 2)))
    return (high * 256 + low).to(tl.float32)
