"""Weights that are made up where a folder names a model's sizes only: they take the same time as any others.

What is sung with them is noise. For `yue bench`, and to try a whole song at the published sizes without a download.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yue_cli.engines.native.config import CONFIG_FILE, RANDOM_KEY, LlamaConfig
from yue_cli.engines.native.formats import CONFIG_KEY, Quantization
from yue_cli.engines.native.loader import Loader
from yue_cli.engines.native.model import Weights
from yue_cli.engines.native.rehearsal import Begun

# One draw serves many tensors, since drawing takes a processor longer than copying; a prime, so that rows differ.
_DRAWN = 1_048_573
_EMBEDDING = 0.5  # standard deviation, where that of a matrix is 1 / √columns
_SCALE_8, _SCALE_4 = 2e-4, 3e-3  # of a step in 8 and 4 bits: about the same for a matrix of 4,096 columns


def write_sizes(folder: Path, sizes: Mapping[str, Any], format: str | None) -> None:
    """Make a folder whose model has these sizes (as in a config.json) and weights that are made up when it is opened.

    format: of the weights, where they are quantized.
    """
    content = {**sizes, RANDOM_KEY: True}
    if format is not None:
        content[CONFIG_KEY] = Quantization(format).as_config()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load(config: LlamaConfig, *, device: torch.device, dtype: torch.dtype, begun: Begun | None = None) -> Weights:
    """Make up every weight on `device`."""
    with torch.inference_mode():
        return _Inventor(device, dtype).load(config, begun)


class _Inventor(Loader):
    """Draws what a loader would read."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(Path(), {}, device, dtype)
        generator = torch.Generator(device).manual_seed(0)
        self._normal = torch.randn(_DRAWN, generator=generator, device=device)
        self._bytes = torch.randint(-127, 128, (_DRAWN,), generator=generator, device=device, dtype=torch.int8)

    def read_into(self, target: Tensor, name: str, exactly: bool = False) -> Tensor:
        """Fill a tensor so that its model's numbers stay in the range of float16."""
        kind = name.rpartition(".")[2]
        if name.endswith("norm.weight"):
            target.fill_(1)
        elif kind == "scales":
            target.fill_(_SCALE_8 if target.ndim == 1 else _SCALE_4)
        elif kind == "zeros":
            target.fill_(-7.5 * _SCALE_4)  # the middle of 16 levels
        elif target.is_floating_point():
            _repeat(self._normal, target)
            target.mul_(_EMBEDDING if "embed" in name else target.shape[-1] ** -0.5)
        else:
            _repeat(self._bytes.view(target.dtype), target)
        return target


def _repeat(drawn: Tensor, target: Tensor) -> None:
    flat = target.view(-1)
    for start in range(0, len(flat), len(drawn)):
        part = flat[start : start + len(drawn)]
        part.copy_(drawn[: len(part)])
