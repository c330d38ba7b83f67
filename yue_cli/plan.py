"""What is to be done: the recipe of each stage, and what a project folder already holds of it.

No tensors, no models: `yue status` and `--dry-run` need nothing else.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yue_cli.artifacts import sha256_file
from yue_cli.errors import LyricsError
from yue_cli.lyrics import Lyrics, parse
from yue_cli.project import STAGES, Project, StageState
from yue_cli.settings import Flat, Settings, flatten
from yue_cli.song import Song

MODEL_KEYS = {"reference": "decode.codec", "stage1": "stage1.model", "stage2": "stage2.model", "audio": "decode.codec"}


@dataclass(frozen=True)
class Request:
    """A song as it is wanted now. `settings` are resolved; `lyrics` is None where no text is known."""

    song: Song
    settings: Settings
    lyrics: Lyrics | None = None

    @property
    def segments(self) -> int | None:
        """How many sections are to be sung."""
        if self.lyrics is None:
            return None
        count = len(self.lyrics.sections)
        return count if self.settings.segments is None else min(self.settings.segments, count)


def read_request(song: Song, settings: Settings, name: str = "lyrics.txt") -> Request:
    """Read the sections of a song's lyrics, calling them `name`. Raises LyricsError."""
    if song.lyrics is None:
        return Request(song, settings)
    return Request(song, settings, parse(song.lyrics, name, settings.rules, settings.stage1.max_new_tokens / 100))


def try_request(song: Song, settings: Settings) -> Request:
    """Read a request for a look at it: lyrics that cannot be read count as none."""
    try:
        return read_request(song, settings)
    except LyricsError:
        return Request(song, settings)


def recipe(request: Request, stage: str) -> dict[str, Any]:
    """List all that shapes a stage's result, its input files apart. None: not known, so not compared."""
    song, flat = request.song, flatten(request.settings)
    if stage == "reference":
        return _reference_recipe(song, flat)
    prefix = {"stage1": "stage1.", "stage2": "stage2.", "audio": "decode."}[stage]
    found: dict[str, Any] = {key: value for key, value in flat.items() if key.startswith(prefix)}
    # A model that nobody named may change its name or place without a stage becoming stale.
    if found[MODEL_KEYS[stage]] is None:
        del found[MODEL_KEYS[stage]]
    if stage == "stage1":
        found |= {
            "rules": request.settings.rules,
            "lyrics": _text_hash(song.lyrics),
            "genre": _text_hash(song.genre),
            "segments": request.segments,
            "seed": _seed_words(song),
        }
        if song.reference is not None:
            found["reference"] = song.reference.excerpt  # of its codes, which are inputs
    return found


def with_reference(stages: Sequence[str], song: Song) -> tuple[str, ...]:
    """Put the reference before stage 1, where the song has one."""
    first = ("reference",) if "stage1" in stages and song.reference is not None else ()
    return (*first, *stages)


def states(project: Project, request: Request) -> list[StageState]:
    """Compare every stage's folder with what is wanted. Raises ArtifactError for an unreadable manifest."""
    found: list[StageState] = []
    for stage in with_reference(STAGES, request.song):
        inputs = project.hashes(found[-1].stage) if found else {}
        state = project.state(stage, recipe(request, stage), inputs)
        asked = request.song.reference
        if stage == "reference" and state.state == "foreign" and asked is not None and asked.sources:
            state = StageState(stage, "stale", "its codes are not known to be of this audio")
        if stage in request.song.forced and state.state not in ("missing", "unfinished"):
            state = StageState(stage, "stale", "--force", state.manifest)
        found.append(state)
    return found


def to_do(states: Sequence[StageState], wanted: Sequence[str]) -> list[StageState]:
    """Pick the stages that must be made, in order; a stage after one that is remade is remade too."""
    by_name = {state.stage: state for state in states}
    picked: list[StageState] = []
    # Where the user brought finished tokens there is nothing to sing.
    sung = by_name["stage1"].state == "missing" and "stage2" in wanted and _is_given(by_name["stage2"])
    for stage in wanted:
        state = by_name[stage]
        if sung and stage in ("reference", "stage1"):
            continue
        if not state.is_usable:
            picked.append(state)
        elif state.state == "current" and picked:
            picked.append(StageState(stage, "stale", f"{picked[-1].stage} is made anew", state.manifest))
    return picked


def _is_given(state: StageState) -> bool:
    return state.state in ("foreign", "edited")


def _reference_recipe(song: Song, flat: Flat) -> dict[str, Any]:
    asked = song.reference
    assert asked is not None, "only a song with a reference has its stage"
    sources = asked.sources
    # Sound that is gone, or was never known, leaves its codes as they are.
    known = bool(sources) and all(path.is_file() for path in sources.values())
    found: dict[str, Any] = {
        "audio": {track: sha256_file(path) for track, path in sources.items()} if known else None,
        "crop": (asked.excerpt if asked.crop else "no") if sources else None,
    }
    if flat["decode.codec"] is not None:
        found["decode.codec"] = flat["decode.codec"]
    return found


def _text_hash(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _seed_words(song: Song) -> str | None:
    """Write the seeds of a song: one number, and those that later segments were redone with."""
    if song.seed is None:
        return None
    later = [f", {seed} from segment {start}" for start, seed in sorted(song.reseeded.items())]
    return f"{song.seed}{''.join(later)}"
