"""Convolutional decoder: latents to a 16 kHz waveform. Source: X-Codec, arXiv 2408.17175; a DAC-like generator."""

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor, nn

from xcodec_mini_infer.context import trim

_KERNEL = 7
_DILATIONS = (1, 3, 9)  # of the residual units after each upsampling
_REACH = sum(dilation * (_KERNEL // 2) for dilation in _DILATIONS)  # samples they look to either side


class Snake(nn.Module):
    """x + sin²(αx) / α, one α per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, C, N]. Returns a new array of that shape; every pass but the first is in place."""
        wave = x * self.alpha
        wave.sin_()
        wave.mul_(wave)
        wave.mul_((self.alpha + 1e-9).reciprocal())
        return wave.add_(x)


class ResidualUnit(nn.Module):
    """x + a dilated and a pointwise convolution, each after a Snake. Keeps the length."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (_KERNEL // 2)
        self.snake = Snake(channels)
        self.dilated = nn.Conv1d(channels, channels, _KERNEL, padding=padding, dilation=dilation)
        self.second_snake = Snake(channels)
        self.pointwise = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dilated(self.snake(x))
        return self.pointwise(self.second_snake(y)).add_(x)


class UpsamplingBlock(nn.Module):
    """Make `stride` samples of one, halve the channels, then refine: [B, C, N] to [B, C/2, stride * N]."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.snake = Snake(channels)
        self.upsample = nn.ConvTranspose1d(
            channels, channels // 2, 2 * stride, stride, padding=ceil(stride / 2), output_padding=stride % 2
        )
        self.residuals = nn.Sequential(*(ResidualUnit(channels // 2, dilation) for dilation in _DILATIONS))

    def forward(self, x: Tensor) -> Tensor:
        return self.residuals(self.upsample(self.snake(x)))

    def reach(self, output: int) -> int:
        """Tell how many input samples on either side count for `output` samples beyond the wanted ones."""
        return (output + _REACH + self.stride + ceil(self.stride / 2) - 1) // self.stride


class Decoder(nn.Module):
    """Latents at 50 Hz to a waveform: [B, dimension, T] to [B, product(ratios) * T]. No final tanh."""

    def __init__(self, dimension: int, channels: int, ratios: Sequence[int]) -> None:
        super().__init__()
        last_channels = channels // 2 ** len(ratios)
        self.first = nn.Conv1d(dimension, channels, _KERNEL, padding=_KERNEL // 2)
        self.blocks = nn.ModuleList(UpsamplingBlock(channels // 2**i, stride) for i, stride in enumerate(ratios))
        self.snake = Snake(last_channels)
        self.last = nn.Conv1d(last_channels, 1, _KERNEL, padding=_KERNEL // 2)
        self.margins = self._margins()
        self.context = self.margins[0] + _KERNEL // 2  # frames that count on either side: 10 as published

    def _margins(self) -> list[int]:
        """List how many samples around the wanted ones are needed before each block and after the last."""
        margins = [_KERNEL // 2]
        for block in reversed(self.blocks):
            assert isinstance(block, UpsamplingBlock)
            margins.insert(0, block.reach(margins[0]))
        return margins

    def forward(self, latents: Tensor, left: int = 0, right: int = 0) -> Tensor:
        """Decode the frames between `left` and `right` frames of context, which is dropped as soon as it has served.

        latents: float32 [B, dimension, T]. Returns float32 [B, product(ratios) * (T - left - right)].
        """
        x, left, right = trim(self.first(latents), left, right, self.margins[0])
        for block, margin in zip(self.blocks, self.margins[1:], strict=True):
            assert isinstance(block, UpsamplingBlock)
            x, left, right = trim(block(x), left * block.stride, right * block.stride, margin)
        return trim(self.last(self.snake(x)), left, right, 0)[0][:, 0]
