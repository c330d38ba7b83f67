"""How the kernels cut their work. A table, not a measurement at run time: equal rows must give equal bits.

The figures are for the two published models. None has been measured yet; `benchmarks/kernels.py` measures others.
"""

from dataclasses import dataclass

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


def product_tile(outs: int, inner: int, rows: int, gated: bool) -> Tile | None:
    """Choose the tile of a product of `rows` rows, None if no tile fits. outs: columns of the result."""
    columns = 16 if outs <= 8192 else 32
    if gated:
        columns = 32
    if rows > 32:
        columns = max(columns, 32)
    depth = 256 if rows <= 32 else 128
    while outs % columns:
        columns //= 2
    while inner % depth:
        depth //= 2
    if columns < 16 or depth < 16:
        return None
    return Tile(columns, depth, warps=4, stages=4 if not gated else 3)


def padded(count: int) -> int:
    """Round up to what tensor cores take: 16, 32, 64, …"""
    size = 16
    while size < count:
        size *= 2
    return size
