"""Melodies a line at a time: first a rhythm for the syllables, then pitches that fit the chords."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from random import Random

from training.corpus.harmony import CHORD_TYPES, Chord, chord_at, scale_over
from training.corpus.world import BEAT, Key

RANGE = 10  # semitones that a song uses of its singer's register
CHORUS_LIFT = 2
_CANDIDATES = 30


@dataclass(frozen=True)
class MelodyNote:
    """A note over sixteenths [start, stop), counted from the section's start. semitone: MIDI."""

    start: int
    stop: int
    semitone: int


Rhythm = list[tuple[int, int]]  # sixteenths [start, stop) of each syllable, counted from the line's start


def write_rhythm(metre: str, length: int, is_dense: bool, may_dot: bool, opens: bool, dice: Random) -> Rhythm:
    """Set a line's syllables into `length` sixteenths: beats of the metre on beats, a beat of rest at the end.

    Beats of the metre are one or two pulses apart; a pulse is a quarter note, or an eighth in lines of one bar.
    may_dot: long-short pairs may be 3 to 1. opens: the line opens a section, so that its first consonants must not
    reach into the section before.
    """
    pulse = length // 8
    beats = [index for index, sign in enumerate(metre) if sign == "1"]
    after = len(metre) - 1 - beats[-1]  # syllables after the last beat: 0 or 1
    latest = length - BEAT
    choices = []
    for first, *gaps in product((0, 1, 2), *[(1, 2)] * (len(beats) - 1)):  # in pulses
        if first == 0 and (opens or beats[0]):
            continue  # what comes before the beat needs room
        onsets = [pulse * first]
        for gap in gaps:
            onsets.append(onsets[-1] + pulse * gap)
        if onsets[-1] >= length // 2 and onsets[-1] + pulse + after * pulse // 2 <= latest:
            choices.append((sum(gaps), onsets))
    gap_sums = sorted({total for total, _ in choices})
    wanted = gap_sums[: max(1, len(gap_sums) // 2)] if is_dense else gap_sums[len(gap_sums) // 2 :]
    onsets = dice.choice([onsets for total, onsets in choices if total in wanted])
    is_dotted = may_dot and pulse % 4 == 0 and dice.random() < 0.3
    starts = []
    for index, sign in enumerate(metre):
        if sign == "1":
            starts.append(onsets[beats.index(index)])
        elif index < beats[0]:
            starts.append(onsets[0] - pulse // 2)
        else:
            before = beats.index(index - 1)
            gap = onsets[before + 1] - onsets[before] if before + 1 < len(onsets) else pulse
            starts.append(onsets[before] + (gap * 3 // 4 if is_dotted else gap // 2))
    longest = 3 * pulse if is_dense else 5 * pulse
    last = min(latest, starts[-1] + longest)
    return list(zip(starts, starts[1:] + [last], strict=True))


def write_pitches(
    rhythm: Rhythm, metre: str, chords: list[Chord], key: Key, lowest: int, closes: bool, dice: Random,
    answer_to: Sequence[int] | None = None,
) -> list[int]:  # fmt: skip
    """Choose a pitch for each note: the best of some random walks.

    rhythm, chords: in sixteenths of the section. closes: the last note is the root or third of its chord.
    answer_to: the pitches of an earlier line with the same metre, whose shape this one takes up.
    """
    walks = [_walk(rhythm, metre, chords, key, lowest, closes, dice, answer_to) for _ in range(_CANDIDATES)]
    return max(walks, key=_beauty)


def _walk(
    rhythm: Rhythm, metre: str, chords: list[Chord], key: Key, lowest: int, closes: bool, dice: Random,
    answer_to: Sequence[int] | None,
) -> list[int]:  # fmt: skip
    pitches: list[int] = []
    for index, (start, _) in enumerate(rhythm):
        chord = chord_at(chords, start)
        is_last = index == len(rhythm) - 1
        if metre[index] == "1" or is_last:
            classes = chord.pitch_classes
            if is_last and closes:
                classes = frozenset((chord.root + step) % 12 for step in CHORD_TYPES[chord.type][:2])
        else:
            classes = scale_over(chord, key)
        allowed = [pitch for pitch in range(lowest, lowest + RANGE + 1) if pitch % 12 in classes]
        if answer_to and index < len(rhythm) // 2:
            near = answer_to[index]
            spread = 0.1
        elif pitches:
            near = pitches[-1]
            if len(pitches) > 1 and abs(pitches[-1] - pitches[-2]) > 4:  # step back after a leap
                near += 1 if pitches[-2] > pitches[-1] else -1
            spread = 2.2
        else:
            near, spread = lowest + RANGE // 2, 3.0
        weights = [2.718 ** (-(((pitch - near) / spread) ** 2) / 2) + 1e-9 for pitch in allowed]
        if pitches and not answer_to:  # standing still is dull
            weights = [w * (0.35 if pitch == pitches[-1] else 1) for w, pitch in zip(weights, allowed, strict=True)]
        pitches.append(dice.choices(allowed, weights)[0])
    return pitches


def _beauty(pitches: list[int]) -> float:
    steps = [abs(right - left) for left, right in pairwise(pitches)]
    spread = max(pitches) - min(pitches)
    peak = pitches.count(max(pitches))
    leaps = sum(step > 5 for step in steps)
    repeats = sum(step == 0 for step in steps)
    turns = sum((b - a) * (c - b) < 0 for a, b, c in zip(pitches, pitches[1:], pitches[2:], strict=False))
    return -2.0 * leaps - (peak - 1) - 0.7 * abs(spread - 7) - 0.6 * repeats - 0.3 * abs(turns - len(pitches) // 3)
