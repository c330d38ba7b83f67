"""Reads a LLaMA's weights from safetensors files, one tensor at a time. The only file that knows their names."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from yue_cli.engines.native.carrier import Carrier
from yue_cli.engines.native.config import LlamaConfig
from yue_cli.engines.native.model import Layer, Weights
from yue_cli.engines.native.quantized import CLASSES, Matrix
from yue_cli.engines.native.rehearsal import Begun
from yue_cli.errors import CheckpointError

INDEX_FILE = "model.safetensors.index.json"
_PATTERN = "model*.safetensors"


def load(
    folder: Path, config: LlamaConfig, *, device: torch.device, dtype: torch.dtype, begun: Begun | None = None
) -> Weights:
    """Load every weight as `dtype` onto `device`.

    Never holds more than one tensor, and on a GPU 64 MiB of main memory, beside those already in place. begun: hears of
    the first layer. Raises CheckpointError.
    """
    with torch.inference_mode():
        return Loader(folder, find_tensors(folder), device, dtype).load(config, begun)


class Loader:
    def __init__(self, folder: Path, places: Mapping[str, Path], device: torch.device, dtype: torch.dtype) -> None:
        """places: the file that holds each tensor."""
        self.folder, self.places, self.device, self.dtype = folder, places, device, dtype

    @cached_property
    def _carrier(self) -> Carrier:
        return Carrier(self.device)

    def load(self, config: LlamaConfig, begun: Begun | None = None) -> Weights:
        hidden = config.hidden
        layers_format, head_format = (None, None)
        if config.quantization:
            layers_format, head_format = config.quantization.layers, config.quantization.head
        embedding = self.read("model.embed_tokens.weight", config.vocabulary_size, hidden)
        head: Matrix = embedding
        if not config.tied:
            head = self.join({"lm_head": (config.vocabulary_size, hidden)}, head_format)
        weights = Weights(embedding, [], norm=self.read("model.norm.weight", hidden), head=head)
        for number in range(config.layers):
            name = f"model.layers.{number}."

            def join(*parts: str, prefix: str = name) -> Matrix:
                return self.join({prefix + part: config.matrices[part] for part in parts}, layers_format)

            weights.layers.append(
                Layer(
                    attention_norm=self.read(name + "input_layernorm.weight", hidden),
                    qkv=join("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                    output=join("self_attn.o_proj"),
                    inner_norm=self.read(name + "post_attention_layernorm.weight", hidden),
                    gate_up=join("mlp.gate_proj", "mlp.up_proj"),
                    down=join("mlp.down_proj"),
                )
            )
            if begun is not None and number == 0:
                begun(replace(weights, layers=weights.layers[:1]))
        return weights

    def join(self, parts: dict[str, tuple[int, int]], format: str | None) -> Matrix:
        """Read matrices [rows, columns] one under the other into one."""
        total, columns = sum(rows for rows, _ in parts.values()), next(iter(parts.values()))[1]
        whole: Matrix
        if format is None:
            whole = torch.empty(total, columns, dtype=self.dtype, device=self.device)
        else:
            whole = CLASSES[format].empty(total, columns, self.device)
        start = 0
        for name, (rows, _) in parts.items():
            target = whole[start : start + rows]
            if isinstance(target, Tensor):
                self.read_into(target, f"{name}.weight")
            else:
                for field, tensor in target.tensors().items():
                    self.read_into(tensor, f"{name}.{field}", exactly=True)
            start += rows
        return whole

    def read(self, name: str, *shape: int) -> Tensor:
        return self.read_into(torch.empty(shape, dtype=self.dtype, device=self.device), name)

    def read_into(self, target: Tensor, name: str, exactly: bool = False) -> Tensor:
        """Copy a tensor into its place; exactly: it has the dtype already."""
        path, found = self.find(name)
        if found.shape != target.shape:
            raise CheckpointError(
                f"{path}: {name} is {list(found.shape)}; expected {list(target.shape)} from config.json."
            )
        if exactly and found.dtype != target.dtype:
            raise CheckpointError(
                f"{path}: {name} holds {found.dtype}; expected {target.dtype}. Quantize the original model again."
            )
        if not exactly and not found.is_floating_point():
            raise CheckpointError(f"{path}: {name} holds {found.dtype}; expected float32, bfloat16 or float16.")
        self._carrier.copy(found, target)
        return target

    def find(self, name: str) -> tuple[Path, Tensor]:
        """Read a tensor as it is in its file, and tell which file that is."""
        path = self.places.get(name)
        if path is None:
            raise CheckpointError(f"{self.folder}: no tensor {name} in its {len(set(self.places.values()))} file(s).")
        try:
            with safe_open(path, framework="pt") as file:
                if name not in set(file.keys()):
                    raise CheckpointError(f"{path}: no tensor {name}, where {INDEX_FILE} says it is.")
                return path, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise unreadable(path, error) from error


def find_tensors(folder: Path) -> dict[str, Path]:
    """Tell which file holds each tensor: by the index, or by looking into every file."""
    index = folder / INDEX_FILE
    if index.exists():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            places = {name: folder / file for name, file in names.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not an index of safetensors files ({error}).") from error
        for path in sorted(set(places.values())):
            if not path.exists():
                raise CheckpointError(f"{path}: missing, though {INDEX_FILE} names it; fetch the model again.")
        return places
    files = sorted(folder.glob(_PATTERN))
    if not files:
        raise CheckpointError(f"{folder}: no {_PATTERN}; only weights in safetensors files are read.")
    places = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                places |= dict.fromkeys(file.keys(), path)
        except (SafetensorError, OSError) as error:
            raise unreadable(path, error) from error
    return places


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """Say what is wrong with a file: cut short, a git-lfs stub, or no safetensors file at all."""
    found = path.stat().st_size if path.exists() else 0
    expected = _size_by_header(path)
    if expected is not None and found < expected:
        return CheckpointError(f"{path}: cut short: expected {expected} bytes, found {found}; fetch the model again.")
    return CheckpointError(f"{path}: not a safetensors file ({error}), {found} bytes; fetch the model again.")


def _size_by_header(path: Path) -> int | None:
    """Compute a safetensors file's size: 8 bytes of length, a JSON header, then data up to the furthest offset."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                return None
            header = json.loads(file.read(length))
        return 8 + length + max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
