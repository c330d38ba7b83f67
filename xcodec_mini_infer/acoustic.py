"""Convolutional decoder and encoder between latents and a 16 kHz waveform.

Source: X-Codec, arXiv 2408.17175; a DAC-like generator.
"""

from collections.abc import Sequence
from math import ceil, prod

import torch
from torch import Tensor, nn

from xcodec_mini_infer.context import Step, chunks, trim, unwatched

_KERNEL = 7
_LAST_KERNEL = 3  # of the encoder
_DILATIONS = (1, 3, 9)  # of the residual units after each upsampling, before each downsampling
# The first blocks of the decoder have many weights and short arrays: they run on whole chunks. The others have few
# weights and long arrays: on a CPU they run on pieces that stay in its cache.
_WIDE_BLOCKS = 2
_PIECE_FRAMES = 25
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
        # A GPU takes longer to load the kernel of square_ than to run all of these; autograd allows only that in place.
        wave = wave * wave if wave.requires_grad else wave.mul_(wave)
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
        y = self.second_snake(self.dilated(self.snake(x)))
        # On a CPU the pointwise convolution is twice as fast as a matrix product, which adds x on the way.
        weight, bias = self.pointwise.weight, self.pointwise.bias
        assert bias is not None
        return (x + bias[:, None]).baddbmm_(weight[:, :, 0].expand(len(x), -1, -1), y)


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
        for block in reversed(self._upsampling_blocks()):
            margins.insert(0, block.reach(margins[0]))
        return margins

    def forward(self, latents: Tensor, left: int = 0, right: int = 0) -> Tensor:
        """Decode the frames between `left` and `right` frames of context, which is dropped as soon as it has served.

        latents: float32 [B, dimension, T]. Returns float32 [B, product(ratios) * (T - left - right)].
        """
        x, left, right = trim(self.first(latents), left, right, self.margins[0])
        x, left, right = self._upsample(x, left, right, slice(0, _WIDE_BLOCKS))
        rate = prod(block.stride for block in self._upsampling_blocks()[:_WIDE_BLOCKS])  # samples a frame
        end = x.shape[-1] - right
        size = _PIECE_FRAMES * rate if x.device.type == "cpu" else max(end - left, 1)
        pieces = [
            self._finish(x, start, min(start + size, end), self.margins[_WIDE_BLOCKS])
            for start in range(left, end, size)
        ]
        return torch.cat(pieces, dim=-1)

    def _upsample(self, x: Tensor, left: int, right: int, which: slice) -> tuple[Tensor, int, int]:
        """Run some blocks, dropping context that has served."""
        for block, margin in zip(self._upsampling_blocks()[which], self.margins[1:][which], strict=True):
            x, left, right = trim(block(x), left * block.stride, right * block.stride, margin)
        return x, left, right

    def _finish(self, x: Tensor, start: int, stop: int, context: int) -> Tensor:
        """Turn samples [start, stop) of what the wide blocks gave into sound."""
        left, right = min(start, context), min(x.shape[-1] - stop, context)
        piece = x[..., start - left : stop + right]
        piece, left, right = self._upsample(piece, left, right, slice(_WIDE_BLOCKS, None))
        return trim(self.last(self.snake(piece)), left, right, 0)[0][:, 0]

    def _upsampling_blocks(self) -> list[UpsamplingBlock]:
        return [block for block in self.blocks if isinstance(block, UpsamplingBlock)]


class DownsamplingBlock(nn.Module):
    """Refine, then make one sample of `stride` and double the channels: [B, C, N] to about [B, 2C, N / stride]."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = ceil(stride / 2)
        self.residuals = nn.Sequential(*(ResidualUnit(channels, dilation) for dilation in _DILATIONS))
        self.snake = Snake(channels)
        self.downsample = nn.Conv1d(channels, 2 * channels, 2 * stride, stride, padding=self.padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.snake(self.residuals(x)))

    def length(self, samples: int) -> int:
        """Count what `samples` become."""
        return (samples + 2 * self.padding) // self.stride - 1

    def reach(self, left: int, right: int) -> tuple[int, int]:
        """Tell how many input samples count for results up to `left` before and `right` after one, on either side."""
        # A result looks from `padding` samples before its place on, over two strides.
        before, after = self.padding, 2 * self.stride - 1 - self.padding
        return left * self.stride + before + _REACH, right * self.stride + after + _REACH


class AcousticEncoder(nn.Module):
    """A waveform to latents at 50 Hz: [B, S] to [B, dimension, about S / product(ratios)]."""

    def __init__(self, dimension: int, channels: int, ratios: Sequence[int]) -> None:
        super().__init__()
        last_channels = channels * 2 ** len(ratios)
        self.stride = prod(ratios)
        self.first = nn.Conv1d(1, channels, _KERNEL, padding=_KERNEL // 2)
        self.blocks = nn.ModuleList(DownsamplingBlock(channels * 2**i, stride) for i, stride in enumerate(ratios))
        self.snake = Snake(last_channels)
        self.last = nn.Conv1d(last_channels, dimension, _LAST_KERNEL, padding=_LAST_KERNEL // 2)
        self.context = self._context()  # frames that count on either side: 28 as published

    def _context(self) -> int:
        left = right = _LAST_KERNEL // 2
        for block in reversed(self.blocks):
            assert isinstance(block, DownsamplingBlock)
            left, right = block.reach(left, right)
        left, right = left + _KERNEL // 2, right + _KERNEL // 2
        # `right` counts from a frame's first sample, and the frame itself has the samples of one stride.
        return max(ceil(left / self.stride), ceil((right + 1) / self.stride) - 1)

    def frames(self, samples: int) -> int:
        """Count the frames of a waveform."""
        for block in self.blocks:
            assert isinstance(block, DownsamplingBlock)
            samples = block.length(samples)
        return max(samples, 0)

    def forward(self, wave: Tensor, chunk_frames: int, step: Step = unwatched) -> Tensor:
        """Encode float32 [B, S], chunk by chunk, with the same result as in one piece: [B, dimension, T].

        step: called after each chunk.
        """
        frames = self.frames(wave.shape[-1])
        parts = []
        for chunk in chunks(frames, chunk_frames, self.context):
            # The samples after the last whole frame count, too.
            stop = None if chunk.run.stop == frames else chunk.run.stop * self.stride
            x = self.first(wave[:, None, chunk.run.start * self.stride : stop])
            for block in self.blocks:
                x = block(x)
            parts.append(trim(self.last(self.snake(x)), chunk.left, chunk.right, 0)[0])
            step()
        return torch.cat(parts, dim=-1)
