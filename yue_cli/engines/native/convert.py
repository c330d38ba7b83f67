"""From a LLaMA's checkpoint folder to its weights in 8 or 4 bits, some rows of one tensor at a time.

Where the files lie, and what becomes of an interrupted conversion, is the caller's business. `loader.py` reads them.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from yue_cli.engines.native.config import CONFIG_FILE, LlamaConfig
from yue_cli.engines.native.formats import CONFIG_KEY, Quantization, misfit
from yue_cli.engines.native.loader import INDEX_FILE, find_tensors, unreadable
from yue_cli.engines.native.quantized import CLASSES
from yue_cli.errors import CheckpointError
from yue_cli.models import EIGHT_BIT

SHARD_BYTES = 10**9  # of a file: what an interruption may cost
_BLOCK = 1 << 22  # values that are in memory at once
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class _Weight:
    """One published tensor and what will stand for it."""

    name: str  # without `.weight`
    source: Path
    shape: tuple[int, ...]
    format: str | None  # None: kept as it is
    stored: dict[str, tuple[torch.dtype, tuple[int, ...]]]  # tensors of the new file

    @property
    def bytes(self) -> int:
        return sum(prod(shape) * dtype.itemsize for dtype, shape in self.stored.values())


class Conversion:
    """A checkpoint folder's way into a format: which files there will be, and writing each of them.

    Raises CheckpointError for a folder that cannot be quantized.
    """

    def __init__(self, folder: Path, format: str) -> None:
        assert format in CLASSES, format
        config = LlamaConfig.read(folder)
        if config.quantization is not None:
            raise CheckpointError(
                f"{folder}: is quantized already ({config.quantization.layers}); expected an original model."
            )
        self._quantization = Quantization(format, head=None if config.tied else EIGHT_BIT)
        self._content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        shards = _cut(list(_weights(folder, config, self._quantization)), SHARD_BYTES)
        if len(shards) == 1:
            names = ["model.safetensors"]
        else:
            names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
        self._shards = dict(zip(names, shards, strict=True))

    @property
    def files(self) -> dict[str, int]:
        """The files of weights, in the order in which they are written, with the bytes of their tensors."""
        return {name: sum(weight.bytes for weight in shard) for name, shard in self._shards.items()}

    @property
    def texts(self) -> dict[str, str]:
        """The small files that tell how the weights are read."""
        texts = {CONFIG_FILE: json.dumps(self._content | {CONFIG_KEY: self._quantization.as_config()}, indent=1) + "\n"}
        if len(self._shards) > 1:
            places = {tensor: name for name, shard in self._shards.items() for each in shard for tensor in each.stored}
            index = {"metadata": {"total_size": sum(self.files.values())}, "weight_map": places}
            texts[INDEX_FILE] = json.dumps(index, indent=1) + "\n"
        return texts

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the values beside the weights themselves."""
        return self._quantization.as_config()

    def write(self, name: str, target: Path, device: torch.device, told: Callable[[int], None]) -> None:
        """Write one file of weights; told: is given the bytes that are written, again and again.

        device: where the values are computed. Raises CheckpointError for a source that cannot be used.
        """
        offsets, header = _lay_out(self._shards[name])
        done = 0
        with target.open("wb") as file:
            file.write(header)
            for weight in self._shards[name]:
                for tensor, at, values in _pieces(weight, device):
                    _put(file, len(header) + offsets[tensor] + at, values)
                    done += values.nbytes
                    told(done)


def _weights(folder: Path, config: LlamaConfig, quantization: Quantization) -> Iterator[_Weight]:
    """List all that a LLaMA of these sizes has, each found in the folder and looked at."""
    places = find_tensors(folder)
    table = (config.vocabulary_size, config.hidden)
    wanted: dict[str, tuple[tuple[int, ...], str | None]] = {"model.embed_tokens": (table, None)}
    for number in range(config.layers):
        prefix = f"model.layers.{number}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            wanted[prefix + norm] = (config.hidden,), None
        wanted |= {prefix + matrix: (sizes, quantization.layers) for matrix, sizes in config.matrices.items()}
    wanted["model.norm"] = (config.hidden,), None
    if not config.tied:
        wanted["lm_head"] = table, quantization.head
    for name, (shape, format) in wanted.items():
        if f"{name}.weight" not in places:
            raise CheckpointError(f"{folder}: no tensor {name}.weight in its {len(set(places.values()))} file(s).")
        yield _look(places[f"{name}.weight"], name, shape, format)


def _look(path: Path, name: str, shape: tuple[int, ...], format: str | None) -> _Weight:
    """Check a tensor's shape and kind without reading it."""
    try:
        with safe_open(path, framework="pt") as file:
            found = file.get_slice(f"{name}.weight")
            dtype, found_shape = found.get_dtype(), tuple(found.get_shape())
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error
    if found_shape != shape:
        raise CheckpointError(
            f"{path}: {name}.weight is {list(found_shape)}; expected {list(shape)} from {CONFIG_FILE}."
        )
    if dtype not in _FLOATS:
        raise CheckpointError(f"{path}: {name}.weight holds {dtype}; expected {', '.join(_FLOATS)}.")
    if format is None:
        return _Weight(name, path, shape, None, {f"{name}.weight": (_DTYPES[dtype], shape)})
    if (why := misfit(format, shape[1])) is not None:
        raise CheckpointError(f"{path}: {name}: {why}, so it cannot be {format}; {EIGHT_BIT} takes any model.")
    stored = {f"{name}.{field}": facts for field, facts in CLASSES[format].shapes(*shape).items()}
    return _Weight(name, path, shape, format, stored)


def _cut(weights: list[_Weight], limit: int) -> list[list[_Weight]]:
    """Share the weights out to files of at most `limit` bytes; a larger weight gets a file of its own."""
    shards: list[list[_Weight]] = [[]]
    for weight in weights:
        if shards[-1] and sum(each.bytes for each in shards[-1]) + weight.bytes > limit:
            shards.append([])
        shards[-1].append(weight)
    return shards


def _lay_out(shard: list[_Weight]) -> tuple[dict[str, int], bytes]:
    """Give each tensor its offset, wide ones first so that all stay aligned, and the file's header.

    The format of safetensors: the header's length in 8 bytes, the header as JSON, the tensors' bytes.
    """
    stored = {name: facts for weight in shard for name, facts in weight.stored.items()}
    offsets: dict[str, int] = {}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in sorted(stored.items(), key=lambda item: -item[1][0].itemsize):
        offsets[name], size = at, prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return offsets, len(text).to_bytes(8, "little") + text


def _pieces(weight: _Weight, device: torch.device) -> Iterator[tuple[str, int, Tensor]]:
    """Convert a weight: names of tensors, bytes from their beginnings, and values that stand there."""
    rest: dict[str, list[Tensor]] = {}
    at = 0
    for block in _read(weight):
        if weight.format is None:
            yield f"{weight.name}.weight", at, block
            at += block.nbytes
            continue
        quantized = CLASSES[weight.format].quantize(block.to(device))
        for field, tensor in quantized.tensors().items():
            if field == "values":
                yield f"{weight.name}.values", at, tensor
                at += tensor.nbytes
            else:
                rest.setdefault(field, []).append(tensor)
    for field, parts in rest.items():  # rows are their last dimension in every format
        yield f"{weight.name}.{field}", 0, torch.cat(parts, dim=-1)


def _read(weight: _Weight) -> Iterator[Tensor]:
    """Read a weight some rows at a time; the file is opened for each, so that no more of it stays mapped."""
    rows = max(1, _BLOCK // prod(weight.shape[1:]))
    for start in range(0, weight.shape[0], rows):
        try:
            with safe_open(weight.source, framework="pt") as file:
                block: Tensor = file.get_slice(f"{weight.name}.weight")[start : start + rows]
        except (SafetensorError, OSError) as error:
            raise unreadable(weight.source, error) from error
        if not bool(block.isfinite().all()):
            raise CheckpointError(
                f"{weight.source}: {weight.name}.weight holds values that are no finite numbers; fetch the model again."
            )
        yield block


def _put(file: BinaryIO, at: int, values: Tensor) -> None:
    file.seek(at)
    file.write(values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
