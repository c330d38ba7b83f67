"""How the kernels cut their work. A table, not a measurement at run time: equal rows must give equal bits.

The figures for Hopper were measured at the shapes of the published models (`benchmarks/tile_search.py` tries others);
those for older GPUs, which have less shared memory, are guesses.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor

from yue_cli.engines.native.formats import GROUP
from yue_cli.engines.native.quantized import Int4Weight, Int8Weight

MOST_ROWS = 64  # of a product by a kernel; more are PyTorch's business
LEAST_ROWS = {16: 16, 8: 8, 4: 8}  # that tensor cores take, by the bits of a weight; fewer are filled up
LEAST_COLUMNS = 16  # of the result, that tensor cores take
FEW_ROWS = 2  # that, with four bits, have a kernel of their own: `few_kernels.py`
GROUPED, GROUPED_SIZE = 8, 128  # heads that share a key, and their size, for which there is one: `grouped_kernels.py`


@dataclass(frozen=True)
class Tile:
    """One program's part of a product."""

    out: int  # columns of the result that it has room for
    inner: int  # columns of x that are multiplied at once
    warps: int
    stages: int  # loads under way
    is_chained: bool = True  # it begins before the kernel before has ended; some are faster apart
    split: int = 1  # programs, at the most, that share the columns of x, which are then read less often
    columns: int = 0  # of the result, that it takes if they are fewer: see _spread
    ahead: int = 512  # bytes of each line of the weight, at the most, that are fetched ahead; most are faster with few

    @property
    def taken(self) -> int:
        """Columns of the result that a program takes, the last one perhaps fewer."""
        return self.columns or self.out

    def programs(self, outs: int) -> int:
        """Count the programs that share the columns of the result."""
        return _quotient(outs, self.taken)

    def fetched(self, inner: int, bits: int) -> int:
        """Tell how many bytes of each of its lines are fetched ahead, which is done by sixteens. bits: of a weight."""
        return min(self.ahead, self.shares(inner)[-1] * bits // 8) // 16 * 16

    def shares(self, inner: int) -> list[int]:
        """List how many columns each of these programs takes: some blocks, and the last of them what is left."""
        share = _quotient(_quotient(inner, self.inner), self.split) * self.inner
        return [min(share, inner - start) for start in range(0, inner, share)]


@dataclass(frozen=True)
class FewRows:
    """One program's part of a product of one row or two with weights in four bits."""

    out: int  # columns of the result: lines of the weight, or, where it is gated, half of them
    warps: int
    stages: int  # groups of columns that each warp has under way
    is_late: bool = False  # it lets the kernel after it begin when most of its work is done, not at once

    def programs(self, outs: int) -> int:
        """Count the programs that share the columns of the result."""
        return outs // self.out

    def padded_groups(self, inner: int) -> int:
        """Count the groups that all warps take in whole steps, rounded up to a power of two."""
        return padded(_quotient(inner // GROUP, self.warps) * self.warps, 1)


@dataclass(frozen=True)
class Cut:
    """How attention cuts up the keys. All but the last two are part of the numbers: they order the sums."""

    chunks: int  # of a row, at most
    block: int  # keys that a program looks at at once
    warps: int  # each looks at its part of a block: 16 keys or more, 32 of those in bytes
    stages: int = 2
    registers: int | None = None  # that a thread may have, so that more programs fit; None: what the compiler likes


@dataclass(frozen=True)
class GroupedCut:
    """The same for the kernel of `grouped_kernels.py`. All but the last one are part of the numbers."""

    chunks: int
    block: int
    warps: int
    buffers: int  # blocks that are under way


_LEAST_TAKEN = LEAST_COLUMNS // 2  # of a program: with fewer, tensor cores would do more for nothing than for them


def attention_cut(groups: int, bits: int) -> Cut:
    """Choose for a number of heads that share a key. What is part of the numbers knows no number of rows.

    bits: of a number in the cache.
    """
    if groups > 2:
        return Cut(16, 128, warps=4, stages=2)
    return Cut(2, 128, warps=4, stages=2, registers=96) if bits <= 8 else Cut(2, 64, warps=2, stages=3)


def grouped_cut(keys: int, multiprocessors: int) -> GroupedCut:
    """Choose for eight heads that share a key. keys: heads of keys, in all rows. multiprocessors: as for `find`."""
    cut = GroupedCut(16, 128, warps=4, buffers=1)
    # A program that has a multiprocessor to itself may fill its shared memory; else several there hide more.
    return replace(cut, buffers=3) if cut.chunks * keys <= multiprocessors else cut


@lru_cache
def find(
    kind: type, outs: int, inner: int, rows: int, gated: bool, multiprocessors: int, knows_few: bool = False
) -> Tile | FewRows | None:
    """Choose the tile of a product, None where there is no kernel for it.

    kind: class of the weight. outs: columns of the result. inner: columns of x. multiprocessors: of a GPU of Hopper's
    generation or a younger one, 0 for others, see `chain.py`. knows_few: is the kernel for few rows there?
    """
    if rows > MOST_ROWS:
        return None
    if kind is Int4Weight and rows <= FEW_ROWS and knows_few:
        return few_rows(outs, inner, gated)
    if kind in (Int8Weight, Int4Weight):
        return quantized_tile(kind, outs, inner, rows, gated, multiprocessors)
    return product_tile(outs, inner, rows, gated, multiprocessors) if issubclass(kind, Tensor) else None


def product_tile(outs: int, inner: int, rows: int, gated: bool, multiprocessors: int) -> Tile | None:
    """Choose the tile of a product with weights in 16 bits."""
    if not multiprocessors:
        columns = 32 if outs > 8192 or gated or rows > 32 else 16
        tile = Tile(columns, 256 if rows <= 32 else 128, warps=4, stages=3 if gated else 4)
    elif gated and outs > 8192:  # two programs on each multiprocessor
        tile = Tile(64, 128, warps=4, stages=3) if rows <= 16 else Tile(64, 64, warps=4, stages=4)
    elif gated:
        tile = Tile(64, 128, warps=4, stages=5 if rows <= 16 else 4)
    elif inner > outs and outs <= 2048:
        tile = Tile(64, 128, warps=4, stages=5, split=4)
    elif outs <= 2048:
        tile = Tile(16, 512 if rows <= 32 else 256, warps=4, stages=4)
    elif inner > outs:
        tile = Tile(64, 128, warps=4, stages=6, split=2)
        if rows > 16:
            tile = Tile(64, 256, warps=4, stages=4 if rows <= 32 else 3, split=2)
    elif outs <= 4096:
        tile = Tile(32, 512, warps=4, stages=4 if rows <= 16 else 3, ahead=1024)
    else:
        tile = Tile(64, 128, warps=4, stages=7 if rows <= 16 else 5, ahead=1024 if inner > 2048 else 512)
    fitted = _fitted(tile, outs, inner)
    # The others have about one program for each multiprocessor as they are.
    return _spread(fitted, outs, multiprocessors) if tile.split == 1 and (gated or outs > 4096) else fitted


def quantized_tile(kind: type, outs: int, inner: int, rows: int, gated: bool, multiprocessors: int) -> Tile | None:
    """Choose the tile of a product with fewer bits: some groups of columns at once; they need not divide all."""
    if inner % GROUP or outs % 16:
        return None
    if kind is Int8Weight and gated and rows <= 32:
        return _spread(Tile(16, 2 * GROUP, warps=2, stages=3, is_chained=rows <= 8), outs, multiprocessors)
    if rows > 8:
        few = rows <= 32
        return Tile(16, 4 * GROUP, 4, 3, is_chained=False) if few else Tile(16, 2 * GROUP, 2, 2, is_chained=False)
    columns = 32 if kind is Int4Weight and outs % 32 == 0 and not gated else 16
    if inner > outs:
        return Tile(columns, 8 * GROUP, warps=4, stages=4, is_chained=kind is Int8Weight)
    if kind is Int8Weight and inner == outs and not gated:
        return Tile(columns, 8 * GROUP, warps=4, stages=4)
    if kind is Int8Weight:
        return Tile(columns, 4 * GROUP, warps=2, stages=4)
    return Tile(columns, 8 * GROUP, warps=4, stages=3)


def few_rows(outs: int, inner: int, gated: bool) -> FewRows | None:
    """Choose how one row or two are multiplied with weights in four bits; None where groups or lines do not fit."""
    if inner % GROUP or outs % 16:
        return None
    if gated:
        tile = FewRows(8, warps=2, stages=2)
    elif inner > outs:
        tile = FewRows(8, warps=8, stages=3)
    else:
        tile = FewRows(16, warps=8, stages=2, is_late=outs == inner)
    return replace(tile, stages=min(tile.stages, _quotient(inner // GROUP, tile.warps)))


def padded(count: int, least: int) -> int:
    """Round up to a power of two."""
    size = least
    while size < count:
        size *= 2
    return size


def padded_queries(count: int, bits: int) -> int:
    """Round up a number of queries to what fills eight columns of a product. With a cache in bytes each has two."""
    return padded(count, 4 if bits <= 8 else 8)


def _fitted(tile: Tile, outs: int, inner: int) -> Tile | None:
    """Make a tile narrower until it divides the columns; None if that leaves too little for tensor cores."""
    columns = tile.out
    while outs % columns:
        columns //= 2
    return replace(tile, out=columns, inner=min(tile.inner, padded(inner, 16))) if columns >= LEAST_COLUMNS else None


def _spread(tile: Tile | None, outs: int, multiprocessors: int) -> Tile | None:
    """Let every multiprocessor have as many columns of the result: else those with more keep the others waiting."""
    if tile is None or not multiprocessors:
        return tile
    programs = _quotient(tile.programs(outs), multiprocessors) * multiprocessors
    columns = max(_quotient(outs, programs), _LEAST_TAKEN)
    if outs % columns == 0 and columns == padded(columns, LEAST_COLUMNS):
        return replace(tile, out=columns)
    return replace(tile, out=padded(columns + 1, LEAST_COLUMNS), columns=columns)


def _quotient(count: int, size: int) -> int:
    """Divide and round up."""
    return -(-count // size)
