"""How far a waveform is from another: log-mel distance, and the scale-invariant ratio of signal to distortion."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

FLOOR = 1e-5  # of full scale: -100 dB; softer is silence
# Windows in samples and bands of each: those of the Descript Audio Codec, arXiv 2306.06546.
SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))


class LogMel(nn.Module):
    """Natural logarithms of magnitudes in mel bands; a sine of full scale has magnitude 1/2 before the bands."""

    def __init__(self, rate: int, window: int, bands: int, hop: int | None = None) -> None:
        super().__init__()
        self.hop = hop or window // 4
        filters, self.centres_hz = mel_filters(rate, window, bands)
        self.window: Tensor
        self.filters: Tensor
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """Turn float32 [B, N] into [B, bands, 1 + N / hop]."""
        size = len(self.window)
        spectrum = torch.stft(wave, size, self.hop, window=self.window, return_complex=True) / self.window.sum()
        power = torch.view_as_real(spectrum).square().sum(-1)
        return (self.filters @ (power + FLOOR**2).sqrt()).log()


class MelDistance(nn.Module):
    """Mean difference of log-mel spectra over several windows: fine in time with the short, in pitch with the long.

    above_hz, factor: bands above that frequency count so much more.
    """

    def __init__(
        self,
        rate: int,
        scales: tuple[tuple[int, int], ...] = SCALES,
        above_hz: float = float("inf"),
        factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.mels = nn.ModuleList(LogMel(rate, window, bands) for window, bands in scales)
        for index, mel in enumerate(self.mels):
            assert isinstance(mel, LogMel)
            weights = torch.where(mel.centres_hz > above_hz, factor, 1.0)
            self.register_buffer(f"weights_{index}", (weights / weights.mean())[:, None], persistent=False)

    def forward(self, wave: Tensor, target: Tensor) -> Tensor:
        """Compare float32 [B, N] with [B, N]."""
        total = wave.new_zeros(())
        for index, mel in enumerate(self.mels):
            weights: Tensor = getattr(self, f"weights_{index}")
            total = total + ((mel(wave) - mel(target)).abs() * weights).mean()
        return total / len(self.mels)


def mel_filters(rate: int, window: int, bands: int) -> tuple[Tensor, Tensor]:
    """Make triangles, evenly spaced in mel, whose weights sum to 1: float32 [bands, window / 2 + 1]; and their centres.

    A triangle narrower than a bin takes the nearest bin.
    """
    edges_mel = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), bands + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    bins = np.linspace(0, rate / 2, window // 2 + 1)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rise, fall))
    narrow = filters.sum(1) < 0.5
    nearest = np.abs(bins - edges[1:-1, None]).argmin(1)
    filters[narrow] = np.eye(len(bins))[nearest[narrow]]
    filters /= filters.sum(1, keepdims=True)
    return torch.from_numpy(filters.astype(np.float32)), torch.from_numpy(edges[1:-1].astype(np.float32))


def si_sdr(wave: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio of float32 [..., N] in dB: [...]. Source: arXiv 1811.02508."""
    wave, target = (x - x.mean(-1, keepdim=True) for x in (wave.double(), target.double()))
    signal = target * ((wave * target).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + 1e-12))
    ratio = signal.square().sum(-1) / ((wave - signal).square().sum(-1) + 1e-12)
    return 10 * torch.log10(ratio + 1e-12)


def waveform_distance(wave: Tensor, target: Tensor) -> Tensor:
    """Mean difference of samples."""
    return functional.l1_loss(wave, target)


def edge_distance(wave: Tensor, target: Tensor, samples: int) -> Tensor:
    """Mean squared difference of so many samples at either end of float32 [B, N]."""
    error = wave - target
    return torch.cat((error[:, :samples], error[:, -samples:]), dim=1).square().mean()
