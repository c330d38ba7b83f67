"""The engine of this package: PyTorch alone, on a CPU or a GPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yue_cli.engines import ModelFacts
from yue_cli.engines.native.config import LlamaConfig
from yue_cli.events import Emit

if TYPE_CHECKING:
    import torch

    from yue_cli.engines.base import Rehearse
    from yue_cli.engines.native.convert import Conversion
    from yue_cli.engines.native.engine import NativeEngine


def available() -> str | None:
    """Tell why this engine cannot be used here: it always can."""
    return None


def claims(folder: Path) -> bool:
    """Tell whether a folder is for this engine alone: other engines say so of theirs."""
    return False


def describe(folder: Path, *, dtype: "torch.dtype", cache: str) -> ModelFacts:
    """Read the sizes of a checkpoint folder. Raises CheckpointError."""
    return describe_config(LlamaConfig.read(folder), dtype, cache)


def describe_config(config: LlamaConfig, dtype: "torch.dtype", cache: str) -> ModelFacts:
    """Tell the sizes of a model."""
    from yue_cli.engines.native.cache import bytes_per_token
    from yue_cli.engines.native.engine import CHUNK
    from yue_cli.engines.native.quantized import PRODUCT_BYTES

    groups = config.heads // config.key_value_heads
    # Bytes are turned into numbers before a prompt looks at them: one layer's at a time. Of fewer bits these are turned
    # once more, but keys and values do not need the room at the same time.
    widened = 0 if cache == "auto" else config.cache_values_per_token // config.layers * (4 + dtype.itemsize)
    return ModelFacts(
        vocabulary_size=config.vocabulary_size,
        max_length=config.max_length,
        parameter_bytes=config.weight_bytes(dtype.itemsize),
        cache_bytes_per_token=bytes_per_token(cache, config, dtype),
        # While a piece of a prompt is read: a few copies of its hidden states in float32 and of the feed-forward part;
        # the mask, once as it is and once as the numbers that attention adds; quantized weights as numbers.
        work_bytes=CHUNK * (12 * config.hidden + 4 * config.inner * dtype.itemsize)
        + (0 if config.quantization is None else PRODUCT_BYTES),
        work_bytes_per_token=CHUNK * groups * (1 + dtype.itemsize) + widened,
    )


def plan_conversion(folder: Path, format: str) -> "Conversion":
    """Look at a checkpoint folder that is to be quantized. Raises CheckpointError."""
    from yue_cli.engines.native.convert import Conversion

    return Conversion(folder, format)


def open_engine(
    folder: Path,
    *,
    rows: int,
    length: int,
    device: "torch.device",
    dtype: "torch.dtype",
    cache: str,
    mode: str,
    capability: float | None,
    emit: Emit,
    rehearse: "Rehearse | None" = None,
) -> "NativeEngine":
    """Load a checkpoint folder. Raises CheckpointError and EngineError."""
    from yue_cli.engines.native.engine import NativeEngine

    return NativeEngine.open(
        folder,
        rows=rows,
        length=length,
        device=device,
        dtype=dtype,
        cache_format=cache,
        mode=mode,
        capability=capability,
        rehearse=rehearse,
    )


def write_sizes(folder: Path, sizes: Mapping[str, Any], format: str | None) -> None:
    """Make a folder whose weights are made up when it is opened."""
    from yue_cli.engines.native import invented

    invented.write_sizes(folder, sizes, format)
