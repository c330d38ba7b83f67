"""EXL2 folders: how they are told from others, and what their matrices are made of. Reads headers only; no torch.

A matrix NAME [out, in] is five tensors. Its inputs stand in another order: input `i` is quantized row `q_invperm[i]`.
Quantized rows are cut into groups, those of most bits first. Weight (row r of group g, output n) is

    (value - 2 ** (bits - 1)) * ((scale + 1) ** 2 * (q_scale_max[g] / 256))

with the arithmetic of float16. The values of an output are one stream of bits through the words of its column, lowest
bit first; `scale` is 4 bits, eight neighbouring outputs a word.

Source: exllamav2 0.3.2, `conversion/adaptivegptq.py` (`pack`), `module.py` (`load_weight`), `cuda/q_matrix.cu`.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from yue_cli.errors import CheckpointError

BITS = (8, 6, 5, 4, 3, 2)  # that a weight may have, in the order in which a matrix holds them
SHORTEST_GROUP = 32  # quantized rows of a group are a multiple of this, as the kernels read them
WIDTH_STEP = 32  # outputs are filled up to a multiple of this
METHOD = "exl2"  # the name in config.json
PATTERN = "*.safetensors"  # exllamav2 writes output.safetensors or output-00001-of-00002.safetensors, with no index

_MARK = ".q_weight"
_ITEM_BYTES = {"I16": 2, "I32": 4, "F16": 2, "BF16": 2, "F32": 4}
_LONGEST_HEADER = 100_000_000  # as safetensors allows


@dataclass(frozen=True)
class Entry:
    """A tensor in a file, as the file's header tells of it."""

    path: Path
    dtype: str  # I16, I32, F16, …
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * _ITEM_BYTES.get(self.dtype, 1)


def is_exl2(folder: Path) -> bool:
    """Tell whether a folder holds EXL2 weights: by the names of its tensors, or else by its config.json."""
    # Whoever reads the folder says what is wrong with it.
    with contextlib.suppress(CheckpointError):
        if any(name.endswith(_MARK) for name in read_entries(folder)):
            return True
    with contextlib.suppress(OSError, ValueError, AttributeError):
        block = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
        return isinstance(block, dict) and block.get("quant_method") == METHOD
    return False


def read_entries(folder: Path) -> dict[str, Entry]:
    """List the tensors of all safetensors files. Raises CheckpointError for a file that is none."""
    entries = {}
    for path in sorted(folder.glob(PATTERN)):
        for name, entry in _read_header(path).items():
            entries[name] = Entry(path, entry["dtype"], tuple(entry["shape"]))
    return entries


def is_quantized(entries: Mapping[str, Entry], name: str) -> bool:
    return name + _MARK in entries


def find_matrix(folder: Path, entries: Mapping[str, Entry], name: str, rows: int, columns: int) -> dict[str, Entry]:
    """Find the tensors of a matrix [rows, columns] and check what can be checked without reading them.

    Raises CheckpointError.
    """
    found = {}
    for part in ("q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm"):
        entry = entries.get(f"{name}.{part}")
        if entry is None:
            raise CheckpointError(f"{folder}: no tensor {name}.{part}, though it is an EXL2 model; fetch it again.")
        found[part] = entry
    width = rows + -rows % WIDTH_STEP
    groups = found["q_scale_max"].shape[0] if found["q_scale_max"].shape else 0
    packed = found["q_weight"].shape[0] if found["q_weight"].shape else 0
    expected = {
        "q_weight": ("I32", (packed, width)),
        "q_scale": ("I32", (groups, width // 8)),
        "q_scale_max": ("F16", (groups,)),
        "q_groups": ("I16", (2 * groups,)),
        "q_invperm": ("I32", (columns,)),
    }
    for part, (dtype, shape) in expected.items():
        entry = found[part]
        if (entry.dtype, entry.shape) != (dtype, shape):
            raise CheckpointError(
                f"{entry.path}: {name}.{part} is {entry.dtype} {list(entry.shape)}; expected {dtype} {list(shape)} for "
                f"{rows} outputs and {columns} inputs by config.json."
            )
    return found


def matrix_bytes(parts: Mapping[str, Entry]) -> int:
    """Count the bytes of a matrix as the engine holds it."""
    columns = parts["q_invperm"].shape[0]
    # The order and its inverse in 16 bits each, and two such numbers a quantized row that tell its group.
    added = 4 * columns + 4 * columns
    return sum(parts[part].bytes for part in ("q_weight", "q_scale", "q_scale_max", "q_groups")) + added


def group_rows(groups: list[int], packed: int, columns: int) -> list[tuple[int, int]]:
    """List bits and quantized rows of each group; `groups` alternates bits and first packed row.

    A kernel trusts these numbers, so they are checked: raises ValueError with what is wrong.
    """
    bits, starts = groups[::2], [*groups[1::2], packed]
    if not bits or set(bits) - set(BITS):
        raise ValueError(f"groups of {sorted(set(bits)) or 'no'} bits")
    if sorted(bits, reverse=True) != bits:
        raise ValueError("groups that are not in the order of their bits")
    sizes = []
    for width, start, stop in zip(bits, starts[:-1], starts[1:], strict=True):
        rows, rest = divmod(32 * (stop - start), width)
        if rest or rows <= 0 or rows % SHORTEST_GROUP:
            raise ValueError(f"a group of {stop - start} packed rows in {width} bits")
        sizes.append((width, rows))
    if starts[0] != 0 or sum(rows for _, rows in sizes) != columns:
        raise ValueError(f"groups of {sum(rows for _, rows in sizes)} rows in all for {columns} inputs")
    return sizes


def _read_header(path: Path) -> dict[str, dict]:
    """Read a safetensors file's header: 8 bytes of length, then JSON."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, _LONGEST_HEADER):
                raise ValueError("no header")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        for entry in header.values():
            entry["dtype"], list(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}); fetch the model again.") from error
    if size < expected:
        raise CheckpointError(f"{path}: cut short: expected {expected} bytes, found {size}; fetch the model again.")
    return header
