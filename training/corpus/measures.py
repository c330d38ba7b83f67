"""What can be heard in a vocal track, without its score: pitch, and the number of syllables."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

HEARING_RATE = 16_000  # what the measures below expect
HOP_S = 0.01
_LOWEST_HZ, _HIGHEST_HZ = 70.0, 800.0
_SONORANT_HZ = 2000.0  # loudness is taken below: vowels are loud there, hissing consonants are not
_SMOOTH = 6  # hops over which loudness is averaged
_DIP_DB = 5.0  # between two syllables loudness falls at least so far below both
_STEP_SEMITONES = 0.8  # a change of pitch that begins a syllable, within _STEP_HOPS
_STEP_HOPS = 4
_SHORTEST_HOPS = 7
_QUIET_DB = 13.5  # so far below the loudest, nothing counts


@dataclass(frozen=True)
class Heard:
    """Once every HOP_S, at the middle of the hop.

    semitone: MIDI, fractional, NaN where nothing is voiced. loudness_db: of what vowels are made of.
    """

    semitone: np.ndarray  # float64 [H]
    loudness_db: np.ndarray  # float64 [H]

    def part(self, start: int, stop: int) -> "Heard":
        return Heard(self.semitone[start:stop], self.loudness_db[start:stop])


def listen(samples: np.ndarray) -> Heard:
    """Track pitch (WORLD's Harvest) and loudness. samples: float32 [N] at HEARING_RATE."""
    import pyworld

    hop = int(HOP_S * HEARING_RATE)
    count = len(samples) // hop
    samples = samples.astype(np.float64)
    pitches, _ = pyworld.harvest(samples, HEARING_RATE, _LOWEST_HZ, _HIGHEST_HZ, frame_period=1000 * HOP_S / 2)
    middles = pitches[1::2][:count]
    with np.errstate(divide="ignore"):
        semitone = np.where(middles > 0, 69 + 12 * np.log2(middles / 440), np.nan)
    spectrum = np.fft.rfft(samples)
    spectrum[int(len(samples) * _SONORANT_HZ / HEARING_RATE) :] = 0
    sonorant = np.fft.irfft(spectrum, len(samples))
    power = (sonorant[: count * hop].reshape(count, hop) ** 2).mean(axis=1)
    smooth = np.convolve(power, np.hanning(_SMOOTH + 2)[1:-1] / np.hanning(_SMOOTH + 2).sum(), "same")
    return Heard(semitone, 10 * np.log10(smooth + 1e-12))


def count_syllables(heard: Heard) -> int:
    """Count syllables by ear: voiced stretches, cut where the pitch steps and where loudness dips.

    After de Jong and Wempe (2009), with steps of pitch for what is sung legato. The limits are tuned on songs 0 to 5.
    """
    audible = np.isfinite(heard.semitone) & (heard.loudness_db > heard.loudness_db.max() - _QUIET_DB)
    syllables = 0
    for start, stop in _stretches(audible, _pitch_steps(heard.semitone)):
        if stop - start >= _SHORTEST_HOPS:
            syllables += _count_peaks(heard.loudness_db[start:stop])
    return syllables


def _pitch_steps(semitone: np.ndarray) -> set[int]:
    """The hops at which the pitch changes most, once for each change."""
    middle = np.arange(_STEP_HOPS, len(semitone) - _STEP_HOPS)
    change = np.zeros(len(semitone))
    before = np.median([semitone[middle - back] for back in range(2, _STEP_HOPS + 1)], axis=0)
    after = np.median([semitone[middle + ahead] for ahead in range(1, _STEP_HOPS)], axis=0)
    change[middle] = np.nan_to_num(np.abs(after - before))  # NaN beside a rest: no step
    is_step = change > _STEP_SEMITONES
    return {start + int(change[start:stop].argmax()) for start, stop in _runs(is_step)}


def _stretches(audible: np.ndarray, cuts: set[int]) -> list[tuple[int, int]]:
    """Stretches [start, stop) that are audible, parted at the cuts."""
    stretches = []
    for start, stop in _runs(audible):
        edges = [start, *sorted(cut for cut in cuts if start < cut < stop), stop]
        stretches += list(pairwise(edges))
    return stretches


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _count_peaks(loudness_db: np.ndarray) -> int:
    """Count maxima that stand at least _DIP_DB above the dips on both sides; one at least."""
    peaks, rising = 0, True
    extreme = loudness_db[0]
    for value in loudness_db:
        if rising:
            extreme = max(extreme, value)
            if value < extreme - _DIP_DB:
                peaks, rising, extreme = peaks + 1, False, value
        else:
            extreme = min(extreme, value)
            if value > extreme + _DIP_DB:
                rising, extreme = True, value
    return max(peaks + rising, 1)
