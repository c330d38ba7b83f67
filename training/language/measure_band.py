"""What can be heard in a band alone: its tempo and its key."""

from collections.abc import Mapping

import numpy as np
import torch

from training.codec.losses import LogMel
from training.corpus.world import FASTEST, FRAME_RATE, SLOWEST
from xcodec_mini_infer import SAMPLE_RATE

TEMPI = range(FASTEST, SLOWEST + 1)  # frames in a sixteenth note
_FRAME = SAMPLE_RATE // FRAME_RATE
_WINDOW, _BANDS = 512, 40
_PERIODS = 8  # eighth notes over which a tempo must hold
_CHROMA_WINDOW, _CHROMA_HOP = 8192, 2048
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 1200.0

Templates = Mapping[str, np.ndarray]  # by mode: chroma [12] from the tonic on, mean 0, length 1


def onset_strength(samples: np.ndarray) -> np.ndarray:
    """How much louder each frame is than the one before, over all bands, float64 [frames]. samples: 16 kHz."""
    mel = LogMel(SAMPLE_RATE, _WINDOW, _BANDS, _FRAME // 2)(torch.from_numpy(samples)[None])[0].numpy()
    audible = np.maximum(mel, mel.max() - 8.0)  # 70 dB below the loudest and less is silence
    rise = np.maximum(audible[:, 2:] - audible[:, :-2], 0).mean(axis=0)
    half_frames = rise[: len(rise) // 2 * 2].reshape(-1, 2)
    return np.asarray(half_frames.max(axis=1), np.float64)


def hear_tempo(strength: np.ndarray) -> int:
    """Choose the frames in a sixteenth note for which eighths are alike and what lies between them is not."""
    centred = np.minimum(strength, np.quantile(strength, 0.98))
    centred = centred - centred.mean()
    spectrum = np.fft.rfft(centred, 2 * len(centred))
    likeness = np.fft.irfft(np.abs(spectrum) ** 2)[: len(centred)]
    likeness /= np.arange(len(centred), 0, -1)

    def contrast(sixteenth: int) -> float:
        eighths = 2 * sixteenth * np.arange(1, _PERIODS + 1)
        on, between = eighths[eighths < len(likeness)], eighths[eighths < len(likeness)] - sixteenth
        if len(on) < 2:
            return -np.inf
        # Odd eighths tell a tempo from its double, where only even ones are struck.
        return float(min(likeness[on[::2]].mean(), likeness[on[1::2]].mean()) - likeness[between].mean())

    return max(TEMPI, key=contrast)


def chroma(samples: np.ndarray) -> np.ndarray:
    """How loud the twelve pitch classes are, C first, float64 [12]; logarithmic, so that no note drowns the others."""
    window = torch.hann_window(_CHROMA_WINDOW)
    wave = torch.from_numpy(samples)
    if len(wave) < _CHROMA_WINDOW:
        wave = torch.nn.functional.pad(wave, (0, _CHROMA_WINDOW - len(wave)))
    spectrum = torch.stft(wave, _CHROMA_WINDOW, _CHROMA_HOP, window=window, return_complex=True).abs()
    loudness = (1 + 10 * spectrum / window.sum() / 0.02).log().mean(dim=1).double().numpy()
    hertz = np.fft.rfftfreq(_CHROMA_WINDOW, 1 / SAMPLE_RATE)
    semitone = 69 + 12 * np.log2(np.maximum(hertz, 1) / 440)
    off = semitone - np.round(semitone)
    weight = np.exp(-((off / 0.2) ** 2)) * ((hertz > _LOWEST_HZ) & (hertz < _HIGHEST_HZ))
    classes = np.round(semitone).astype(int) % 12
    return np.bincount(classes, loudness * weight, 12) / np.bincount(classes, weight, 12)


def learn_templates(bands: list[tuple[np.ndarray, int, str]]) -> Templates:
    """Average chromas of known keys, (chroma, tonic, mode), by mode."""
    modes = sorted({mode for _, _, mode in bands})
    return {
        mode: _unit(np.mean([_unit(np.roll(heard, -tonic)) for heard, tonic, of in bands if of == mode], axis=0))
        for mode in modes
    }


def hear_key(heard: np.ndarray, templates: Templates) -> tuple[int, str]:
    """Choose tonic and mode, of 24 keys, whose template is nearest to a chroma."""
    keys = [(tonic, mode) for mode in templates for tonic in range(12)]
    return max(keys, key=lambda key: float(_unit(np.roll(heard, -key[0])) @ templates[key[1]]))


def _unit(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-9))
