"""Matrices in 8 and 4 bits: layouts by hand, how far they are from the original, and their products."""

import numpy as np
import pytest
import torch
from torch import Tensor

from yue_cli.engines.native import quantized
from yue_cli.engines.native.formats import matrix_bytes
from yue_cli.engines.native.quantized import CLASSES, Int4Weight, Int8Weight
from yue_cli.models import EIGHT_BIT, FORMATS, FOUR_BIT


def random_weight(rows: int, columns: int, seed: int = 0) -> Tensor:
    return 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def noise_db(weight: Tensor, found: Tensor) -> float:
    """How far the error lies below the weights, in dB."""
    return float(10 * torch.log10(weight.square().mean() / (weight - found).square().mean()))


def test_eight_bits_by_hand() -> None:
    weight = torch.tensor([[12.7, -6.36, 0.04], [0.0, 0.0, 0.0], [-2.54, 1.0, 2.53]])
    found = Int8Weight.quantize(weight)
    assert found.values.tolist() == [[127, -64, 0], [0, 0, 0], [-127, 50, 126]]  # 126.5 is rounded to even
    torch.testing.assert_close(found.scales, torch.tensor([0.1, 0.0, 0.02]))
    torch.testing.assert_close(found.dequantize()[0], torch.tensor([12.7, -6.4, 0.0]))


def test_four_bits_by_hand() -> None:
    """Bytes 2 j and 2 j + 1 of a group hold columns j, j + 32, j + 64, j + 96, the lower ones lower."""
    levels = torch.arange(256).reshape(1, 256) * 7 % 16
    scales, zeros = torch.tensor([[0.5], [-2.0]]), torch.tensor([[-1.0], [3.0]])
    packed = torch.zeros(1, 128, dtype=torch.uint8)
    for column in range(256):
        group, place = divmod(column, 128)
        quarter, pair = divmod(place, 32)
        packed[0, 64 * group + 2 * pair + quarter // 2] |= int(levels[0, column]) << (4 * (quarter % 2))
    found = Int4Weight(packed, scales.bfloat16(), zeros.bfloat16()).dequantize()
    expected = torch.cat((levels[:, :128] * 0.5 - 1, levels[:, 128:] * -2.0 + 3), dim=1)
    assert torch.equal(found, expected)


def test_four_bits_keep_sixteen_even_steps_exactly() -> None:
    steps = torch.arange(16.0).repeat(3, 16)  # [3, 256], two groups
    weight = steps * 0.25 - 1.5
    assert torch.equal(Int4Weight.quantize(weight).dequantize(), weight)


def test_a_file_holds_what_the_docs_say() -> None:
    weight = random_weight(6, 384)
    eight, four = Int8Weight.quantize(weight).tensors(), Int4Weight.quantize(weight).tensors()
    facts = {name: (tensor.dtype, list(tensor.shape)) for name, tensor in eight.items()}
    assert facts == {"values": (torch.int8, [6, 384]), "scales": (torch.float32, [6])}
    facts = {name: (tensor.dtype, list(tensor.shape)) for name, tensor in four.items()}
    fitted = (torch.bfloat16, [3, 6])
    assert facts == {"values": (torch.uint8, [6, 192]), "scales": fitted, "zeros": fitted}


@pytest.mark.parametrize("format", FORMATS)
def test_sizes_are_those_that_are_planned_with(format: str) -> None:
    found = CLASSES[format].quantize(random_weight(6, 384))
    assert found.nbytes == matrix_bytes(format, 6, 384, 2)
    assert found.shape == (6, 384)
    assert CLASSES[format].empty(6, 384, torch.device("cpu")).nbytes == found.nbytes


@pytest.mark.parametrize(("format", "least_db"), [(EIGHT_BIT, 41.0), (FOUR_BIT, 20.5)])
def test_how_far_it_is_from_normally_distributed_weights(format: str, least_db: float) -> None:
    weight = random_weight(256, 4096)
    assert noise_db(weight, CLASSES[format].quantize(weight).dequantize()) > least_db


def test_trying_several_ranges_beats_rounding_to_the_nearest() -> None:
    weight = random_weight(256, 1024)
    groups = weight.unflatten(1, (-1, 128))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    step = (high - low) / 15
    nearest = (((groups - low) / step).round() * step + low).flatten(1)
    assert noise_db(weight, Int4Weight.quantize(weight).dequantize()) > noise_db(weight, nearest) + 0.5


def test_no_group_is_further_off_than_by_rounding_to_the_nearest() -> None:
    heavy = torch.from_numpy(np.random.default_rng(0).standard_t(3, (64, 1024)).astype(np.float32))
    groups = heavy.unflatten(1, (-1, 128))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    step = ((high - low) / 15).bfloat16().float()
    zero = ((low + high) / 2 - 7.5 * step).bfloat16().float()
    nearest = ((groups - zero) / step).round().clamp(0, 15) * step + zero
    found = Int4Weight.quantize(heavy).dequantize().unflatten(1, (-1, 128))
    ours, theirs = ((each - groups).square().sum(-1) for each in (found, nearest))
    assert bool((ours <= theirs * (1 + 1e-6)).all())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [0.0, 0.375, -3.0])
def test_equal_weights_stay_what_they_are(format: str, value: float) -> None:
    weight = torch.full((3, 256), value)
    torch.testing.assert_close(CLASSES[format].quantize(weight).dequantize(), weight)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e6, 1e20])
def test_tiny_and_huge_weights_lose_no_more_than_others(format: str, scale: float) -> None:
    weight = random_weight(16, 256)
    usual = noise_db(weight, CLASSES[format].quantize(weight).dequantize())
    found = CLASSES[format].quantize(weight * scale).dequantize().double() / scale
    assert noise_db(weight.double(), found) == pytest.approx(usual, abs=0.3)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_dequantized_matrix(format: str, rows: int, dtype: torch.dtype) -> None:
    weight = CLASSES[format].quantize(random_weight(96, 256))
    x = torch.randn(rows, 3, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = weight.multiply(x)
    assert (found.dtype, found.shape) == (dtype, (rows, 3, 96))
    expected = x.double() @ weight.dequantize().to(dtype).double().T
    torch.testing.assert_close(found.double(), expected, **TOLERANCES[dtype])


# float32: sums in another order. bfloat16: the answer has 8 bits.
TOLERANCES = {torch.float32: {"atol": 1e-6, "rtol": 1e-5}, torch.bfloat16: {"atol": 1e-3, "rtol": 2**-7}}


@pytest.mark.parametrize("format", FORMATS)
def test_a_product_holds_a_block_at_a_time(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = CLASSES[format].quantize(random_weight(100, 256)), random_weight(5, 256)
    whole = weight.multiply(x)
    sizes = []
    dequantize = CLASSES[format].dequantize
    monkeypatch.setattr(CLASSES[format], "dequantize", lambda block: sizes.append(len(block)) or dequantize(block))
    monkeypatch.setitem(quantized._BLOCK, "cpu", 256 * 32)
    torch.testing.assert_close(weight.multiply(x), whole)
    assert sizes == [32, 32, 32, 4]


@pytest.mark.parametrize("format", FORMATS)
def test_blocks_change_nothing_that_is_stored(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(100, 256)
    whole = CLASSES[format].quantize(weight).tensors()
    monkeypatch.setitem(quantized._BLOCK, "cpu", 256 * 32)
    for name, tensor in CLASSES[format].quantize(weight).tensors().items():
        assert torch.equal(tensor, whole[name])


@pytest.mark.parametrize("format", FORMATS)
def test_rows_and_joins(format: str) -> None:
    weight = CLASSES[format].quantize(random_weight(10, 256))
    dense = weight.dequantize()
    assert torch.equal(weight[3:7].dequantize(), dense[3:7])
    joined = quantized.join([weight[8:10], weight[0:3]])
    assert isinstance(joined, CLASSES[format])
    assert torch.equal(joined.dequantize(), torch.cat((dense[8:10], dense[0:3])))
    assert weight[3:7].values.data_ptr() == weight.values[3:].data_ptr(), "a part is a view"


def test_half_precision_weights_are_read_as_they_are() -> None:
    weight = random_weight(8, 256).bfloat16()
    for kind in CLASSES.values():
        assert torch.equal(kind.quantize(weight).dequantize(), kind.quantize(weight.float()).dequantize())


def test_scales_and_zeros_of_four_bits_lie_side_by_side() -> None:
    """However the weight came about: a kernel reads both as one number."""
    weight = Int4Weight.quantize(random_weight(6, 384))
    copied = Int4Weight.empty(6, 384, torch.device("cpu"))
    for name, tensor in copied.tensors().items():
        tensor.copy_(weight.tensors()[name])
    for found in (weight, copied, Int4Weight.join([weight[:2], weight[2:]])):
        both = found.facts
        assert both.shape == (3, 6)
        torch.testing.assert_close((both << 16).view(torch.float32), weight.scales.float(), atol=0, rtol=0)
        torch.testing.assert_close((both & -65536).view(torch.float32), weight.zeros.float(), atol=0, rtol=0)
        assert torch.equal(found[1:4].facts, both[:, 1:4])
    apart = Int4Weight(weight.values, weight.scales.clone(), weight.zeros.clone())
    with pytest.raises(AssertionError, match="apart"):
        apart.facts  # noqa: B018
