"""Triton kernels for products with 8-bit and 4-bit weights, by whole numbers alone.

Turning every weight into a floating-point number costs more than reading it. Here the activations, which are few,
become whole numbers of 16 bits, with a scale for each row: a high and a low byte, which take two columns of the tensor
cores' tile instead of one. Products of bytes are exact, and so are their sums in 32 bits; the weights are used as they
are read.
"""

import triton
import triton.language as tl

from yue_cli.engines.native.kernels import ASSEMBLY, begin, begin_product, fetch


@triton.jit
def to_fixed(
    x,  # [rows, INS]
    norm,  # [INS]; read if NORM
    bytes_,  # int8 [2, rows, INS]: high, low
    scales,  # float32 [rows]
    sums,  # float32 [rows, INS / GROUP]: of what the bytes of a group stand for
    rows,
    epsilon,
    INS: tl.constexpr,
    GROUPS: tl.constexpr,  # INS / GROUP, rounded up to a power of two
    GROUP: tl.constexpr,
    NORM: tl.constexpr,  # x is normalized first: RMSNorm
    CHAINED: tl.constexpr,
):
    """Turn a row into numbers of 16 bits: x = (256 * high + low) * scale."""
    begin(CHAINED)
    row = tl.program_id(0)
    group = tl.arange(0, GROUPS)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    is_column = column < INS
    values = tl.load(x + row * INS + column, mask=is_column, other=0.0).to(tl.float32)
    if NORM:
        mean = tl.sum(tl.sum(values * values, 1), 0) / INS
        values *= 1 / tl.sqrt(mean + epsilon)
        values *= tl.load(norm + column, mask=is_column, other=0.0).to(tl.float32)
    scale = tl.max(tl.max(tl.abs(values), 1), 0) / 32512  # 127 * 256: the high byte reaches equally far on both sides
    steps = tl.floor(values / tl.where(scale > 0, scale, 1.0) + 0.5)
    high = tl.floor((steps + 128) / 256)
    low = steps - 256 * high
    place = bytes_ + row * INS + column
    tl.store(place, high.to(tl.int8), mask=is_column)
    tl.store(place + rows * INS, low.to(tl.int8), mask=is_column)
    tl.store(scales + row, scale)
    tl.store(sums + row * (INS // GROUP) + group, tl.sum(steps, 1) * scale, mask=group < INS // GROUP)


@triton.jit
def fixed_product(
    bytes_,  # as `to_fixed` leaves them
    scales,
    sums,
    weight,  # int8 [outs, INS], or FOUR_BIT: uint8 [outs, INS / 2]; GATED: gates, then as many others
    weight_scales,  # float32 [outs], or FOUR_BIT: bfloat16 [INS / GROUP, outs]
    weight_zeros,  # FOUR_BIT: bfloat16 [INS / GROUP, outs]
    y,  # [rows, outs]
    rows,
    outs,
    INS: tl.constexpr,
    ROWS: tl.constexpr,  # rows, rounded up to half of what tensor cores take
    BLOCK_OUT: tl.constexpr,  # divides outs
    BLOCK_IN: tl.constexpr,  # divides INS; FOUR_BIT: some groups of GROUP columns that share a scale
    GROUP: tl.constexpr,
    FOUR_BIT: tl.constexpr,
    GATED: tl.constexpr,  # y is silu(gate) * other: SwiGLU
    ADD: tl.constexpr,  # to what y holds
    AHEAD: tl.constexpr,  # bytes of each row of the weight that are asked for before x is there
    CHAINED: tl.constexpr,
):
    """Compute y = x @ weight.T for BLOCK_OUT columns, all rows."""
    WIDE: tl.constexpr = 2 * BLOCK_OUT if GATED else BLOCK_OUT
    side = tl.arange(0, WIDE)
    line = tl.program_id(0) * BLOCK_OUT + side % BLOCK_OUT + tl.where(side < BLOCK_OUT, 0, outs)  # of the matrix
    if CHAINED and FOUR_BIT:
        _fetch_facts(weight_scales, weight_zeros, outs, INS // GROUP, BLOCK_OUT, GATED)
    begin_product(weight, line, outs, INS // 2 if FOUR_BIT else INS, AHEAD, False, CHAINED)
    out, row = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT), tl.arange(0, ROWS)
    is_row = row < rows
    place = y + row[None, :] * outs + out[:, None]
    if ADD:
        before = tl.load(place, mask=is_row[None, :], other=0.0).to(tl.float32)
    if FOUR_BIT:
        matrix = outs * (WIDE // BLOCK_OUT)  # lines that the whole matrix has
        total = _four_bits(
            bytes_, sums, scales, weight, weight_scales, weight_zeros, line, rows, matrix, INS, ROWS, WIDE, GROUP,
            BLOCK_IN // GROUP,
        )  # fmt: skip
    else:
        total = _eight_bits(bytes_, weight, weight_scales, line, rows, INS, ROWS, WIDE, BLOCK_IN)
        total *= tl.load(scales + row, mask=is_row, other=0.0)[None, :]
    if GATED:
        both = tl.reshape(total, (2, BLOCK_OUT, ROWS))
        is_gate = (tl.arange(0, 2) == 0)[:, None, None]
        gate = tl.sum(tl.where(is_gate, both, 0.0), 0)
        total = gate / (1 + tl.exp(-gate)) * tl.sum(tl.where(is_gate, 0.0, both), 0)
    if ADD:
        total += before
    tl.store(place, total.to(y.dtype.element_ty), mask=is_row[None, :])


@triton.jit
def _fetch_facts(weight_scales, weight_zeros, outs, ALL: tl.constexpr, BLOCK_OUT: tl.constexpr, GATED: tl.constexpr):
    """Bring the scales and zeros of all groups into the GPU's cache."""
    PARTS: tl.constexpr = 2 if GATED else 1
    group = tl.arange(0, 128)
    for part in tl.static_range(PARTS):
        for first in tl.static_range(0, ALL, 128):
            place = tl.minimum(first + group, ALL - 1) * outs * PARTS + part * outs + tl.program_id(0) * BLOCK_OUT
            fetch(weight_scales + place)
            fetch(weight_zeros + place)


@triton.jit
def _eight_bits(
    bytes_,
    weight,
    weight_scales,
    line,  # [BLOCK_OUT], of the matrix
    rows,
    INS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """Multiply some lines of the matrix with the bytes of all rows of x: float32 [BLOCK_OUT, ROWS]."""
    inner = tl.arange(0, BLOCK_IN)
    source, is_row = _bytes_of_rows(bytes_, rows, INS, ROWS)
    weights = weight + line[:, None] * INS + inner[None, :]
    total = tl.zeros((BLOCK_OUT, 2 * ROWS), tl.int32)
    for start in range(0, INS, BLOCK_IN):
        tile = tl.load(weights + start, eviction_policy="evict_first")
        columns = tl.load(source[None, :] + (start + inner)[:, None], mask=is_row[None, :], other=0)
        total = tl.dot(tile, columns, total, out_dtype=tl.int32)
    return _joined(total.to(tl.float32), ROWS, BLOCK_OUT) * tl.load(weight_scales + line)[:, None]


@triton.jit
def _four_bits(
    bytes_,
    sums,
    scales,
    weight,
    weight_scales,
    weight_zeros,
    line,  # [BLOCK_OUT], of the matrix
    rows,
    matrix,  # lines that the whole matrix has
    INS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,  # at once
):
    """Multiply some lines of the matrix with all rows of x: float32 [BLOCK_OUT, ROWS]."""
    ALL: tl.constexpr = INS // GROUP
    step, half, row = tl.arange(0, GROUPS), tl.arange(0, GROUP // 2), tl.arange(0, ROWS)
    source, is_row = _bytes_of_rows(bytes_, rows, INS, ROWS)
    source, is_row = source[None, None, :], is_row[None, None, :]
    place = weight + line[None, :, None] * (INS // 2) + half[None, None, :]
    total = tl.zeros((GROUPS, BLOCK_OUT, 2 * ROWS), tl.float32)
    base = tl.zeros((GROUPS, BLOCK_OUT, ROWS), tl.float32)
    # What belongs to groups is asked for before the groups before them are done with.
    slope, zero, offset = _facts(sums, weight_scales, weight_zeros, line, row, rows, matrix, step, ALL)
    for start in range(0, ALL, GROUPS):
        group = (start + step)[:, None, None]
        pairs = place + group * (GROUP // 2)
        columns = source + group * GROUP + half[None, :, None]
        if ALL % GROUPS == 0:
            pairs = tl.load(pairs, eviction_policy="evict_first")
            first = tl.load(columns, mask=is_row, other=0)
            second = tl.load(columns + GROUP // 2, mask=is_row, other=0)
        else:
            is_group = group < ALL
            pairs = tl.load(pairs, mask=is_group, other=0, eviction_policy="evict_first")
            first = tl.load(columns, mask=is_row & is_group, other=0)
            second = tl.load(columns + GROUP // 2, mask=is_row & is_group, other=0)
        next_slope, next_zero, next_offset = _facts(
            sums, weight_scales, weight_zeros, line, row, rows, matrix, start + GROUPS + step, ALL
        )
        part = tl.dot(_low_halves(pairs), first, out_dtype=tl.int32)
        part = tl.dot(_high_halves(pairs), second, part, out_dtype=tl.int32)
        total += part.to(tl.float32) * slope.to(tl.float32)[:, :, None]
        base += zero.to(tl.float32)[:, :, None] * offset[:, None, :]
        slope, zero, offset = next_slope, next_zero, next_offset
    scale = tl.load(scales + row, mask=row < rows, other=0.0)[None, :]
    return tl.sum(base, 0) + _joined(tl.sum(total, 0), ROWS, BLOCK_OUT) * scale


@triton.jit
def _facts(sums, weight_scales, weight_zeros, line, row, rows, matrix, group, ALL: tl.constexpr):
    """Load scales and zeros of some groups [GROUPS, BLOCK_OUT], and sums of the activations [GROUPS, ROWS]."""
    is_group = (group < ALL)[:, None]
    place = group[:, None] * matrix + line[None, :]
    slope = tl.load(weight_scales + place, mask=is_group, other=0.0)
    zero = tl.load(weight_zeros + place, mask=is_group, other=0.0)
    is_sum = is_group & (row < rows)[None, :]
    offset = tl.load(sums + row[None, :] * ALL + group[:, None], mask=is_sum, other=0.0)
    return slope, zero, offset


@triton.jit
def _bytes_of_rows(bytes_, rows, INS: tl.constexpr, ROWS: tl.constexpr):
    """Find where the high bytes of all rows begin, then the low ones, [2 * ROWS], and whether there is such a row."""
    side = tl.arange(0, 2 * ROWS)
    row = side % ROWS
    return bytes_ + (tl.where(side < ROWS, 0, rows) + row) * INS, row < rows


@triton.jit
def _joined(total, ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr):
    """Add what high and low bytes gave: float32 [BLOCK_OUT, 2 * ROWS] to [BLOCK_OUT, ROWS]."""
    worth = tl.where(tl.arange(0, 2 * ROWS) < ROWS, 256.0, 1.0)
    return tl.sum(tl.reshape(total * worth[None, :], (BLOCK_OUT, 2, ROWS)), 1)


@triton.jit
def _low_halves(pairs):
    """Take the low four bits of each byte, int8: four bytes at once."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise("and.b32 $0, $1, 0x0f0f0f0f;", "=r,r", [pairs], tl.int8, is_pure=True, pack=4)
    return (pairs & 15).to(tl.int8)


@triton.jit
def _high_halves(pairs):
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 half; shr.b32 half, $1, 4; and.b32 $0, half, 0x0f0f0f0f; }",
            "=r,r",
            [pairs],
            tl.int8,
            is_pure=True,
            pack=4,
        )
    return (pairs >> 4).to(tl.int8)
