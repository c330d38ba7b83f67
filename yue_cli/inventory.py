"""What this machine holds of models: telling, checking, deleting it."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from yue_cli import copies, models
from yue_cli.atomic import storage_errors
from yue_cli.errors import CheckpointError
from yue_cli.hub import is_stub, known_sha256, sha256
from yue_cli.models import Model
from yue_cli.weights import Library, stub_error


@dataclass(frozen=True)
class State:
    """What this machine holds of a model of the hub."""

    word: str  # here, partly here, absent
    bytes: int
    path: Path | None
    commit: str | None


def state(library: Library, model: Model) -> State:
    """Tell what is here of a model with a short name. Nothing is fetched or converted."""
    found = library.hub.snapshot(model)
    if model.part == "codec":
        folder = library.conversion(model)
        path = folder if folder is not None and folder.is_dir() else None
    else:
        cached = library.cached(model, model.part)
        path = cached.path if cached else None
    held = library.hub.bytes_here(model) + (folder_bytes(path) if path and model.part == "codec" else 0)
    word = "here" if path else "partly here" if held else "absent"
    return State(word, held, path, found[1] if found else None)


def verify(library: Library, name: str) -> list[tuple[Path, str]]:
    """Read every file of a model again and compare its SHA-256 with that of the hub.

    Returns each file with `right`, or `unknown` where no hash is known. Raises CheckpointError for a wrong one.
    """
    if copies.split_name(name):
        copy = library.copy(name)
        if copy is None:
            raise copies.absent(name)
        root = copy.path
        return [
            (path, "right") for path in copies.verify(copy, lambda file, done: library.tell_check(root / file, done))
        ]
    source = models.find_source(name)
    found = library.hub.snapshot(source) if source else None
    if source is None or found is None:
        raise CheckpointError(f"{name} is not in the hub's cache on this machine.")
    folder = found[0]
    files = models.needed_files(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    results = []
    for file in files:
        path = folder / file
        expected = source.digests.get(file) or known_sha256(path)
        if is_stub(path):
            raise stub_error(path, source)
        if expected is not None and sha256(path, partial(library.tell_check, path)) != expected:
            raise CheckpointError(
                f"{path}: wrong hash, expected SHA-256 {expected[:12]}…; `yue models rm {name}`, then "
                f"`{source.command}` fetches it again."
            )
        results.append((path, "unknown" if expected is None else "right"))
    return results


def remove(library: Library, name: str) -> int:
    """Delete a model of the hub, or a copy of one. Returns the bytes that became free. Raises CheckpointError."""
    if copies.split_name(name):
        copy = library.copy(name)
        if copy is None:
            raise copies.absent(name)
        with library.locked(), storage_errors(copy.path):
            shutil.rmtree(copy.path)
        return copy.bytes
    source = models.find_source(name)
    if source is None:
        raise CheckpointError(f"{name}: only models of the hub are removed; expected a short name or OWNER/NAME.")
    freed = 0
    with library.locked(), storage_errors(library.home):
        folder = library.conversion(source)
        if folder is not None and folder.is_dir():
            freed += folder_bytes(folder)
            shutil.rmtree(folder)
        freed += library.hub.remove(source)
    if not freed:
        raise CheckpointError(f"{name} is not on this machine.")
    return freed


def folder_bytes(folder: Path) -> int:
    """Add up the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
