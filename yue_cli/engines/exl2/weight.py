"""Matrices in EXL2, multiplied by exllamav2's kernels: what the native engine's model computes with.

A few rows are multiplied as they are; many rows are worth turning the matrix into numbers first. The kernel for few
rows adds its partial sums in whatever order they come, in float16: equal inputs may differ in their last bits.
"""

import weakref
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from yue_cli.engines.native.quantized import Weight

_FEW_ROWS = 32  # exllamav2's own limit
_LARGEST = 1 << 27  # weights that are turned into numbers at once: 256 MB; an output head is larger
_NOTHING = torch.empty((1, 1), device="meta")  # how the extension is told that there is no such tensor
# The extension times two kernels on the first calls of each shape of up to four rows, waiting for the device each time,
# and keeps the faster one. These calls are made at once, so that no step waits later, nor while a graph is recorded.
_TIMED_ROWS, _TIMED_CALLS = 4, 201
_timed: set[tuple[torch.device, int, int, int]] = set()  # as the extension: for the whole process


class ExlMatrix:
    """A matrix [out, in] that exllamav2's extension holds by the addresses of its tensors."""

    def __init__(self, extension: ModuleType, tensors: dict[str, Tensor], rows: int) -> None:
        """tensors: as in a file, checked, on their device; they are changed in place. rows: outputs, padding apart."""
        self._functions = extension.ext_c
        tensors["q_perm"] = tensors["q_invperm"].argsort().int()
        # Room for the extension to turn the matrix into numbers, which is done here instead: there PyTorch adds up in
        # float32, and in its own memory.
        scratch = tensors["q_scale_max"].new_empty(1)
        handle = extension.make_q_matrix(tensors, scratch, max_dq_rows=0)
        self._handle, self.tensors = handle, {**tensors, "scratch": scratch}
        self._close = weakref.finalize(self, self._functions.free_q_matrix, handle)
        self._rows, self._columns, self._width = rows, len(tensors["q_perm"]), tensors["q_weight"].shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return self._rows, self._columns

    def multiply(self, x: Tensor) -> Tensor:
        """Multiply x float16 [..., in] by the transposed matrix: [..., out]."""
        flat = x.reshape(-1, self._columns).contiguous()  # the kernel knows no strides
        count = len(flat)
        if count > _FEW_ROWS and self._columns * self._width <= _LARGEST:
            product = flat @ self._numbers()
        else:
            self._have_timed(count)
            product = self._multiply_few(flat)
        return product[:, : self._rows].view(*x.shape[:-1], self._rows)

    def rows(self, start: int, stop: int) -> Tensor:
        """Turn some of the rows into numbers: float16 [stop - start, in]."""
        assert 0 <= start < stop <= self._rows, f"rows {start} to {stop} of {self._rows}"
        low, high = start // 8 * 8, stop + -stop % 8  # eight outputs share a word of scales
        part = self.tensors | {
            "q_weight": self.tensors["q_weight"][:, low:high].contiguous(),
            "q_scale": self.tensors["q_scale"][:, low // 8 : high // 8].contiguous(),
        }
        names = ("q_weight", "q_perm", "q_invperm", "q_scale", "q_scale_max", "q_groups", "q_group_map")
        handle = self._functions.make_q_matrix_split(
            *(part[name] for name in names), *4 * [_NOTHING], self.tensors["scratch"], 0
        )
        numbers = torch.empty(self._columns, high - low, dtype=torch.float16, device=self._device)
        self._functions.reconstruct(handle, numbers)
        self._functions.free_q_matrix(handle)
        return numbers[:, start - low : stop - low].T.contiguous()

    @property
    def _device(self) -> torch.device:
        return self.tensors["q_weight"].device

    def _numbers(self) -> Tensor:
        """Turn the matrix into numbers: float16 [in, width]."""
        numbers = torch.empty(self._columns, self._width, dtype=torch.float16, device=self._device)
        self._functions.reconstruct(self._handle, numbers)
        return numbers

    def _multiply_few(self, flat: Tensor) -> Tensor:
        product = torch.empty(len(flat), self._width, dtype=torch.float16, device=self._device)
        self._functions.gemm_half_q_half(flat, self._handle, product, True)
        return product

    def _have_timed(self, count: int) -> None:
        key = (self._device, count, self._columns, self._width)
        if count > _TIMED_ROWS or key in _timed:
            return
        flat = torch.zeros(count, self._columns, dtype=torch.float16, device=self._device)
        for _ in range(_TIMED_CALLS):
            self._multiply_few(flat)
        _timed.add(key)


class ExlWeight(Weight):
    """EXL2 matrices one under the other, of equal inputs."""

    def __init__(self, parts: Sequence[ExlMatrix]) -> None:
        self.parts = tuple(parts)

    def tensors(self) -> dict[str, Tensor]:
        named = [part.tensors.items() for part in self.parts]
        return {f"{number}.{name}": tensor for number, items in enumerate(named) for name, tensor in items}

    def multiply(self, x: Tensor) -> Tensor:
        """Multiply x float16 [..., in] by the transposed matrix: [..., out]."""
        products = [part.multiply(x) for part in self.parts]
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)

    def __len__(self) -> int:
        return sum(part.shape[0] for part in self.parts)

    def __getitem__(self, rows: slice) -> Tensor:
        """Turn some of the rows into numbers, such as the part of the output head that stage 2 picks from."""
        (part,) = self.parts
        start, stop, step = rows.indices(len(self))
        assert step == 1, "rows are taken one after the other"
        return part.rows(start, stop)
