"""A Triton kernel that turns quantized weights into numbers, for products of many rows, which PyTorch makes."""

import triton
import triton.language as tl


@triton.jit
def unpack(
    values,  # [rows, INS]; this and the next two: see `kernels.product`
    facts,
    facts_stride,
    y,  # [rows, INS]
    INS: tl.constexpr,
    COLUMNS: tl.constexpr,  # INS, rounded up to a power of two
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
):
    """Turn a row of quantized weights into numbers."""
    row = tl.program_id(0)
    places = y + row.to(tl.int64) * INS
    if BITS == 8:
        column = tl.arange(0, COLUMNS)
        is_column = column < INS
        numbers = tl.load(values + row.to(tl.int64) * INS + column, mask=is_column, other=0).to(tl.float32)
        numbers *= tl.load(facts + row)
        tl.store(places + column, numbers.to(y.dtype.element_ty), mask=is_column)
    else:
        QUARTER: tl.constexpr = GROUP // 4
        group, word = tl.arange(0, COLUMNS // GROUP)[:, None], tl.arange(0, QUARTER)[None, :]
        is_group = group < INS // GROUP
        words = values.to(tl.pointer_type(tl.uint16)) + row.to(tl.int64) * (INS // 4) + group * QUARTER + word
        levels = tl.load(words, mask=is_group, other=0).to(tl.int32)
        both = tl.load(facts + group * facts_stride + row, mask=is_group, other=0)
        scales, zeros = both << 16, both & -65536  # as a float32 would begin with them
        for quarter in tl.static_range(4):
            numbers = (levels >> 4 * quarter & 15).to(tl.float32) * scales.to(tl.float32, bitcast=True)
            numbers += zeros.to(tl.float32, bitcast=True)
            place = places + group * GROUP + quarter * QUARTER + word
            tl.store(place, numbers.to(y.dtype.element_ty), mask=is_group)
