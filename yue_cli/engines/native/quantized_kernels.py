"""Triton kernels for products with 8-bit and 4-bit weights, by whole numbers alone.

Turning every weight into a floating-point number costs more than reading it. Here the activations, which are few,
become whole numbers of 16 bits, with a scale for each group of columns: a high and a low byte, which take two columns
of the tensor cores' tile instead of one. Products of bytes are exact, and the weights are used as they are read.
"""

import triton
import triton.language as tl


@triton.jit
def to_fixed(
    x,  # [rows, INS]
    norm,  # [INS]; read if NORM
    bytes_,  # int8 [2, rows, INS]: high, low
    scales,  # float32 [rows, INS / GROUP]
    sums,  # float32 [rows, INS / GROUP]: of what the bytes of a group stand for
    rows,
    epsilon,
    INS: tl.constexpr,
    GROUPS: tl.constexpr,  # INS / GROUP, rounded up to a power of two
    GROUP: tl.constexpr,
    NORM: tl.constexpr,  # x is normalized first: RMSNorm
):
    """Turn a row into numbers of 16 bits: x = (256 * high + low) * scale."""
    row = tl.program_id(0)
    group = tl.arange(0, GROUPS)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    is_column = column < INS
    values = tl.load(x + row * INS + column, mask=is_column, other=0.0).to(tl.float32)
    if NORM:
        mean = tl.sum(tl.sum(values * values, 1), 0) / INS
        values *= 1 / tl.sqrt(mean + epsilon)
        values *= tl.load(norm + column, mask=is_column, other=0.0).to(tl.float32)
    scale = tl.max(tl.abs(values), 1) / 32512  # 127 * 256: the high byte reaches equally far on both sides
    steps = tl.floor(values / tl.where(scale > 0, scale, 1.0)[:, None] + 0.5)
    high = tl.floor((steps + 128) / 256)
    low = steps - 256 * high
    place = bytes_ + row * INS + column
    tl.store(place, high.to(tl.int8), mask=is_column)
    tl.store(place + rows * INS, low.to(tl.int8), mask=is_column)
    is_group = group < INS // GROUP
    tl.store(scales + row * (INS // GROUP) + group, scale, mask=is_group)
    tl.store(sums + row * (INS // GROUP) + group, tl.sum(steps, 1) * scale, mask=is_group)


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
    GROUP: tl.constexpr,  # columns that share a scale
    FOUR_BIT: tl.constexpr,
    GATED: tl.constexpr,  # y is silu(gate) * other: SwiGLU
    ADD: tl.constexpr,  # to what y holds
):
    """Compute y = x @ weight.T for BLOCK_OUT columns, all rows."""
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    matrix = outs * (2 if GATED else 1)
    total = _sums_of_products(
        bytes_,
        scales,
        sums,
        weight,
        weight_scales,
        weight_zeros,
        out,
        rows,
        matrix,
        INS,
        ROWS,
        BLOCK_OUT,
        GROUP,
        FOUR_BIT,
    )
    if GATED:
        others = _sums_of_products(
            bytes_,
            scales,
            sums,
            weight,
            weight_scales,
            weight_zeros,
            out + outs,
            rows,
            matrix,
            INS,
            ROWS,
            BLOCK_OUT,
            GROUP,
            FOUR_BIT,
        )
        total = total / (1 + tl.exp(-total)) * others
    row = tl.arange(0, ROWS)
    is_row = row < rows
    place = y + row[None, :] * outs + out[:, None]
    if ADD:
        total += tl.load(place, mask=is_row[None, :], other=0.0).to(tl.float32)
    tl.store(place, total.to(y.dtype.element_ty), mask=is_row[None, :])


@triton.jit
def _sums_of_products(
    bytes_,
    scales,
    sums,
    weight,
    weight_scales,
    weight_zeros,
    out,  # [BLOCK_OUT]: rows of the matrix
    rows,
    matrix,  # rows that the whole matrix has
    INS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    GROUP: tl.constexpr,
    FOUR_BIT: tl.constexpr,
):
    """Multiply some rows of the matrix with all rows of x: float32 [BLOCK_OUT, ROWS]."""
    side = tl.arange(0, 2 * ROWS)  # high bytes of all rows, then low ones
    row = side % ROWS
    is_high = side < ROWS
    is_row = row < rows
    source = bytes_ + (tl.where(is_high, 0, rows) + row) * INS
    worth = tl.where(is_high, 256.0, 1.0)
    total = tl.zeros((BLOCK_OUT, 2 * ROWS), tl.float32)
    for group in range(INS // GROUP):
        place = row * (INS // GROUP) + group
        scale = tl.load(scales + place, mask=is_row, other=0.0) * worth
        if FOUR_BIT:
            half = tl.arange(0, GROUP // 2)
            pairs = tl.load(
                weight + out[:, None] * (INS // 2) + (group * (GROUP // 2) + half)[None, :],
                eviction_policy="evict_first",
            )
            first = source[None, :] + (group * GROUP + half)[:, None]
            part = tl.dot((pairs & 15).to(tl.int8), tl.load(first, mask=is_row[None, :], other=0), out_dtype=tl.int32)
            second = tl.load(first + GROUP // 2, mask=is_row[None, :], other=0)
            part = tl.dot((pairs >> 4).to(tl.int8), second, part, out_dtype=tl.int32)
            slope = tl.load(weight_scales + group * matrix + out).to(tl.float32)
            zero = tl.load(weight_zeros + group * matrix + out).to(tl.float32)
            offset = tl.load(sums + place, mask=is_row & is_high, other=0.0)
            total += part.to(tl.float32) * (slope[:, None] * scale[None, :]) + zero[:, None] * offset[None, :]
        else:
            inner = tl.arange(0, GROUP)
            tile = tl.load(
                weight + out[:, None] * INS + (group * GROUP + inner)[None, :], eviction_policy="evict_first"
            )
            columns = tl.load(source[None, :] + (group * GROUP + inner)[:, None], mask=is_row[None, :], other=0)
            total += tl.dot(tile, columns, out_dtype=tl.int32).to(tl.float32) * scale[None, :]
    if not FOUR_BIT:
        total *= tl.load(weight_scales + out)[:, None]
    return tl.sum(tl.reshape(total, (BLOCK_OUT, 2, ROWS)), 1)
