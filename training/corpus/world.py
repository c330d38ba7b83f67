"""The small world in which all songs live: one grid of frames for everything, few keys, three singers.

A frame of the codec is 1/50 s. Every tempo makes a sixteenth note a whole number of frames, so that the same note is
always cut into the same frames and earns the same codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from zlib import crc32

FRAME_RATE = 50
SAMPLE_RATE = 44_100
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE
BEAT = 4  # sixteenth notes
BAR = 16
FASTEST, SLOWEST = 5, 12  # frames in a sixteenth note: 150 to 62.5 beats a minute

MAJOR = (0, 2, 4, 5, 7, 9, 11)
MINOR = (0, 2, 3, 5, 7, 8, 10)
SCALES: Mapping[str, tuple[int, ...]] = {"major": MAJOR, "minor": MINOR}
PITCH_NAMES = "C Db D Eb E F Gb G Ab A Bb B".split()


@dataclass(frozen=True)
class Key:
    tonic: int  # pitch class, 0 is C
    mode: str

    @property
    def name(self) -> str:
        return f"{PITCH_NAMES[self.tonic]} {self.mode}"

    def pitch_class(self, degree: int) -> int:
        """Degree 0 is the tonic; degrees go on below and above the octave."""
        return (self.tonic + SCALES[self.mode][degree % 7]) % 12

    def pitch(self, degree: int, octave: int) -> int:
        """The MIDI semitone of a degree; octave 4 starts at the tonic between C4 and B4."""
        return 12 * (octave + 1 + degree // 7) + self.tonic + SCALES[self.mode][degree % 7]


KEYS: Mapping[str, tuple[Key, ...]] = {
    "major": tuple(Key(tonic, "major") for tonic in (0, 7)),  # C G
    "minor": tuple(Key(tonic, "minor") for tonic in (9, 4)),  # A E
}


@dataclass(frozen=True)
class Singer:
    """A voice and the register in which it sings, in MIDI semitones, both ends included.

    home: the lowest note of what is composed for it. Homes are so far apart that a pitch nearly tells the singer: fewer
    sounds for the first codebook to tell apart.
    """

    name: str
    lowest: int
    highest: int
    home: int


SINGERS: Mapping[str, Singer] = {
    singer.name: singer
    for singer in (
        Singer("low", 45, 64, 45),  # A2 to E4
        Singer("middle", 52, 71, 55),  # E3 to B4
        Singer("high", 57, 76, 64),  # A3 to E5
    )
}


def tempo_bpm(frames_per_sixteenth: int) -> float:
    return 60 * FRAME_RATE / (BEAT * frames_per_sixteenth)


def random_for(seed: int, purpose: str) -> Random:
    """Give each purpose its own dice, so that a change to one leaves the others' throws alone."""
    return Random(seed << 32 | crc32(purpose.encode()))
