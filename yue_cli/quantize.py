"""The making of a quantized copy of a model: what goes in, where it lies, and going on after an interruption.

How values are found is the backend's business; this file knows folders. The copy appears when all is in it.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from yue_cli import copies, engines, hub, machine, model_card, models
from yue_cli.artifacts import encode_json, sha256_json
from yue_cli.atomic import storage_errors, sync_folder, write_atomic, write_bytes
from yue_cli.copies import RECORD_FILE
from yue_cli.errors import CheckpointError, EngineError, Interrupted, SettingsError, StorageError
from yue_cli.events import Emit, Finished, Note, Progress
from yue_cli.models import CATALOGUE, FORMATS
from yue_cli.weights import Library

EXL2 = "exl2"
LEAST_BPW, MOST_BPW = 2.0, 8.0  # that exllamav2 converts to
HEAD_BITS = (2, 3, 4, 5, 6, 8)
CARD_FILE = "README.md"
TOPIC = "quantize"
_CARRIED = ("tokenizer.model", "vocabulary.json", "generation_config.json")
PROGRESS_FILE = "progress.json"
_LOCK_FILE = ".lock"
_ROOM_TO_SPARE = 10**6  # bytes, for headers and the small files


@dataclass(frozen=True)
class Original:
    """A model that is to be quantized."""

    name: str  # as it was asked for
    path: Path
    repository: str  # of the hub, or the name of its folder
    revision: str | None  # commit, where it is of the hub
    part: str | None  # stage1 or stage2, where that is known

    @property
    def weights(self) -> list[Path]:
        return sorted(self.path.glob("model*.safetensors"))


def check_format(format: str, bpw: float | None, head_bits: int | None) -> None:
    """Refuse formats and settings that mean nothing, and exl2 where it cannot be made.

    Raises SettingsError, EngineError.
    """
    if format not in (*FORMATS, EXL2):
        raise SettingsError(f"--format {format}: expected one of {', '.join([*FORMATS, EXL2])}.")
    if format != EXL2:
        if bpw is not None or head_bits is not None:
            raise SettingsError(f"--bpw and --head-bits are for --format {EXL2}; {format} has its own.")
        return
    if bpw is None or not LEAST_BPW <= bpw <= MOST_BPW:
        found = "is missing" if bpw is None else f"{bpw:g}"
        raise SettingsError(f"--bpw {found}: expected bits a weight from {LEAST_BPW:g} to {MOST_BPW:g}, such as 4.25.")
    if head_bits is not None and head_bits not in HEAD_BITS:
        raise SettingsError(f"--head-bits {head_bits}: expected one of {', '.join(map(str, HEAD_BITS))}.")
    if reason := engines.available()[EXL2]:
        raise EngineError(
            f"--format {EXL2} cannot be made here: {reason}. {FORMATS[1]} needs no GPU and no other package."
        )


def find_original(library: Library, name: str) -> Original:
    """Find the model that is to be quantized; one of the hub is fetched. Raises CheckpointError, DownloadError."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        inner = [part for part in ("stage1", "stage2") if (folder / part / "config.json").is_file()]
        if inner and not (folder / "config.json").exists():
            raise CheckpointError(f"{name}: holds several models; name one of them: {folder / inner[0]}.")
        resolved = folder.resolve()
        return Original(name, resolved, resolved.name, None, None)
    if split := copies.split_name(name):
        raise CheckpointError(f"{name} is quantized already; expected an original model, such as {split[0]}.")
    source = models.find_source(name)
    if source is None:
        known = [model.name for model in CATALOGUE.values() if model.part != "codec"]
        raise CheckpointError(
            f"{name}: there is no such folder; expected a folder with config.json and model.safetensors, "
            f"{', '.join(known)}, or a hub id OWNER/NAME."
        )
    part = source.part if isinstance(source, models.Model) else None
    if part == "codec":
        raise CheckpointError(f"{name} is a codec; stage-1 and stage-2 models are quantized.")
    found = next((here for each in (part or "stage1", part or "stage2") if (here := library.find(name, each))), None)
    if found is None:
        library.fetch([(name, part)]) if part else library.pull([name])
        found = library.locate(name, part or "stage2")
    return Original(name, found.path, source.repository, found.revision, part)


def choose_folder(library: Library, original: Original, format: str, asked: Path | None) -> Path:
    """Name the copy's folder: what was asked for, or one in yue's home for a model of the hub."""
    if asked is not None:
        return asked.expanduser().absolute()
    if original.revision is None:
        raise SettingsError(f"{original.name} is a folder: say with -o FOLDER where its copy is to lie.")
    return copies.place(library.home, original.repository, original.revision, format)


def make(original: Original, format: str, folder: Path, device: torch.device, emit: Emit) -> bool:
    """Quantize a model into `folder`, going on with what an interrupted run left. Returns whether there was work.

    Raises CheckpointError for a model that cannot be quantized, StorageError for a folder that is in the way, in use
    or on a full disk, Interrupted.
    """
    conversion = engines.plan_conversion(original.path, format)
    key = key_of(original, {"settings": conversion.settings, "files": conversion.files})
    if is_finished(folder, key, emit):
        return False
    with built(folder) as building:
        finished: dict[str, dict[str, Any]] = {}
        try:
            began = time.perf_counter()
            finished = _finished_files(building, key, conversion)
            _tell_begin(conversion, finished, folder, emit)
            _write_weights(building, conversion, finished, key, device, emit)
            for name, text in conversion.texts.items():
                write_bytes(building / name, text.encode())
            files = {name: finished[name] for name in conversion.files}
            seconds = time.perf_counter() - began
            write_record(building, original, conversion.settings, key, files, str(device), seconds)
            (building / PROGRESS_FILE).unlink()
        except KeyboardInterrupt as error:
            kept = f"{len(finished)} of {len(conversion.files)} files are kept. The same command goes on."
            raise Interrupted(kept) from error
    return True


@contextlib.contextmanager
def built(folder: Path) -> Iterator[Path]:
    """Give a folder beside `folder` to make a copy in, which takes its place when all has gone well.

    Whatever happens, what is in it stays for the next time. Raises StorageError, also where another process is at it.
    """
    building = folder.parent / f".{folder.name}.unfinished"
    with storage_errors(building):
        building.mkdir(parents=True, exist_ok=True)
        lock = FileLock(building / _LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise StorageError(f"{folder}: another yue is making it; wait for that one.") from error
        try:
            yield building
        finally:
            lock.release()
            (building / _LOCK_FILE).unlink(missing_ok=True)
        if folder.is_dir():
            folder.rmdir()  # it is empty, or there was an error before
        building.rename(folder)
        sync_folder(folder.parent)


def add_quality(folder: Path, quality: list[dict[str, Any]]) -> None:
    """Write what was measured into a copy's record and card. Raises CheckpointError, StorageError."""
    record = copies.read_record(folder) | {"quality": quality}
    write_bytes(folder / RECORD_FILE, copies.encode_record(record))
    write_bytes(folder / CARD_FILE, model_card.write(record).encode())


def key_of(original: Original, settings: Mapping[str, Any]) -> str:
    """Name all that a copy's values come from, without reading the weights."""
    facts = {}
    for path in original.weights:
        status = path.stat()
        facts[path.name] = hub.known_sha256(path) or [status.st_size, status.st_mtime_ns]
    return sha256_json({**settings, "sources": facts})


def is_finished(folder: Path, key: str, emit: Emit) -> bool:
    """Tell whether the wanted copy is there, and say so. Raises StorageError where something else is in its place."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if folder.is_dir() and (folder / RECORD_FILE).exists():
        record = copies.read_record(folder)
        if record.get("key") == key:
            emit(Note(TOPIC, f"{folder} is there already: kept"))
            return True
        found = f"holds {record['format']} of {record['repository']}, of other weights or settings"
    else:
        found = "is no quantized model" if folder.is_dir() else "is a file"
    raise StorageError(f"{folder}: exists and {found}; remove it, or name another folder with -o.")


def _finished_files(building: Path, key: str, conversion: engines.Conversion) -> dict[str, dict[str, Any]]:
    """Find the files of an interrupted run that are whole and of the same conversion; the others are removed."""
    try:
        progress = json.loads((building / PROGRESS_FILE).read_text(encoding="utf-8"))
        noted: dict[str, dict[str, Any]] = progress["files"] if progress["key"] == key else {}
    except (OSError, ValueError, KeyError, TypeError):
        noted = {}
    finished = {}
    for path in building.iterdir():
        facts = noted.get(path.name)
        if path.name in (_LOCK_FILE, PROGRESS_FILE):
            continue
        if facts and path.name in conversion.files and facts == facts_of(path):
            finished[path.name] = facts
        elif path.is_dir():  # of another format
            shutil.rmtree(path)
        else:
            path.unlink()
    return finished


def _tell_begin(conversion: engines.Conversion, finished: Mapping[str, Any], folder: Path, emit: Emit) -> None:
    """Say what will be written, and refuse where the disk has no room for it. Raises StorageError."""
    total = sum(conversion.files.values())
    needed = sum(size for name, size in conversion.files.items() if name not in finished) + _ROOM_TO_SPARE
    free = hub.free_bytes(folder.parent)
    if free < needed:
        kept = f"{len(finished)} files are kept; free" if finished else "Free"
        raise StorageError(
            f"no space left on {folder.parent}: needed {_size(needed)}, free {_size(free)}. {kept} "
            "some space, or name a folder on another disk with -o."
        )
    going_on = f" · {len(finished)} of {len(conversion.files)} files are there: going on" if finished else ""
    emit(Note(TOPIC, f"{_size(total)} to {folder} · {_size(free)} free{going_on}"))


def _write_weights(
    building: Path,
    conversion: engines.Conversion,
    finished: dict[str, dict[str, Any]],
    key: str,
    device: torch.device,
    emit: Emit,
) -> None:
    """Write the files that are missing, each noted in `finished` and on disk when it is whole."""
    total, began = sum(conversion.files.values()), time.perf_counter()
    before = sum(conversion.files[name] for name in finished)
    first = before
    for name, size in conversion.files.items():
        if name in finished:
            continue

        def told(done: int, before: int = before) -> None:
            emit(Progress(TOPIC, "", before + done, total, "bytes"))

        def write(target: Path, name: str = name) -> None:
            conversion.write(name, target, device, told)

        write_atomic(building / name, write)
        finished[name] = facts_of(building / name)
        write_bytes(building / PROGRESS_FILE, encode_json({"key": key, "files": finished}))
        before += size
    if total > first:
        emit(Finished(TOPIC, "", total - first, "bytes", time.perf_counter() - began))


def write_record(
    building: Path,
    original: Original,
    settings: Mapping[str, Any],
    key: str,
    files: Mapping[str, Any],
    device: str,
    seconds: float,
) -> None:
    """Write what belongs to every copy: tokenizer, record, card. files: those of weights, with their facts."""
    for name in _CARRIED:
        with contextlib.suppress(FileNotFoundError):
            write_bytes(building / name, (original.path / name).read_bytes())
    sources = {path.name: facts_of(path) for path in original.weights}
    record = {
        "repository": original.repository,
        "revision": original.revision,
        "part": original.part,
        "format": settings["format"],
        "settings": dict(settings),
        "key": key,
        "sources": sources,
        "files": dict(files),
        "made": {"seconds": round(seconds, 1), "device": device, **machine.versions()},
        "quality": [],
    }
    write_bytes(building / RECORD_FILE, copies.encode_record(record))
    write_bytes(building / CARD_FILE, model_card.write(record).encode())


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"


def facts_of(path: Path) -> dict[str, Any]:
    """Tell size and hash of a file."""
    return {"bytes": path.stat().st_size, "sha256": hub.known_sha256(path) or hub.sha256(path)}
