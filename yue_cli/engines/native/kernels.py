"""Triton kernels for a step of a few rows: norms and products.

Sums are always taken in the same order, so that equal ids give equal bits. `products.py` launches them and those of
`few_kernels.py`, `fused.py` those of attention. Each has its twin in PyTorch's operations in `model.py`, `cache.py`,
`packing.py`, `quantized.py` and `attention.py`.
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
    shares,  # float32 [programs in a row, outs, ROWS]; this and the next are used if SHARE < INS
    arrived,  # int32 [programs]: shares that are there; zeros before and after
    rows,
    outs,
    INS: tl.constexpr,
    ROWS: tl.constexpr,  # rows, rounded up to what tensor cores take
    BLOCK_OUT: tl.constexpr,
    TAKEN: tl.constexpr,  # columns of y that a program takes, the last one perhaps fewer; if BLOCK_OUT, it divides outs
    BLOCK_IN: tl.constexpr,  # fewer BITS than 16: some groups
    GROUP: tl.constexpr,  # columns; BITS 4: those that share a scale and a zero
    BITS: tl.constexpr,  # of a weight
    STAGES: tl.constexpr,  # fewer BITS than 16: loads under way
    PARTS: tl.constexpr,  # of the sums of squares, by whose mean rows are normalized: RMSNorm; 0: they are not
    GATED: tl.constexpr,  # y is silu(gate) * other: SwiGLU
    ADD: tl.constexpr,  # to what y holds
    PREPARED: tl.constexpr,  # y is to be normalized next: scale it by that norm's weights, and sum its squares
    SHARE: tl.constexpr,  # columns of x that a program takes, some blocks; all of them if GATED or fewer BITS than 16
    AHEAD: tl.constexpr,  # bytes of each row of the weight that are asked for before x is there
    CHAINED: tl.constexpr,
):
    """Compute y = x @ weight.T for some columns, all rows; several programs may share the columns of x.

    The weights are the left operand: they fill the long side of the tensor cores' tiles, the few rows the short one.
    """
    tl.static_assert(SHARE == INS or TAKEN == BLOCK_OUT)
    place_out = tl.arange(0, BLOCK_OUT)
    out = tl.program_id(0) * TAKEN + place_out
    begin = tl.program_id(1) * SHARE
    _begin_product(weight + begin, outs, TAKEN, INS // 2 if BITS == 4 else INS, AHEAD, GATED, CHAINED)
    row = tl.arange(0, ROWS)
    is_row = row < rows
    is_out = _is_taken(out, place_out, outs, TAKEN == BLOCK_OUT, TAKEN)
    place = row[None, :] * outs + out[:, None]
    is_answer = is_row[None, :] & is_out[:, None]
    # What is needed at the end is asked for now.
    if ADD:
        before = tl.load(y + place, mask=is_answer, other=0.0)
    if PARTS > 0:
        part = tl.arange(0, triton.next_power_of_2(PARTS))
        is_part = (part < PARTS)[:, None] & is_row[None, :]
        parts = tl.load(squares + part[:, None] * rows + row[None, :], mask=is_part, other=0.0)
    if PREPARED:
        scale = tl.load(norm + out, mask=is_out, other=0.0)
    if BITS == 16:
        stop = tl.minimum(begin + SHARE, INS)
        total, other = _blocks(x, weight, begin, stop, rows, outs, INS, ROWS, BLOCK_OUT, TAKEN, BLOCK_IN, GATED)
    else:
        total, other = _groups(
            x, weight, facts, facts_stride, rows, outs, INS, ROWS, BLOCK_OUT, TAKEN, BLOCK_IN, GROUP, BITS, STAGES,
            GATED,
        )  # fmt: skip
    if SHARE < INS:
        # Whoever is last adds up all shares, in their order. What others wrote is not in its own cache.
        SHARES: tl.constexpr = (INS + SHARE - 1) // SHARE
        share = shares + out[:, None] * ROWS + row[None, :]
        tl.store(share + tl.program_id(1) * outs * ROWS, total)
        tl.debug_barrier()
        if tl.atomic_add(arrived + tl.program_id(0), 1, sem="acq_rel") < SHARES - 1:
            return
        tl.store(arrived + tl.program_id(0), 0)
        total = tl.load(share, cache_modifier=".cg")
        for number in tl.static_range(1, SHARES):
            total += tl.load(share + number * outs * ROWS, cache_modifier=".cg")
    if PARTS > 0:
        factor = (1 / tl.sqrt(tl.sum(parts, 0) / INS + epsilon))[None, :]
        total *= factor
        other *= factor
    if GATED:
        total = total / (1 + tl.exp(-total)) * other
    if ADD:
        total += before.to(tl.float32)
    answer = narrow(total, y.dtype.element_ty)
    tl.store(y + place, answer, mask=is_answer)
    if PREPARED:
        wide = answer.to(tl.float32)
        next_input = wide * scale.to(tl.float32)[:, None]
        tl.store(scaled + place, narrow(next_input, scaled.dtype.element_ty), mask=is_answer)
        tl.store(new_squares + tl.program_id(0) * rows + row, tl.sum(wide * wide, 0), mask=is_row)


@triton.jit
def _is_taken(out, place, outs, TAKES_ALL: tl.constexpr, TAKEN: tl.constexpr):
    """Tell which columns of y are taken by the program that has room for them, at these places; TAKES_ALL: all are."""
    if TAKES_ALL:
        return tl.full(place.shape, True, tl.int1)
    return (out < outs) & (place < TAKEN)


@triton.jit
def _blocks(
    x,
    weight,
    begin,
    stop,
    rows,
    outs,
    INS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    TAKEN: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    GATED: tl.constexpr,
):
    """Multiply a block of columns after the other, from `begin` to `stop`; GATED: with the others as well.

    Returns float32 [BLOCK_OUT, ROWS], twice.
    """
    row, inner = tl.arange(0, ROWS), tl.arange(0, BLOCK_IN)
    place_out = tl.arange(0, BLOCK_OUT)
    out = tl.program_id(0) * TAKEN + place_out
    weights = weight + out[:, None] * INS + inner[None, :]
    inputs = x + row[None, :] * INS + inner[:, None]
    total = tl.zeros((BLOCK_OUT, ROWS), tl.float32)
    other = tl.zeros((BLOCK_OUT, ROWS), tl.float32)
    is_row = (row < rows)[None, :]
    is_out = _is_taken(out, place_out, outs, TAKEN == BLOCK_OUT, TAKEN)[:, None]
    WHOLE: tl.constexpr = INS % BLOCK_IN == 0
    for start in range(begin, stop, BLOCK_IN):
        is_weight = is_out if WHOLE else is_out & (start + inner < INS)[None, :]
        is_input = is_row if WHOLE else is_row & (start + inner < INS)[:, None]
        tile = _load_weights(weights + start, is_weight, WHOLE and TAKEN == BLOCK_OUT)
        columns = tl.load(inputs + start, mask=is_input, other=0.0)
        total = tl.dot(tile, columns, total, input_precision="ieee")
        if GATED:
            tile = _load_weights(weights + outs * INS + start, is_weight, WHOLE and TAKEN == BLOCK_OUT)
            other = tl.dot(tile, columns, other, input_precision="ieee")
    return total, other


@triton.jit
def _load_weights(places, is_there, ALL_THERE: tl.constexpr):
    """Load weights, which are read once."""
    if ALL_THERE:
        return tl.load(places, eviction_policy="evict_first")
    return tl.load(places, mask=is_there, other=0.0, eviction_policy="evict_first")


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
    TAKEN: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    STAGES: tl.constexpr,
    GATED: tl.constexpr,
):
    """Do the same with a quantized weight. Each warp has a group of columns of its own; they are added up at the end.

    GATED: the others are more lines of one tile.
    """
    WIDE: tl.constexpr = 2 * BLOCK_OUT if GATED else BLOCK_OUT
    KIND: tl.constexpr = x.dtype.element_ty
    RAISED: tl.constexpr = 1024 if tl.float16 == KIND else 0  # see _levels
    STEP: tl.constexpr = BLOCK_IN // GROUP
    WORD: tl.constexpr = 8 if BITS == 8 else 16  # bits that are loaded as one number
    WORDS: tl.constexpr = GROUP * BITS // WORD  # of a group of a line
    step, place, row = tl.arange(0, STEP), tl.arange(0, WORDS), tl.arange(0, ROWS)
    side = tl.arange(0, WIDE)
    out = tl.program_id(0) * TAKEN + side % BLOCK_OUT
    is_line = _is_taken(out, side % BLOCK_OUT, outs, TAKEN == BLOCK_OUT, TAKEN)
    line = out + tl.where(side < BLOCK_OUT, 0, outs)
    words = weight if BITS == 8 else weight.to(tl.pointer_type(tl.uint16))
    weights = words + line[None, :, None] * (INS * BITS // WORD) + place[None, None, :]
    inputs = x + row[None, None, :] * INS + place[None, :, None]
    sums = tl.zeros((STEP, WIDE, ROWS), tl.float32)
    for start in tl.range(0, INS // GROUP, STEP, num_stages=STAGES):
        group = (start + step)[:, None, None]
        is_group = group < INS // GROUP
        is_input = is_group & (row < rows)[None, None, :]
        is_weight = is_group if TAKEN == BLOCK_OUT else is_group & is_line[None, :, None]
        tile = tl.load(weights + group * WORDS, mask=is_weight, other=0, eviction_policy="evict_first")
        first = tl.load(inputs + group * GROUP, mask=is_input, other=0.0)
        if BITS == 8:
            sums = tl.dot(_whole_numbers(tile, KIND), first, sums, input_precision="ieee")
        else:
            # The sum of (level * scale + zero) * x is scale * sum(level * x) + zero * sum(x).
            both = tl.load(facts + group * facts_stride + line[None, :, None], mask=is_weight, other=0)
            scales, zeros = both << 16, both & -65536  # as a float32 would begin with them
            one, two, three, four = _levels(tile, KIND, RAISED)
            ones = _ones(tile, KIND)
            second = tl.load(inputs + group * GROUP + WORDS, mask=is_input, other=0.0)
            third = tl.load(inputs + group * GROUP + 2 * WORDS, mask=is_input, other=0.0)
            fourth = tl.load(inputs + group * GROUP + 3 * WORDS, mask=is_input, other=0.0)
            low = tl.dot(three, third, tl.dot(one, first, input_precision="ieee"), input_precision="ieee")
            high = tl.dot(four, fourth, tl.dot(two, second, input_precision="ieee"), input_precision="ieee")
            low_plain = tl.dot(ones, third, tl.dot(ones, first, input_precision="ieee"), input_precision="ieee")
            high_plain = tl.dot(ones, fourth, tl.dot(ones, second, input_precision="ieee"), input_precision="ieee")
            products = low - RAISED * low_plain + (high - RAISED * high_plain) * (1 / 16)
            plain = low_plain + high_plain
            sums += scales.to(tl.float32, bitcast=True) * products + zeros.to(tl.float32, bitcast=True) * plain
    total = tl.sum(sums, 0)
    if BITS == 8:
        total *= tl.load(facts + line, mask=is_line, other=0.0)[:, None]
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
def _levels(words, KIND: tl.constexpr, RAISED: tl.constexpr):
    """Take the four levels of words of 16 bits apart: RAISED + level, RAISED + 16 * level, and the same once more.

    Float16 takes them where they stand in a byte, behind the exponent of 1024.
    """
    if tl.float16 == KIND and ASSEMBLY:  # two words at once
        return tl.inline_asm_elementwise(
            "{ .reg .b32 up; shr.b32 up, $4, 8;"
            " lop3.b32 $0, $4, 0x000f000f, 0x64006400, 0xea; lop3.b32 $1, $4, 0x00f000f0, 0x64006400, 0xea;"
            " lop3.b32 $2, up, 0x000f000f, 0x64006400, 0xea; lop3.b32 $3, up, 0x00f000f0, 0x64006400, 0xea; }",
            "=&r,=&r,=&r,=&r,r",
            [words],
            (tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    up = words >> 8
    return (
        (words & 15).to(KIND) + RAISED,
        (words & 240).to(KIND) + RAISED,
        (up & 15).to(KIND) + RAISED,
        (up & 240).to(KIND) + RAISED,
    )


@triton.jit
def _ones(words, KIND: tl.constexpr):
    """Make as many ones, which tensor cores take in the same order as levels."""
    if tl.float16 == KIND and ASSEMBLY:
        return tl.inline_asm_elementwise("mov.b32 $0, 0x3c003c00;", "=r,r", [words], tl.float16, is_pure=True, pack=2)
    return tl.full(words.shape, 1.0, KIND)


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
    TAKEN: tl.constexpr,
    SIZE: tl.constexpr,  # elements of a row
    AHEAD: tl.constexpr,  # bytes of it
    GATED: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """CHAINED: begin, but bring weights, which nobody writes, into the GPU's cache while the kernel before works."""
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        first = tl.program_id(0) * TAKEN
        count = tl.minimum(outs - first, TAKEN)
        first = weight + first.to(tl.int64) * SIZE
        pitch: tl.constexpr = SIZE * weight.dtype.element_ty.primitive_bitwidth // 8
        _fetch(first, count, pitch, AHEAD)
        if GATED:
            _fetch(first + outs.to(tl.int64) * SIZE, count, pitch, AHEAD)
        tl.extra.cuda.gdc_wait()


@triton.jit
def _fetch(first, count, pitch: tl.constexpr, size: tl.constexpr):
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


TRITON = tuple(int(number) for number in triton.__version__.split(".")[:2])
# With TRITON_INTERPRET=1 in the environment kernels run on a CPU: slow, to be checked.
INTERPRETED = type(product).__name__ == "InterpretedFunction"
ASSEMBLY = tl.constexpr(not INTERPRETED)
