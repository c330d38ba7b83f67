"""The kernel for products of a row or two with weights in 4 bits, on a GPU: against the weights that they stand for."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from yue_cli.engines.native import gluon_modules, products, tiles
from yue_cli.engines.native.formats import GROUP
from yue_cli.engines.native.products import Norm, Residual, add_product, project_normed
from yue_cli.engines.native.quantized import Int4Weight
from yue_cli.engines.native.tiles import FewRows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(
        gluon_modules.find("few_kernels") is None, reason="needs Triton 3.6 to 3.9, and not its interpreter"
    ),
]

CUDA = torch.device("cuda")
EPSILON = 1e-5
# Those of the table, and others: of eight lines, sixteen and more.
TILES = [
    FewRows(8, 2, 1),
    FewRows(8, 8, 3),
    FewRows(16, 8, 2),
    FewRows(16, 8, 2, is_late=True),
    FewRows(16, 16, 1),
    FewRows(32, 4, 1),
]
INNER = [384, 1408, 4096, 11008]  # groups for some of the warps, for all, and several for each, with a rest and without


def draw(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float16) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(CUDA, dtype)


@pytest.fixture(params=TILES, ids=str)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FewRows:
    def find(kind: type, outs: int, inner: int, *more: object) -> FewRows:
        steps = -(-inner // GROUP // request.param.warps)
        return replace(request.param, stages=min(request.param.stages, steps))

    monkeypatch.setattr(tiles, "find", find)
    return request.param


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("inner", INNER)
def test_what_is_added_is_prepared_for_the_next_norm(tile: FewRows, rows: int, inner: int) -> None:
    x, weight = draw(rows, inner, scale=3), Int4Weight.quantize(draw(96, inner, scale=inner**-0.5).float())
    before, norm = draw(rows, 96, dtype=torch.bfloat16), Norm(draw(96, dtype=torch.bfloat16), EPSILON, torch.float16)
    expected = before.float() + x.float() @ weight.dequantize().T
    residual = Residual(before.clone())
    add_product(residual, x, weight, norm)
    torch.testing.assert_close(residual.x.float(), expected, atol=2e-2, rtol=1e-2)
    wide = residual.x.float()
    assert residual.scaled is not None and residual.squares is not None
    torch.testing.assert_close(residual.scaled.float(), wide * norm.weight.float(), atol=1e-3, rtol=1e-3)
    assert residual.squares.shape == (96 // tile.out, rows)
    torch.testing.assert_close(residual.squares.sum(0), wide.square().sum(1))
    again = Residual(before.clone())
    add_product(again, x, weight, norm)
    assert torch.equal(again.x, residual.x) and torch.equal(again.squares, residual.squares)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("parts", [1, 5, 300])
def test_what_is_prepared_is_normalized(tile: FewRows, rows: int, inner: int, parts: int) -> None:
    x, weight = draw(rows, inner, scale=3), Int4Weight.quantize(draw(64, inner, scale=inner**-0.5).float())
    share = torch.rand(parts, 1, device=CUDA)
    squares = share / share.sum() * x.float().square().sum(1)
    norm = Norm(torch.ones(inner, device=CUDA), EPSILON)  # whose weights are in what is scaled
    expected = torch.nn.functional.rms_norm(x.float(), (inner,), eps=EPSILON) @ weight.dequantize().T
    found = project_normed(Residual(x, x, squares), norm, weight, dtype=torch.float32)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("tile", [FewRows(4, 4, 2), FewRows(8, 2, 2), FewRows(16, 8, 1)], ids=str, indirect=True)
def test_gates(tile: FewRows, rows: int, inner: int) -> None:
    x, weight = draw(rows, inner, scale=3), Int4Weight.quantize(draw(128, inner, scale=inner**-0.5).float())
    norm = Norm(draw(inner), EPSILON)
    gates, others = (products.normalize(x, norm, torch.float16).float() @ weight.dequantize().T).chunk(2, dim=-1)
    found = project_normed(Residual(x), norm, weight, gated=True, dtype=torch.float32)
    torch.testing.assert_close(found, torch.nn.functional.silu(gates) * others, atol=3e-3, rtol=2e-3)


@pytest.mark.parametrize("rows", [slice(16, 48), slice(18, 50), slice(96, 128)], ids=str)
def test_some_rows_of_a_weight(tile: FewRows, rows: slice) -> None:
    """Whose scales and zeros lie among those of others."""
    x, weight = draw(2, 512, scale=3), Int4Weight.quantize(draw(128, 512, scale=512**-0.5).float())
    norm = Norm(torch.ones(512, device=CUDA), EPSILON)
    expected = torch.nn.functional.rms_norm(x.float(), (512,), eps=EPSILON) @ weight.dequantize()[rows].T
    found = project_normed(Residual(x), norm, weight[rows], dtype=torch.float32)
    torch.testing.assert_close(found, expected, atol=3e-3, rtol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_song_alone_takes_it(dtype: torch.dtype) -> None:
    weight = Int4Weight.quantize(draw(64, 256).float())
    for rows, is_few in ((1, True), (2, True), (3, False)):
        assert isinstance(products.find_tile(draw(rows, 256, dtype=dtype), weight), FewRows) == is_few
    assert isinstance(products.find_tile(draw(2, 256, dtype=torch.float32), weight), tiles.Tile)
    assert isinstance(products.find_tile(draw(2, 256), weight[16:32]), FewRows)
