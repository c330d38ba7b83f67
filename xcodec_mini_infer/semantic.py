"""What is said and sung, frame by frame: HuBERT's features of a waveform, and the encoder that refines them.

Sources: HuBERT, arXiv 2106.07447; wav2vec 2.0, arXiv 2006.11477; X-Codec, arXiv 2408.17175.
"""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from xcodec_mini_infer.context import Step, unwatched

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # of the convolutions over the waveform
POSITION_GROUPS = 16
_POSITION_KERNEL = 128
_FRAME_SAMPLES = prod(STRIDES)
_PADDING = _FRAME_SAMPLES // 2  # X-Codec adds half a frame of silence at either end
_EPSILON = 1e-5


def _seen_samples() -> int:
    """Count the samples that one frame is made of: 400."""
    count = 1
    for kernel, stride in zip(reversed(KERNELS), reversed(STRIDES), strict=True):
        count = (count - 1) * stride + kernel
    return count


SEEN_SAMPLES = _seen_samples()


class WaveFeatures(nn.Module):
    """Seven convolutions from the waveform to 50 frames a second; each channel of the first is normed over time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (1, *(channels for _ in KERNELS))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, channels, kernel, stride, bias=False)
            for width, kernel, stride in zip(widths, KERNELS, STRIDES, strict=False)
        )
        self.norm = nn.GroupNorm(channels, channels, eps=_EPSILON)

    def level(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Find what turns the first convolution into its normed self: factor and summand, [B, channels, 1].

        A channel's mean and variance over the whole waveform follow from those of the windows that it looks at, so
        that no array of all its values is needed: 393 MB for each minute.
        """
        windows = wave.double().unfold(-1, KERNELS[0], STRIDES[0])  # [B, N, kernel]
        mean = windows.mean(dim=1)
        apart = windows - mean[:, None]
        covariance = apart.transpose(1, 2) @ apart / windows.shape[1]
        first = self.convolutions[0]
        assert isinstance(first, nn.Conv1d)
        filters = first.weight[:, 0].double()  # [channels, kernel]
        variance = ((filters @ covariance) * filters).sum(-1)  # [B, channels]
        factor = self.norm.weight * (variance + self.norm.eps).rsqrt()
        summand = self.norm.bias - mean @ filters.T * factor
        return factor[..., None].float(), summand[..., None].float()

    def forward(self, wave: Tensor, factor: Tensor, summand: Tensor) -> Tensor:
        """Turn float32 [B, S], any part of a waveform, into [B, channels, T]; S is 320 * T + 80."""
        x = wave[:, None]
        for index, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if index == 0:
                x.mul_(factor).add_(summand)
            x = functional.gelu(x)
        return x


class Layer(nn.Module):
    """One layer of the transformer: attention, then two linear maps, each added and normed after."""

    def __init__(self, width: int, heads: int, intermediate: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.widen = nn.Linear(width, intermediate)
        self.narrow = nn.Linear(intermediate, width)
        self.final_norm = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, T, width]. Every frame attends to every other, in memory that grows with T alone."""
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.q, self.k, self.v))
        attended = functional.scaled_dot_product_attention(q, k, v)  # [B, heads, T, width / heads]
        x = self.norm(x + self.out(attended.transpose(1, 2).flatten(2)))
        return self.final_norm(x + self.narrow(functional.gelu(self.widen(x))))


class Hubert(nn.Module):
    """HuBERT: the mean of all its hidden states, one vector a frame."""

    def __init__(self, channels: int, width: int, layers: int, heads: int, intermediate: int) -> None:
        super().__init__()
        self.features = WaveFeatures(channels)
        self.feature_norm = nn.LayerNorm(channels, eps=_EPSILON)
        self.project = nn.Linear(channels, width)
        self.position = nn.Conv1d(width, width, _POSITION_KERNEL, padding=_POSITION_KERNEL // 2, groups=POSITION_GROUPS)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.layers = nn.ModuleList(Layer(width, heads, intermediate) for _ in range(layers))

    def frames(self, samples: int) -> int:
        """Count the frames of a waveform."""
        return max((samples + 2 * _PADDING - SEEN_SAMPLES) // _FRAME_SAMPLES + 1, 0)

    def forward(self, wave: Tensor, chunk_frames: int, step: Step = unwatched) -> Tensor:
        """Turn float32 [B, S], levels as they are, into [B, T, width].

        The convolutions run chunk by chunk; attention and the first norm span the whole waveform.
        step: called after each layer.
        """
        frames = self.frames(wave.shape[-1])
        wave = functional.pad(wave, (_PADDING, _PADDING))
        factor, summand = self.features.level(wave)
        parts = []
        for start in range(0, frames, chunk_frames):
            stop = min(start + chunk_frames, frames)
            there = wave[:, start * _FRAME_SAMPLES : (stop - 1) * _FRAME_SAMPLES + SEEN_SAMPLES]
            features = self.features(there, factor, summand).transpose(1, 2)  # [B, frames, channels]
            parts.append(self.project(self.feature_norm(features)))
        x = torch.cat(parts, dim=1)
        # The even kernel yields one frame too many; HuBERT drops the last.
        x = self.norm(x + functional.gelu(self.position(x.transpose(1, 2))[..., :-1]).transpose(1, 2))
        total = x
        for layer in self.layers:
            x = layer(x)
            total = total + x
            step()
        return total / (1 + len(self.layers))


class SemanticUnit(nn.Module):
    """x + a wide and a pointwise convolution, each after an ELU. Keeps the length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.pointwise = nn.Conv1d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(functional.elu(self.wide(functional.elu(x))))


class SemanticBlock(nn.Module):
    """Two residual units and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.units = nn.Sequential(SemanticUnit(width), SemanticUnit(width))
        self.last = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.units(x))


class SemanticEncoder(nn.Module):
    """HuBERT's features, refined: [B, width, T] to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(SemanticBlock(width), SemanticBlock(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.first(x))
