"""The engine for EXL2 weights: the native engine's model, multiplied by exllamav2's kernels.

Rows, cache, attention and the choice of ids are the native engine's, so this one reads ragged rows, parts of the output
head and everything else alike. Weights that are not EXL2 are loaded as the native engine loads them.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from yue_cli.engines import ModelFacts, native
from yue_cli.engines.exl2 import extension, format
from yue_cli.engines.native.config import LlamaConfig
from yue_cli.errors import CheckpointError, EngineError
from yue_cli.events import Emit

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from yue_cli.engines.base import Rehearse
    from yue_cli.engines.native.engine import NativeEngine

NAME = "exl2"
_FIRST = "model.layers.0.self_attn.q_proj"


def available() -> str | None:
    """Tell why this engine cannot be used here; None when it can, or when exllamav2 can be built on first use."""
    return extension.reason()


def claims(folder: Path) -> bool:
    """Tell whether only this engine reads a folder: EXL2 weights."""
    return format.is_exl2(folder)


def describe(folder: Path, *, dtype: "torch.dtype", cache: str) -> ModelFacts:
    """Read the sizes of a checkpoint folder. Raises CheckpointError."""
    import torch

    if not format.is_exl2(folder):
        _check_published(folder)
        return replace(native.describe(folder, dtype=dtype, cache=cache), engine=NAME)
    config, entries = _read(folder)
    facts = native.describe_config(config, torch.float16, cache)
    return replace(
        facts,
        parameter_bytes=_weight_bytes(folder, config, entries),
        # A matrix is turned into numbers while a prompt is read.
        work_bytes=facts.work_bytes + 2 * max(rows * columns for rows, columns in config.matrices.values()),
        engine=NAME,
        dtype="float16",
        deterministic=False,
    )


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
    """Load a checkpoint folder. rehearse: done with weights in 16 bits alone. Raises CheckpointError, EngineError."""
    from yue_cli.engines.exl2.loader import load
    from yue_cli.engines.native.engine import NativeEngine, enough_memory, needs

    if not format.is_exl2(folder):
        _check_published(folder)
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
    config, entries = _read(folder)
    if device.type != extension.DEVICE:
        raise EngineError(f"{folder} holds EXL2 weights, which need a CUDA GPU; the device is {device}.")
    functions = extension.load(emit)
    facts = describe(folder, dtype=dtype, cache=cache)
    held = facts.cache_bytes_per_token * rows * length
    with enough_memory(device, needs(facts.parameter_bytes, held, rows, length)):
        weights = load(folder, config, entries, functions, device)
        return NativeEngine(
            config,
            weights,
            rows=rows,
            length=length,
            cache_format=cache,
            mode=mode,
            capability=capability,
        )


def _read(folder: Path) -> tuple[LlamaConfig, "Mapping[str, format.Entry]"]:
    """Read what is told of a folder's weights. Raises CheckpointError."""
    config, entries = LlamaConfig.read(folder, format.METHOD), format.read_entries(folder)
    if not format.is_quantized(entries, _FIRST):
        raise CheckpointError(f"{folder}: no tensor {_FIRST}.q_weight, though it is an EXL2 model; fetch it again.")
    return config, entries


def _weight_bytes(folder: Path, config: LlamaConfig, entries: "Mapping[str, format.Entry]") -> int:
    """Count the bytes of all weights as they are held, embedding and norms in float16."""
    named = {
        f"model.layers.{number}.{name}": shape
        for number in range(config.layers)
        for name, shape in config.matrices.items()
    }
    table = 2 * config.vocabulary_size * config.hidden
    held = table + 2 * (2 * config.layers + 1) * config.hidden
    if format.is_quantized(entries, "lm_head"):
        named["lm_head"] = (config.vocabulary_size, config.hidden)
    elif not config.tied:
        held += table
    return held + sum(
        format.matrix_bytes(format.find_matrix(folder, entries, name, *shape)) for name, shape in named.items()
    )


def _check_published(folder: Path) -> None:
    """Refuse weights that are neither EXL2 nor in the Hugging Face layout. Raises CheckpointError."""
    entries = format.read_entries(folder)
    if entries and f"{_FIRST}.weight" not in entries:
        raise CheckpointError(
            f"{folder}: neither EXL2 nor Hugging Face weights: {len({entry.path for entry in entries.values()})} "
            f"file(s) with no tensor {_FIRST}.q_weight or {_FIRST}.weight; --engine auto knows what else can be read."
        )
