"""Vocoder: embeddings of the codec to a 44.1 kHz waveform. Source: Vocos, arXiv 2306.00814.

YuE trained one for vocals and one for instruments; they differ in weights only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from xcodec_mini_infer.context import trim
from xcodec_mini_infer.precision import full_precision

_KERNEL = 7
_REACH = _KERNEL // 2
_EPSILON = 1e-6  # of the layer norms
_LOUDEST = 100.0  # limit of a magnitude in the spectrum


@dataclass(frozen=True)
class VocoderConfig:
    """Sizes of a vocoder; the defaults are those of the published ones."""

    embedding: int = 1024  # values a frame, as the codec's `dimension`
    dimension: int = 512
    intermediate: int = 1536  # between the two linear layers of a block
    layers: int = 8
    n_fft: int = 3528  # samples of a spectrum's window
    hop: int = 882  # samples a frame


class ConvNeXtBlock(nn.Module):
    """x + γ · (depthwise convolution, norm, two linear layers). [B, C, T], keeps the length."""

    def __init__(self, dimension: int, intermediate: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(dimension, dimension, _KERNEL, padding=_REACH, groups=dimension)
        self.norm = nn.LayerNorm(dimension, eps=_EPSILON)
        self.widen = nn.Linear(dimension, intermediate)
        self.narrow = nn.Linear(intermediate, dimension)
        self.gamma = nn.Parameter(torch.empty(dimension))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).transpose(1, 2))  # [B, T, C]
        y = self.narrow(functional.gelu(self.widen(y)))
        return x + (self.gamma * y).transpose(1, 2)


class InverseSpectrum(nn.Module):
    """Magnitudes and phases to samples: an inverse STFT with "same" padding."""

    def __init__(self, dimension: int, n_fft: int, hop: int) -> None:
        super().__init__()
        self.hop = hop
        self.overlap = n_fft // hop  # frames that share a sample
        self.out = nn.Linear(dimension, n_fft + 2)
        self.window: Tensor
        self.register_buffer("window", torch.empty(n_fft))  # periodic Hann, part of the checkpoint
        self.reach = self.overlap // 2  # frames that count on either side

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, T, dimension]. Returns float32 [B, hop * T]."""
        logarithm, phase = self.out(x).chunk(2, dim=-1)
        magnitude = logarithm.exp().clamp(max=_LOUDEST)
        # Imaginary parts of the first and the last bin mean nothing, and not every FFT ignores them.
        imaginary = functional.pad((magnitude * phase.sin())[..., 1:-1], (1, 1))
        frames = torch.fft.irfft(torch.complex(magnitude * phase.cos(), imaginary)).mul_(self.window)
        envelope = self._overlap_add(self.window.square().expand_as(frames[:1]))
        margin = (self.overlap - 1) * self.hop // 2
        kept = slice(margin, margin + self.hop * x.shape[1])
        return self._overlap_add(frames)[:, kept] / envelope[:, kept]

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """Add frames [B, T, n_fft], each starting `hop` after the one before: [B, hop * (T - 1) + n_fft]."""
        batch, count, _ = frames.shape
        total = frames.new_zeros(batch, count + self.overlap - 1, self.hop)
        for i, part in enumerate(frames.unflatten(-1, (self.overlap, self.hop)).unbind(2)):
            total[:, i : i + count] += part
        return total.flatten(1)


class Vocoder(nn.Module):
    """Embeddings to 44.1 kHz. Weights come from `checkpoint`."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Conv1d(config.embedding, config.dimension, _KERNEL, padding=_REACH)
        self.norm = nn.LayerNorm(config.dimension, eps=_EPSILON)
        self.blocks = nn.ModuleList(ConvNeXtBlock(config.dimension, config.intermediate) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.dimension, eps=_EPSILON)
        self.head = InverseSpectrum(config.dimension, config.n_fft, config.hop)
        # Frames on either side that a frame of sound depends on: 29 as published.
        self.context = _REACH * (1 + config.layers) + self.head.reach

    @torch.inference_mode()
    def decode(self, embedding: Tensor, left: int = 0, right: int = 0) -> Tensor:
        """Turn embeddings [B, embedding, T] into a waveform, float32 [B, 882 * (T - left - right)], unbounded.

        left, right: frames of context at the two ends, `context` each, 0 at a true end of the song.
        """
        with full_precision():
            wave: Tensor = self(embedding, left, right)
        return wave

    def forward(self, embedding: Tensor, left: int = 0, right: int = 0) -> Tensor:
        """Compute what `decode` returns, open to gradients."""
        keep = self.context - _REACH
        x, left, right = trim(self.first(embedding), left, right, keep)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            keep -= _REACH
            x, left, right = trim(block(x), left, right, keep)
        wave = self.head(self.final_norm(x.transpose(1, 2)))
        hop = self.config.hop
        return trim(wave, left * hop, right * hop, 0)[0]
