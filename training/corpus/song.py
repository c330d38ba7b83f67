"""A composed song as it stands on paper: sections, words, chords, notes. Times are sixteenths of the section."""

from dataclasses import dataclass

from training.corpus.harmony import Chord
from training.corpus.tags import Tags
from training.corpus.world import BAR, Key


@dataclass(frozen=True)
class SungNote:
    """One syllable on one note, in sixteenths of the section. semitone: MIDI."""

    start: int
    stop: int
    semitone: int
    word: str
    syllable: int
    line: int


@dataclass(frozen=True)
class Section:
    tag: str
    bars: int
    lines: tuple[str, ...]  # empty: played only
    chords: tuple[Chord, ...]
    notes: tuple[SungNote, ...]  # what is sung
    played: tuple[SungNote, ...]  # a melody for the band, in a section without words


@dataclass(frozen=True)
class Song:
    seed: int
    held_out: bool
    tags: Tags
    genre: str  # the tags as a line of text
    key: Key
    frames_per_sixteenth: int
    sections: tuple[Section, ...]
    old_tune: str | None  # its title; most songs are new

    @property
    def lyrics(self) -> str:
        """The words as `yue` reads them: each section under its tag."""
        return "\n\n".join("\n".join([f"[{section.tag}]", *section.lines]) for section in self.sections) + "\n"

    @property
    def frames(self) -> int:
        return sum(section.bars for section in self.sections) * BAR * self.frames_per_sixteenth
