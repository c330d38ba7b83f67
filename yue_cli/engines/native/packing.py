"""How keys and values of 6 or 4 bits are turned before they are rounded, and packed after.

Some channels of keys are far larger than the rest, and would need all the steps that 128 numbers share. A Hadamard
matrix spreads each number over all of them, and they are found again exactly: QuaRot, arXiv 2404.00456.
"""

import functools

import torch
from torch import Tensor


def turn(numbers: Tensor) -> Tensor:
    """Multiply the last dimension by the orthonormal Hadamard matrix of its size: float32. Twice gives it back.

    A size that is no power of two is cut into parts that are one.
    """
    matrix = hadamard(numbers.shape[-1], numbers.device)
    parts = numbers.float().unflatten(-1, (-1, len(matrix)))
    return (parts @ matrix).mul_(len(matrix) ** -0.5).flatten(-2)


@functools.cache
def hadamard(size: int, device: torch.device) -> Tensor:
    """Make the matrix of ones and minus ones, float32, of the largest power of two that divides `size`."""
    matrix = torch.ones(1, 1)
    while size % (2 * len(matrix)) == 0:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix.to(device)


def pack(steps: Tensor, bits: int) -> Tensor:
    """Pack int8 [..., size] of 6 or 4 bits into uint8 [..., size * bits / 8].

    Byte i, below size / 2, holds the highest four bits of the numbers i and i + size / 2; of 6 bits the others follow:
    byte i, below size / 4, holds those of the numbers i, i + size / 4, and so on. Lower numbers stand in lower bits.
    """
    first, second = (steps >> bits - 4 & 15).view(torch.uint8).chunk(2, -1)
    high = first | second << 4
    if bits == 4:
        return high
    low = (steps & 3).view(torch.uint8).chunk(4, -1)
    return torch.cat((high, low[0] | low[1] << 2 | low[2] << 4 | low[3] << 6), -1)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Give the int8 [..., size] back that were packed."""
    size = packed.shape[-1] * 8 // bits
    high = packed[..., : size // 2]
    # At the upper end of a byte, from where they are shifted down with their sign.
    steps = torch.cat((high << 4, high & 240), -1)
    if bits == 6:
        low = packed[..., size // 2 :]
        steps |= torch.cat((low << 2 & 12, low & 12, low >> 2 & 12, low >> 4 & 12), -1)
    return steps.view(torch.int8) >> 8 - bits
