"""How kernels cut their work: what the table says must fit the matrix, whatever the rows."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from yue_cli.engines.native import tiles
from yue_cli.engines.native.formats import GROUP
from yue_cli.engines.native.quantized import Int4Weight, Int8Weight

H200 = 132  # multiprocessors
PUBLISHED = [(5120, 4096, False), (4096, 4096, False), (11008, 4096, True), (4096, 11008, False), (83968, 4096, False)]
STAGE_2 = [(6144, 2048, False), (2048, 2048, False), (5504, 2048, True), (2048, 5504, False)]


@given(
    outs=st.integers(1, 200).map(lambda n: 16 * n) | st.integers(200, 6000).map(lambda n: 16 * n),
    inner=st.integers(1, 200).map(lambda n: 64 * n),
    rows=st.integers(1, 80),
    gated=st.booleans(),
    multiprocessors=st.sampled_from([0, 46, 78, 114, 132, 148]),
    kind=st.sampled_from([Tensor, Int8Weight, Int4Weight]),
)
def test_a_tile_fits_its_matrix(
    outs: int, inner: int, rows: int, gated: bool, multiprocessors: int, kind: type
) -> None:
    tile = tiles.find(kind, outs, inner, rows, gated, multiprocessors)
    if rows > tiles.MOST_ROWS or (kind is not Tensor and inner % GROUP):
        assert tile is None
    elif tile is not None:
        assert tile.out >= tiles.LEAST_COLUMNS and tile.out & (tile.out - 1) == 0
        assert outs % tile.out == 0 or 0 < tile.taken < tile.out
        assert (tile.programs(outs) - 1) * tile.taken < outs <= tile.programs(outs) * tile.taken
        assert tile.split == 1 or tile.taken == tile.out
        least = 16 if kind is Tensor else GROUP
        assert tile.inner % least == 0
        steps = tile.inner // least
        assert steps & (steps - 1) == 0
        if kind is Tensor:
            assert tile.inner < 2 * inner
        shares = tile.shares(inner)
        assert sum(shares) == inner and len(shares) <= tile.split
        assert shares[-1] > 0 and all(share == shares[0] for share in shares[:-1])
        assert len(shares) == 1 or (kind is Tensor and not gated and shares[0] % tile.inner == 0)


@given(outs=st.integers(1, 700).map(lambda n: 16 * n), groups=st.integers(1, 100), gated=st.booleans())
def test_a_tile_for_few_rows_fits_its_matrix(outs: int, groups: int, gated: bool) -> None:
    tile = tiles.find(Int4Weight, outs, GROUP * groups, tiles.FEW_ROWS, gated, H200, knows_few=True)
    assert isinstance(tile, tiles.FewRows)
    assert outs % tile.out == 0
    lines = 2 * tile.out if gated else tile.out
    assert lines in (8, 16, 32)  # what its layouts are for
    assert (tile.stages - 1) * tile.warps < groups  # else it would load what is not there
    assert groups <= tile.padded_groups(GROUP * groups) < 2 * (groups + tile.warps)
    for rows, knows_few in ((tiles.FEW_ROWS + 1, True), (tiles.FEW_ROWS, False)):
        other = tiles.find(Int4Weight, outs, GROUP * groups, rows, gated, H200, knows_few)
        assert isinstance(other, tiles.Tile)


@pytest.mark.parametrize("rows", [2, 20, 64])
@pytest.mark.parametrize("kind", [Int8Weight, Int4Weight, Tensor])
@pytest.mark.parametrize(("outs", "inner", "gated"), PUBLISHED)
def test_every_matrix_of_stage_1_has_one(outs: int, inner: int, gated: bool, kind: type, rows: int) -> None:
    assert tiles.find(kind, outs, inner, rows, gated, H200) is not None
    assert tiles.find(kind, outs, inner, rows, gated, 0) is not None


@pytest.mark.parametrize("rows", [2, 20, 32])
@pytest.mark.parametrize(
    ("kind", "outs", "inner", "gated"),
    [
        *((Tensor, *shape) for shape in PUBLISHED + STAGE_2),
        (Int8Weight, 11008, 4096, True),
        (Int8Weight, 5504, 2048, True),
    ],
)
def test_every_multiprocessor_has_about_as_many_columns(
    kind: type, outs: int, inner: int, gated: bool, rows: int
) -> None:
    tile = tiles.find(kind, outs, inner, rows, gated, H200)
    assert isinstance(tile, tiles.Tile)
    shares = len(tile.shares(inner))
    most = -(-tile.programs(outs) * shares // H200) * tile.taken / shares
    assert most < 1.04 * outs / H200


def test_the_chunks_of_attention_depend_on_neither_gpu_nor_rows() -> None:
    wanted = list(itertools.product((4, 8, 128), (0, 60, 132)))
    cuts = [tiles.grouped_cut(*facts) for facts in wanted]
    assert len({(cut.chunks, cut.block, cut.warps) for cut in cuts}) == 1
    alone = [facts for facts, cut in zip(wanted, cuts, strict=True) if cut.buffers > 1]
    assert alone == [(4, 132), (8, 132)]  # whose programs, sixteen for each head of keys, have a multiprocessor each


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("split", [1, 2])
def test_what_is_fetched_ahead_is_some_sixteens_of_a_share_and_never_more(bits: int, split: int) -> None:
    for inner in (64, 200, 300, 512, 8192):
        tile = tiles.Tile(16, 64, warps=4, stages=2, split=split)
        size = tile.fetched(inner, bits)
        assert size % 16 == 0
        assert 0 < size <= tile.shares(inner)[-1] * bits // 8
        assert size == tile.ahead or inner < 8192


@pytest.mark.parametrize("kind", [Tensor, Int8Weight, Int4Weight])
@pytest.mark.parametrize("rows", [1, 2, 8, 20, 32, 64])
def test_a_tile_has_no_more_rows_than_threads(kind: type, rows: int) -> None:
    for outs, inner, gated in PUBLISHED:
        for multiprocessors in (0, H200):
            tile = tiles.find(kind, outs, inner, rows, gated, multiprocessors)
            assert tile is None or tile.out <= 32 * tile.warps
