"""Matrices in 8 and 4 bits, and their product with activations: the definition that every kernel is compared with.

Weights alone are quantized; activations stay what they are. Knows tensors only: no files, no layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from yue_cli.engines.native.formats import GROUP, misfit
from yue_cli.models import EIGHT_BIT, FOUR_BIT

# Values that are held as floating-point numbers at once: what fits a CPU's cache, or a GPU's with few launches.
_BLOCK = {"cpu": 1 << 19}
_LARGE_BLOCK = 1 << 23
PRODUCT_BYTES = 18 * _LARGE_BLOCK  # that a product of many rows takes: four arrays in float32, one in 16 bits
_LARGEST = 127  # of an 8-bit value; -128 is not used, so that both signs reach equally far
_LEVELS = 15  # the highest 4-bit value; the lowest is 0
# Parts of a group's range that are tried for its 16 levels: clipping the ends of it makes the steps finer. With two
# refits after them, the squared error of normally distributed weights is 13 % below that of the whole range.
_FRACTIONS = (1.0, 0.95, 0.9, 0.85, 0.8)
_REFITS = 2


class Weight(ABC):
    """A matrix [out, in] that is no tensor, but can be multiplied as one."""

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """Multiply x [..., in] by the transposed matrix: [..., out] of x's dtype."""

    @abstractmethod
    def __getitem__(self, rows: slice) -> "Matrix":
        """Look at some of the rows."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the rows."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """List the tensors that it is held in by their names."""

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())


@dataclass(frozen=True, eq=False)
class QuantizedWeight(Weight):
    """A matrix [out, in] in one of the formats of this engine. It is never whole in floating-point numbers.

    The fields are its tensors; their names are those in a file, after the name of the matrix.
    """

    format: ClassVar[str]
    values: Tensor  # what stands for the weights

    @classmethod
    @abstractmethod
    def quantize(cls, weight: Tensor) -> Self:
        """Find the values that stand for a floating-point matrix [out, in], on its device."""

    @classmethod
    @abstractmethod
    def shapes(cls, rows: int, columns: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Name dtype and shape of each tensor of a matrix [rows, columns]."""

    @classmethod
    @abstractmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Put matrices one under the other."""

    @property
    @abstractmethod
    def columns(self) -> int:
        """The number of inputs."""

    @abstractmethod
    def __getitem__(self, rows: slice) -> Self:
        """Look at some of the rows: a view."""

    @abstractmethod
    def dequantize(self) -> Tensor:
        """Compute the whole matrix, float32 [out, in]."""

    def multiply(self, x: Tensor, unpack: "Unpack | None" = None) -> Tensor:
        """Multiply x [..., in] by the transposed matrix: [..., out] of x's dtype.

        A block of rows at a time is turned into x's dtype, rounded once, and multiplied as any other weight. unpack:
        does so in one go, so that blocks may be larger.
        """
        rows = _block_rows(self.columns, x.device) if unpack is None else PRODUCT_BYTES // x.itemsize // self.columns
        unpack = unpack or (lambda block, dtype: block.dequantize().to(dtype))
        if len(self) <= rows:
            return F.linear(x, unpack(self, x.dtype))
        if rows not in self._blocks:
            self._blocks[rows] = [self[start : start + rows] for start in range(0, len(self), rows)]
        return torch.cat([F.linear(x, unpack(block, x.dtype)) for block in self._blocks[rows]], dim=-1)

    @cached_property
    def _blocks(self) -> dict[int, list[Self]]:
        """Views of so many rows, made once: on a GPU making them takes longer than their work."""
        return {}

    @classmethod
    def empty(cls, rows: int, columns: int, device: torch.device) -> Self:
        """Make room for a matrix [rows, columns]."""
        shapes = cls.shapes(rows, columns).items()
        return cls(**{name: torch.empty(shape, dtype=dtype, device=device) for name, (dtype, shape) in shapes})

    def tensors(self) -> dict[str, Tensor]:
        """List the tensors by their names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.columns

    def __len__(self) -> int:
        return len(self.values)


# Computes what `dequantize` does, rounded to a dtype.
Unpack = Callable[[QuantizedWeight, torch.dtype], Tensor]


@dataclass(frozen=True, eq=False)
class Int8Weight(QuantizedWeight):
    """8 bits a weight: weight[n, k] = values[n, k] * scales[n].

    values: int8 [out, in], -127..127. scales: float32 [out].
    """

    format = EIGHT_BIT
    scales: Tensor

    @classmethod
    def quantize(cls, weight: Tensor) -> Self:
        # Clipping pays nothing here: the largest weight of a row is worth its 127 steps.
        parts = []
        for block in weight.split(_block_rows(weight.shape[1], weight.device)):
            wide = block.float()
            scales = wide.abs().amax(dim=1) / _LARGEST
            steps = wide / torch.where(scales > 0, scales, 1)[:, None]
            parts.append(cls(steps.round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scales))
        return cls.join(parts)

    @classmethod
    def shapes(cls, rows: int, columns: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"values": (torch.int8, (rows, columns)), "scales": (torch.float32, (rows,))}

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        return cls(torch.cat([part.values for part in parts]), torch.cat([part.scales for part in parts]))

    @property
    def columns(self) -> int:
        return self.values.shape[1]

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.values[rows], self.scales[rows])

    def dequantize(self) -> Tensor:
        return self.values.float() * self.scales[:, None]


@dataclass(frozen=True, eq=False)
class Int4Weight(QuantizedWeight):
    """4 bits a weight, in groups of G = 128 neighbouring columns.

    weight[n, k] = level[n, k] * scales[k // G, n] + zeros[k // G, n], with levels 0..15.
    values: uint8 [out, in / 2]; bytes 2 j and 2 j + 1 of a group, j 0..31, hold from the lowest bits on the levels j,
    j + 32, j + 64, j + 96, so that each four bits of pairs of bytes unpack to neighbouring columns. scales, zeros:
    bfloat16 [in / G, out], side by side in memory, so that a kernel can read both at once.
    """

    format = FOUR_BIT
    scales: Tensor
    zeros: Tensor

    @classmethod
    def quantize(cls, weight: Tensor) -> Self:
        columns = weight.shape[1]
        assert misfit(FOUR_BIT, columns) is None, misfit(FOUR_BIT, columns)
        parts = []
        for block in weight.split(_block_rows(columns, weight.device)):
            grouped = block.float().unflatten(1, (-1, GROUP))  # [out, in / G, G]
            scale, zero = _fit_levels(grouped)
            quarters = _levels(grouped, scale, zero).to(torch.uint8).unflatten(-1, (2, 2, -1))
            pairs = quarters[..., 0, :] | quarters[..., 1, :] << 4  # [out, in / G, 2, G / 4]
            scales, zeros = (fitted[..., 0].T.bfloat16() for fitted in (scale, zero))
            parts.append(cls(pairs.transpose(-1, -2).flatten(1), scales, zeros))
        return cls.join(parts)

    @classmethod
    def shapes(cls, rows: int, columns: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        fitted = (torch.bfloat16, (columns // GROUP, rows))
        return {"values": (torch.uint8, (rows, columns // 2)), "scales": fitted, "zeros": fitted}

    @classmethod
    def empty(cls, rows: int, columns: int, device: torch.device) -> Self:
        values = torch.empty(rows, columns // 2, dtype=torch.uint8, device=device)
        return cls(values, *values.new_empty(columns // GROUP, rows, 2, dtype=torch.bfloat16).unbind(-1))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        facts = [torch.stack((part.scales, part.zeros), dim=-1) for part in parts]
        return cls(torch.cat([part.values for part in parts]), *torch.cat(facts, dim=1).unbind(-1))

    @cached_property
    def facts(self) -> Tensor:
        """Scales and zeros as they lie in memory: int32 [in / G, out], the scale in the low half."""
        assert self.zeros.data_ptr() - self.scales.data_ptr() == self.scales.itemsize, "they lie apart"
        pairs = self.scales.as_strided((*self.scales.shape, 2), (*self.scales.stride(), 1))
        return pairs.view(torch.int32)[..., 0]

    @property
    def columns(self) -> int:
        return 2 * self.values.shape[1]

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.values[rows], self.scales[:, rows], self.zeros[:, rows])

    def dequantize(self) -> Tensor:
        pairs = self.values.unflatten(1, (-1, GROUP // 4, 2)).transpose(-1, -2)  # [out, in / G, 2, G / 4]
        levels = torch.stack((pairs & 15, pairs >> 4), dim=-2).flatten(-3).float()
        return (levels * self.scales.T.float()[..., None] + self.zeros.T.float()[..., None]).flatten(1)


CLASSES: dict[str, type[QuantizedWeight]] = {kind.format: kind for kind in (Int8Weight, Int4Weight)}
Matrix = Tensor | Weight  # [out, in]; both are sliced by rows


def join(parts: Sequence[Matrix]) -> Matrix:
    """Put matrices of one format one under the other."""
    first = parts[0]
    if isinstance(first, QuantizedWeight):
        return type(first).join(parts)  # type: ignore[arg-type]
    return torch.cat(parts)  # type: ignore[arg-type]


def _fit_levels(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Find scale and zero [..., 1] of each group [..., G] with the least squared error among those that are tried.

    First parts of the group's range, then the straight line through the levels that the best of them gave. All are
    rounded as they are stored before they are judged.
    """
    low, high = weights.aminmax(dim=-1, keepdim=True)
    middle, mean = (low + high) / 2, weights.mean(dim=-1, keepdim=True)
    best_scale, best_zero = torch.zeros_like(low), _stored(mean)
    least = _squared_error(weights, best_scale, best_zero)

    def judge(scale: Tensor, zero: Tensor) -> None:
        nonlocal best_scale, best_zero, least
        error = _squared_error(weights, scale, zero)
        is_better = error < least
        least = torch.where(is_better, error, least)
        best_scale = torch.where(is_better, scale, best_scale)
        best_zero = torch.where(is_better, zero, best_zero)

    for fraction in _FRACTIONS:
        scale = _stored((high - low) * (fraction / _LEVELS))
        judge(scale, _stored(middle - scale * (_LEVELS / 2)))
    for _ in range(_REFITS):
        levels = _levels(weights, best_scale, best_zero)
        mean_level = levels.mean(dim=-1, keepdim=True)
        spread = levels - mean_level
        variance = spread.square().sum(dim=-1, keepdim=True)
        scale = _stored((spread * weights).sum(dim=-1, keepdim=True) / torch.where(variance > 0, variance, 1))
        judge(scale, _stored(mean - scale * mean_level))
    return best_scale, best_zero


def _levels(weights: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Choose the nearest level of each weight, 0..15; 0 where all levels are the same."""
    return ((weights - zero) / torch.where(scale > 0, scale, torch.inf)).round_().clamp_(0, _LEVELS)


def _squared_error(weights: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    found = _levels(weights, scale, zero).mul_(scale).add_(zero)
    return found.sub_(weights).square_().sum(dim=-1, keepdim=True)


def _stored(number: Tensor) -> Tensor:
    return number.bfloat16().float()


def _block_rows(columns: int, device: torch.device) -> int:
    return max(1, _BLOCK.get(device.type, _LARGE_BLOCK) // columns)
