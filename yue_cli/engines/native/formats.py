"""Weight-only formats of this engine: their sizes, and the block of config.json that says which one. No torch.

docs/quantization.md tells what they are for; `quantized.py` computes with them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yue_cli.errors import CheckpointError
from yue_cli.models import EIGHT_BIT, FORMATS, FOUR_BIT

GROUP = 128  # columns that share a scale and a zero in 4 bits
METHOD = "yue-native"
CONFIG_KEY = "quantization_config"


@dataclass(frozen=True)
class Quantization:
    """How a folder's matrices are stored. Norms and the embedding stay floating-point numbers."""

    layers: str  # the format of the matrices of every layer
    head: str | None = EIGHT_BIT  # of the output head; None: floating point, as where it is the embedding

    def as_config(self) -> dict[str, Any]:
        """Write the block of config.json."""
        version = _version(self.layers, self.head)
        block = {"quant_method": METHOD, "version": version, "format": self.layers, "head_format": self.head}
        return block | ({"group": GROUP} if FOUR_BIT in (self.layers, self.head) else {})

    @classmethod
    def read(cls, path: Path, block: Any, skipped: str | None = None) -> "Quantization | None":
        """Read the block of the config.json at `path`; None where there is none. Raises CheckpointError.

        skipped: a method that is read elsewhere, and as if there were no block.
        """
        if block is None:
            return None
        method = block.get("quant_method") if isinstance(block, dict) else block
        if skipped is not None and method == skipped:
            return None
        if method == "exl2":
            raise CheckpointError(f"{path}: holds EXL2 weights; --engine exl2 reads them, or auto, which chooses it.")
        if method != METHOD:
            raise CheckpointError(
                f"{path}: `{CONFIG_KEY}.quant_method` is {method!r}; this engine reads {METHOD!r} only. Take the "
                "original model; `yue quantize` makes a smaller one of it."
            )
        version = _version(block.get("format"), block.get("head_format"))
        if block.get("version") != version:
            raise CheckpointError(
                f"{path}: `{CONFIG_KEY}.version` is {block.get('version')!r}, this yue reads {version}; update yue, or "
                "quantize the original model again."
            )
        known = cls(block.get("format"), block.get("head_format"))
        is_known = known.layers in FORMATS and known.head in (None, *FORMATS)
        if not is_known or known.as_config() != block:
            raise CheckpointError(
                f"{path}: `{CONFIG_KEY}` is {block!r}; expected format {' or '.join(FORMATS)} and, in 4 bits, group "
                f"{GROUP}. Quantize the original model again."
            )
        return known


def _version(layers: Any, head: Any) -> int:
    """Tell the version of two formats, as found in a file: how their values lie."""
    return 2 if FOUR_BIT in (layers, head) else 1


def matrix_bytes(format: str | None, rows: int, columns: int, item_bytes: int) -> int:
    """Count the bytes of a matrix. item_bytes: of a value where it is not quantized."""
    if format == EIGHT_BIT:
        return rows * (columns + 4)
    if format == FOUR_BIT:
        return rows * (columns // 2 + 4 * (columns // GROUP))
    return rows * columns * item_bytes


def misfit(format: str, columns: int) -> str | None:
    """Say why a matrix of so many columns cannot be stored in a format; None where it can."""
    if format == FOUR_BIT and columns % GROUP:
        return f"{columns} columns cannot be cut into groups of {GROUP}"
    return None
