"""EXL2 matrices: written, read plainly, and multiplied through a stand-in for exllamav2's extension."""

import gc

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.random_exl2 import mix, quantize
from tests.exl2_reader import dequantize
from tests.exl2_stand_in import ExtensionStandIn
from yue_cli.engines.exl2.format import group_rows
from yue_cli.engines.exl2.weight import ExlMatrix, ExlWeight

INPUTS = 256
ROUGH = 1e-2  # products of deviation 1 from a kernel that rounds every partial sum to 11 bits: 5e-3 at worst
MIXTURES = [
    [(8, INPUTS)],
    [(2, INPUTS)],
    [(6, 32), (3, 224)],
    [(5, 96), (4, 160)],
    [(8, 32), (6, 32), (5, 32), (4, 32), (3, 64), (2, 64)],
]


def packed(outputs: int, parts: list[tuple[int, int]], seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, INPUTS, generator=generator) / INPUTS**0.5
    return weight, quantize(weight, parts, generator)


def plain(tensors: dict[str, Tensor], outputs: int) -> Tensor:
    return torch.from_numpy(dequantize({name: tensor.numpy() for name, tensor in tensors.items()}, outputs))


def matrix(outputs: int, parts: list[tuple[int, int]], seed: int = 0) -> tuple[Tensor, ExlMatrix, ExtensionStandIn]:
    """Make a matrix, and its weights float16 [out, in] by the plain reader."""
    _, tensors = packed(outputs, parts, seed)
    expected, extension = plain(tensors, outputs), ExtensionStandIn()
    return expected, ExlMatrix(extension, tensors, outputs), extension  # type: ignore[arg-type]


@pytest.mark.parametrize("parts", MIXTURES, ids=str)
def test_what_is_written_is_read_as_the_weights_that_were_rounded(parts: list[tuple[int, int]]) -> None:
    weight, tensors = packed(40, parts)
    error = (plain(tensors, 40).float() - weight).square().mean().sqrt() / weight.std()
    coarsest = min(bits for bits, _ in parts)
    assert error < {8: 0.01, 4: 0.13, 3: 0.28, 2: 0.7}[coarsest]
    sizes = group_rows(tensors["q_groups"].tolist(), len(tensors["q_weight"]), INPUTS)
    assert [bits for bits, _ in sizes] == sorted((bits for bits, _ in sizes), reverse=True)
    assert {bits: sum(rows for width, rows in sizes if width == bits) for bits, _ in parts} == dict(parts)


def test_one_weight_is_read_as_worked_out_by_hand() -> None:
    words = np.zeros((4, 32), dtype=np.uint32)
    words[0, 9] = 13 << 4  # row 1 of output 9: value 13, that is 5 steps
    matrix = {
        "q_weight": words.view(np.int32),
        "q_scale": np.array([[0, 2 << 4, 0, 0]], dtype=np.int32),  # output 9: scale 2, that is 9 of 256 parts
        "q_scale_max": np.array([0.5], dtype=np.float16),
        "q_groups": np.array([4, 0], dtype=np.int16),
        "q_invperm": np.roll(np.arange(32), 3).astype(np.int32),  # input i is row i - 3: row 1 is input 4
    }
    weight = dequantize(matrix, 32)
    assert weight[9, 4] == 5 * 9 / 256 * 0.5
    assert weight[9, 5] == -8 * 9 / 256 * 0.5  # a value of 0 is the lowest
    assert weight[8, 4] == -8 * 1 / 256 * 0.5


@pytest.mark.parametrize("bits", [2.1, 3.0, 4.03125, 4.25, 5.0, 6.0, 8.0])
def test_a_mixture_costs_the_bits_that_were_asked_for(bits: float) -> None:
    columns = 4096
    parts = mix(bits, columns)
    cost = sum(width * rows for width, rows in parts) / columns + 4 / 128
    assert cost == pytest.approx(min(bits, 8.03125), abs=0.02)
    assert all(rows % 32 == 0 for _, rows in parts)


@pytest.mark.parametrize("parts", MIXTURES, ids=str)
@pytest.mark.parametrize("rows", [1, 4, 32, 33, 70])
def test_a_product_is_that_of_the_weights(parts: list[tuple[int, int]], rows: int) -> None:
    weights, exl, extension = matrix(64, parts)
    x = torch.randn(rows, INPUTS, generator=torch.Generator().manual_seed(1)).half()
    product = exl.multiply(x)
    torch.testing.assert_close(product.float(), x.float() @ weights.float().T, atol=ROUGH, rtol=0)
    assert (extension.calls > 0) == (rows <= 32)  # many rows are multiplied by a matrix of numbers


def test_any_shape_and_any_strides_are_multiplied() -> None:
    weights, exl, _ = matrix(40, [(4, INPUTS)])  # filled up to 64 outputs
    x = torch.randn(5, 2, INPUTS).half().transpose(0, 1)
    found = exl.multiply(x)
    assert found.shape == (2, 5, 40)
    torch.testing.assert_close(found.float(), x.float() @ weights.float().T, atol=ROUGH, rtol=0)


@pytest.mark.parametrize(("start", "stop"), [(0, 96), (8, 16), (46, 70), (95, 96), (1, 2)])
def test_some_rows_are_the_numbers_that_they_stand_for(start: int, stop: int) -> None:
    weights, exl, extension = matrix(96, [(6, 96), (5, 160)])
    weight = ExlWeight([exl])
    assert torch.equal(weight[start:stop], weights[start:stop])
    assert extension.open_handles == 1  # that of the whole


def test_matrices_one_under_the_other_are_multiplied_as_one() -> None:
    parts = [
        matrix(outputs, mixture, seed) for seed, (outputs, mixture) in enumerate([(64, MIXTURES[0]), (32, MIXTURES[2])])
    ]
    weight = ExlWeight([exl for _, exl, _ in parts])
    x = torch.randn(3, INPUTS).half()
    expected = torch.cat([exl.multiply(x) for _, exl, _ in parts], dim=-1)
    torch.testing.assert_close(weight.multiply(x), expected, atol=ROUGH, rtol=0)
    assert len(weight) == 96
    held = {tensor.data_ptr(): tensor.nbytes for _, exl, _ in parts for tensor in exl.tensors.values()}
    assert weight.nbytes == sum(held.values())


def test_products_repeat_where_the_matrix_is_turned_into_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    _, exl, _ = matrix(96, [(4, INPUTS)])
    x = torch.randn(4, INPUTS).half()

    def distinct() -> int:
        return len({exl.multiply(x).numpy().tobytes() for _ in range(9)})

    assert distinct() > 1
    monkeypatch.setattr("yue_cli.engines.exl2.weight._FEW_ROWS", 0)
    assert distinct() == 1


def test_kernels_are_timed_before_the_first_product_and_not_again() -> None:
    _, exl, extension = matrix(160, [(4, INPUTS)])
    x = torch.ones(2, INPUTS).half()
    exl.multiply(x)
    assert extension.calls == 202
    exl.multiply(x)
    assert extension.calls == 203
    exl.multiply(torch.ones(5, INPUTS).half())  # more rows are not timed
    assert extension.calls == 204


def test_what_the_extension_holds_goes_with_the_matrix() -> None:
    _, exl, extension = matrix(32, [(4, INPUTS)])
    assert extension.open_handles == 1
    del exl
    gc.collect()
    assert extension.open_handles == 0
