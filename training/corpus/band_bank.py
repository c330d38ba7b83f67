"""One-shot notes of the band's instruments, recorded once from the FluidR3 soundfont.

One FLAC file an instrument, its notes one after the other in slots of equal length; playing is then copying.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from training.corpus.world import SAMPLE_RATE, SAMPLES_PER_FRAME

SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
_VELOCITY = 100
_DRUM_BANK = 128


class SoundfontMissing(RuntimeError):
    """The soundfont, or what plays it, is not there."""


@dataclass(frozen=True)
class Instrument:
    """A General MIDI program, the pitches it is asked for (both ends included) and how long a note can last."""

    program: int
    lowest: int
    highest: int
    frames: int
    gain: float


# Nothing is held longer than half a bar at the slowest tempo: 96 frames, and the release.
INSTRUMENTS: Mapping[str, Instrument] = {
    "piano": Instrument(0, 48, 79, 100, 4.0),
    "acoustic guitar": Instrument(24, 48, 79, 100, 0.7),
    "electric guitar": Instrument(29, 48, 79, 100, 0.6),
    "strings": Instrument(48, 48, 79, 100, 1.2),
    "organ": Instrument(19, 48, 79, 100, 0.6),
    "synth": Instrument(90, 48, 79, 100, 0.8),
    "acoustic bass": Instrument(32, 28, 51, 100, 0.9),
    "electric bass": Instrument(33, 28, 51, 100, 1.1),
    "picked bass": Instrument(34, 28, 51, 100, 1.1),
    "synth bass": Instrument(38, 28, 51, 100, 3.0),
}
DRUMS: Mapping[str, tuple[int, float]] = {  # General MIDI keys of the standard kit, and gains
    "kick": (36, 3.0),
    "rim": (37, 1.2),
    "snare": (38, 0.9),
    "clap": (39, 0.7),
    "hat": (42, 4.0),
    "open hat": (46, 1.5),
    "crash": (49, 2.0),
    "ride": (51, 3.0),
    "tambourine": (54, 0.4),
}
_DRUM_FRAMES = 40


@dataclass(frozen=True)
class BandBank:
    """Waveforms, float32 [frames * SAMPLES_PER_FRAME]: of notes by instrument and pitch, and of drums by name."""

    notes: Mapping[tuple[str, int], np.ndarray]
    drums: Mapping[str, np.ndarray]

    def save(self, folder: Path) -> None:
        for name, instrument in INSTRUMENTS.items():
            pitches = range(instrument.lowest, instrument.highest + 1)
            _write(folder / _file_name(name), np.concatenate([self.notes[name, pitch] for pitch in pitches]))
        _write(folder / _file_name("drums"), np.concatenate([self.drums[name] for name in DRUMS]))

    @classmethod
    def load(cls, folder: Path) -> "BandBank":
        notes: dict[tuple[str, int], np.ndarray] = {}
        for name, instrument in INSTRUMENTS.items():
            slots = _read(folder / _file_name(name), instrument.frames)
            notes |= {(name, instrument.lowest + index): slot for index, slot in enumerate(slots)}
        return cls(notes, dict(zip(DRUMS, _read(folder / _file_name("drums"), _DRUM_FRAMES), strict=True)))


def make_band_bank(soundfont: Path = SOUNDFONT) -> BandBank:
    """Play every note once, dry and in the middle. Raises SoundfontMissing."""
    if not soundfont.is_file():
        raise SoundfontMissing(
            f"{soundfont} is missing; run `apt-get install fluid-soundfont-gm`, or name one: --soundfont."
        )
    try:
        import tinysoundfont
    except ImportError as error:
        raise SoundfontMissing("tinysoundfont is missing; run `pip install --no-deps tinysoundfont`.") from error
    synth = tinysoundfont.Synth(gain=0, samplerate=SAMPLE_RATE)
    font = synth.sfload(str(soundfont))

    def record(bank: int, program: int, key: int, frames: int) -> np.ndarray:
        synth.program_select(0, font, bank, program, bank == _DRUM_BANK)
        synth.noteon(0, key, _VELOCITY)
        stereo = np.frombuffer(bytes(synth.generate(frames * SAMPLES_PER_FRAME)), np.float32).reshape(-1, 2)
        synth.sounds_off(0)
        synth.generate(SAMPLES_PER_FRAME)
        mono = stereo.mean(axis=1)
        mono[-SAMPLES_PER_FRAME:] *= np.linspace(1, 0, SAMPLES_PER_FRAME, dtype=np.float32)
        return mono

    notes = {
        (name, pitch): record(0, instrument.program, pitch, instrument.frames) * np.float32(instrument.gain)
        for name, instrument in INSTRUMENTS.items()
        for pitch in range(instrument.lowest, instrument.highest + 1)
    }
    drums = {name: record(_DRUM_BANK, 0, key, _DRUM_FRAMES) * np.float32(gain) for name, (key, gain) in DRUMS.items()}
    return BandBank(notes, drums)


def _file_name(name: str) -> str:
    return f"{name.replace(' ', '-')}.flac"


def _write(path: Path, samples: np.ndarray) -> None:
    assert np.abs(samples).max() < 1, f"{path.name} would be cut: peak {np.abs(samples).max():.2f}"
    soundfile.write(path, samples, SAMPLE_RATE, "PCM_16")


def _read(path: Path, frames: int) -> np.ndarray:
    samples, _ = soundfile.read(path, dtype="float32")
    return samples.reshape(-1, frames * SAMPLES_PER_FRAME)
