import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import small_codec
from xcodec_mini_infer.context import chunks
from xcodec_mini_infer.vocoder import InverseSpectrum, Vocoder, VocoderConfig

CHUNKED = 2e-5  # of the peak; see test_codec.py


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory: pytest.TempPathFactory) -> Vocoder:
    return small_codec.load(tmp_path_factory.mktemp("codec"))[1]


def random_embedding(batch: int, frames: int) -> torch.Tensor:
    shape = (batch, small_codec.VOCODER.embedding, frames)
    return torch.randn(shape, generator=torch.Generator().manual_seed(frames))


@settings(max_examples=15)
@given(frames=st.integers(1, 150), chunk_frames=st.integers(1, 160), batch=st.integers(1, 2))
def test_chunks_sound_like_one_piece(vocoder: Vocoder, frames: int, chunk_frames: int, batch: int) -> None:
    embedding = random_embedding(batch, frames)
    whole = vocoder.decode(embedding)
    assert whole.shape == (batch, 882 * frames)
    pieces = [
        vocoder.decode(embedding[..., chunk.run], chunk.left, chunk.right)
        for chunk in chunks(frames, chunk_frames, vocoder.context)
    ]
    error = (torch.cat(pieces, dim=-1) - whole).abs().max()
    assert error <= CHUNKED * whole.abs().max()


def test_twenty_nine_frames_of_context_are_exactly_enough(vocoder: Vocoder) -> None:
    assert vocoder.context == 29
    embedding = random_embedding(1, 80).double()
    doubled = Vocoder(vocoder.config).double().eval()
    doubled.load_state_dict(vocoder.state_dict())
    whole = doubled.decode(embedding)[:, 35 * 882 : 40 * 882]
    enough = doubled.decode(embedding[..., 6:69], left=29, right=29)
    torch.testing.assert_close(enough, whole, rtol=0, atol=1e-10)


def test_the_published_sizes_are_the_defaults() -> None:
    with torch.device("meta"):
        vocoder = Vocoder(VocoderConfig())
    assert 4 * sum(tensor.numel() for tensor in vocoder.state_dict().values()) == 72_525_384  # bytes
    assert vocoder.context == 29


@pytest.mark.parametrize(("overlap", "frames"), [(4, 1), (4, 2), (4, 7), (2, 3)])
def test_sound_is_overlapped_spectra_over_their_windows(overlap: int, frames: int) -> None:
    hop, dimension = 6, 5
    n_fft = overlap * hop
    head = InverseSpectrum(dimension, n_fft, hop).double().requires_grad_(False)
    head.window = torch.hann_window(n_fft, dtype=torch.float64)
    generator = torch.Generator().manual_seed(frames)
    head.out.weight.normal_(generator=generator)
    head.out.bias.normal_(generator=generator)
    head.out.bias[3] = 9.0  # a magnitude beyond the limit of 100
    x = torch.randn(1, frames, dimension, dtype=torch.float64, generator=generator)

    values = head.out(x)[0].numpy()
    window = head.window.numpy()
    total, envelope = np.zeros((2, (frames - 1) * hop + n_fft))
    for t in range(frames):
        magnitude = np.minimum(np.exp(values[t, : n_fft // 2 + 1]), 100.0)
        phase = values[t, n_fft // 2 + 1 :]
        frame = np.fft.irfft(magnitude * np.exp(1j * phase), n_fft)
        total[t * hop : t * hop + n_fft] += frame * window
        envelope[t * hop : t * hop + n_fft] += window**2
    margin = (n_fft - hop) // 2
    expected = (total[margin:-margin] / envelope[margin:-margin])[None]

    np.testing.assert_allclose(head(x).numpy(), expected, rtol=0, atol=1e-9 * np.abs(expected).max())
