"""Pure functions on waveforms: limits, a band split, and the joining of a 16 kHz mix with a 44.1 kHz one.

Waveforms are float32 arrays [C, N]. Source: YuE's `post_process_audio.py` and the filters of torchaudio it calls.
"""

from collections.abc import Iterable, Iterator
from math import cos, pi, sin, sqrt
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from xcodec_mini_infer import SAMPLE_RATE, VOCODER_SAMPLE_RATE
from xcodec_mini_infer.precision import full_precision
from xcodec_mini_infer.resample import Resampler

LIMIT = 0.99  # of full scale
CROSSOVER_HZ = 5500  # below it the 16 kHz decoder is trusted, above it the vocoder
_QUALITY = 0.707  # of the filters: Butterworth
_MEMORY = 64  # samples: the filters' poles have radius 0.578, and 0.578^64 is nothing in float32
_SILENCE = 1e-10  # added to levels, so that silence has one
_BLOCK = 2 * VOCODER_SAMPLE_RATE  # samples worked on at once, …
_GPU_BLOCK = 20 * VOCODER_SAMPLE_RATE  # … and on a GPU, which takes longer to be told than to work

Band = Literal["low", "high"]


def limit(samples: np.ndarray, how: str) -> float:
    """Bring samples within ±0.99, in place: "clip" cuts what is beyond, "scale" turns the whole down.

    Returns the gain that the loudest sample needs, 1.0 if nothing is beyond.
    """
    assert how in ("clip", "scale"), f"there is no limit called {how!r}"
    peak = max(float(samples.max(initial=0.0)), -float(samples.min(initial=0.0)))
    gain = min(LIMIT / peak, 1.0) if peak > 0 else 1.0
    if how == "clip":
        np.clip(samples, -LIMIT, LIMIT, out=samples)
    else:
        samples *= np.float32(gain)
    return gain


class BandFilter:
    """A second-order low-pass or high-pass filter at the crossover; a waveform may come in blocks.

    As torchaudio's filters do, it clamps its output to ±1.
    """

    def __init__(self, band: Band, channels: int, device: torch.device | None = None) -> None:
        self._taps = torch.from_numpy(_impulse_response(band)).flip(0)[None, None].to(device)  # [1, 1, taps]
        self._past = torch.zeros(channels, _MEMORY - 1, device=device)

    def __call__(self, block: Tensor) -> Tensor:
        """Filter the next float32 [C, n] of a waveform."""
        heard = torch.cat([self._past, block], dim=-1)
        self._past = heard[:, heard.shape[-1] - _MEMORY + 1 :]
        with full_precision():
            return functional.conv1d(heard[:, None], self._taps)[:, 0].clamp_(-1.0, 1.0)


def replace_low(
    low: np.ndarray, high: np.ndarray, out: np.ndarray | None = None, device: torch.device | None = None
) -> np.ndarray:
    """Take the low band from `low`, at the level that it has in `high`, and the high band from `high`.

    low: float32 [C, M] at 16 kHz. high: float32 [C, N] at 44.1 kHz. The shorter one ends the result, which is
    float32 [C, ...] at 44.1 kHz and not limited. out: an array of that shape for the result; it may be `high`.
    device: where to compute, block by block.
    """
    assert len(low) == len(high), f"{len(low)} and {len(high)} channels cannot be joined"
    source, target = torch.from_numpy(low), torch.from_numpy(high)
    gain = _level(_filtered("low", _blocks(target, device))) / _level(_filtered("low", _resampled(source, device)))
    count = min(Resampler(SAMPLE_RATE, VOCODER_SAMPLE_RATE).length(low.shape[1]), high.shape[1])
    result = np.empty((len(low), count), np.float32) if out is None else out
    joined = torch.from_numpy(result)
    pairs = zip(_filtered("low", _resampled(source, device)), _filtered("high", _blocks(target, device)), strict=False)
    step = _block_size(device)
    for start, (low_band, high_band) in zip(range(0, count, step), pairs, strict=False):
        size = min(step, count - start)
        joined[:, start : start + size] = torch.add(high_band[:, :size], low_band[:, :size], alpha=gain)
    return result


def _impulse_response(band: Band) -> np.ndarray:
    """Compute the filter's answer to a single 1, float32 [memory]. Source: R. Bristow-Johnson's audio cookbook."""
    angle = 2 * pi * CROSSOVER_HZ / VOCODER_SAMPLE_RATE
    alpha = sin(angle) / (2 * _QUALITY)
    edge = 1 - cos(angle) if band == "low" else 1 + cos(angle)
    middle = edge if band == "low" else -edge
    forward = np.array([edge / 2, middle, edge / 2]) / (1 + alpha)
    back = np.array([-2 * cos(angle), 1 - alpha]) / (1 + alpha)
    response = np.zeros(_MEMORY)
    response[:3] = forward
    for n in range(1, _MEMORY):
        response[n] -= back[0] * response[n - 1] + (back[1] * response[n - 2] if n > 1 else 0.0)
    return response.astype(np.float32)


def _block_size(device: torch.device | None) -> int:
    return _BLOCK if device is None or device.type == "cpu" else _GPU_BLOCK


def _blocks(samples: Tensor, device: torch.device | None) -> Iterator[Tensor]:
    return (block.to(device) for block in samples.split(_block_size(device), dim=-1))


def _resampled(samples: Tensor, device: torch.device | None) -> Iterator[Tensor]:
    """Bring 16 kHz to 44.1 kHz, block by block."""
    resampler, samples = Resampler(SAMPLE_RATE, VOCODER_SAMPLE_RATE, device), samples.to(device)
    length, size = resampler.length(samples.shape[-1]), _block_size(device)
    for start in range(0, length, size):
        yield resampler.block(samples, start, min(start + size, length))


def _filtered(band: Band, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    band_filter = None
    for block in blocks:
        band_filter = band_filter or BandFilter(band, len(block), block.device)
        yield band_filter(block)


def _level(blocks: Iterable[Tensor]) -> float:
    """Measure the root mean square over all channels."""
    energy, count = 0.0, 0
    for block in blocks:
        wide = block.double()
        energy += float((wide * wide).sum())  # a norm's own kernel would take a GPU longer to load
        count += block.numel()
    return sqrt(energy / count) + _SILENCE
