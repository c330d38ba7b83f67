"""Make the two example tracks of `prompt_egs/`: a sung line and the plucked chords under it, by additive synthesis.

    python -m tests.example_audio prompt_egs

Both are ours: no recording, no sample, no voice of anybody. Tempo 100, C major, chords C G Am F, two beats each.
"""

import sys
from pathlib import Path

import numpy as np

from yue_cli.audio_files import SAMPLE_RATE, write_audio

BEAT_S = 0.6
END_S = 0.5  # for the last notes to fade
CHORDS = ((48, 64, 67, 72), (43, 62, 67, 71), (45, 64, 69, 72), (41, 65, 69, 72))  # MIDI notes, the bass first
PATTERN = (1, 2, 3, 2)  # which note of the chord on each half beat
MELODY = (  # MIDI note, beats, vowel
    *((72, 1, "a"), (76, 1, "o"), (74, 1.5, "a"), (71, 0.5, "e")),
    *((72, 1, "o"), (76, 0.5, "e"), (74, 0.5, "a"), (72, 2, "o")),
)
FORMANTS = {  # Hz, width in Hz, strength
    "a": ((850, 130, 1.0), (1220, 150, 0.5), (2810, 250, 0.12)),
    "e": ((530, 100, 1.0), (1850, 200, 0.35), (2700, 250, 0.15)),
    "o": ((500, 100, 1.0), (900, 120, 0.4), (2600, 250, 0.08)),
}
FALL = 6.0  # dB an octave, of the harmonics before the formants: 12 at the vocal folds, less 6 at the lips


def frequency_hz(note: float) -> float:
    return 440.0 * 2 ** ((note - 69) / 12)


def song_samples() -> int:
    return round((len(CHORDS) * 2 * BEAT_S + END_S) * SAMPLE_RATE)


def pluck(note: int, seconds: float) -> np.ndarray:
    """A string plucked at a fifth of its length: harmonics that fade, the higher the faster."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    base = frequency_hz(note)
    sound = np.zeros_like(time)
    for harmonic in range(1, int(10_000 / base) + 1):
        strength = np.sin(np.pi * harmonic / 5) / harmonic**1.3
        sound += strength * np.exp(-time * (1.5 + 0.9 * harmonic)) * np.sin(2 * np.pi * harmonic * base * time)
    return sound * np.minimum(time / 0.003, 1)


def sing(note: int, seconds: float, vowel: str, before: int) -> np.ndarray:
    """One sung note that glides in from the one before and trembles a little: harmonics shaped by a vowel."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    glide = (before - note) * np.exp(-time / 0.03)
    vibrato = 0.25 * np.sin(2 * np.pi * 5.5 * time) * np.clip((time - 0.25) / 0.3, 0, 1)
    pitch = frequency_hz(note) * 2 ** ((glide + vibrato) / 12)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    sound = np.zeros_like(time)
    for harmonic in range(1, int(9_000 / frequency_hz(note)) + 1):
        place = harmonic * pitch
        shape = sum(gain / (1 + ((place - centre) / width) ** 2) for centre, width, gain in FORMANTS[vowel])
        sound += (shape + 0.02) * harmonic ** (-FALL / 6.02) * np.sin(harmonic * phase)
    swell = np.minimum(time / 0.05, 1) * np.minimum((seconds - time) / 0.06, 1)
    return sound * np.clip(swell, 0, 1)


def vocal() -> np.ndarray:
    """The sung line, float32 [1, N]."""
    sound = np.zeros(song_samples())
    start_s, before = 0.0, MELODY[0][0]
    for note, beats, vowel in MELODY:
        _add(sound, sing(note, beats * BEAT_S, vowel, before), start_s)
        start_s, before = start_s + beats * BEAT_S, note
    return _levelled(sound)


def instrumental() -> np.ndarray:
    """Bass notes and broken chords, float32 [1, N]."""
    sound = np.zeros(song_samples())
    for bar, chord in enumerate(CHORDS):
        start_s = bar * 2 * BEAT_S
        _add(sound, 1.2 * pluck(chord[0], 2 * BEAT_S), start_s)
        for step, which in enumerate(PATTERN):
            _add(sound, 0.7 * pluck(chord[which], 1.2), start_s + step * BEAT_S / 2)
    return _levelled(sound)


def _add(sound: np.ndarray, part: np.ndarray, start_s: float) -> None:
    start = round(start_s * SAMPLE_RATE)
    stop = min(start + len(part), len(sound))
    sound[start:stop] += part[: stop - start]


def _levelled(sound: np.ndarray) -> np.ndarray:
    fade = np.clip((len(sound) - np.arange(len(sound))) / (0.05 * SAMPLE_RATE), 0, 1)
    return (0.6 * sound * fade / np.abs(sound).max())[None].astype(np.float32)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, samples in (("vocal", vocal()), ("instrumental", instrumental())):
        write_audio(folder / f"{name}.ogg", samples, {"title": f"example {name}", "comment": "made by synthesis"})
