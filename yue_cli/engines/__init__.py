"""The registry of engines: each backend is a name and a module that is imported when it is used.

A backend is a package with four functions: `available()`, `claims(folder)`, `describe(folder)` and
`open_engine(folder, ...)`; one that quantizes models has a fifth, `plan_conversion(folder, format)`.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from yue_cli.errors import EngineError
from yue_cli.events import Emit, ignore
from yue_cli.models import FORMATS

if TYPE_CHECKING:
    import torch

    from yue_cli.engines.base import Engine, Rehearse

AUTO = "auto"
_BACKENDS = {"native": "yue_cli.engines.native", "exl2": "yue_cli.engines.exl2"}
_PREFERRED = "native"  # for a folder that no other engine claims
_QUANTIZERS = dict.fromkeys(FORMATS, "native")  # the backend that makes and reads each format


@dataclass(frozen=True)
class ModelFacts:
    """What can be known of a model without loading its weights, to plan with."""

    vocabulary_size: int
    max_length: int  # ids that the model was made for
    parameter_bytes: int  # weights as the engine will hold them
    cache_bytes_per_token: int  # keys and values of one row
    work_bytes: int  # about what computing takes beside these, …
    work_bytes_per_token: int  # … and how it grows with the length of a row
    engine: str = _PREFERRED  # which will run it
    dtype: str | None = None  # the only one it is computed in; None: the one that is asked for
    deterministic: bool = True  # do equal inputs give equal bits on one machine?


class Conversion(Protocol):
    """A checkpoint folder's way into a quantized format."""

    @property
    def files(self) -> Mapping[str, int]:
        """The files of weights, in the order in which they are written, with about their bytes."""

    @property
    def texts(self) -> Mapping[str, str]:
        """The small files that tell how the weights are read."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that decides the values beside the weights themselves."""

    def write(self, name: str, target: Path, device: "torch.device", told: Callable[[int], None]) -> None:
        """Write one file of weights and tell, again and again, how many bytes are written. Raises CheckpointError."""


def names() -> tuple[str, ...]:
    """List every known engine, installed or not."""
    return tuple(_BACKENDS)


def available() -> dict[str, str | None]:
    """Tell for every known engine why it cannot be used here; None when it can."""
    return {name: _backend(name).available() for name in _BACKENDS}


def choose(engine: str, folder: Path) -> str:
    """Name the engine that will run a checkpoint folder: the one asked for, or for `auto` the one that reads it.

    Raises EngineError for an engine that is not known, or that cannot be used here.
    """
    name = _name(engine, folder)
    if reason := _backend(name).available():
        wish = f"engine {name}" if engine == name else f"{folder} holds weights for engine {name}, which"
        raise EngineError(f"{wish} cannot be used here: {reason}.")
    return name


def describe(folder: Path, *, dtype: "torch.dtype", engine: str = AUTO, cache: str = AUTO) -> ModelFacts:
    """Read a checkpoint folder's sizes from its config.json. cache: format of keys and values.

    Raises CheckpointError; EngineError for an unknown engine.
    """
    facts: ModelFacts = _backend(_name(engine, folder)).describe(folder, dtype=dtype, cache=cache)
    return facts


def open_engine(
    engine: str,
    folder: Path,
    *,
    rows: int,
    length: int,
    device: "torch.device",
    dtype: "torch.dtype",
    cache: str = AUTO,
    mode: str = AUTO,
    capability: float | None = None,
    emit: Emit = ignore,
    rehearse: "Rehearse | None" = None,
) -> "Engine":
    """Load a checkpoint folder into an engine with room for `rows` rows of `length` ids.

    cache: format of keys and values. mode: how steps are computed. capability: compute capability to count on, None
    for what the GPU has. The settings name their values. emit: hears of what takes long, and is done but once.
    rehearse: what is done first with the engine. On a GPU it is done once before, with one layer, while weights load.
    Raises EngineError for an engine that is not there or a mode that cannot be, OutOfMemory, CheckpointError for a
    bad folder.
    """
    backend = _backend(choose(engine, folder))
    opened: Engine = backend.open_engine(
        folder,
        rows=rows,
        length=length,
        device=device,
        dtype=dtype,
        cache=cache,
        mode=mode,
        capability=capability,
        emit=emit,
        rehearse=rehearse,
    )
    return opened


def write_sizes(folder: Path, sizes: Mapping[str, Any], format: str | None = None) -> None:
    """Make a model folder that holds sizes alone; its weights are made up when it is opened.

    sizes: what a config.json says. format: of the weights; None: floating point.
    """
    _backend(_PREFERRED).write_sizes(folder, sizes, format)


def plan_conversion(folder: Path, format: str) -> Conversion:
    """Find out how a checkpoint folder becomes a quantized one, before anything is read or written.

    Raises CheckpointError for a folder that cannot be quantized.
    """
    conversion: Conversion = _backend(_QUANTIZERS[format]).plan_conversion(folder, format)
    return conversion


def converter(engine: str) -> ModuleType:
    """Import what converts models for an engine: its `conversion` module."""
    return importlib.import_module(f"{_BACKENDS[engine]}.conversion")


def _name(engine: str, folder: Path) -> str:
    if engine != AUTO:
        return engine
    return next((name for name in _BACKENDS if _backend(name).claims(folder)), _PREFERRED)


def _backend(name: str) -> ModuleType:
    if name not in _BACKENDS:
        raise EngineError(f"engine {name}: not known; expected one of {', '.join([AUTO, *_BACKENDS])}.")
    return importlib.import_module(_BACKENDS[name])
