"""Every word of the lexicon by every singer, spoken once by espeak-ng and taken apart by WORLD.

What is kept is a table of spectral envelopes and aperiodicities, coded on coarse axes: a few MB from which voice.py
sings any word at any pitch and length, with nothing but numpy.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.corpus.espeak import Espeak, Utterance
from training.corpus.lexicon import LEXICON
from training.corpus.phonemes import FROM_ESPEAK, VOICED, split_syllables
from training.corpus.world import FRAME_RATE

STEPS_PER_FRAME = 3  # spectra in a frame of the codec: one every 6.7 ms
STEP_RATE = STEPS_PER_FRAME * FRAME_RATE
VOICE_RATE = 22_050  # of espeak-ng; nothing sounds above half of it
ENVELOPE_BANDS = 72  # points on a mel axis from 0 to half of VOICE_RATE
NOISE_HZ = (0.0, 1000.0, 2500.0, 4500.0, 7000.0, VOICE_RATE / 2)  # where the aperiodicity is kept
_CODE_STEP_DB = 0.25
_FLOOR_DB = -120.0
_VOWEL_LEVEL_DB = -38.0  # mean power density of a singer's vowels

# espeak voice, espeak pitch, stretch of the frequency axis (a longer or shorter throat).
_VOICES: Mapping[str, tuple[str, int, float]] = {
    "low": ("en-us+m3", 55, 0.92),
    "middle": ("en-us+m1", 60, 1.06),
    "high": ("en-us+f2", 50, 1.08),
}
_SPELLED_FOR_ESPEAK = {"a": "[[a#]]"}  # alone it would be the letter's name


@dataclass(frozen=True)
class Phone:
    """A phoneme and its steps [start, stop) in the table of its singer."""

    name: str
    start: int
    stop: int


Syllable = tuple[Phone, ...]


@dataclass(frozen=True)
class Spectra:
    """One singer's table. envelope: power in dB, float32 [S, ENVELOPE_BANDS]; noise: share of the amplitude that is
    noise, float32 [S, len(NOISE_HZ)], 0 to 1."""

    envelope: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class VoiceBank:
    spectra: Mapping[str, Spectra]  # by singer
    words: Mapping[str, Mapping[str, Sequence[Syllable]]]  # by singer and word

    def save(self, folder: Path) -> None:
        arrays: dict[str, Any] = {}
        for singer, spectra in self.spectra.items():
            arrays[f"{singer}.envelope"] = np.round(spectra.envelope / _CODE_STEP_DB).astype(np.int16)
            arrays[f"{singer}.noise"] = np.round(spectra.noise * 255).astype(np.uint8)
        np.savez_compressed(folder / "voice.npz", **arrays)
        words = {
            singer: {
                word: [[[p.name, p.start, p.stop] for p in s] for s in syllables] for word, syllables in by.items()
            }
            for singer, by in self.words.items()
        }
        (folder / "voice.json").write_text(json.dumps(words, separators=(",", ":")))

    @classmethod
    def load(cls, folder: Path) -> "VoiceBank":
        words = json.loads((folder / "voice.json").read_text())
        with np.load(folder / "voice.npz", allow_pickle=False) as arrays:
            spectra = {
                singer: Spectra(
                    arrays[f"{singer}.envelope"].astype(np.float32) * np.float32(_CODE_STEP_DB),
                    arrays[f"{singer}.noise"].astype(np.float32) / 255,
                )
                for singer in words
            }
        return cls(
            spectra,
            {
                singer: {
                    word: [tuple(Phone(*phone) for phone in syllable) for syllable in syllables]
                    for word, syllables in by.items()
                }
                for singer, by in words.items()
            },
        )


def mel(hertz: np.ndarray) -> np.ndarray:
    return np.log1p(hertz / 700.0)


def envelope_axis_hz() -> np.ndarray:
    """The frequencies at which envelopes are kept, float64 [ENVELOPE_BANDS]."""
    return 700.0 * np.expm1(np.linspace(0.0, float(mel(np.array(VOICE_RATE / 2))), ENVELOPE_BANDS))


def make_voice_bank() -> VoiceBank:
    """Speak and analyse the whole lexicon, about half a minute. Raises EspeakMissing."""
    spectra, words = {}, {}
    for singer, (voice, pitch, stretch) in _VOICES.items():
        espeak = Espeak(voice, pitch)
        assert espeak.sample_rate == VOICE_RATE, f"espeak-ng speaks at {espeak.sample_rate} Hz, expected {VOICE_RATE}"
        spectra[singer], words[singer] = _record(espeak, stretch)
    return VoiceBank(spectra, words)


def _record(espeak: Espeak, stretch: float) -> tuple[Spectra, dict[str, list[Syllable]]]:
    pitch_hz = _measure_pitch(espeak)
    envelopes, noises, vowel_powers = [], [], []
    words: dict[str, list[Syllable]] = {}
    position = 0
    for word in LEXICON:
        utterance = espeak.say(_SPELLED_FOR_ESPEAK.get(word, word))
        phones = [
            Phone(
                FROM_ESPEAK[phone.name.strip("',")],
                _step(phone.start, utterance),
                max(_step(phone.stop, utterance), _step(phone.start, utterance) + 1),
            )
            for phone in utterance.phones
        ]
        envelope, noise = _analyse(utterance, phones, pitch_hz, stretch)
        envelopes.append(envelope)
        noises.append(noise)
        syllables = split_syllables([phone.name for phone in phones])
        words[word] = [
            tuple(Phone(phones[i].name, phones[i].start + position, phones[i].stop + position) for i in syllable)
            for syllable in syllables
        ]
        nuclei = [phones[i] for syllable in syllables for i in syllable if phones[i].name[0] in "AEIOU"]
        vowel_powers += [10 ** (envelope[phone.start : phone.stop] / 10) for phone in nuclei]
        position += len(envelope)
    level_db = 10 * np.log10(np.concatenate(vowel_powers).mean())
    envelope = np.maximum(np.concatenate(envelopes) + (_VOWEL_LEVEL_DB - level_db), _FLOOR_DB)
    return Spectra(envelope.astype(np.float32), np.concatenate(noises).astype(np.float32)), words


def _step(sample: int, utterance: Utterance) -> int:
    return round(sample / utterance.sample_rate * STEP_RATE)


def _measure_pitch(espeak: Espeak) -> float:
    """The one pitch on which espeak speaks everything, since its pitch range is set to 0."""
    import pyworld

    utterance = espeak.say("mother river moon")
    pitches, _ = pyworld.harvest(utterance.samples, utterance.sample_rate)
    return float(np.median(pitches[pitches > 0]))


def _analyse(
    utterance: Utterance, phones: Sequence[Phone], pitch_hz: float, stretch: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns envelope in dB [S, ENVELOPE_BANDS] and noise [S, len(NOISE_HZ)].

    The pitch is known, so nothing is tracked; and voicing is known from the phonemes, so D4C's own guess, which calls
    sung frames noise, is switched off (threshold 0).
    """
    import pyworld

    times = np.arange(phones[-1].stop) / STEP_RATE
    voiced = np.zeros(len(times), bool)
    for phone in phones:
        voiced[phone.start : phone.stop] = phone.name in VOICED
    samples = np.pad(utterance.samples, (0, utterance.sample_rate // 10))
    pitches = np.where(voiced, pitch_hz, 0.0)
    power = pyworld.cheaptrick(samples, pitches, times, utterance.sample_rate)
    noise = pyworld.d4c(samples, pitches, times, utterance.sample_rate, threshold=0.0)
    noise[~voiced] = 1.0
    axis = np.linspace(0.0, utterance.sample_rate / 2, power.shape[1])
    wanted = np.minimum(envelope_axis_hz() / stretch, axis[-1])
    decibels = 10 * np.log10(np.maximum(power, 10 ** (_FLOOR_DB / 10)))
    return (
        np.stack([np.interp(wanted, axis, row) for row in decibels]),
        np.stack([np.interp(NOISE_HZ, axis, row) for row in noise]),
    )
