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


CHUNK_KEYS = {True: 128, False: 256}  # keys of one attention program, by whether heads share keys
BLOCK_KEYS = 64  # keys that it looks at at once
ATTEND_WARPS, ATTEND_STAGES = 4, 2
COMBINED = 16  # chunks that are joined at once


def find(kind: type, outs: int, inner: int, rows: int, gated: bool) -> Tile | None:
    """Choose the tile of a product, None where there is no kernel for it.

    kind: class of the weight. outs: columns of the result. inner: columns of x.
    """
    if rows > MOST_ROWS:
        return None
    if kind in (Int8Weight, Int4Weight):
        return fixed_tile(outs, inner, rows, gated)
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


def fixed_tile(outs: int, inner: int, rows: int, gated: bool) -> Tile | None:
    """Choose the tile of a product with quantized weights: a group of columns at once."""
    columns = _fitting(outs, 64 if rows <= 32 and outs > 5120 else 32)
    if columns < 16 or inner % GROUP:
        return None
    return Tile(columns, GROUP, warps=4, stages=5 if rows <= 32 else 3)


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
