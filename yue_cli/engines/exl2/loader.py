"""Reads EXL2 weights into exllamav2's hands, one matrix at a time; tables and norms as any other weights."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch

from yue_cli.engines.exl2.format import Entry, find_matrix, group_rows, is_quantized
from yue_cli.engines.exl2.weight import ExlMatrix, ExlWeight
from yue_cli.engines.native.config import LlamaConfig
from yue_cli.engines.native.loader import Loader
from yue_cli.engines.native.model import Weights
from yue_cli.engines.native.quantized import Matrix
from yue_cli.errors import CheckpointError


def load(
    folder: Path, config: LlamaConfig, entries: Mapping[str, Entry], extension: ModuleType, device: torch.device
) -> Weights:
    """Load every weight onto `device`. Raises CheckpointError."""
    with torch.inference_mode():
        return _ExlLoader(folder, entries, extension, device).load(config)


class _ExlLoader(Loader):
    def __init__(self, folder: Path, entries: Mapping[str, Entry], extension: ModuleType, device: torch.device) -> None:
        super().__init__(folder, {name: entry.path for name, entry in entries.items()}, device, torch.float16)
        self.entries, self.extension = entries, extension

    def join(self, parts: dict[str, tuple[int, int]], format: str | None) -> Matrix:
        """Read matrices [rows, columns] one under the other. An output head may be there as numbers."""
        if not any(is_quantized(self.entries, name) for name in parts):
            return super().join(parts, format)
        return ExlWeight([self._matrix(name, *shape) for name, shape in parts.items()])

    def _matrix(self, name: str, rows: int, columns: int) -> ExlMatrix:
        entries = find_matrix(self.folder, self.entries, name, rows, columns)
        tensors = {part: self.find(f"{name}.{part}")[1] for part in entries}
        # What follows is taken at its word by kernels that would read and write elsewhere if it were wrong.
        try:
            group_rows(tensors["q_groups"].tolist(), len(tensors["q_weight"]), columns)
        except ValueError as error:
            raise CheckpointError(
                f"{entries['q_groups'].path}: {name}.q_groups tells of {error}; fetch it again."
            ) from error
        if not torch.equal(tensors["q_invperm"].sort().values, torch.arange(columns, dtype=torch.int32)):
            raise CheckpointError(
                f"{entries['q_invperm'].path}: {name}.q_invperm is no order of {columns} inputs; fetch it again."
            )
        on_device = {part: tensor.to(self.device) for part, tensor in tensors.items()}
        return ExlMatrix(self.extension, on_device, rows)
