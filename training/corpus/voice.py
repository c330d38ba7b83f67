"""Sing notes from the voice bank: WORLD's way of synthesis, in numpy.

Every note is made by itself, its first pulse exactly on its first sample and its noise always the same, so that the
same syllable at the same pitch and length is the same waveform wherever it stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import numpy as np

from training.corpus.phonemes import GLIDING, VOICED, VOWELS
from training.corpus.voice_bank import (
    ENVELOPE_BANDS,
    NOISE_HZ,
    STEPS_PER_FRAME,
    VOICE_RATE,
    Phone,
    Spectra,
    Syllable,
    envelope_axis_hz,
    mel,
)
from training.corpus.world import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME

HOP = SAMPLES_PER_FRAME // STEPS_PER_FRAME
FFT = 2048  # of a response at SAMPLE_RATE: 46 ms
AHEAD = 32  # samples of a response kept for what band-limiting puts before its start
BINS = FFT * VOICE_RATE // SAMPLE_RATE // 2 + 1  # up to half of VOICE_RATE; above it there is nothing

MOST_CONSONANT = 0.4  # of a note, before its vowel as after it
LONGEST_ONSET = 8  # frames
VIBRATO_FRAMES = 10  # one period: 5 Hz, and the same frames again
VIBRATO_SEMITONES = 0.3
VIBRATO_DELAY = 13  # frames; notes of twice this and less stay straight
SCOOP_SEMITONES = 0.5  # every note is met from below, in the same way each time
SCOOP_FRAMES = 3
RELEASE_STEPS = 4
BREATHY_STEPS = 5  # at the end of a phrase: too clean a release buzzes
GAIN = 18.0  # puts the loudest vowels near -6 dB
UNVOICED_DB = 6.0  # what is spoken softly must be heard beside a band
LOWEST_HZ = 70.0  # below, the envelope knows nothing but a rumble


@dataclass(frozen=True)
class Timing:
    """How a note is cut up, in frames: consonants before the beat, nucleus from the beat on, consonants at the end."""

    onset: int
    nucleus: int
    coda: int


def natural_onset(syllable: Syllable) -> int:
    """Frames that the consonants before the nucleus take when spoken."""
    return _frames(_split(syllable)[0])


def natural_coda(syllable: Syllable) -> int:
    return _frames(_split(syllable)[2])


def sing(spectra: Spectra, syllable: Syllable, timing: Timing, semitone: int, is_last: bool) -> np.ndarray:
    """Sing one syllable on one note, float32 [(onset + nucleus + coda) * SAMPLES_PER_FRAME + ring of FFT samples].

    semitone: MIDI. is_last: a rest follows, so the voice is let go.
    """
    steps, phones = _path(syllable, timing)
    envelope = _interpolate(spectra.envelope, steps)
    noise = _interpolate(spectra.noise, steps)
    names = [phone.name for phone in syllable]
    voiced = np.array([names[index] in VOICED for index in phones])
    noise[~voiced] = 1.0
    if is_last:
        count = min(BREATHY_STEPS, len(noise))
        noise[-count:] = np.maximum(noise[-count:], np.linspace(0, 0.6, count)[:, None])
        fade = 20 * np.log10(np.linspace(1, 0.02, RELEASE_STEPS))
        envelope[-RELEASE_STEPS:] += fade[:, None]
    envelope[~voiced] += UNVOICED_DB
    amplitude = 10 ** (envelope @ _TO_BINS / 20) * _RUMBLE_CUT
    noise_share = noise @ _NOISE_TO_BINS
    out = np.zeros(len(steps) * HOP + FFT, np.float32)
    pitch_hz = _pitch_curve(semitone, timing)
    _add_pulses(out, amplitude * np.sqrt(np.maximum(1 - noise_share**2, 0)), voiced, pitch_hz)
    _add_noise(out, amplitude * noise_share, [names[index] for index in phones])
    return out * np.float32(GAIN)


def phoneme_frames(syllable: Syllable, timing: Timing) -> list[str]:
    """Name the phoneme of every frame of a note, by the middle step of the frame."""
    _, phones = _path(syllable, timing)
    return [syllable[index].name for index in phones[STEPS_PER_FRAME // 2 :: STEPS_PER_FRAME]]


def _split(syllable: Syllable) -> tuple[Sequence[Phone], Phone, Sequence[Phone]]:
    at = next(index for index, phone in enumerate(syllable) if phone.name in VOWELS)
    return syllable[:at], syllable[at], syllable[at + 1 :]


def _frames(phones: Sequence[Phone]) -> int:
    steps = sum(phone.stop - phone.start for phone in phones)
    return -(-steps // STEPS_PER_FRAME)


def _path(syllable: Syllable, timing: Timing) -> tuple[np.ndarray, np.ndarray]:
    """Where in the bank each step of a note is read (fractional, float64 [S]), and which phoneme it is (int [S])."""
    onset, nucleus, coda = _split(syllable)
    parts = []
    if timing.onset:
        parts.append(np.linspace(onset[0].start, onset[-1].stop, timing.onset * STEPS_PER_FRAME, endpoint=False))
    parts.append(_stretch(nucleus, timing.nucleus * STEPS_PER_FRAME))
    if timing.coda:
        parts.append(np.linspace(coda[0].start, coda[-1].stop, timing.coda * STEPS_PER_FRAME, endpoint=False))
    steps = np.concatenate(parts)
    stops = np.array([phone.stop for phone in syllable])
    return steps, np.minimum(np.searchsorted(stops, steps, side="right"), len(syllable) - 1)


def _stretch(phone: Phone, steps: int) -> np.ndarray:
    """Spread a nucleus over some steps; only its middle is stretched, and a diphthong's late part moves as spoken."""
    length = phone.stop - phone.start
    if steps <= length:
        return np.linspace(phone.start, phone.stop, steps, endpoint=False)
    hold_from, hold_to = (0.25, 0.40) if phone.name in GLIDING else (0.3, 0.7)
    head, tail = round(length * hold_from), round(length * (1 - hold_to))
    middle = steps - head - tail
    return np.concatenate(
        [
            phone.start + np.arange(head),
            np.linspace(phone.start + head, phone.stop - tail, middle, endpoint=False),
            phone.stop - tail + np.arange(tail),
        ]
    )


def _pitch_curve(semitone: int, timing: Timing) -> np.ndarray:
    """Pitch in Hz at each step's start, float64 [S + 1]."""
    count = (timing.onset + timing.nucleus + timing.coda) * STEPS_PER_FRAME + 1
    frame = np.arange(count) / STEPS_PER_FRAME - timing.onset  # 0 on the beat
    rise = np.clip((frame + SCOOP_FRAMES - 1) / SCOOP_FRAMES, 0, 1)
    curve = semitone - SCOOP_SEMITONES * (1 - np.sin(rise * np.pi / 2))
    if timing.nucleus + timing.coda > 2 * VIBRATO_DELAY:
        since = np.maximum(frame - VIBRATO_DELAY, 0)
        swell = np.minimum(since / VIBRATO_FRAMES, 1)
        curve = curve + VIBRATO_SEMITONES * swell * np.sin(2 * np.pi * since / VIBRATO_FRAMES)
    return 440.0 * 2 ** ((curve - 69) / 12)


def _add_pulses(out: np.ndarray, amplitude: np.ndarray, voiced: np.ndarray, pitch_hz: np.ndarray) -> None:
    """Add a minimum-phase response for every period. amplitude: [S, BINS], per root of Hz."""
    responses = _minimum_phase(amplitude)
    for start, stop in _runs(voiced):
        at = np.arange((stop - start) * HOP) / HOP
        hertz = np.interp(at, np.arange(stop - start + 1), pitch_hz[start : stop + 1])
        cycles = np.concatenate([[0.0], np.cumsum(hertz / SAMPLE_RATE)])
        times = np.interp(np.arange(int(np.ceil(cycles[-1]))), cycles, np.arange(len(cycles)))  # in samples
        whole = times.astype(int)
        step = np.minimum(start + whole // HOP, stop - 1)
        period = SAMPLE_RATE / hertz[np.minimum(whole, len(hertz) - 1)]
        shift = np.exp(np.outer(times - whole + AHEAD, _SAMPLE_SHIFT))
        spectra = responses[step] * shift * np.sqrt(period)[:, None]
        pulses = np.fft.irfft(spectra, FFT, axis=1).astype(np.float32)
        for pulse, position in zip(pulses, start * HOP + whole - AHEAD, strict=True):
            first = max(position, 0)
            out[first : position + FFT] += pulse[first - position : len(out) - position]


def _add_noise(out: np.ndarray, amplitude: np.ndarray, names: Sequence[str]) -> None:
    """Add shaped noise. Each phoneme has its own fixed noise, counted from where the phoneme starts."""
    chunks = np.zeros((len(names), FFT), np.float32)
    since = 0
    for index, name in enumerate(names):
        since = since + 1 if index and names[index - 1] == name else 0
        chunks[index, FFT // 2 - HOP : FFT // 2 + HOP] = _noise_chunks(name)[since % _NOISE_STEPS]
    spectra = np.fft.rfft(chunks, axis=1)[:, :BINS] * amplitude
    shaped = np.fft.irfft(spectra, FFT, axis=1).astype(np.float32)
    for index, piece in enumerate(shaped):
        first = index * HOP + HOP // 2 - FFT // 2  # the chunk's middle is the step's middle
        start, stop = max(first, 0), min(first + FFT, len(out))
        out[start:stop] += piece[start - first : stop - first]


_NOISE_STEPS = 300


@lru_cache(maxsize=64)
def _noise_chunks(name: str) -> np.ndarray:
    """Overlapping Hann windows of a phoneme's noise, float32 [_NOISE_STEPS, 2 * HOP]."""
    noise = np.random.default_rng(crc32(name.encode())).standard_normal((_NOISE_STEPS + 1) * HOP)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(2 * HOP) + 0.5) / (2 * HOP))
    windows = np.stack([noise[i * HOP : (i + 2) * HOP] * window for i in range(_NOISE_STEPS)])
    return windows.astype(np.float32)


def _minimum_phase(amplitude: np.ndarray) -> np.ndarray:
    """Give magnitudes [S, BINS] the phase of a minimum-phase filter, complex [S, BINS]. Source: cepstral folding."""
    length = 2 * (BINS - 1)
    cepstrum = np.fft.irfft(np.log(np.maximum(amplitude, 1e-9)), length, axis=1)
    cepstrum[:, 1 : length // 2] *= 2
    cepstrum[:, length // 2 + 1 :] = 0
    return np.exp(np.fft.rfft(cepstrum, axis=1))


def _interpolate(table: np.ndarray, steps: np.ndarray) -> np.ndarray:
    below = steps.astype(int)
    above = np.minimum(below + 1, len(table) - 1)
    share = (steps - below)[:, None]
    return table[below] * (1 - share) + table[above] * share


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """The stretches [start, stop) where flags hold."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _hat_weights(points: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Linear interpolation as a matrix [points, wanted]."""
    return np.stack([np.interp(wanted, points, row) for row in np.eye(len(points))])


_BIN_HZ = np.linspace(0.0, VOICE_RATE / 2, BINS)
_TO_BINS = _hat_weights(mel(envelope_axis_hz()), mel(_BIN_HZ))
_NOISE_TO_BINS = _hat_weights(np.array(NOISE_HZ), _BIN_HZ)
_RUMBLE_CUT = _BIN_HZ**2 / (_BIN_HZ**2 + LOWEST_HZ**2)
_SAMPLE_SHIFT = -2j * np.pi * np.arange(BINS) / FFT
assert _TO_BINS.shape == (ENVELOPE_BANDS, BINS) and VIBRATO_FRAMES * 5 == FRAME_RATE
