"""Token files and manifests: typed, checked on write and on read, hashed, atomic.

Knows single files and one stage's folder; where they lie in a song's folder is `project.py`'s business.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from yue_cli.atomic import write_bytes
from yue_cli.errors import ArtifactError
from yue_cli.vocab import FRAME_RATE

TRACKS = ("vocal", "instrumental")
CODES = 1024  # a code is 0..1023
MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = "yue-manifest"
MANIFEST_VERSION = 1

_NPY_MAGIC = b"\x93NUMPY"
_OBJECTS = ("recipe", "inputs", "files", "texts", "settings", "model", "engine", "versions")  # of a manifest


@dataclass(frozen=True)
class Tokens:
    """Codes of both tracks: int16 [K, T] each, values 0..1023, equal K and T."""

    vocal: np.ndarray
    instrumental: np.ndarray

    @property
    def frames(self) -> int:
        return int(self.vocal.shape[1])

    @property
    def seconds(self) -> float:
        return self.frames / FRAME_RATE


@dataclass(frozen=True)
class Manifest:
    """How a stage was made. `recipe` holds all that shaped the result; the rest is told, never compared."""

    stage: str
    recipe: Mapping[str, Any]
    inputs: Mapping[str, str]  # file → SHA-256 of what was read
    files: Mapping[str, Mapping[str, Any]]  # file → {"sha256", and "shape" of an array}
    music_s: float
    seconds: float  # seconds the stage took, model load apart
    texts: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # every setting, resolved
    model: Mapping[str, Any] = field(default_factory=dict)  # name, revision
    engine: Mapping[str, Any] = field(default_factory=dict)  # of the last run: name, device, dtype, rows, cache, …
    truncated: tuple[int, ...] = ()  # segments that were cut, counted from 1
    versions: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the manifest: the last file of a stage, so that its presence means the stage is complete."""
        write_json(folder / MANIFEST_FILE, {"format": MANIFEST_FORMAT, "version": MANIFEST_VERSION} | asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """Read a stage's manifest; None where there is none. Raises ArtifactError for one of another format."""
        path = folder / MANIFEST_FILE
        if not path.exists():
            return None
        content = read_json(path, MANIFEST_FORMAT, MANIFEST_VERSION)
        known = {item.name for item in fields(cls)}
        unknown = sorted(content.keys() - known)
        if unknown:
            raise ArtifactError(f"{path}: unknown key `{unknown[0]}`; it was written by another version of yue.")
        for key, value in content.items():
            expected = dict if key in _OBJECTS else list if key == "truncated" else object
            if not isinstance(value, expected):
                raise ArtifactError(f"{path}: `{key}` is {value!r}; remove the file to have the stage made anew.")
        try:
            return cls(**content | {"truncated": tuple(content.get("truncated", ()))})
        except TypeError as error:
            raise ArtifactError(f"{path}: incomplete ({error}); remove it to have the stage made anew.") from error


def describe_files(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Hash a stage's files for its manifest, with the shape of each array."""
    facts: dict[str, dict[str, Any]] = {}
    for name in names:
        path = folder / name
        facts[name] = {"sha256": sha256_file(path)}
        if path.suffix == ".npy":
            facts[name]["shape"] = list(np.load(path, mmap_mode="r", allow_pickle=False).shape)
    return facts


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy, atomically. Raises StorageError."""
    write_bytes(path, encode_array(array))


def encode_array(array: np.ndarray) -> bytes:
    """Spell an array as a .npy file in C order."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def read_array(path: Path, remedy: str) -> np.ndarray:
    """Read an integer .npy whole. Raises ArtifactError, ending in `remedy`, for anything else."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: is missing; {remedy}") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}).") from error
    if not content.startswith(_NPY_MAGIC):
        raise ArtifactError(f"{path}: is not a .npy file; {remedy}")
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # over a damaged header numpy stumbles in many ways, MemoryError among them
        raise ArtifactError(f"{path}: is truncated or damaged ({len(content)} bytes); {remedy}") from error
    if array.dtype.kind not in "iu":
        raise ArtifactError(f"{path}: expected integers, found {array.dtype} {list(array.shape)}; {remedy}")
    return array


def write_tokens(folder: Path, tokens: Tokens) -> None:
    """Write both tracks as int16 .npy files. The codes must have been checked."""
    for name in TRACKS:
        codes = getattr(tokens, name)
        assert codes.dtype == np.int16, f"{name} must be int16, not {codes.dtype}"
        write_array(folder / f"{name}.npy", codes)


def read_tokens(folder: Path, codebooks: int, remedy: str) -> Tokens:
    """Read both tracks, [codebooks, T] each, from any integer dtype with values in range.

    Raises ArtifactError for a missing, damaged or foreign file, another shape, a code out of range, unequal tracks.
    """
    tracks = [read_track(folder / f"{name}.npy", codebooks, remedy) for name in TRACKS]
    lengths = [track.shape[1] for track in tracks]
    if lengths[0] != lengths[1]:
        raise ArtifactError(
            f"{folder}: the tracks differ in length: vocal.npy has {lengths[0]} frames, "
            f"instrumental.npy has {lengths[1]}; {remedy}"
        )
    return Tokens(*tracks)


def read_track(path: Path, codebooks: int, remedy: str) -> np.ndarray:
    """Read one track as int16 [codebooks, T], values 0..1023. Raises ArtifactError."""
    array = read_array(path, remedy)
    expected = f"[{codebooks}, T]"
    if array.ndim != 2 or array.shape[0] != codebooks or array.shape[1] == 0:
        raise ArtifactError(f"{path}: expected int16 {expected}, found {array.dtype} {list(array.shape)}; {remedy}")
    return storable(array, str(path), remedy)


def storable(codes: np.ndarray, where: str, remedy: str) -> np.ndarray:
    """Turn codes [K, T] of any integer dtype into int16. Raises ArtifactError naming row, frame and count."""
    wrong = (codes < 0) | (codes >= CODES)
    if wrong.any():
        row, frame = (int(index) for index in np.argwhere(wrong)[0])
        raise ArtifactError(
            f"{where}: {int(wrong.sum())} codes are outside 0..{CODES - 1}, the first is {int(codes[row, frame])} "
            f"in row {row} at frame {frame}; {remedy}"
        )
    return np.ascontiguousarray(codes, dtype=np.int16)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON for people and programs, atomically."""
    write_bytes(path, encode_json(content))


def encode_json(content: Mapping[str, Any]) -> bytes:
    """Spell JSON as all our files do; a path that is no text in UTF-8 keeps its bytes as `\\udc…` escapes."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def read_json(path: Path, expected_format: str, expected_version: int) -> dict[str, Any]:
    """Read a JSON file of one of our formats, without its `format` and `version`. Raises ArtifactError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); remove it to have the stage made anew.") from error
    found_format, found_version = content.pop("format", None), content.pop("version", None)
    if found_format != expected_format or not isinstance(found_version, int):
        raise ArtifactError(
            f"{path}: expected {expected_format} version {expected_version}, found {found_format} version "
            f"{found_version}."
        )
    if found_version != expected_version:
        raise ArtifactError(
            f"{path}: has version {found_version}; this yue reads version {expected_version}. "
            "Update yue to use this song."
        )
    return content


def sha256_file(path: Path) -> str:
    """Hash a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hash plain values by their one canonical spelling."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_array(array: np.ndarray) -> str:
    """Hash an array's values, as int64, whatever its dtype."""
    return hashlib.sha256(np.ascontiguousarray(array, dtype="<i8").tobytes()).hexdigest()
