"""From the published files to a codec folder: every name and shape checked, what inference never reads left out.

Runs once, after the download. `checkpoint.py` reads what is written here.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from xcodec_mini_infer import CodecError, checkpoint
from xcodec_mini_infer.checkpoint import CODEC_FILE, INSTRUMENTAL_FILE, VOCAL_FILE, Shapes
from xcodec_mini_infer.codec import CodecConfig
from xcodec_mini_infer.pickles import StoredTensor, open_pickle
from xcodec_mini_infer.vocoder import VocoderConfig

SOURCE_FILE = "source.json"
_CODEC_KEY = "codec_model"  # of the codec's tensors within its `.pth`, beside optimizers and a discriminator
_ROOM_TO_SPARE = 10**6  # bytes, for headers and the two small files
_DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Layout:
    """What the published files hold of use: names and shapes."""

    decoding: Shapes
    encoding: Shapes  # needed beside `decoding` to turn sound into codes; a copy may come without
    vocoder: Shapes
    codec_config: CodecConfig
    vocoder_config: VocoderConfig


@dataclass(frozen=True)
class _Lazy:
    """A tensor of a source file, in whichever format, not read yet."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def published_layout() -> Layout:
    """Read the names and shapes of the published model from the manifest that comes with the package."""
    manifest = json.loads(Path(__file__).with_name("manifest.json").read_text(encoding="utf-8"))
    decoding = checkpoint.codec_shapes(CodecConfig())
    used = {tensor["name"]: tuple(tensor["shape"]) for tensor in manifest["codec_model"] if tensor["used"]}
    return Layout(
        decoding=decoding,
        encoding={name: shape for name, shape in used.items() if name not in decoding},
        vocoder=checkpoint.vocoder_shapes(VocoderConfig()),
        codec_config=CodecConfig(),
        vocoder_config=VocoderConfig(),
    )


def sha256(path: Path) -> str:
    """Hash a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert(
    codec: Path,
    vocal: Path,
    instrumental: Path,
    folder: Path,
    layout: Layout | None = None,
    digest: Callable[[Path], str] = sha256,
    heard: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Turn the codec's and both vocoders' files, `.pth` or safetensors, into a codec folder.

    The folder appears when all is in it, so that a kill leaves nothing of that name; the next run begins anew.
    Two processes must not convert into the same place at once. digest: how a source's SHA-256 is found. heard: is told
    how many bytes are written, and how many there will be.
    Raises CodecError for a file that cannot be used, or where the disk has no room.
    """
    layout = published_layout() if layout is None else layout
    done = total = 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        heard(done, total)

    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _tensors(codec) as tensors:
            chosen = _choose_codec(codec, tensors, layout)
            total = sum(map(_size, chosen.values())) + _vocoder_bytes(layout)
            _check_room(folder, total + _ROOM_TO_SPARE)
            _write(building / CODEC_FILE, chosen, tell)
        for source, name in ((vocal, VOCAL_FILE), (instrumental, INSTRUMENTAL_FILE)):
            with _tensors(source) as tensors:
                _write(building / name, _choose(source, tensors, layout.vocoder), tell)
        checkpoint.write_config(building, layout.codec_config, layout.vocoder_config)
        sources = {"codec": codec, "vocal": vocal, "instrumental": instrumental}
        facts = {
            part: {"file": path.name, "bytes": path.stat().st_size, "sha256": digest(path)}
            for part, path in sources.items()
        }
        (building / SOURCE_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        building.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextmanager
def _tensors(path: Path) -> Iterator[dict[str, _Lazy]]:
    """Open a source file and list its tensors."""
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                yield {name: _from_slice(file, name) for name in file.keys()}  # noqa: SIM118  not a mapping
        except FileNotFoundError as error:
            raise CodecError(f"{path}: no such file.") from error
        except (OSError, safetensors.SafetensorError) as error:
            raise CodecError(f"{path}: not a readable safetensors file ({error}).") from error
        return
    with open_pickle(path) as content:
        yield _of_state(path, content)


def _from_slice(file: Any, name: str) -> _Lazy:
    piece = file.get_slice(name)
    dtype = {short: dtype for dtype, short in _DTYPE_NAMES.items()}.get(piece.get_dtype(), torch.int64)
    return _Lazy(dtype, tuple(piece.get_shape()), lambda: file.get_tensor(name))


def _of_state(path: Path, content: Any) -> dict[str, _Lazy]:
    """Find the state dictionary in a pickle: under `codec_model`, or the whole of a flat one."""
    state = content.get(_CODEC_KEY, content) if isinstance(content, dict) else None
    if isinstance(state, dict):
        found = {
            name: _Lazy(tensor.dtype, tensor.shape, tensor.read)
            for name, tensor in state.items()
            if isinstance(tensor, StoredTensor)
        }
        if found:
            return found
    found_keys = ", ".join(str(key) for key in list(content)[:5]) if isinstance(content, dict) else "no keys"
    raise CodecError(f"{path}: holds no tensors, neither under `{_CODEC_KEY}` nor by name; found {found_keys}.")


def _choose_codec(path: Path, tensors: Mapping[str, _Lazy], layout: Layout) -> dict[str, _Lazy]:
    """Pick the codec's tensors under their published names."""
    named = {_published_name(name): tensor for name, tensor in tensors.items()}
    if not any(name.startswith("decoder_2.") for name in named):
        # Some copies were renamed once the semantic decoder, whose place `decoder` was, had been dropped.
        named = {
            f"decoder_2.{name.removeprefix('decoder.')}" if name.startswith("decoder.") else name: tensor
            for name, tensor in named.items()
        }
    wanted = layout.decoding
    if any(name in named for name in layout.encoding):
        wanted = wanted | layout.encoding
    if not any(name in named for name in wanted):
        raise CodecError(f"{path}: none of its tensors is the codec's; is it another file?")
    return _choose(path, named, wanted)


def _published_name(name: str) -> str:
    """Undo what copies do to names: the key in front, and the later spelling of weight norm."""
    name = name.removeprefix(f"{_CODEC_KEY}.")
    for later, published in (("0", "g"), ("1", "v")):
        ending = f"parametrizations.weight.original{later}"
        if name.endswith(ending):
            return f"{name.removesuffix(ending)}weight_{published}"
    return name


def _choose(path: Path, tensors: Mapping[str, _Lazy], wanted: Shapes) -> dict[str, _Lazy]:
    for name, shape in wanted.items():
        if name not in tensors:
            raise CodecError(f"{path}: `{name}` is missing; expected shape {list(shape)}.")
        found = tensors[name]
        if found.shape != shape:
            raise CodecError(f"{path}: `{name}` has shape {list(found.shape)}; expected {list(shape)}.")
        if found.dtype not in _DTYPE_NAMES:
            raise CodecError(f"{path}: `{name}` holds {found.dtype}; expected floating point numbers.")
    return {name: tensors[name] for name in wanted}


def _vocoder_bytes(layout: Layout) -> int:
    """Count the bytes of both vocoders in float32."""
    return 2 * 4 * sum(prod(shape) for shape in layout.vocoder.values())


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise CodecError(
            f"no space left for {folder}: needed {needed / 1e6:,.0f} MB, free {free / 1e6:,.0f} MB. Free some space "
            "and run the same command again."
        )


def _write(path: Path, tensors: Mapping[str, _Lazy], tell: Callable[[int], None]) -> None:
    """Write a safetensors file one tensor after the other, so that never more than one is in memory.

    tell: is told the bytes of each.

    The format: the header's length as 8 bytes, a JSON header, the tensors' bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))  # so that all stay aligned
    for name, tensor in tensors.items():
        size = _size(tensor)
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors.values():
            file.write(tensor.read().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            tell(_size(tensor))
        file.flush()
        os.fsync(file.fileno())


def _size(tensor: _Lazy) -> int:
    return prod(tensor.shape) * tensor.dtype.itemsize
