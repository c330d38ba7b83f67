"""How the kernels cut their work. A table, not a measurement at run time: equal rows must give equal bits.

The figures are for the two published models. None has been measured yet; `benchmarks/kernels.py` measures others.
"""

from dataclasses import dataclass

from torch import Tensor

from yue_cli.engines.native.formats import GROUP
from yue_cli.engines.native.quantized import Int4Weight, Int8Weight

MOST_ROWS = 64  # of a product by a kernel; more are PyTorch's business


@dataclass(frozen=True)
class Tile:
    """One program's part of a product."""

    out: int  # columns of the result
    inner: int  # columns of x that are multiplied at once
    warps: int
    stages: int  # loads under way


@dataclass(frozen=True)
class Cut:
    """How attention cuts up the keys. `chunk` is part of the numbers: sums are taken chunk by chunk."""

    chunk: int  # keys of one program
    block: int  # keys that it looks at at once
    warps: int
    stages: int
    # Tensor cores want 16 queries and a detour through shared memory: too much for one or two that share a key.
    tensor_cores: bool


COMBINED = 16  # chunks that are joined at once
_AHEAD = 2048  # bytes


def attention_cut(has_groups: bool, is_bytes: bool) -> Cut:
    """Choose for a model whose heads share keys, or do not, and for a cache in bytes or not."""
    if has_groups:
        return Cut(128, 64, warps=4, stages=2, tensor_cores=True)
    return Cut(256, 64, warps=4, stages=2, tensor_cores=False)


def ahead(row_bytes: int) -> int:
    """Tell how many bytes of each row of a weight are fetched ahead: a power of two, whole lines of the cache."""
    size = _AHEAD
    while size > max(row_bytes, 128):
        size //= 2
    return size


def find(kind: type, outs: int, inner: int, rows: int, gated: bool) -> Tile | None:
    """Choose the tile of a product, None where there is no kernel for it.

    kind: class of the weight. outs: columns of the result. inner: columns of x.
    """
    if rows > MOST_ROWS:
        return None
    if kind in (Int8Weight, Int4Weight):
        return fixed_tile(outs, inner, rows, gated, kind is Int4Weight)
    return product_tile(outs, inner, rows, gated) if issubclass(kind, Tensor) else None


def product_tile(outs: int, inner: int, rows: int, gated: bool) -> Tile | None:
    """Choose the tile of a product with weights in 16 bits."""
    columns = 32 if outs > 8192 or gated or rows > 32 else 16
    depth = 256 if rows <= 32 else 128
    while inner % depth:
        depth //= 2
    columns = _fitting(outs, columns)
    if columns < 16 or depth < 16:
        return None
    return Tile(columns, depth, warps=4, stages=3 if gated else 4)


def fixed_tile(outs: int, inner: int, rows: int, gated: bool, four_bit: bool) -> Tile | None:
    """Choose the tile of a product with quantized weights; in four bits, a group of columns at once."""
    columns = _fitting(outs, 64 if rows <= 32 and outs > 5120 else 32)
    if columns < 16 or inner % GROUP:
        return None
    depth = GROUP if four_bit or rows > 8 or inner % 256 else 256
    return Tile(columns, depth, warps=4, stages=4 if rows <= 32 else 3)


def padded(count: int, least: int = 16) -> int:
    """Round up to a power of two: 16 and more of them are what tensor cores take."""
    size = least
    while size < count:
        size *= 2
    return size


def _fitting(outs: int, columns: int) -> int:
    while outs % columns:
        columns //= 2
    return columns
