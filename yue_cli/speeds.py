"""What this machine was measured to do, remembered between runs; about how long a song will take, from that.

`yue bench` measures and stores; whoever plans a song asks. The file is a help, not a result: one that is missing,
damaged or of another version is as good as none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from yue_cli.atomic import storage_errors, write_bytes
from yue_cli.vocab import WINDOW_FRAMES

FILE = "speeds.json"
FORMAT = "yue-speeds"
VERSION = 1

_ALIKE = 0.2  # weights that differ by no more than this part take about the same time a byte


@dataclass(frozen=True)
class Measured:
    """How fast one stage was with one model on one device."""

    device: str  # the chip, by `machine.hardware_name`
    stage: str  # stage1, stage2 or decode
    weight_bytes: int  # of the model as it was held
    versions: Mapping[str, str]
    date: str  # ISO 8601
    token_s: Sequence[tuple[int, float]] = ()  # stage1: tokens in the context, seconds for one more with guidance
    rows: int = 0  # stage2: windows decoded together
    window_s: float = 0.0  # stage2: seconds for all frames of so many windows
    decode_s: float = 0.0  # decode: seconds for a second of music, both tracks and the mix
    is_computed: bool = False  # from a part of the model, not from all of it
    cache: str = "auto"  # stage1, stage2: format of keys and values


@dataclass(frozen=True)
class Speeds:
    """What is known of one device. Every answer is in seconds, None where nothing like it was measured."""

    measured: Sequence[Measured] = field(default_factory=tuple)

    def stage1_s(self, weight_bytes: int, context: int, tokens: int, cache: str = "auto") -> float | None:
        """Tell about how long `tokens` more take after a prompt of `context`, for one song, its reading left out."""
        found = self._find("stage1", weight_bytes, cache)
        if found is None or not found.token_s:
            return None
        # Close to linear in the context, so that the middle stands for all.
        return tokens * interpolate(found.token_s, context + tokens / 2) * weight_bytes / found.weight_bytes

    def stage2_s(
        self, weight_bytes: int, windows: int, frames: int = WINDOW_FRAMES, cache: str = "auto"
    ) -> float | None:
        """Tell about how long so many windows of both tracks take."""
        found = self._find("stage2", weight_bytes, cache)
        if found is None or not found.rows:
            return None
        return max(1.0, windows / found.rows) * found.window_s * frames / WINDOW_FRAMES

    def decode_s(self, music_s: float) -> float | None:
        """Tell about how long the decoding of a song of `music_s` seconds takes."""
        found = self._find("decode", None)
        return None if found is None else found.decode_s * music_s

    def _find(self, stage: str, weight_bytes: int | None, cache: str = "auto") -> Measured | None:
        """Find what was measured with weights of about this size; None: of any."""
        of_stage = [item for item in self.measured if (item.stage, item.cache) == (stage, cache)]
        if weight_bytes is None:
            return of_stage[-1] if of_stage else None
        alike = [item for item in of_stage if _are_alike(item.weight_bytes, weight_bytes)]
        return min(alike, key=lambda item: abs(item.weight_bytes - weight_bytes), default=None)


def interpolate(points: Sequence[tuple[int, float]], place: float) -> float:
    """Read a value between measured points, sorted by place; beyond them, the nearest one's."""
    for (low, before), (high, after) in pairwise(points):
        if low <= place <= high:
            return before + (after - before) * (place - low) / (high - low)
    return points[0][1] if place < points[0][0] else points[-1][1]


def remembered(home: Path, device: str) -> Speeds | None:
    """Tell what was measured on a device (by `machine.hardware_name`); None if nothing was."""
    own = [item for item in _read(home / FILE) if item.device == device]
    return Speeds(tuple(own)) if own else None


def remember(home: Path, fresh: Sequence[Measured]) -> None:
    """Store measurements in place of earlier ones of the same kind. Raises StorageError."""
    path = home / FILE
    kept = [item for item in _read(path) if not any(_replaces(new, item) for new in fresh)]
    content = {"format": FORMAT, "version": VERSION, "measured": [asdict(item) for item in [*kept, *fresh]]}
    with storage_errors(home):
        home.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def _replaces(new: Measured, old: Measured) -> bool:
    is_same_kind = (new.device, new.stage, new.cache) == (old.device, old.stage, old.cache)
    return is_same_kind and _are_alike(new.weight_bytes, old.weight_bytes)


def _are_alike(one: int, other: int) -> bool:
    return abs(one - other) <= _ALIKE * max(one, other)


def _read(path: Path) -> list[Measured]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            return []
        return [_parse(item) for item in content["measured"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _parse(item: Mapping[str, Any]) -> Measured:
    """Read one measurement. Raises ValueError for what is none."""
    kinds = {known.name: known.type for known in fields(Measured)}
    if not item.keys() <= kinds.keys():
        raise ValueError(f"unknown keys {sorted(item.keys() - kinds.keys())}")
    points = tuple((int(place), float(value)) for place, value in item.get("token_s", ()))
    found = Measured(**{**item, "token_s": points})
    numbers = (found.weight_bytes, found.rows, found.window_s, found.decode_s, *(value for _, value in points))
    if not all(isinstance(number, int | float) and number >= 0 for number in numbers):
        raise ValueError("a number is none")
    return found
