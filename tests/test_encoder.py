"""The encoder at a small width: chunks, lengths, memory, and its parts against what torch computes in one piece."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from tests import small_codec
from xcodec_mini_infer import CodecError, checkpoint
from xcodec_mini_infer.acoustic import AcousticEncoder
from xcodec_mini_infer.encoder import Encoder
from xcodec_mini_infer.semantic import Hubert, Layer, WaveFeatures


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return checkpoint.load_encoder(small_codec.write_checkpoint(tmp_path_factory.mktemp("codec")))


@pytest.fixture(scope="module")
def exact(encoder: Encoder) -> Encoder:
    """The same in float64, where only a wrong context can make chunks differ."""
    doubled = Encoder(encoder.config).double().eval()
    doubled.load_state_dict(encoder.state_dict())
    return doubled


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("samples", [312, 320, 399, 400, 551, 552, 16_000, 24_315])
def test_a_waveform_has_50_frames_a_second(encoder: Encoder, samples: int) -> None:
    codes = encoder.encode(noise(2, samples))
    assert codes.shape == (2, 1, (samples + 240) // 320)
    assert codes.dtype == torch.int64
    assert int(codes.min()) >= 0
    assert int(codes.max()) < small_codec.CODEC.codebook_size


@pytest.mark.parametrize("samples", [40_000, 40_100, 40_300])
@pytest.mark.parametrize("chunk_frames", [1, 17, 60])
def test_chunks_give_what_one_piece_gives(exact: Encoder, samples: int, chunk_frames: int) -> None:
    wave = noise(1, samples, seed=samples)
    whole = exact.embed(wave, chunk_frames=1000)
    torch.testing.assert_close(exact.embed(wave, chunk_frames), whole, rtol=0, atol=1e-6)


def test_28_frames_of_context_are_exactly_enough(exact: Encoder) -> None:
    acoustic = exact.acoustic
    assert acoustic.context == 28
    wave = noise(1, 320 * 100).double()
    with torch.inference_mode():
        whole = acoustic(wave, 1000)
        torch.testing.assert_close(acoustic(wave, 7), whole, rtol=0, atol=1e-12)
        acoustic.context = 27
        try:
            assert (acoustic(wave, 7) - whole).abs().max() > 1e-12
        finally:
            acoustic.context = 28


@pytest.mark.parametrize("samples", range(320, 960, 13))
def test_frames_are_counted_by_the_length_alone(samples: int) -> None:
    with torch.device("meta"):
        acoustic, hubert = AcousticEncoder(4, 2, (8, 5, 4, 2)), Hubert(2, 16, 0, 1, 2)
    # Worked out by hand from the published kernels, strides and paddings.
    assert acoustic.frames(samples) == (samples + 8) // 320
    assert hubert.frames(samples) == (samples + 240) // 320
    assert hubert.frames(samples) in (acoustic.frames(samples), acoustic.frames(samples + 320))


def test_the_first_norm_spans_the_whole_waveform() -> None:
    torch.manual_seed(0)
    features = WaveFeatures(8).requires_grad_(False)
    features.norm.weight.uniform_(0.5, 1.5)
    features.norm.bias.uniform_(-0.5, 0.5)
    wave = noise(2, 4000) + 0.2  # a constant part, too
    expected = functional.gelu(features.norm(features.convolutions[0](wave[:, None])))
    for convolution in features.convolutions[1:]:
        expected = functional.gelu(convolution(expected))
    torch.testing.assert_close(features(wave, *features.level(wave)), expected, rtol=1e-5, atol=1e-6)


def test_silence_has_a_level_too() -> None:
    features = WaveFeatures(4).requires_grad_(False)
    for tensor in features.level(torch.zeros(1, 1000)):
        assert tensor.isfinite().all()


def test_attention_is_that_of_the_textbook() -> None:
    torch.manual_seed(1)
    layer = Layer(width=12, heads=3, intermediate=20).requires_grad_(False)
    x = torch.randn(2, 9, 12)
    q, k, v = (project(x).view(2, 9, 3, 4).transpose(1, 2) for project in (layer.q, layer.k, layer.v))
    weights = (q @ k.transpose(-1, -2) / 4**0.5).softmax(-1)
    h = layer.norm(x + layer.out((weights @ v).transpose(1, 2).reshape(2, 9, 12)))
    expected = layer.final_norm(h + layer.narrow(functional.gelu(layer.widen(h))))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_a_waveform_under_one_frame_is_refused(encoder: Encoder) -> None:
    with pytest.raises(CodecError) as error:
        encoder.encode(noise(1, 311))
    assert str(error.value) == "the waveform has shape [1, 311]; expected [B, S] with at least 312 samples."


def test_a_waveform_that_is_not_finite_is_refused(encoder: Encoder) -> None:
    wave = noise(1, 1000)
    wave[0, 500] = float("nan")
    with pytest.raises(CodecError, match=r"^the waveform has samples that are not finite\.$"):
        encoder.encode(wave)


# VmHWM, not ru_maxrss: that begins with what the process had that started this one.
MEMORY = """
import torch
from pathlib import Path
from xcodec_mini_infer.semantic import Layer
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
layer = Layer(width=64, heads=1, intermediate=64).requires_grad_(False)
with torch.inference_mode():
    layer(torch.randn(1, 500, 64))
    before = peak()
    layer(torch.randn(1, 12_000, 64))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory as Linux tells it")
def test_attention_over_four_minutes_needs_no_square_of_memory() -> None:
    result = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    square = 12_000**2 * 4 // 1024  # kilobytes: 562 MB a head
    assert int(result.stdout) < square / 8
