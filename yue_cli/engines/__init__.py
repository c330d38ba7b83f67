"""The registry of engines: each backend is a name and a module that is imported when it is used.

A backend is a package with three functions: `available()`, `describe(folder)` and `open_engine(folder, ...)`.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from yue_cli.errors import EngineError

if TYPE_CHECKING:
    import torch

    from yue_cli.engines.base import Engine

AUTO = "auto"
_BACKENDS = {"native": "yue_cli.engines.native"}
_PREFERRED = "native"


@dataclass(frozen=True)
class ModelFacts:
    """What can be known of a model without loading its weights, to plan with."""

    vocabulary_size: int
    max_length: int  # ids that the model was made for
    parameter_bytes: int  # weights as the engine will hold them
    cache_bytes_per_token: int  # keys and values of one row
    work_bytes: int  # about what computing takes beside these, …
    work_bytes_per_token: int  # … and how it grows with the length of a row


def names() -> tuple[str, ...]:
    """List every known engine, installed or not."""
    return tuple(_BACKENDS)


def available() -> dict[str, str | None]:
    """Tell for every known engine why it cannot be used here; None when it can."""
    return {name: _backend(name).available() for name in _BACKENDS}


def describe(folder: Path, *, dtype: "torch.dtype", engine: str = AUTO) -> ModelFacts:
    """Read a checkpoint folder's sizes from its config.json.

    Raises CheckpointError; EngineError for an unknown engine.
    """
    facts: ModelFacts = _backend(engine).describe(folder, dtype=dtype)
    return facts


def open_engine(
    engine: str, folder: Path, *, rows: int, length: int, device: "torch.device", dtype: "torch.dtype"
) -> "Engine":
    """Load a checkpoint folder into an engine with room for `rows` rows of `length` ids.

    Raises EngineError for an engine that is not there or too little memory, CheckpointError for a bad folder.
    """
    backend = _backend(engine)
    if reason := backend.available():
        raise EngineError(f"engine {engine} cannot be used here: {reason}.")
    opened: Engine = backend.open_engine(folder, rows=rows, length=length, device=device, dtype=dtype)
    return opened


def _backend(engine: str) -> ModuleType:
    name = _PREFERRED if engine == AUTO else engine
    if name not in _BACKENDS:
        raise EngineError(f"engine {engine}: not known; expected one of {', '.join([AUTO, *_BACKENDS])}.")
    return importlib.import_module(_BACKENDS[name])
