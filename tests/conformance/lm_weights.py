"""The tiny language models of the golden vectors: weights that follow from a rule and are checked before use."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.tiny_llama import write_checkpoint

Arrays = dict[str, np.ndarray]

_SCALES = {"model.embed_tokens.weight": 0.5, "lm_head.weight": 0.25}
_OTHER_SCALE = 0.15
_LADDER_WIDTH = 8  # hidden dimensions that tell codebooks apart
_CODEBOOK_START, _CODEBOOK_SIZE = 45334, 1024


def write_model(golden: Path, config_name: str, fill_name: str, folder: Path) -> Path:
    """Make the checkpoint folder of a golden model."""
    config = json.loads((golden / config_name).read_text())
    fill = json.loads((golden / fill_name).read_text())
    arrays = fill_arrays(fill)
    return write_checkpoint(folder, config, {name: torch.from_numpy(array) for name, array in arrays.items()})


def fill_arrays(content: dict[str, Any]) -> Arrays:
    """Fill every tensor that a `fill_*.json` lists, float32, and compare with its checksums."""
    fill = content["fill"]
    arrays = {name: _fill(name, facts["shape"], fill["seed"]) for name, facts in content["tensors"].items()}
    for low, high, factor in fill.get("lm_head_row_scale", []):
        arrays["lm_head.weight"][low:high] *= np.float32(factor)
    if "ladder" in fill:
        _add_ladder(arrays, **fill["ladder"])
    for name, facts in content["tensors"].items():
        found = zlib.crc32(arrays[name].astype("<f4").tobytes())
        assert found == facts["crc32"], f"{name}: checksum {found}, expected {facts['crc32']}: the fill rule differs"
    return arrays


def _fill(name: str, shape: list[int], seed: int) -> np.ndarray:
    key = zlib.crc32(name.encode()) + (seed << 32)
    normal = np.random.Generator(np.random.Philox(key=key)).standard_normal(np.prod(shape))
    scaled = 1 + 0.1 * normal if name.endswith("norm.weight") else _SCALES.get(name, _OTHER_SCALE) * normal
    return scaled.astype(np.float32).reshape(shape)


def _add_ladder(arrays: Arrays, embed: float, head: float) -> None:
    """Make an id of the next codebook the likely one after an id of codebook k."""
    for name, array in arrays.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            array[:_LADDER_WIDTH] = 0
    embedding, lm_head = arrays["model.embed_tokens.weight"], arrays["lm_head.weight"]
    embedding[:, :_LADDER_WIDTH] = 0
    lm_head[:, :_LADDER_WIDTH] = 0
    starts = [_CODEBOOK_START + _CODEBOOK_SIZE * index for index in range(_LADDER_WIDTH + 1)]
    for index in range(_LADDER_WIDTH):
        embedding[starts[index] : starts[index + 1], index] = embed
        if index < _LADDER_WIDTH - 1:
            lm_head[starts[index + 1] : starts[index + 1] + _CODEBOOK_SIZE, index] = head
