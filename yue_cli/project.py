"""A project folder: one song, its stages' folders, what was replaced, and who works on it.

Together with `artifacts.py` and `song.py` the only key to the folder; no tensors, no models.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from yue_cli.artifacts import (
    MANIFEST_FILE,
    TRACKS,
    Manifest,
    encode_json,
    read_array,
    read_json,
    sha256_file,
    write_array,
    write_json,
)
from yue_cli.atomic import TEMPORARY_PREFIX, storage_errors, sync_folder, write_bytes
from yue_cli.errors import ArtifactError, ProjectInUseError, StorageError
from yue_cli.seats import Seat

STAGES = ("stage1", "stage2", "audio")
FOLDERS = ("reference", *STAGES)  # a song has the first only where there is an audio prompt
SEGMENT_FORMAT, SEGMENT_VERSION = "yue-segment", 1
SEATS_FILE = "seats.json"  # only while a stage is made
SEATS_FORMAT, SEATS_VERSION = "yue-seats", 1
ORIGIN_FILE = "origin.json"  # beside tokens that were taken from another program
ORIGIN_FORMAT, ORIGIN_VERSION = "yue-origin", 1


@dataclass(frozen=True)
class StageState:
    """What a stage's folder holds, seen from what is asked for now."""

    stage: str
    state: str  # missing, unfinished, current, stale, edited or foreign
    why: str
    manifest: Manifest | None = None

    @property
    def is_usable(self) -> bool:
        """Tell whether the next stage may read it as it is."""
        return self.state in ("current", "edited", "foreign")


@dataclass(frozen=True)
class SegmentRecord:
    """One finished segment: its new ids, int32 [m], closed by end-of-audio, and how they came about."""

    number: int  # from 1
    ids: np.ndarray
    key: str
    section: str
    seed: int
    truncated: bool
    songs: int = 1  # that were sung together, empty places included


class Project:
    """The folder of one song."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self) -> None:
        """Make the folder if it is missing. Raises StorageError if that is not possible."""
        if self.root.exists() and not self.root.is_dir():
            raise StorageError(f"{self.root}: is a file; a song needs a folder. Choose another name.")
        with storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out, and mend what a killed one left. Raises ProjectInUseError."""
        owner = self.root / ".lock.owner"
        with storage_errors(self.root):
            lock = filelock.FileLock(self.root / ".lock", timeout=0)
            try:
                lock.acquire()
            except filelock.Timeout as error:
                raise ProjectInUseError(f"{self.root} is in use by another yue{_owner(owner)}.") from error
        try:
            with storage_errors(owner):
                owner.write_text(json.dumps({"process": os.getpid(), "since": time.strftime("%H:%M")}))
            self._recover()
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def folder(self, stage: str) -> Path:
        """Name a stage's folder."""
        return self.root / stage

    def state(self, stage: str, recipe: Mapping[str, Any], inputs: Mapping[str, str] | None) -> StageState:
        """Compare what a stage's folder holds with what is asked for.

        recipe: all settings and texts that shape the result. inputs: hashes of the files it would read now; None if
        they are not there. Raises ArtifactError for a manifest that cannot be read.
        """
        folder = self.folder(stage)
        manifest = Manifest.read(folder)
        if manifest is None:
            return StageState(stage, *self._state_without_manifest(stage))
        gone = [name for name in manifest.files if not (folder / name).exists()]
        if gone:
            return StageState(stage, "stale", f"{gone[0]} was removed", manifest)
        changes = _differences(manifest.recipe, recipe)
        if inputs != manifest.inputs and manifest.inputs and inputs != {}:  # {}: the recipe says what is gone
            changes.insert(0, "made from other tokens than are there now")
        edited = [name for name, facts in manifest.files.items() if sha256_file(folder / name) != facts["sha256"]]
        # Edited tokens are somebody's work and stay; edited sound can be had again from history.
        if edited and (stage != "audio" or not changes):
            also = f"; {', '.join(changes)}" if changes else ""
            return StageState(stage, "edited", f"{', '.join(edited)} changed since yue wrote it{also}", manifest)
        if changes:
            return StageState(stage, "stale", ", ".join(changes), manifest)
        return StageState(stage, "current", "", manifest)

    def holds(self, stage: str) -> bool:
        """Tell whether a stage's folder has any file."""
        return any(path.is_file() for path in self.folder(stage).rglob("*"))

    def hashes(self, stage: str) -> dict[str, str] | None:
        """Hash a token stage's tracks as the next stage's inputs; None if one is missing.

        A reference may have one track, the vocal.
        """
        paths = [self.folder(stage) / f"{track}.npy" for track in TRACKS]
        if stage == "reference" and not paths[1].exists():
            paths = paths[:1]
        if not all(path.exists() for path in paths):
            return None
        return {f"{stage}/{path.name}": sha256_file(path) for path in paths}

    def keep_raw(self, stage: str, arrays: Mapping[str, np.ndarray]) -> Path:
        """Keep what a stage made and cannot store as tokens, in `history/`."""
        folder = self._history(f"{stage}-raw")
        with storage_errors(folder):
            folder.mkdir(parents=True)
        for name, array in arrays.items():
            write_array(folder / f"{name}.npy", array)
        return folder

    def begin(self, stage: str, keep: Mapping[str, Path | bytes] | None = None) -> Path:
        """Open a stage's folder for writing; an old one goes whole into `history/`.

        keep: files of the new folder, from the start, by their path in it: another file's copy, or content.
        """
        folder, ready = self.folder(stage), self._ready(stage)
        building = self.root / f".{stage}.building"
        with storage_errors(folder):
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            for name, source in (keep or {}).items():
                target = building / name
                target.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(target, source if isinstance(source, bytes) else source.read_bytes())
            building.rename(ready)
        self._put_in_place(stage)
        return folder

    def archive(self, stage: str) -> Path | None:
        """Move a stage's folder into `history/`, named by stage and time; an empty one is removed."""
        folder = self.folder(stage)
        if not self.holds(stage):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        target = self._history(stage)
        with storage_errors(target):
            target.parent.mkdir(exist_ok=True)
            folder.rename(target)
        return target

    def _history(self, name: str) -> Path:
        """Find a name in `history/` that is not taken."""
        first = target = self.root / "history" / f"{name}-{time.strftime('%Y-%m-%dT%H-%M-%S')}"
        count = 1
        while target.exists():
            count += 1
            target = first.with_name(f"{first.name}-{count}")
        return target

    def finish(self, stage: str, manifest: Manifest) -> None:
        """Write the manifest, which makes the stage complete, then drop its half-way files."""
        manifest.write(self.folder(stage))
        self._drop_half_way(stage)

    # Segments of stage 1

    def segments(self) -> list[SegmentRecord]:
        """Read the finished segments, in order, up to the first gap. Raises ArtifactError for a damaged one."""
        records: list[SegmentRecord] = []
        while (record := self._segment(len(records) + 1)) is not None:
            records.append(record)
        return records

    def segment_files(self, number: int) -> tuple[Path, Path]:
        """Name the ids and the facts of segment `number`, from 1."""
        stem = self.folder("stage1") / "segments" / f"{number:03d}"
        return stem.with_suffix(".npy"), stem.with_suffix(".json")

    def save_segment(self, record: SegmentRecord) -> None:
        """Bring a segment to disk: its facts come last, so that they mean it is whole."""
        ids_path, facts_path = self.segment_files(record.number)
        with storage_errors(ids_path):
            ids_path.parent.mkdir(parents=True, exist_ok=True)
        write_array(ids_path, record.ids.astype(np.int32))
        write_json(facts_path, segment_facts(record))

    def _segment(self, number: int) -> SegmentRecord | None:
        ids_path, facts_path = self.segment_files(number)
        if not facts_path.exists():
            return None
        facts = read_json(facts_path, SEGMENT_FORMAT, SEGMENT_VERSION)
        ids = read_array(ids_path, "remove its .json too, and yue makes this segment and later ones anew.")
        if ids.ndim != 1 or len(ids) == 0:
            raise ArtifactError(f"{ids_path}: expected int32 [m], found {ids.dtype} {list(ids.shape)}.")
        try:
            return SegmentRecord(number=number, ids=ids.astype(np.int32), **facts)
        except TypeError as error:
            raise ArtifactError(f"{facts_path}: a key is missing or unknown ({error}).") from error

    # What was computed in which rows, and windows of stage 2

    def seats(self, stage: str, key: str = "") -> list[Seat] | None:
        """Return the seats that an unfinished stage with this key was dealt; None if there are none."""
        path = self.folder(stage) / SEATS_FILE
        if not path.exists():
            return None
        facts = read_json(path, SEATS_FORMAT, SEATS_VERSION)
        try:
            return [Seat(*seat) for seat in facts["seats"]] if facts["key"] == key else None
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: a key is missing or wrong ({error}); remove the file.") from error

    def save_seats(self, stage: str, content: bytes) -> None:
        """Write down the seats, as `encode_seats` lists them, of a stage that goes on in its folder."""
        write_bytes(self.folder(stage) / SEATS_FILE, content)

    def windows(self) -> dict[int, np.ndarray]:
        """Read the finished windows of an unfinished stage 2, by number: ids [frames, 8]."""
        found: dict[int, np.ndarray] = {}
        for path in sorted((self.folder("stage2") / "windows").glob("[0-9]*.npy")):
            ids = read_array(path, "remove it, and yue decodes its windows again.")
            found |= dict(enumerate(ids, start=int(path.stem)))
        return found

    def save_windows(self, filled: Mapping[int, np.ndarray]) -> None:
        """Bring finished windows of one length to disk; those that follow each other share a file."""
        numbers = sorted(filled)
        starts = [number for number in numbers if number - 1 not in filled]
        for start in starts:
            stop = next(number for number in range(start, numbers[-1] + 2) if number not in filled)
            path = self.folder("stage2") / "windows" / f"{start:03d}.npy"
            with storage_errors(path):
                path.parent.mkdir(exist_ok=True)
            write_array(path, np.stack([filled[number] for number in range(start, stop)]))

    def _drop_half_way(self, stage: str) -> None:
        with storage_errors(self.folder(stage)):
            (self.folder(stage) / SEATS_FILE).unlink(missing_ok=True)
            shutil.rmtree(self.folder(stage) / "windows", ignore_errors=True)

    # What a killed run leaves

    def _ready(self, stage: str) -> Path:
        """Name the folder that is whole and about to take the stage's place."""
        return self.root / f".{stage}.new"

    def _put_in_place(self, stage: str) -> None:
        self.archive(stage)
        with storage_errors(self.root):
            self._ready(stage).rename(self.folder(stage))
            sync_folder(self.root)

    def _recover(self) -> None:
        """Finish or undo what a killed run was doing: folders being replaced, half-written files."""
        for stage in FOLDERS:
            folder = self.folder(stage)
            if self._ready(stage).exists():
                self._put_in_place(stage)
            with storage_errors(folder):
                shutil.rmtree(self.root / f".{stage}.building", ignore_errors=True)
                for leftover in folder.rglob(f"{TEMPORARY_PREFIX}*"):
                    leftover.unlink()
            if (folder / MANIFEST_FILE).exists():
                self._drop_half_way(stage)
        for leftover in self.root.glob(f"{TEMPORARY_PREFIX}*"):
            leftover.unlink()

    def _state_without_manifest(self, stage: str) -> tuple[str, str]:
        folder = self.folder(stage)
        if (folder / "segments").exists() or (folder / SEATS_FILE).exists():
            return "unfinished", "the run that made it did not end"
        if stage == "audio":
            return "missing", "not made yet"
        if not any((folder / f"{track}.npy").exists() for track in TRACKS):
            return "missing", "not made yet"
        origin = folder / ORIGIN_FILE
        if not origin.exists():
            return "foreign", "not written by this yue"
        return "foreign", f"brought from {read_json(origin, ORIGIN_FORMAT, ORIGIN_VERSION).get('folder')}"


def segment_facts(record: SegmentRecord) -> dict[str, Any]:
    """List what is kept of a segment beside its ids."""
    return {
        "format": SEGMENT_FORMAT,
        "version": SEGMENT_VERSION,
        "key": record.key,
        "section": record.section,
        "seed": record.seed,
        "truncated": record.truncated,
        "songs": record.songs,
    }


def encode_seats(seats: Sequence[Seat], key: str = "") -> bytes:
    """List seats, in the order of what sits there: the rows of the batch and the place among them."""
    places = [[seat.rows, seat.place] for seat in seats]
    return encode_json({"format": SEATS_FORMAT, "version": SEATS_VERSION, "key": key, "seats": places})


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say in words what two recipes do not share; what is not known now (None) is not compared."""
    words = []
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if before == now or (key in new and now is None):
            continue
        if key == "reference" and key not in new:
            words.append("the reference was dropped")
        elif key in ("lyrics", "genre", "audio", "reference"):
            words.append(f"the {key} changed")
        else:
            words.append(f"{key} was {_show(before)}, now {_show(now)}")
    return words


def _show(value: Any) -> str:
    return "unset" if value is None else str(value)


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        return f" (process {owner['process']}, since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
