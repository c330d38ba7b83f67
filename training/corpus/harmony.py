"""Four bars of chords: tonic, away, and home by a cadence, in the manner of each genre."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from training.corpus.world import BAR, Key

CHORD_TYPES: Mapping[str, tuple[int, ...]] = {"major": (0, 4, 7), "minor": (0, 3, 7), "seventh": (0, 4, 7, 10)}

# Three bars, one chord each. Large numerals are major chords, small ones minor. V in minor has the raised leading tone.
_OPENINGS: Mapping[str, Mapping[str, str]] = {
    "pop": {
        "major": "I V vi, I vi IV, vi IV I, I IV V, I iii IV, IV I V",
        "minor": "i VI III, i iv VI, VI VII i, i III VII, i VII VI, iv i V",
    },
    "rock": {
        "major": "I IV I, I I IV, I V IV, I ii IV, I IV V, IV IV I",
        "minor": "i VII VI, i i VII, i iv i, i III iv, i VI VII, i VII iv",
    },
    "ballad": {
        "major": "I vi ii, I iii vi, I IV ii, vi ii V, I V vi, IV iii vi",
        "minor": "i iv VII, i VI iv, i III VI, VI iv i, i v VI, iv VII III",
    },
    "folk": {
        "major": "I I IV, I IV I, I V I, I vi IV, I ii V, IV I V",
        "minor": "i i VII, i VII i, i iv i, i III VII, i VI VII, i v i",
    },
    "dance": {
        "major": "vi IV I, I V ii, IV V vi, I IV vi, ii IV I, vi I V",
        "minor": "i VI VII, VI VII i, i III VI, iv VI i, i VII III, i iv VII",
    },
}
_CADENCES: Mapping[str, str] = {"major": "V I, V7 I, IV I", "minor": "V i, V7 i, iv i"}
_DEGREES = "i ii iii iv v vi vii".split()


@dataclass(frozen=True)
class Chord:
    """A chord over sixteenth notes [start, stop), counted from the section's start."""

    start: int
    stop: int
    root: int  # pitch class
    type: str

    @property
    def pitch_classes(self) -> frozenset[int]:
        return frozenset((self.root + step) % 12 for step in CHORD_TYPES[self.type])


def write_chords(genre: str, key: Key, phrases: int, dice: Random) -> list[Chord]:
    """Write four bars for each phrase. The last closes: half a bar of cadence, and a bar of the tonic.

    The others stop on a bar of the dominant, which asks for more.
    """
    openings = _OPENINGS[genre][key.mode].split(", ")
    opening = dice.choice(openings).split()
    cadence = dice.choice(_CADENCES[key.mode].split(", ")).split()
    chords = []
    for phrase in range(phrases):
        bars = [BAR, BAR, BAR // 2, BAR // 2, BAR] if phrase == phrases - 1 else [BAR] * 4
        numerals = opening + (cadence if phrase == phrases - 1 else ["V"])
        start = phrase * 4 * BAR
        for numeral, length in zip(numerals, bars, strict=True):
            chords.append(read_chord(numeral, key, start, start + length))
            start += length
    return chords


def chord_at(chords: list[Chord], sixteenth: int) -> Chord:
    return next(chord for chord in chords if chord.start <= sixteenth < chord.stop)


def scale_over(chord: Chord, key: Key) -> frozenset[int]:
    """The pitch classes that may sound over a chord: the key's, with the chord's own note in place of a neighbour."""
    classes = {key.pitch_class(degree) for degree in range(7)}
    foreign = chord.pitch_classes - classes
    replaced = {key.pitch_class(6)} if foreign else set()  # only the leading tone of minor is ever foreign
    return frozenset((classes - replaced) | foreign)


def read_chord(numeral: str, key: Key, start: int, stop: int) -> Chord:
    """Turn a numeral such as ii or V7 into the chord of a key."""
    name = numeral.removesuffix("7")
    type_ = "seventh" if numeral.endswith("7") else "major" if name.isupper() else "minor"
    return Chord(start, stop, key.pitch_class(_DEGREES.index(name.lower())), type_)
