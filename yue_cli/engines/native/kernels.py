"""Triton kernels for a step of a few rows: norms and products.

Sums are always taken in the same order, so that equal ids give equal bits. `products.py` launches them, and
`fused.py` attention (`attention_kernels.py`); each has its twin in PyTorch's operations in `model.py`, `cache.py`,
`quantized.py` and `attention.py`.
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
    _begin(CHAINED)
    place = tl.program_id(0) * INS
    column = tl.arange(0, COLUMNS)
    is_column = column < INS
    values = tl.load(x + place + column, mask=is_column, other=0.0).to(tl.float32)
    values *= 1 / tl.sqrt(tl.sum(values * values, 0) / INS + epsilon)
    scale = tl.load(norm + column, mask=is_column, other=0.0).to(tl.float32)
    tl.store(y + place + column, narrow(values * scale, y.dtype.element_ty), mask=is_column)


@triton.jit
def narrow(values, KIND: tl.constexpr):
    """Round float32 to KIND; what float16 cannot hold becomes the largest that it can."""
    if tl.float16 == KIND:
        values = tl.minimum(tl.maximum(values, -65504.0), 65504.0)
    return values.to(KIND)


@triton.jit
def product(
    x,  # [rows, INS]
    weight,  # [outs, INS]; BITS 8: int8, 4: uint8 [outs, INS / 2]; GATED: gates, then as many others
    facts,  # BITS 8: float32 [outs], scales; 4: int32 [INS / GROUP, facts_stride], see Int4Weight.facts
    facts_stride,
    y,  # [rows, outs]
    squares,  # float32 [PARTS, rows]; read if there are parts
    epsilon,
    norm,  # [outs]; this and the next two are used if PREPARED
    scaled,  # [rows, outs]
    new_squares,  # float32 [programs, rows]
    rows,
    outs,
    INS: tl.constexpr,
    ROWS: tl.constexpr,  # rows, rounded up to what tensor cores take
    BLOCK_OUT: tl.constexpr,  # divides outs
    BLOCK_IN: tl.constexpr,  # divides INS; fewer BITS than 16: some groups
    GROUP: tl.constexpr,  # columns; BITS 4: those that share a scale and a zero
    BITS: tl.constexpr,  # of a weight
    PARTS: tl.constexpr,  # of the sums of squares, by whose mean rows are normalized: RMSNorm; 0: they are not
    GATED: tl.constexpr,  # y is silu(gate) * other: SwiGLU
    ADD: tl.constexpr,  # to what y holds
    PREPARED: tl.constexpr,  # y is to be normalized next: scale it by that norm's weights, and sum its squares
    AHEAD: tl.constexpr,  # bytes of each row of the weight that are asked for before x is there
    CHAINED: tl.constexpr,
):
    """Compute y = x @ weight.T for BLOCK_OUT columns, all rows.

    The weights are the left operand: they fill the long side of the tensor cores' tiles, the few rows the short one.
    """
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    _begin_product(weight, outs, BLOCK_OUT, INS // 2 if BITS == 4 else INS, AHEAD, GATED, CHAINED)
    row = tl.arange(0, ROWS)
    is_row = row < rows
    place = row[None, :] * outs + out[:, None]
    # What is needed at the end is asked for now.
    if ADD:
        before = tl.load(y + place, mask=is_row[None, :], other=0.0)
    if PARTS > 0:
        part = tl.arange(0, triton.next_power_of_2(PARTS))
        is_part = (part < PARTS)[:, None] & is_row[None, :]
        parts = tl.load(squares + part[:, None] * rows + row[None, :], mask=is_part, other=0.0)
    if PREPARED:
        scale = tl.load(norm + out)
    if BITS == 16:
        total, other = _blocks(x, weight, rows, outs, INS, ROWS, BLOCK_OUT, BLOCK_IN, GATED)
    else:
        total, other = _groups(
            x, weight, facts, facts_stride, rows, outs, INS, ROWS, BLOCK_OUT, BLOCK_IN, GROUP, BITS, GATED
        )
    if PARTS > 0:
        factor = (1 / tl.sqrt(tl.sum(parts, 0) / INS + epsilon))[None, :]
        total *= factor
        other *= factor
    if GATED:
        total = total / (1 + tl.exp(-total)) * other
    if ADD:
        total += before.to(tl.float32)
    answer = narrow(total, y.dtype.element_ty)
    tl.store(y + place, answer, mask=is_row[None, :])
    if PREPARED:
        wide = answer.to(tl.float32)
        next_input = wide * scale.to(tl.float32)[:, None]
        tl.store(scaled + place, narrow(next_input, scaled.dtype.element_ty), mask=is_row[None, :])
        tl.store(new_squares + tl.program_id(0) * rows + row, tl.sum(wide * wide, 0), mask=is_row)


@triton.jit
def _blocks(
    x,
    weight,
    rows,
    outs,
    INS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    GATED: tl.constexpr,
):
    """Multiply a block of columns after the other; GATED: with the others as well. float32 [BLOCK_OUT, ROWS], twice."""
    row, inner = tl.arange(0, ROWS), tl.arange(0, BLOCK_IN)
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    weights = weight + out[:, None] * INS + inner[None, :]
    inputs = x + row[None, :] * INS + inner[:, None]
    total = tl.zeros((BLOCK_OUT, ROWS), tl.float32)
    other = tl.zeros((BLOCK_OUT, ROWS), tl.float32)
    for start in range(0, INS, BLOCK_IN):
        tile = tl.load(weights + start, eviction_policy="evict_first")
        columns = tl.load(inputs + start, mask=(row < rows)[None, :], other=0.0)
        total = tl.dot(tile, columns, total, input_precision="ieee")
        if GATED:
            tile = tl.load(weights + outs * INS + start, eviction_policy="evict_first")
            other = tl.dot(tile, columns, other, input_precision="ieee")
    return total, other


@triton.jit
def _groups(
    x,
    weight,
    facts,
    facts_stride,
    rows,
    outs,
    INS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    GATED: tl.constexpr,
):
    """Do the same with a quantized weight. Each warp has a group of columns of its own; they are added up at the end.

    GATED: the others are more lines of one tile.
    """
    WIDE: tl.constexpr = 2 * BLOCK_OUT if GATED else BLOCK_OUT
    KIND: tl.constexpr = x.dtype.element_ty
    BYTES: tl.constexpr = GROUP * BITS // 8  # of a group of a line
    STEP: tl.constexpr = BLOCK_IN // GROUP
    step, place, row = tl.arange(0, STEP), tl.arange(0, BYTES), tl.arange(0, ROWS)
    side = tl.arange(0, WIDE)
    line = tl.program_id(0) * BLOCK_OUT + side % BLOCK_OUT + tl.where(side < BLOCK_OUT, 0, outs)
    weights = weight + line[None, :, None] * (INS * BITS // 8) + place[None, None, :]
    inputs = x + row[None, None, :] * INS + place[None, :, None]
    sums = tl.zeros((STEP, WIDE, ROWS), tl.float32)
    if BITS == 4:  # scales and zeros are asked for a step before they are needed
        places = facts + step[:, None, None] * facts_stride + line[None, :, None]
        both = tl.load(places, mask=(step < INS // GROUP)[:, None, None], other=0)
    for start in range(0, INS // GROUP, STEP):
        group = start + step
        is_group = (group < INS // GROUP)[:, None, None]
        is_input = is_group & (row < rows)[None, None, :]
        group = group[:, None, None]
        tile = tl.load(weights + group * BYTES, mask=is_group, other=0, eviction_policy="evict_first")
        first = tl.load(inputs + group * GROUP, mask=is_input, other=0.0)
        if BITS == 8:
            sums = tl.dot(_whole_numbers(tile, KIND), first, sums, input_precision="ieee")
        else:
            # The sum of (level * scale + zero) * x is scale * sum(level * x) + zero * sum(x).
            is_next = group + STEP < INS // GROUP
            following = tl.load(places + (start + STEP) * facts_stride, mask=is_next, other=0)
            second = tl.load(inputs + group * GROUP + BYTES, mask=is_input, other=0.0)
            low, high = _levels(tile, KIND)
            products = tl.dot(high, second, tl.dot(low, first, input_precision="ieee"), input_precision="ieee")
            ones = _ones(tile, KIND)
            plain = tl.dot(ones, second, tl.dot(ones, first, input_precision="ieee"), input_precision="ieee")
            scales, zeros = both << 16, both & -65536  # as a float32 would begin with them
            sums += scales.to(tl.float32, bitcast=True) * products + zeros.to(tl.float32, bitcast=True) * plain
            both = following
    total = tl.sum(sums, 0)
    if BITS == 8:
        total *= tl.load(facts + line)[:, None]
    other = total
    if GATED:
        sides = tl.reshape(total, (2, BLOCK_OUT, ROWS))
        is_gate = (tl.arange(0, 2) == 0)[:, None, None]
        total, other = tl.sum(tl.where(is_gate, sides, 0.0), 0), tl.sum(tl.where(is_gate, 0.0, sides), 0)
    return total, other


@triton.jit
def _whole_numbers(byte, KIND: tl.constexpr):
    """Turn int8 into KIND."""
    if tl.float16 == KIND and ASSEMBLY:
        # Four at once: 128 more than the number, behind the exponent of 1024, is 1024 + 128 + the number.
        return tl.inline_asm_elementwise(
            "{ .reg .b32 more, off; mov.b32 off, 0x64806480; xor.b32 more, $2, 0x80808080;"
            " prmt.b32 $0, more, 0x64646464, 0x4140; prmt.b32 $1, more, 0x64646464, 0x4342;"
            " sub.f16x2 $0, $0, off; sub.f16x2 $1, $1, off; }",
            "=&r,=&r,r",
            [byte],
            tl.float16,
            is_pure=True,
            pack=4,
        )
    return byte.to(KIND)


@triton.jit
def _levels(pairs, KIND: tl.constexpr):
    """Turn the low and the high four bits of bytes into KIND."""
    if tl.float16 == KIND and ASSEMBLY:
        # Four bytes at once. A level behind the exponent of 1024 is 1024 + level; four bits up, 1024 + 16 * level.
        return tl.inline_asm_elementwise(
            "{ .reg .b32 first, second, minus, share, off;"
            " prmt.b32 first, $4, 0, 0x4140; prmt.b32 second, $4, 0, 0x4342;"
            " mov.b32 minus, 0xe400e400; mov.b32 share, 0x2c002c00; mov.b32 off, 0xd400d400;"
            " lop3.b32 $0, first, 0x000f000f, 0x64006400, 0xea; lop3.b32 $1, second, 0x000f000f, 0x64006400, 0xea;"
            " lop3.b32 $2, first, 0x00f000f0, 0x64006400, 0xea; lop3.b32 $3, second, 0x00f000f0, 0x64006400, 0xea;"
            " add.f16x2 $0, $0, minus; add.f16x2 $1, $1, minus;"
            " fma.rn.f16x2 $2, $2, share, off; fma.rn.f16x2 $3, $3, share, off; }",
            "=&r,=&r,=&r,=&r,r",
            [pairs],
            (tl.float16, tl.float16),
            is_pure=True,
            pack=4,
        )
    return (pairs & 15).to(KIND), (pairs >> 4).to(KIND)


@triton.jit
def _ones(pairs, KIND: tl.constexpr):
    """Make as many ones, which tensor cores take in the same order as levels."""
    if tl.float16 == KIND and ASSEMBLY:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, 0x3c003c00; mov.b32 $1, 0x3c003c00;", "=r,=r,r", [pairs], tl.float16, is_pure=True, pack=4
        )
    return tl.full(pairs.shape, 1.0, KIND)


@triton.jit
def _begin(CHAINED: tl.constexpr):
    """CHAINED: let the next kernel begin, then wait until all that the one before wrote is there."""
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _begin_product(
    weight,
    outs,
    BLOCK_OUT: tl.constexpr,
    SIZE: tl.constexpr,  # elements of a row
    AHEAD: tl.constexpr,  # bytes of it
    GATED: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """CHAINED: begin, but bring weights, which nobody writes, into the GPU's cache while the kernel before works."""
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        first = weight + tl.program_id(0).to(tl.int64) * BLOCK_OUT * SIZE
        pitch: tl.constexpr = SIZE * weight.dtype.element_ty.primitive_bitwidth // 8
        fetch(first, BLOCK_OUT, pitch, AHEAD)
        if GATED:
            fetch(first + outs.to(tl.int64) * SIZE, BLOCK_OUT, pitch, AHEAD)
        tl.extra.cuda.gdc_wait()


@triton.jit
def fetch(first, count, pitch, size):
    """Bring the first `size` bytes, whole sixteens, of each of some rows, `pitch` bytes apart, into the GPU's cache.

    A thread for each row: there are no more rows than threads.
    """
    tl.inline_asm_elementwise(
        "{ .reg .pred is_row; .reg .b32 thread; .reg .b64 place; mov.u32 thread, %tid.x;"
        " setp.lt.u32 is_row, thread, $2; mad.wide.u32 place, thread, $3, $1;"
        " @is_row cp.async.bulk.prefetch.L2.global [place], $4; mov.b32 $0, 0; }",
        "=r,l,r,r,r",
        [first.to(tl.int64), count, pitch, size],
        tl.int32,
        is_pure=False,
        pack=1,
    )


# With TRITON_INTERPRET=1 in the environment kernels run on a CPU: slow, to be checked.
INTERPRETED = type(product).__name__ == "InterpretedFunction"
ASSEMBLY = tl.constexpr(not INTERPRETED)
