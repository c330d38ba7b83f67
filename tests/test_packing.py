"""Keys and values in 6 and 4 bits: that they are packed as is written, and that turning them pays."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.agreement import SHAPES
from yue_cli.engines.native.cache import bytes_per_token, from_bytes, to_bytes
from yue_cli.engines.native.packing import hadamard, pack, turn, unpack
from yue_cli.errors import EngineError

CPU = torch.device("cpu")


def test_four_bits_by_hand() -> None:
    packed = pack(torch.tensor([1, -1, 7, -7], dtype=torch.int8), 4)
    assert packed.tolist() == [0x71, 0x9F]
    assert unpack(packed, 4).tolist() == [1, -1, 7, -7]


def test_six_bits_by_hand() -> None:
    packed = pack(torch.tensor([1, -1, 31, -31], dtype=torch.int8), 6)
    assert packed.tolist() == [0x70, 0x8F, 0b01_11_11_01]
    assert unpack(packed, 6).tolist() == [1, -1, 31, -31]


@pytest.mark.parametrize(("bits", "largest"), [(4, 7), (6, 31)])
@pytest.mark.parametrize("size", [4, 64, 80, 128])
def test_every_step_comes_back(bits: int, largest: int, size: int) -> None:
    steps = torch.randint(-largest, largest + 1, (3, 50, size), dtype=torch.int8)
    packed = pack(steps, bits)
    assert (packed.dtype, packed.shape) == (torch.uint8, (3, 50, size * bits // 8))
    assert torch.equal(unpack(packed, bits), steps)


def test_the_matrix_is_hadamards() -> None:
    assert hadamard(4, CPU).tolist() == [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    for size, part in ((128, 128), (96, 32), (80, 16)):
        matrix = hadamard(size, CPU)
        assert torch.equal(matrix @ matrix, part * torch.eye(part))


@pytest.mark.parametrize("size", [32, 80, 128])
def test_turning_keeps_lengths_and_is_its_own_inverse(size: int) -> None:
    numbers = torch.randn(5, 3, size)
    turned = turn(numbers)
    torch.testing.assert_close(turned.norm(dim=-1), numbers.norm(dim=-1))
    torch.testing.assert_close(turn(turned), numbers)


def test_one_scale_serves_turned_keys_with_a_large_channel_better() -> None:
    """By two to three times, where two channels are 15 times as large as the rest."""
    keys = torch.randn(400, 128, generator=torch.Generator().manual_seed(0))
    keys[:, [17, 99]] *= 15

    def error(numbers: Tensor) -> float:
        return float((from_bytes(*to_bytes(numbers, 4)) - numbers).norm() / keys.norm())

    assert error(turn(keys)) < 0.45 * error(keys)


def test_heads_that_cannot_be_packed_are_refused() -> None:
    config = replace(SHAPES["tiny"], head_size=90)
    with pytest.raises(EngineError) as error:
        bytes_per_token("int6", config, torch.float32)
    assert str(error.value) == "keys and values in int6 take heads of a multiple of 4, found 90; use int8."
