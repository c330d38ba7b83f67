"""A stand-in for exllamav2's compiled extension: the functions that yue calls, on the CPU, as slow as they like.

It is as strict as the real one about dtypes, shapes and memory, and like it changes what it is given: `make_q_matrix`
leaves the packed values in another order, which only `make_q_matrix_split` and the product know how to read. Its
product is as rough: partial sums in float16, added in any order.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.exl2_reader import dequantize

_SHUFFLED = 0x5A5A5A5A  # stands for the order that the kernels read
_BLOCK = 32  # inputs that the product of few rows adds up in one go


class ExtensionStandIn:
    """What `exllamav2.ext` offers: `make_q_matrix` in Python, and the compiled functions as `ext_c`."""

    def __init__(self) -> None:
        self._matrices: dict[int, Tensor] = {}  # handle → float16 [in, out]
        self._handles = 0
        self.calls = 0  # of the product
        self.ext_c = SimpleNamespace(
            gemm_half_q_half=self._gemm_half_q_half,
            reconstruct=self._reconstruct,
            make_q_matrix_split=self._make_q_matrix_split,
            free_q_matrix=self._matrices.pop,
        )

    @property
    def open_handles(self) -> int:
        return len(self._matrices)

    def make_q_matrix(self, w: dict[str, Tensor], temp_dq: Tensor, max_dq_rows: int = 0) -> int:
        """As exllamav2/ext.py: complete the tensors in place, then hand them to the extension."""
        assert temp_dq.dtype == torch.float16
        assert max_dq_rows == 0
        w["q_scale_max"] *= 1 / 256
        w["q_perm"], w["q_invperm"] = w["q_perm"].short(), w["q_invperm"].short()
        groups, group_map = w["q_groups"].tolist(), []
        for index, bits in enumerate(groups[::2]):
            stop = groups[2 * index + 3] if 2 * index + 3 < len(groups) else len(w["q_weight"])
            rows = (stop - groups[2 * index + 1]) * 32 // bits
            group_map += [number for row in range(rows) for number in (index, rows - row)]
        w["q_group_map"] = torch.tensor(group_map, dtype=torch.int16)
        handle = self._add(w["q_weight"], w)
        w["q_weight"] ^= _SHUFFLED
        return handle

    def _make_q_matrix_split(
        self,
        q_weight: Tensor,
        q_perm: Tensor,
        q_invperm: Tensor,
        q_scale: Tensor,
        q_scale_max: Tensor,
        q_groups: Tensor,
        q_group_map: Tensor,
        gptq_qzeros: Tensor,
        gptq_scales: Tensor,
        gptq_g_idx: Tensor,
        bias: Tensor,
        temp_dq: Tensor,
        max_dq_rows: int,
    ) -> int:
        assert all(tensor.is_meta for tensor in (gptq_qzeros, gptq_scales, gptq_g_idx, bias))
        assert temp_dq.dtype == torch.float16
        assert max_dq_rows == 0
        names = ("q_perm", "q_invperm", "q_scale", "q_scale_max", "q_groups", "q_group_map")
        tensors = (q_perm, q_invperm, q_scale, q_scale_max, q_groups, q_group_map)
        return self._add(q_weight ^ _SHUFFLED, dict(zip(names, tensors, strict=True)))

    def _add(self, q_weight: Tensor, w: dict[str, Tensor]) -> int:
        kinds = {"q_perm": torch.int16, "q_invperm": torch.int16, "q_groups": torch.int16, "q_group_map": torch.int16}
        kinds |= {"q_scale": torch.int32, "q_scale_max": torch.float16}
        assert q_weight.dtype == torch.int32
        assert q_weight.is_contiguous()
        for name, kind in kinds.items():
            assert w[name].dtype == kind, name
            assert w[name].is_contiguous(), name
        assert q_weight.shape[1] == 8 * w["q_scale"].shape[1]
        assert len(w["q_scale"]) == len(w["q_scale_max"])
        assert len(w["q_group_map"]) == 2 * len(w["q_perm"]) == 2 * len(w["q_invperm"])
        plain: dict[str, Any] = {name: tensor.numpy() for name, tensor in w.items()}
        plain |= {"q_weight": q_weight.numpy(), "q_invperm": np.argsort(plain["q_perm"].view(np.uint16))}
        self._handles += 1
        self._matrices[self._handles] = _weights_of(plain, q_weight.shape[1])
        return self._handles

    def _gemm_half_q_half(self, a: Tensor, b: int, c: Tensor, force_cuda: bool) -> None:
        matrix = self._matrices[b]
        assert a.dtype == c.dtype == torch.float16
        assert a.is_contiguous()
        assert c.is_contiguous()
        assert (len(a), *matrix.shape) == (len(c), a.shape[1], c.shape[1])
        assert force_cuda
        self.calls += 1
        c.copy_(_add_up(a, matrix))

    def _reconstruct(self, q_handle: int, output: Tensor) -> None:
        matrix = self._matrices[q_handle]
        assert output.dtype == torch.float16
        assert output.is_contiguous()
        assert output.shape == matrix.shape
        output.copy_(matrix)


def _add_up(a: Tensor, matrix: Tensor) -> Tensor:
    """Multiply as exllamav2's kernel for few rows: [m, in] by [in, out], every sum rounded to float16.

    Even and odd inputs of a block have a sum each; blocks are added to the product as they come.
    """
    blocks, width = len(matrix) // _BLOCK, matrix.shape[1]
    left = a.view(len(a), blocks, _BLOCK // 2, 2, 1).float()
    right = matrix.view(blocks, _BLOCK // 2, 2, width).float()
    sums = torch.zeros(len(a), blocks, 2, width, dtype=torch.float16)
    for place in range(_BLOCK // 2):
        sums = (sums + left[:, :, place] * right[:, place]).half()
    total = torch.zeros(len(a), width, dtype=torch.float16)
    for block in torch.randperm(blocks):
        total += sums[:, block, 0] + sums[:, block, 1]
    return total


def _weights_of(matrix: dict[str, np.ndarray], width: int) -> Tensor:
    """Read a matrix whose `q_scale_max` is divided by 256 already: float16 [in, out]."""
    return torch.from_numpy(dequantize(matrix, width, largest_step=1).T.copy())
