"""An audio prompt as it is asked for: which sound files, and which seconds of them. No sound, no models."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import ceil, isfinite
from pathlib import Path
from typing import Any

from yue_cli.audio_files import audio_seconds
from yue_cli.errors import ArtifactError, AudioError, SettingsError
from yue_cli.resources import expanded

FLAGS = "--audio FILE, or --vocal FILE and --instrumental FILE"
WINDOW_S = 30.0  # YuE infer.py: prompt_end_time, counted from the start
MIN_SECONDS = 1.0


@dataclass(frozen=True)
class AudioPrompt:
    """One track (`audio`), or voice and band apart; no file at all where codes lie in the song's folder already."""

    audio: str | None = None  # paths of files
    vocal: str | None = None
    instrumental: str | None = None
    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None: 30 s after the start, or the end of the sound
    crop: bool = False  # encode these seconds alone

    @property
    def sources(self) -> dict[str, Path]:
        """The sound files by track; one track alone counts as the vocal."""
        named = {"vocal": self.audio or self.vocal, "instrumental": self.instrumental}
        return {track: Path(name) for track, name in named.items() if name is not None}

    @property
    def end_s(self) -> float:
        return self.start + WINDOW_S if self.end is None else self.end

    @property
    def excerpt(self) -> str:
        """Say which seconds are used."""
        return f"{self.start:g}–{self.end_s:g} s"

    def asked(self) -> dict[str, Any]:
        """List what differs from a prompt that nobody asked anything of, for `song.yaml`."""
        values = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}


def combine(before: AudioPrompt | None, flags: Mapping[str, Any]) -> AudioPrompt | None:
    """Put the flags that were given over what was asked before; other files begin a new prompt.

    flags: by the fields of an AudioPrompt; None was not given. Raises SettingsError.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    files = {name: str(expanded(given[name]).resolve()) for name in _FILES if name in given}
    if "audio" in files and len(files) > 1:
        raise SettingsError("--audio is one track alone; give it, or --vocal and --instrumental, not both.")
    if len(files) == 1 and "audio" not in files:
        raise SettingsError(
            f"--{next(iter(files))} is one of two tracks: give --vocal and --instrumental, or one track with --audio. "
            "audio-separator splits a mix into the two."
        )
    if files:
        return _checked(AudioPrompt(**given | files))
    if not given:
        return before
    if before is None:
        raise SettingsError(f"--{next(iter(given))} is about reference audio, and there is none: give {FLAGS}.")
    if given.get("crop") and not before.sources:
        raise SettingsError(f"--crop needs the sound: give {FLAGS}.")
    return _checked(replace(before, **given))


def read(tree: Any, where: Path) -> AudioPrompt | None:
    """Read the `reference` of a `song.yaml`. Raises ArtifactError."""
    if tree is None:
        return None
    kinds = {"start": int | float, "end": int | float | None, "crop": bool} | dict.fromkeys(_FILES, str | None)
    if not isinstance(tree, dict):
        raise ArtifactError(f"{where}: `reference` is {tree!r}; expected `audio: FILE` and the like.")
    for name, value in tree.items():
        if name not in kinds:
            raise ArtifactError(f"{where}: unknown key `reference.{name}`; known: {', '.join(kinds)}.")
        if not isinstance(value, kinds[name]) or (isinstance(value, bool) and name != "crop"):
            raise ArtifactError(f"{where}: `reference.{name}` is {value!r}; expected {_WORDS.get(name, 'a file')}.")
    try:
        return _checked(AudioPrompt(**tree))
    except SettingsError as error:
        raise ArtifactError(f"{where}: {error}") from error


def check_files(prompt: AudioPrompt) -> None:
    """Find out, from the files' headers alone, whether the wanted seconds are there. Raises AudioError."""
    for path in prompt.sources.values():
        check_length(prompt, str(path), audio_seconds(path))


def check_length(prompt: AudioPrompt, name: str, seconds: float) -> None:
    """Find out whether a track of this length has the wanted seconds. Raises AudioError."""
    # A player shows 0:30 for 29.6 s, so that much is taken as meant.
    past = prompt.end is not None and prompt.end > ceil(seconds)
    if past or seconds - prompt.start < MIN_SECONDS:
        raise AudioError(
            f"{name}: has {seconds:.2f} s of sound, and {prompt.start:g} s to {prompt.end_s:g} s are wanted; expected "
            f"an excerpt of at least {MIN_SECONDS:g} s within it. Change --start and --end."
        )


_FILES = ("audio", "vocal", "instrumental")
_WORDS = {"start": "seconds", "end": "seconds", "crop": "true or false"}


def _checked(prompt: AudioPrompt) -> AudioPrompt:
    if not (isfinite(prompt.start) and isfinite(prompt.end_s) and prompt.start >= 0):
        raise SettingsError(f"the reference starts at {prompt.start:g} s; expected 0 or more.")
    if prompt.end_s - prompt.start < MIN_SECONDS:
        raise SettingsError(
            f"the reference is used from {prompt.start:g} s to {prompt.end_s:g} s; expected an end at least "
            f"{MIN_SECONDS:g} s after the start."
        )
    return prompt
