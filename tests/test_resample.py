from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xcodec_mini_infer import resample
from xcodec_mini_infer.resample import Resampler


def tone(hertz: float, rate: int, samples: int) -> torch.Tensor:
    return torch.sin(2 * np.pi * hertz * torch.arange(samples, dtype=torch.float64) / rate).float()[None]


@pytest.mark.parametrize(("rate", "new_rate"), [(16000, 44100), (44100, 16000), (48000, 16000), (22050, 16000)])
def test_a_tone_keeps_its_pitch_and_level(rate: int, new_rate: int) -> None:
    found = resample.resample(tone(1000, rate, rate // 4), rate, new_rate)
    expected = tone(1000, new_rate, found.shape[1])
    inner = slice(300, -300)  # at the ends the filter hears silence
    assert (found - expected)[:, inner].abs().max() < 2e-3


def test_a_tone_above_the_new_range_disappears() -> None:
    found = resample.resample(tone(12000, 44100, 11025), 44100, 16000)
    assert found[:, 100:-100].abs().max() < 1e-2


def test_equal_rates_change_nothing() -> None:
    samples = tone(1000, 16000, 100)
    assert resample.resample(samples, 16000, 16000) is samples


@pytest.mark.parametrize(
    ("samples", "rate", "new_rate", "length"),
    [(320, 16000, 44100, 882), (1, 16000, 44100, 3), (882, 44100, 16000, 320), (883, 44100, 16000, 321)],
)
def test_the_length_is_rounded_up(samples: int, rate: int, new_rate: int, length: int) -> None:
    assert resample.resample(torch.ones(2, samples), rate, new_rate).shape == (2, length)


@settings(max_examples=40)
@given(samples=st.integers(1, 600), cuts=st.lists(st.integers(0, 1700), max_size=5), data=st.data())
def test_blocks_are_the_whole(samples: int, cuts: list[int], data: st.DataObject) -> None:
    rate, new_rate = data.draw(st.sampled_from([(16000, 44100), (44100, 16000), (3, 2), (1, 5)]))
    waveform = torch.randn(2, samples, generator=torch.Generator().manual_seed(samples))
    resampler = Resampler(rate, new_rate)
    length = resampler.length(samples)
    ends = sorted({0, length, *(cut for cut in cuts if cut < length)})
    pieces = [resampler.block(waveform, start, stop) for start, stop in pairwise(ends)]
    assert torch.equal(torch.cat(pieces, dim=-1), resample.resample(waveform, rate, new_rate))


def test_taps_are_few_even_for_rates_without_common_divisor() -> None:
    resampler = Resampler(44101, 16000)
    assert resampler._taps.shape == (16000, 34)
