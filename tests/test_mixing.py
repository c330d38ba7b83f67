import numpy as np
import pytest
import torch

from xcodec_mini_infer import SAMPLE_RATE, VOCODER_SAMPLE_RATE
from yue_cli import mixing
from yue_cli.mixing import Band, BandFilter, limit, replace_low


def noise(*shape: int, level: float = 0.2, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def test_clip_cuts_what_is_beyond() -> None:
    samples = np.array([[-2.0, 0.5, 1.98]], np.float32)
    assert limit(samples, "clip") == pytest.approx(0.495)
    np.testing.assert_allclose(samples, [[-0.99, 0.5, 0.99]])


def test_scale_turns_everything_down() -> None:
    samples = np.array([[-1.98, 0.5, 1.0]], np.float32)
    assert limit(samples, "scale") == pytest.approx(0.5)
    np.testing.assert_allclose(samples, [[-0.99, 0.25, 0.5]])


@pytest.mark.parametrize("how", ["clip", "scale"])
@pytest.mark.parametrize("values", [[0.0, 0.0], [0.5, -0.9], []])
def test_what_is_within_the_limit_stays(how: str, values: list[float]) -> None:
    samples = np.array([values], np.float32)
    before = samples.copy()
    assert limit(samples, how) == 1.0
    np.testing.assert_array_equal(samples, before)


@pytest.mark.parametrize(
    ("band", "forward"),
    [("low", [0.09726458, 0.19452916, 0.09726458]), ("high", [0.56976490, -1.13952980, 0.56976490])],
)
def test_filters_follow_their_recursion(band: Band, forward: list[float]) -> None:
    x = noise(1, 400, level=0.2)
    y = np.zeros(400)
    for n in range(400):
        y[n] = sum(forward[k] * x[0, n - k] for k in range(3) if n >= k)
        y[n] -= sum(back * y[n - k] for k, back in ((1, -0.94500065), (2, 0.33405896)) if n >= k)
    np.testing.assert_allclose(BandFilter(band, 1)(torch.from_numpy(x))[0], y, atol=2e-7)


def test_filters_clamp_what_they_return() -> None:
    loud = torch.full((1, 200), 5.0)
    assert BandFilter("low", 1)(loud).max() == 1.0


@pytest.mark.parametrize("band", ["low", "high"])
def test_a_filter_remembers_over_blocks(band: Band) -> None:
    sizes = [1, 90, 63, 2, 64]
    waveform = torch.from_numpy(noise(2, sum(sizes)))
    in_blocks = BandFilter(band, 2)
    found = torch.cat([in_blocks(block) for block in waveform.split(sizes, dim=-1)], dim=-1)
    torch.testing.assert_close(found, BandFilter(band, 2)(waveform), rtol=0, atol=1e-6)


def test_the_low_band_comes_from_below_at_the_level_of_above() -> None:
    time_low, time_high = (np.arange(rate) / rate for rate in (SAMPLE_RATE, VOCODER_SAMPLE_RATE))
    low = 0.1 * np.sin(2 * np.pi * 440 * time_low)[None].astype(np.float32)
    high = 0.5 * np.sin(2 * np.pi * 660 * time_high)[None].astype(np.float32)
    spectrum = np.abs(np.fft.rfft(replace_low(low, high)[0])) / (VOCODER_SAMPLE_RATE / 2)
    assert spectrum[440] == pytest.approx(0.5, rel=1e-2)  # taken from `low`, as loud as the low band of `high`
    left_over = (np.tan(np.pi * 660 / VOCODER_SAMPLE_RATE) / np.tan(np.pi * 5500 / VOCODER_SAMPLE_RATE)) ** 2
    assert spectrum[660] == pytest.approx(0.5 * left_over, rel=1e-2)  # 12 dB an octave


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = noise(2, 3200), noise(2, 8820, seed=1)
    whole = replace_low(low, high)
    monkeypatch.setattr(mixing, "_BLOCK", 1000)
    np.testing.assert_allclose(replace_low(low, high), whole, rtol=0, atol=1e-6)
    np.testing.assert_allclose(replace_low(low, high, out=high), whole, rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_joins_what_a_cpu_joins_in_larger_blocks() -> None:
    low, high = noise(1, 50 * 16_000), noise(1, 50 * 44_100, seed=1)
    joined = replace_low(low, high, device=torch.device("cuda"))
    np.testing.assert_allclose(joined, replace_low(low, high), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("low_samples", "high_samples", "length"), [(320, 900, 882), (400, 882, 882)])
def test_the_shorter_one_ends_the_mix(low_samples: int, high_samples: int, length: int) -> None:
    assert replace_low(noise(1, low_samples), noise(1, high_samples)).shape == (1, length)


def test_silence_stays_silent() -> None:
    assert not replace_low(np.zeros((1, 320), np.float32), np.zeros((1, 882), np.float32)).any()
