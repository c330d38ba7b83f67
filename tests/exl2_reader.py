"""A plain reader of EXL2 matrices, written from the format's description: slow, and sure of nothing but bits."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

Matrix = dict[str, np.ndarray]  # q_weight, q_scale, q_scale_max, q_groups, q_invperm


def dequantize(matrix: Matrix, outputs: int, largest_step: int = 256) -> np.ndarray:
    """Compute a matrix's weights, float16 [out, in]; `outputs` without those that fill the width.

    largest_step: the square of the steps of the largest scale; 1 where q_scale_max was divided by it already.
    """
    words, order = matrix["q_weight"].view(np.uint32), np.argsort(matrix["q_invperm"])
    bits, starts = matrix["q_groups"][::2].tolist(), [*matrix["q_groups"][1::2].tolist(), len(words)]
    weight = np.zeros((len(order), outputs), dtype=np.float16)  # [in, out]
    row = 0
    for group, width in enumerate(bits):
        largest = np.float16(matrix["q_scale_max"][group]) / np.float16(largest_step)
        block = words[starts[group] : starts[group + 1]]
        scales = np.array([_scale(matrix["q_scale"][group], output) for output in range(outputs)])
        scale = ((scales + 1) ** 2).astype(np.float16) * largest
        for _ in range(32 * len(block) // width):
            first = 32 * starts[group] + width * (row - _rows_before(bits, starts, group))
            values = np.zeros(outputs, dtype=np.int64)
            for bit in range(width):
                place = first + bit
                values |= (words[place // 32, :outputs].astype(np.int64) >> place % 32 & 1) << bit
            weight[order[row]] = (values - 2 ** (width - 1)).astype(np.float16) * scale
            row += 1
    return weight.T


def read_weights(folder: Path, sizes: dict[str, int]) -> dict[str, Tensor]:
    """Read a model by the published names, with the weights that its values stand for. sizes: outputs of a matrix."""
    stored = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    weights = {name: tensor for name, tensor in stored.items() if name.endswith(".weight")}
    for name, outputs in sizes.items():
        parts = ("q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm")
        matrix = {part: stored[f"{name}.{part}"].numpy() for part in parts}
        weights[f"{name}.weight"] = torch.from_numpy(dequantize(matrix, outputs))
    return weights


def _rows_before(bits: list[int], starts: list[int], group: int) -> int:
    return sum(32 * (starts[index + 1] - starts[index]) // bits[index] for index in range(group))


def _scale(row: np.ndarray, output: int) -> int:
    return int(row.view(np.uint32)[output // 8]) >> 4 * (output % 8) & 15
