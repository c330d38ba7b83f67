"""The kernel for attention where eight heads share a key, on a GPU: against float64, and against itself."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from benchmarks.agreement import SHAPES
from yue_cli.engines.native import attention, chain, fused, gluon_modules, tiles
from yue_cli.engines.native.cache import Cache, make
from yue_cli.engines.native.model import Llama, Weights, rotate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(
        gluon_modules.find("grouped_kernels") is None, reason="needs Triton 3.6 to 3.9, and not its interpreter"
    ),
]

CUDA = torch.device("cuda")
LENGTH = 9000
# Ids that are there: none, almost a block, a block, chunks of one and of some, a last chunk of the new id alone.
FILLED = [(0, 1), (127, 128), (129, 2047), (2048, 2049), (4000, 1500), (8192, 8999)]
CLOSE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of the largest number


@pytest.fixture(params=CLOSE, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    kind: torch.dtype = request.param
    return kind


class Attention:
    """A layer's attention, with keys and values that are made up, and the queries of a new id in each row."""

    def __init__(self, rows: int, dtype: torch.dtype, shared: int = 4) -> None:
        config = replace(SHAPES["stage1"], layers=1, heads=8 * shared, key_value_heads=shared, hidden=1024 * shared)
        like = torch.zeros(1, device=CUDA, dtype=dtype)
        generator = torch.Generator(CUDA).manual_seed(rows)
        [self.cache] = make("auto", config, rows=rows, length=LENGTH, like=like)
        for kept in (self.cache.keys, self.cache.values):
            kept.normal_(generator=generator)
        self.model = Llama(config, Weights(like.expand(1, config.hidden), [], like, like), [self.cache], length=LENGTH)
        self.qkv = torch.randn(rows, 10 * shared, 128, device=CUDA, generator=generator).to(dtype)
        self.step = fused.FusedStep(self.model, length=LENGTH)

    def found(self, filled: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.step._attend(self.qkv.flatten(1), self.cache, filled, 1, dtype)

    def expected(self, filled: Tensor, before: Cache) -> Tensor:
        """Compute it in float64, by a cache as it was before the step."""
        rows, shared = self.qkv.shape[0], self.cache.keys.shape[1]
        cos, sin = (table[filled][:, None, None] for table in (self.model.cosine, self.model.sine))
        turned = rotate(self.qkv[:, :, None], cos, sin)
        keys, values = before.keys.double(), before.values.double()
        for row, place in enumerate(filled.tolist()):
            keys[row, :, place] = turned[row, 8 * shared : 9 * shared, 0].double()
            values[row, :, place] = self.qkv[row, 9 * shared :].double()
        visible = torch.arange(keys.shape[2], device=CUDA) <= filled[:, None, None]
        q = turned[:, : 8 * shared].transpose(1, 2).double()
        return attention.masked(q, keys, values, visible).reshape(rows, -1)


def copied(cache: Cache) -> Cache:
    return Cache(cache.keys.clone(), cache.values.clone(), cache.bits)


@pytest.mark.parametrize("filled", FILLED, ids=str)
@pytest.mark.parametrize("shared", [1, 4])
def test_queries_find_what_they_would_in_float64(dtype: torch.dtype, filled: tuple[int, int], shared: int) -> None:
    layer, there = Attention(2, dtype, shared), torch.tensor(filled, device=CUDA)
    before = copied(layer.cache)
    expected, found = layer.expected(there, before), layer.found(there)
    torch.testing.assert_close(found.double(), expected, atol=CLOSE[dtype] * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("filled", FILLED, ids=str)
def test_the_new_key_and_value_are_all_that_is_written(dtype: torch.dtype, filled: tuple[int, int]) -> None:
    layer, there = Attention(2, dtype), torch.tensor(filled, device=CUDA)
    expected = copied(layer.cache)
    cos, sin = (table[there][:, None, None] for table in (layer.model.cosine, layer.model.sine))
    keys, values = layer.qkv[:, 32:36, None], layer.qkv[:, 36:, None]
    expected.write_at(there[:, None], rotate(keys, cos, sin), values)
    layer.found(there)
    torch.testing.assert_close(layer.cache.keys, expected.keys, atol=2e-2, rtol=0)  # a rounding step of the largest
    assert (layer.cache.keys != expected.keys).sum() < 20
    assert torch.equal(layer.cache.values, expected.values)


@pytest.mark.parametrize("filled", FILLED, ids=str)
def test_bits_depend_on_neither_buffers_nor_company(
    dtype: torch.dtype, filled: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three rows not every program has a multiprocessor to itself."""
    layer, there = Attention(3, dtype), torch.tensor([*filled, 700], device=CUDA)
    found = layer.found(there, dtype)
    assert torch.equal(layer.found(there, dtype), found)
    alone = layer.step._attend(layer.qkv[:1].flatten(1), layer.cache, there[:1], 1, dtype)
    assert torch.equal(alone, found[:1])
    assert not layer.step._arrived.any()
    cut = fused.find_cut(layer.cache, dtype, 8, 1)
    assert isinstance(cut, tiles.GroupedCut)
    for buffers in (1, 2, 3) if chain.multiprocessors(CUDA) else (1,):  # what its shared memory holds
        monkeypatch.setattr(fused, "find_cut", lambda *asked, n=buffers: replace(cut, buffers=n))
        assert torch.equal(layer.found(there, dtype), found)


def test_what_lies_behind_a_row_does_not_matter(dtype: torch.dtype) -> None:
    layer, there = Attention(2, dtype), torch.tensor([300, 3000], device=CUDA)
    found = layer.found(there)
    for row, place in enumerate(there.tolist()):
        for kept in (layer.cache.keys, layer.cache.values):
            kept[row, :, place:] = torch.finfo(dtype).max / 2
    assert torch.equal(layer.found(there), found)


def test_the_product_after_it_may_read_other_numbers() -> None:
    """Weights of fewer bits take float16 for bfloat16, and what that cannot hold becomes its largest number."""
    layer, there = Attention(2, torch.bfloat16), torch.tensor([300, 3000], device=CUDA)
    expected = layer.found(there)
    assert torch.equal(layer.found(there, torch.float16), expected.half())
    layer.cache.values.fill_(1e5)
    layer.qkv[:, 36:] = 1e5
    assert (layer.found(there, torch.float16) == torch.finfo(torch.float16).max).all()


def test_it_is_taken_for_stage_1_in_16_bits(dtype: torch.dtype) -> None:
    few, many = (Attention(rows, dtype).cache for rows in (2, 9))
    cuts = [fused.find_cut(cache, dtype, 8, 1) for cache in (few, many)]
    assert all(isinstance(cut, tiles.GroupedCut) for cut in cuts)
    assert cuts == [tiles.grouped_cut(4 * rows, chain.multiprocessors(CUDA)) for rows in (2, 9)]
    for other in ((few, torch.float32, 8, 1), (few, dtype, 4, 1), (few, dtype, 8, 2)):
        assert isinstance(fused.find_cut(*other), tiles.Cut)
