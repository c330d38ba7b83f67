"""A kernel for products of a row or two, as one song has them, with weights in 4 bits.

It computes what `kernels.product` does, but weights go from memory straight into the registers that tensor cores take
them from, and no warp waits for another before the end. For that every tensor's layout over threads is given, in
Gluon, the language below Triton's; it cannot be interpreted.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from yue_cli.engines.native import formats, tiles
from yue_cli.engines.native.gluon_parts import axes, let_next_begin, mma_layout, narrow, wait_for_all, wait_for_last

ROWS = gl.constexpr(tiles.FEW_ROWS)
COLUMNS = gl.constexpr(4 * tiles.FEW_ROWS)  # the rows of each quarter of a group's inputs: eight, as tensor cores take
GROUP = gl.constexpr(formats.GROUP)
QUARTER = gl.constexpr(formats.GROUP // 4)  # columns that tensor cores multiply at once, and words that hold a group


@gluon.jit
def product(
    x,  # float16 [rows, INS]
    weight,  # uint8 [outs, INS / 2]; GATED: gates, then as many others
    facts,  # int32 [GROUPS, facts_stride]: see Int4Weight.facts
    facts_stride,
    y,  # [rows, outs]
    squares,  # float32 [PARTS, rows]; read if there are parts
    epsilon,
    norm,  # [outs]; this and the next two are used if PREPARED
    scaled,  # [rows, outs]
    new_squares,  # float32 [programs, rows]
    rows,
    outs,
    INS: gl.constexpr,  # some groups
    BLOCK_OUT: gl.constexpr,  # divides outs
    WARPS: gl.constexpr,  # each has groups of its own
    STAGES: gl.constexpr,  # groups of a warp that are loaded ahead
    PADDED_GROUPS: gl.constexpr,  # a power of two: as many as WARPS take in whole steps, or more
    PARTS: gl.constexpr,  # of the sums of squares, by whose mean rows are normalized: RMSNorm; 0: they are not
    PADDED_PARTS: gl.constexpr,  # a power of two
    GATED: gl.constexpr,  # y is silu(gate) * other: SwiGLU
    ADD: gl.constexpr,  # to what y holds
    PREPARED: gl.constexpr,  # y is to be normalized next: scale it by that norm's weights, and sum its squares
    LATE: gl.constexpr,  # the next kernel begins when sums are there, not at once
    CHAINED: gl.constexpr,
):
    """Compute y = x @ weight.T for BLOCK_OUT columns and a row or two. With GATED a program has twice as many lines.

    A program has eight lines or more; tensor cores take sixteen, so that eight lines are laid out as two quarters each.
    """
    SIDES: gl.constexpr = 2 if GATED else 1
    LINES: gl.constexpr = SIDES * BLOCK_OUT
    GROUPS: gl.constexpr = INS // GROUP
    STEPS: gl.constexpr = (GROUPS + WARPS - 1) // WARPS
    answer_of: gl.constexpr = mma_layout(WARPS)
    left: gl.constexpr = gl.DotOperandLayout(0, answer_of, 8)
    right: gl.constexpr = gl.DotOperandLayout(1, answer_of, 8)
    words_of: gl.constexpr = _eight_lines(WARPS, QUARTER) if LINES == 8 else left
    sums_of: gl.constexpr = _eight_lines(WARPS, COLUMNS) if LINES == 8 else answer_of
    if CHAINED and not LATE:
        let_next_begin()

    # The first weights, with all scales and zeros, are on their way before the inputs are there.
    first = gl.program_id(0) * BLOCK_OUT
    facts_ahead = _load_facts(facts, facts_stride, first, outs, PADDED_GROUPS, BLOCK_OUT, LINES, GROUPS, WARPS)
    warp, side, place = axes(WARPS, LINES, QUARTER, words_of)
    words = weight.to(gl.pointer_type(gl.uint16)) + _line(first, side, outs, BLOCK_OUT) * (INS // 4)
    words += warp * QUARTER + place
    ahead = ()
    for step in gl.static_range(STAGES):
        ahead = ahead + (_load_words(words, warp, step, GROUPS, WARPS),)
    if CHAINED:
        wait_for_last()
    warp_in, place_in, column = axes(WARPS, QUARTER, COLUMNS, right)
    row = column % ROWS
    inputs = x + row * INS + warp_in * GROUP + (column // ROWS * QUARTER + place_in)
    inputs_ahead = ()
    for step in gl.static_range(STAGES):
        inputs_ahead = inputs_ahead + (_load_inputs(inputs, row < rows, warp_in, step, GROUPS, WARPS),)

    # What is needed at the end is asked for now. There, a thread has all that belongs to one number.
    by_number: gl.constexpr = gl.BlockedLayout([1, SIDES, 4 * WARPS], [32, 1, 1], [WARPS, 1, 1], [2, 1, 0])
    numbers: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, by_number))
    number = gl.arange(0, BLOCK_OUT * ROWS, layout=numbers)
    out, out_row = first + number // ROWS, number % ROWS
    answers, is_answer = y + out_row * outs + out, out_row < rows
    if ADD:
        before = gl.load(answers, mask=is_answer, other=0.0)
    if PREPARED:
        next_norm = gl.load(norm + out)
    if PARTS > 0:
        by_part: gl.constexpr = gl.BlockedLayout([1, ROWS], [32, 1], [WARPS, 1], [1, 0])
        part = gl.arange(0, PADDED_PARTS, layout=gl.SliceLayout(1, by_part))[:, None]
        part_row = gl.arange(0, ROWS, layout=gl.SliceLayout(0, by_part))[None, :]
        parts = gl.load(squares + part * rows + part_row, mask=(part < PARTS) & (part_row < rows), other=0.0)

    kept_as: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    kept = gl.allocate_shared_memory(gl.int32, [PADDED_GROUPS, LINES], kept_as, facts_ahead)
    wait_for_all()
    _, _, column_out = axes(WARPS, LINES, COLUMNS, sums_of)
    quarter = column_out // ROWS
    share = gl.where(quarter % 2 == 0, 1.0, 1 / 16)
    nothing = gl.zeros([WARPS, 16 if LINES == 8 else LINES, COLUMNS], gl.float32, layout=answer_of)
    ones = gl.full([WARPS, 16 if LINES == 8 else LINES, QUARTER], 1.0, gl.float16, layout=left)
    sums = gl.zeros([WARPS, LINES, COLUMNS], gl.float32, layout=sums_of)
    for step in gl.static_range(STEPS):
        word, here = ahead[0], inputs_ahead[0]
        ahead, inputs_ahead = ahead[1:], inputs_ahead[1:]
        if step + STAGES < STEPS:
            ahead = ahead + (_load_words(words, warp, step + STAGES, GROUPS, WARPS),)
            more = _load_inputs(inputs, row < rows, warp_in, step + STAGES, GROUPS, WARPS)
            inputs_ahead = inputs_ahead + (more,)
        # The sum of (level * scale + zero) * x is scale * sum(level * x) + zero * sum(x).
        both = kept.slice(step * WARPS, WARPS).load(gl.SliceLayout(2, sums_of))[:, :, None]
        scales = (both << 16).to(gl.float32, bitcast=True) * share  # as a float32 would begin with them
        zeros = (both & -65536).to(gl.float32, bitcast=True) - 1024 * scales  # by which levels are raised
        sums = scales * _products(word, here, nothing, quarter, left, sums_of) + sums
        sums = zeros * _upper(mma_v2(ones, here, nothing), sums_of) + sums
    if CHAINED and LATE:
        let_next_begin()

    gathered = gl.permute(gl.reshape(sums, [WARPS, SIDES, BLOCK_OUT, 4, ROWS]), [2, 4, 1, 0, 3])
    gathered = gl.reshape(gathered, [BLOCK_OUT * ROWS, SIDES, 4 * WARPS])
    total = gl.sum(gl.convert_layout(gathered, by_number), 2)
    if PARTS > 0:
        factor = 1 / gl.sqrt(gl.sum(parts, 0) / INS + epsilon)
        of_row = gl.arange(0, ROWS, layout=gl.SliceLayout(0, by_part))
        first_factor = gl.sum(gl.where(of_row == 0, factor, 0.0), 0)
        last_factor = gl.sum(gl.where(of_row == 0, 0.0, factor), 0)
        total *= gl.where(out_row == 0, first_factor, last_factor)[:, None]
    if GATED:
        gate, other = gl.split(total)
        answer = gl.convert_layout(gate / (1 + gl.exp(-gate)) * other, numbers)
    else:
        answer = gl.convert_layout(gl.reshape(total, [BLOCK_OUT * ROWS]), numbers)
    if ADD:
        answer += before.to(gl.float32)
    answer = narrow(answer, y.dtype.element_ty)
    gl.store(answers, answer, mask=is_answer)
    if PREPARED:
        wide = answer.to(gl.float32)
        next_input = narrow(wide * next_norm.to(gl.float32), scaled.dtype.element_ty)
        gl.store(scaled + out_row * outs + out, next_input, mask=is_answer)
        for each in gl.static_range(ROWS):
            square = gl.sum(gl.where(out_row == each, wide * wide, 0.0), 0)
            gl.store(new_squares + gl.program_id(0) * rows + each, square, mask=each < rows)


@gluon.constexpr_function
def _eight_lines(warps, columns):
    """Lay out [warps, 8, columns] as the upper half of sixteen lines is for tensor cores."""
    thread = [[0, 0, 2**bit] for bit in range(columns.bit_length() - 3)]
    lanes = [[0, 0, columns // 4], [0, 0, columns // 2], [0, 1, 0], [0, 2, 0], [0, 4, 0]]
    owners = [[2**bit, 0, 0] for bit in range(warps.bit_length() - 1)]
    return gl.DistributedLinearLayout(thread, lanes, owners, [], [warps, 8, columns])


@gluon.jit
def _line(first, side, outs, BLOCK_OUT: gl.constexpr):
    """Tell which line of the weight is a program's: its columns, then as many others."""
    return first + side % BLOCK_OUT + gl.where(side < BLOCK_OUT, 0, outs)


@gluon.jit
def _load_facts(
    facts,
    facts_stride,
    first,
    outs,
    PADDED_GROUPS: gl.constexpr,
    BLOCK_OUT: gl.constexpr,
    LINES: gl.constexpr,
    GROUPS: gl.constexpr,
    WARPS: gl.constexpr,
):
    """Load all scales and zeros of a program's lines: [PADDED_GROUPS, LINES]."""
    fours: gl.constexpr = gl.BlockedLayout([1, 4], [128 // LINES, LINES // 4], [WARPS, 1], [1, 0])
    group = gl.arange(0, PADDED_GROUPS, layout=gl.SliceLayout(1, fours))[:, None]
    side = gl.arange(0, LINES, layout=gl.SliceLayout(0, fours))[None, :]
    place = facts + group * facts_stride + _line(first, side, outs, BLOCK_OUT)
    return gl.load(place, mask=group < GROUPS, other=0)


@gluon.jit
def _load_words(words, warp, step, GROUPS: gl.constexpr, WARPS: gl.constexpr):
    """Load each warp's group of weights: [WARPS, lines, QUARTER]. Past the end they are anything, but inputs zeros."""
    is_group = None if GROUPS % WARPS == 0 else warp + step * WARPS < GROUPS
    return gl.load(words + step * WARPS * QUARTER, mask=is_group, eviction_policy="evict_first")


@gluon.jit
def _load_inputs(inputs, is_row, warp, step, GROUPS: gl.constexpr, WARPS: gl.constexpr):
    """Load each warp's group of inputs: [WARPS, QUARTER, COLUMNS]."""
    is_input = is_row if GROUPS % WARPS == 0 else is_row & (warp + step * WARPS < GROUPS)
    return gl.load(inputs + step * WARPS * GROUP, mask=is_input, other=0.0)


@gluon.jit
def _products(words, here, nothing, quarter, left: gl.constexpr, sums_of: gl.constexpr):
    """Multiply each quarter's levels, raised, with the inputs of all, and keep the products with its own.

    words: [WARPS, lines, QUARTER]. here: [WARPS, QUARTER, COLUMNS]. Returns float32 [WARPS, lines, COLUMNS].
    """
    one, two, three, four = _levels(words)
    if sums_of == nothing.type.layout:
        one, two = mma_v2(one, here, nothing), mma_v2(two, here, nothing)
        three, four = mma_v2(three, here, nothing), mma_v2(four, here, nothing)
    else:
        upper, lower = (
            mma_v2(_stacked(one, two, left), here, nothing),
            mma_v2(_stacked(three, four, left), here, nothing),
        )
        one, two = _half(upper, 0, sums_of), _half(upper, 1, sums_of)
        three, four = _half(lower, 0, sums_of), _half(lower, 1, sums_of)
    return gl.where(quarter < 2, gl.where(quarter == 0, one, two), gl.where(quarter == 2, three, four))


@gluon.jit
def _levels(words):
    """Do what `kernels._levels` does, with float16: 1024 + level, 1024 + 16 * level, and the same once more."""
    return gl.inline_asm_elementwise(
        "{ .reg .b32 up; shr.b32 up, $4, 8;"
        " lop3.b32 $0, $4, 0x000f000f, 0x64006400, 0xea; lop3.b32 $1, $4, 0x00f000f0, 0x64006400, 0xea;"
        " lop3.b32 $2, up, 0x000f000f, 0x64006400, 0xea; lop3.b32 $3, up, 0x00f000f0, 0x64006400, 0xea; }",
        "=&r,=&r,=&r,=&r,r",
        [words],
        (gl.float16, gl.float16, gl.float16, gl.float16),
        is_pure=True,
        pack=2,
    )


@gluon.jit
def _stacked(upper, lower, left: gl.constexpr):
    """Put eight lines above eight others: no number changes its thread."""
    both = gl.permute(gl.join(upper, lower), [0, 3, 1, 2])
    return gl.convert_layout(gl.reshape(both, [both.shape[0], 16, both.shape[3]]), left, assert_trivial=True)


@gluon.jit
def _upper(lines, sums_of: gl.constexpr):
    """Take all lines [WARPS, lines, COLUMNS], or, where they are eight lines twice, the upper eight."""
    if sums_of == lines.type.layout:
        upper = lines
    else:
        upper = _half(lines, 0, sums_of)
    return upper


@gluon.jit
def _half(lines, number: gl.constexpr, sums_of: gl.constexpr):
    """Take the upper or the lower eight of sixteen lines: [WARPS, 8, COLUMNS]. No number changes its thread."""
    parts = gl.reshape(lines, [lines.shape[0], 2, 8, lines.shape[2]])
    halves = gl.split(gl.permute(parts, [0, 2, 3, 1]))
    return gl.convert_layout(halves[number], sums_of, assert_trivial=True)
