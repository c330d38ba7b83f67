"""What the user asked for: texts, preset, overrides, seed and reference, as kept in `song.yaml` and beside it."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yue_cli import audio_prompt
from yue_cli.atomic import write_bytes
from yue_cli.audio_prompt import AudioPrompt
from yue_cli.errors import ArtifactError, SettingsError
from yue_cli.presets import Preset, find
from yue_cli.settings import Flat, Layer, Settings, combine, dump_yaml, flatten_tree, is_execution, load_yaml

SONG_FILE = "song.yaml"
SONG_FORMAT = "yue-song"
SONG_VERSION = 1
SEEDS = 1_000_000  # drawn seeds are below: short enough to be read aloud
_KEYS = {"format", "version", "preset", "overrides", "seed", "reseeded", "forced", "reference", "take_of"}


@dataclass(frozen=True)
class Song:
    """One request. Execution settings are never part of it, but for those of a preset that sets others, too."""

    lyrics: str | None = None
    genre: str | None = None
    preset: str | None = None  # a name, or the path of a file
    overrides: Flat = field(default_factory=dict)  # result settings that differ from the preset
    seed: int | None = None
    reseeded: Mapping[int, int] = field(default_factory=dict)  # segment → the seed from there on
    forced: tuple[str, ...] = ()  # stages that a forced run has still to make
    reference: AudioPrompt | None = None
    take_of: str | None = None  # the request that this is a take of, by its hash

    def segment_seed(self, number: int) -> int:
        """Tell which seed segment `number` (from 1) is sung with."""
        assert self.seed is not None, "a song needs a seed before it is sung"
        starts = [start for start in self.reseeded if start <= number]
        return self.reseeded[max(starts)] if starts else self.seed

    def reseed_from(self, number: int, seed: int) -> "Song":
        """Sing segment `number` and all later ones with another seed."""
        kept = {start: value for start, value in self.reseeded.items() if start < number}
        return replace(self, reseeded={**kept, number: seed})

    def with_preset(self, preset: str, values: Flat) -> "Song":
        """Take another preset; overrides that it sets are dropped, the others stay."""
        kept = {key: value for key, value in self.overrides.items() if key not in values}
        return replace(self, preset=preset, overrides=kept)

    def with_overrides(self, values: Flat) -> "Song":
        """Keep the result settings among `values`; the seed has a place of its own."""
        kept = {key: value for key, value in values.items() if not is_execution(key) and key != "seed"}
        return replace(self, overrides=self.overrides | kept)


def settle(song: Song, preset: Preset | None, flags: Flat) -> tuple[Song, Settings, dict[str, str]]:
    """Apply what is asked for now to what was asked for before.

    preset: the one given now, else the song's own holds; one of execution settings alone leaves the song's own in
    place and is not stored. flags: settings of the command line.
    Returns the request to be stored, its settings (open ones still open), and where each changed setting came from.
    The seed is drawn if none was given before or now. Raises SettingsError.
    """
    combine([Layer("command line", flags)])  # a wrong flag is named as one before it is stored
    passing = preset if preset is not None and preset.is_execution else None
    replaces = preset is not None and passing is None
    if preset is not None and replaces:
        song = song.with_preset(preset.name, preset.values)
    stored = preset if replaces else find(song.preset) if song.preset else None
    preset_seed = stored.values.get("seed") if stored and (replaces or song.seed is None) else None
    seed = flags.get("seed", preset_seed if preset_seed is not None else song.seed)
    seed = draw_seed() if seed is None else int(seed)
    song = song.with_overrides(flags)
    song = replace(song, seed=seed, reseeded=song.reseeded if seed == song.seed else {})
    layers = [stored.layer()] if stored else []
    layers.append(Layer(SONG_FILE, song.overrides))
    layers += [passing.layer()] if passing else []
    layers.append(Layer("command line", flags))
    settings, sources = combine(layers)
    settings = replace(settings, seed=seed)
    return song, settings, sources


def draw_seed() -> int:
    """Draw a seed that nobody chose."""
    return secrets.randbelow(SEEDS)


def write_song(folder: Path, song: Song) -> None:
    """Write `song.yaml` and, where they differ from what is there, the texts."""
    for name, text in (("lyrics.txt", song.lyrics), ("genre.txt", song.genre)):
        content = None if text is None else text.encode()
        if content is not None and _read_if_there(folder / name) != content:
            write_bytes(folder / name, content)
    content_tree: dict[str, Any] = {
        "format": SONG_FORMAT,
        "version": SONG_VERSION,
        "preset": song.preset,
        "overrides": dict(song.overrides),
        "seed": song.seed,
    }
    if song.reseeded:
        content_tree["reseeded"] = dict(song.reseeded)
    if song.forced:
        content_tree["forced"] = list(song.forced)
    if song.reference is not None and (asked := song.reference.asked()):
        content_tree["reference"] = asked
    if song.take_of is not None:
        content_tree["take_of"] = song.take_of
    content = dump_yaml(content_tree).encode()
    if _read_if_there(folder / SONG_FILE) != content:
        write_bytes(folder / SONG_FILE, content)


def read_song(folder: Path) -> Song:
    """Read what a folder holds of a request; texts come as they lie there, checked later.

    Raises ArtifactError, SettingsError.
    """
    path = folder / SONG_FILE
    tree: dict[Any, Any] = {}
    if path.exists():
        try:
            tree = load_yaml(path, str(path))
        except SettingsError as error:
            raise ArtifactError(f"{error} Remove it to start from the default settings.") from error
        if tree.get("format") != SONG_FORMAT or tree.get("version") != SONG_VERSION:
            raise ArtifactError(
                f"{path}: expected {SONG_FORMAT} version {SONG_VERSION}, found {tree.get('format')} version "
                f"{tree.get('version')}. Update yue to use this song."
            )
        unknown = sorted(str(key) for key in tree.keys() - _KEYS)
        if unknown:
            raise ArtifactError(f"{path}: unknown key `{unknown[0]}`; it was written by another version of yue.")
    preset, forced, take_of = tree.get("preset"), tree.get("forced", []), tree.get("take_of")
    settings, _ = combine([Layer(str(path), {"seed": tree.get("seed")})])
    try:
        if not isinstance(preset, str | None) or not isinstance(forced, list) or not isinstance(take_of, str | None):
            raise TypeError(f"preset is {preset!r}, forced is {forced!r}, take_of is {take_of!r}")
        return Song(
            preset=preset,
            overrides=flatten_tree(tree.get("overrides") or {}),
            seed=settings.seed,
            reseeded={int(start): int(seed) for start, seed in (tree.get("reseeded") or {}).items()},
            forced=tuple(forced),
            reference=audio_prompt.read(tree.get("reference"), path),
            take_of=take_of,
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: a value has the wrong form ({error}).") from error


def _read_if_there(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
