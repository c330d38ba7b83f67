"""Old tunes, all from before 1900, typed by ear: with their own old words, or with a metre to write new ones in.

A note is a degree of the major scale, `,` an octave down, and its length: a quarter unless e (eighth), d (dotted
quarter), h (half), t (dotted half) or w (whole) follows. A bar of the band goes before each section, since these tunes
begin on the beat and the singer's first consonant needs room. Chords stand one a bar, or two with a blank.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from training.corpus.harmony import Chord, read_chord
from training.corpus.lexicon import LEXICON
from training.corpus.lyrics import METRES, write_line
from training.corpus.song import Section, SungNote
from training.corpus.world import BAR, BEAT, KEYS, Key, Singer

_TABLE = """
Twinkle, Twinkle, Little Star (1761; words 1806): verse chorus verse
    verse: I, IV I, IV I, V I
        1 1 5 5 6 6 5h = twinkle twinkle little star
        4 4 3 3 2 2 1h = how I wonder what you are
    chorus: I IV, I V, I IV, I V
        5 5 4 4 3 3 2h = up above the world so high
        5 5 4 4 3 3 2h = like a diamond in the sky
Mary Had a Little Lamb (1830): verse chorus
    verse: I, I, V, I
        3 2 1 2 3 3 3h = Mary had a little lamb
        2 2 2h 3 5 5h = little lamb little lamb
    chorus: I, I, V, I
        3 2 1 2 3 3 3 = Mary had a little lamb
        3 2 2 3 2 1w = its fleece was white as snow
London Bridge (1744; melody 1879): verse chorus
    verse: I, I, V7, I
        5d 6e 5 4 3 4 5h = London bridge is falling down
        2 3 4h 3 4 5h = falling down falling down
    chorus: I, I, V7, I
        5d 6e 5 4 3 4 5h = London bridge is falling down
        2h 5h 3 1t = my fair lady
Brother John (about 1780): verse chorus
    verse: I, I, I, I
        1 2 3 1 1 2 3 1 = are you sleeping are you sleeping
        3 4 5h 3 4 5h = brother John brother John
    chorus: I, I, I V, I
        5e 6e 5e 4e 3 1 5e 6e 5e 4e 3 1 = morning bells are ringing morning bells are ringing
        1 5, 1h 1 5, 1h = ding dang dong ding dang dong
Jingle Bells (1857): verse chorus
    verse: I, I, I, I
        3 3 3h 3 3 3h = jingle bells jingle bells
        3 5 1d 2e 3w = jingle all the way
    chorus: IV, I, V7, I
        4 4 4d 4e 4 3 3 = oh what fun it is to ride
        3e 3e 5 5 4 2 1w = in a one horse open sleigh
Ode to Joy (1824): verse verse
    verse: I, V, I, V I
        3 3 4 5 5 4 3 2 = 10101010
        1 1 2 3 2d 1e 1h = 1010101
Good King Wenceslas (1582): verse chorus verse chorus
    verse: I, I, IV V, I
        1 1 1 2 1 1 5,h = 1010101
        6, 5, 6, 7, 1h 1h = 101010
    chorus: I, V I, IV V, I
        5 4 3 2 3 2 1h = 1010101
        6, 5, 6, 7, 1h 1h = 101010
Au clair de la lune (about 1780): verse chorus verse
    verse: I, I V, I V, I
        1 1 1 2 3h 2h = 101010
        1 3 2 2 1w = 10101
    chorus: V, ii, V, V
        2 2 2 2 6,h 6,h = 101010
        2 1 7, 6, 5,w = 10101
Aura Lee (1861): verse verse
    verse: I, ii, V, I
        5, 1 7, 1 2 6, 2h = 1010101
        1 7, 6, 7, 1w = 10101
Yankee Doodle (about 1755): verse chorus verse chorus
    verse: I, V, I, V
        1 1 2 3 1 3 2h = 1010101
        1 1 2 3 1h 7,h = 101010
    chorus: I, IV, V, I
        1 1 2 3 4 3 2 1 = 10101010
        7, 5, 6, 7, 1h 1h = 101010
"""
_HELD_OUT = frozenset({"London Bridge", "Aura Lee"})
_LENGTHS = {"e": 2, "": 4, "d": 6, "h": 8, "t": 12, "w": 16}  # sixteenths
_NOTE = re.compile(r"([1-7])(,?)([edhtw]?)")
_OCTAVES = (2, 3, 4)


@dataclass(frozen=True)
class Line:
    """Scale degrees (0 is the tonic, below it negative) with their sixteenths, and words or a metre for new ones."""

    notes: tuple[tuple[int, int], ...]
    words: str


@dataclass(frozen=True)
class Part:
    chords: tuple[tuple[str, ...], ...]  # by bar
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class OldTune:
    title: str
    form: tuple[str, ...]
    parts: Mapping[str, Part]

    @property
    def held_out(self) -> bool:
        return self.title in _HELD_OUT


def set_tune(tune: OldTune, singer: Singer, held_out: bool, dice: Random) -> tuple[Key, tuple[Section, ...]]:
    """Put a tune into a key that suits the singer, with new words where it has a metre. A chorus keeps its words."""
    key, octave = _choose_place(tune, singer)
    sections: dict[str, Section] = {}
    form = []
    for name in tune.form:
        if name not in sections or name != "chorus":
            sections[name] = _set_part(tune.parts[name], name, key, octave, held_out, dice)
        form.append(sections[name])
    return key, tuple(form)


def _choose_place(tune: OldTune, singer: Singer) -> tuple[Key, int]:
    """Choose the key and octave that put the tune nearest to the middle of the register."""
    degrees = [degree for part in tune.parts.values() for line in part.lines for degree, _ in line.notes]

    def distance(place: tuple[Key, int]) -> float:
        key, octave = place
        return abs(key.pitch(min(degrees), octave) + key.pitch(max(degrees), octave) - singer.lowest - singer.highest)

    return min(((key, octave) for key in KEYS["major"] for octave in _OCTAVES), key=distance)


def _set_part(part: Part, name: str, key: Key, octave: int, held_out: bool, dice: Random) -> Section:
    bars = 1 + len(part.chords)
    notes: list[SungNote] = []
    lines = []
    start = BAR
    for number, line in enumerate(part.lines):
        text = write_line(line.words, dice, held_out) if line.words in METRES else line.words
        lines.append(text)
        syllables = [(word, index) for word in text.split() for index in range(LEXICON[word].syllables)]
        for (degree, length), (word, index) in zip(line.notes, syllables, strict=True):
            stop = min(start + length, bars * BAR - BEAT)
            notes.append(SungNote(start, stop, key.pitch(degree, octave), word, index, number))
            start += length
    chords: list[Chord] = [read_chord("I", key, 0, BAR)]
    for bar, numerals in enumerate(part.chords, start=1):
        length = BAR // len(numerals)
        chords += [
            read_chord(numeral, key, bar * BAR + i * length, bar * BAR + (i + 1) * length)
            for i, numeral in enumerate(numerals)
        ]
    return Section(name, bars, tuple(lines), tuple(chords), tuple(notes), ())


def _read(table: str) -> Sequence[OldTune]:
    tunes: list[OldTune] = []
    parts: dict[str, Part] = {}
    for row in table.strip().splitlines():
        depth = len(row) - len(row.lstrip())
        if depth == 0:
            title, _, form = row.partition(" (")[0], *row.rpartition(": ")[1:]
            parts = {}
            tunes.append(OldTune(title, tuple(form.split()), parts))
        elif depth == 4:
            name, _, chords = row.strip().partition(": ")
            parts[name] = Part(tuple(tuple(bar.split()) for bar in chords.split(", ")), ())
        else:
            notes, _, words = row.strip().partition(" = ")
            line = Line(tuple(_read_note(note) for note in notes.split()), words)
            parts[name] = Part(parts[name].chords, (*parts[name].lines, line))
    return tuple(tunes)


def _read_note(text: str) -> tuple[int, int]:
    match = _NOTE.fullmatch(text)
    assert match, f"{text} is no note"
    degree, below, length = match.groups()
    return int(degree) - 1 - (7 if below else 0), _LENGTHS[length]


TUNES: Sequence[OldTune] = _read(_TABLE)
