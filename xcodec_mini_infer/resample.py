"""Change of sample rate by a windowed sinc, as torchaudio's `Resample` with its defaults computes it."""

from math import ceil, floor, gcd

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_ZERO_CROSSINGS = 6  # of the sinc on either side
_ROLL_OFF = 0.99  # cutoff over the lower of the two Nyquist frequencies
_BLOCK = 65_536  # samples of output computed at once


def resample(samples: Tensor, rate: int, new_rate: int) -> Tensor:
    """Turn float32 [C, N] at one rate into float32 [C, ceil(N * new_rate / rate)] at another."""
    if rate == new_rate:
        return samples
    resampler = Resampler(rate, new_rate, samples.device)
    length = resampler.length(samples.shape[-1])
    blocks = [
        resampler.block(samples, start, min(start + _BLOCK, length)) for start in range(0, max(length, 1), _BLOCK)
    ]
    return torch.cat(blocks, dim=-1)


class Resampler:
    """The filter from one rate to another: a few taps for each phase of the slower clock."""

    def __init__(self, rate: int, new_rate: int, device: torch.device | None = None) -> None:
        divisor = gcd(rate, new_rate)
        self._old, self._new = rate // divisor, new_rate // divisor
        cutoff = _ROLL_OFF * min(self._old, self._new)
        reach = _ZERO_CROSSINGS * self._old / cutoff  # old samples on either side
        # torchaudio rounds the phase, and only the phase, to float32.
        phase = (np.arange(self._new, dtype=np.float32) / np.float32(self._new)).astype(np.float64)[:, None]
        first = np.ceil(phase * self._old - reach).astype(np.int64)
        old = first + np.arange(floor(2 * reach) + 1)
        t = np.clip((old / self._old - phase) * cutoff, -_ZERO_CROSSINGS, _ZERO_CROSSINGS)
        window = np.cos(np.pi * t / (2 * _ZERO_CROSSINGS)) ** 2
        taps = cutoff / self._old * window * np.sinc(t)
        self._reach = int(first[0, 0]), int(first[-1, 0])
        self._offsets = torch.from_numpy(first[:, 0] - first[0, 0]).to(device)  # [new]: of a phase's first old sample
        self._taps = torch.from_numpy(taps.astype(np.float32)).to(device)  # [new, taps]

    def length(self, samples: int) -> int:
        """Tell how many samples `samples` old ones become."""
        return ceil(samples * self._new / self._old)

    def block(self, samples: Tensor, start: int, stop: int) -> Tensor:
        """Compute samples [start, stop) of the result, reading only what they need of float32 [C, N]."""
        first_period, stop_period = start // self._new, ceil(stop / self._new)
        taps = self._taps.shape[1]
        begin = first_period * self._old + self._reach[0]
        end = (stop_period - 1) * self._old + self._reach[1] + taps
        there = samples[:, max(begin, 0) : max(end, 0)]
        before = max(-begin, 0)
        padded = functional.pad(there, (before, end - begin - before - there.shape[1]))
        periods = torch.arange(stop_period - first_period, device=samples.device)[:, None] * self._old
        positions = (periods + self._offsets).flatten()
        rows = padded.unfold(-1, taps, 1).index_select(1, positions)  # [C, periods * new, taps]
        result = rows.unflatten(1, (-1, self._new)).mul_(self._taps).sum(-1).flatten(1)
        skipped = first_period * self._new
        return result[:, start - skipped : stop - skipped]
