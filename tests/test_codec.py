import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import small_codec
from xcodec_mini_infer import CodecError, acoustic
from xcodec_mini_infer.acoustic import Decoder, Snake
from xcodec_mini_infer.codec import Codec, CodecConfig
from xcodec_mini_infer.context import chunks
from xcodec_mini_infer.precision import full_precision

# Convolution kernels sum in another order for another length: about 3e-6 of the peak.
CHUNKED = 2e-5


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return small_codec.load(tmp_path_factory.mktemp("codec"))[0]


@settings(max_examples=12)
@given(frames=st.integers(1, 70), chunk_frames=st.integers(1, 80), batch=st.integers(1, 2))
def test_chunks_sound_like_one_piece(codec: Codec, frames: int, chunk_frames: int, batch: int) -> None:
    codes = small_codec.random_codes(batch, 8, frames, seed=frames)
    whole = codec.decode_embedding(codec.embed(codes))
    assert whole.shape == (batch, 320 * frames)
    error = (codec.decode(codes, chunk_frames) - whole).abs().max()
    assert error <= CHUNKED * whole.abs().max()


@pytest.mark.parametrize(
    ("total", "size", "lengths"), [(0, 4, []), (3, 4, [3]), (8, 4, [4, 4]), (9, 4, [3, 3, 3]), (11, 4, [4, 4, 3])]
)
def test_chunks_are_of_one_length_if_they_can_be(total: int, size: int, lengths: list[int]) -> None:
    found = list(chunks(total, size, context=2))
    assert [chunk.stop - chunk.start for chunk in found] == lengths
    assert [chunk.start for chunk in found] == [sum(lengths[:number]) for number in range(len(lengths))]
    assert all(chunk.left == min(2, chunk.start) and chunk.right == min(2, total - chunk.stop) for chunk in found)


def test_ten_frames_of_context_are_exactly_enough(codec: Codec) -> None:
    assert codec.context == 10
    embedding = codec.embed(small_codec.random_codes(1, 8, 40)).double()
    doubled = Codec(codec.config).double().eval()
    doubled.load_state_dict(codec.state_dict())
    whole = doubled.decode_embedding(embedding)[:, 15 * 320 : 20 * 320]
    enough = doubled.decode_embedding(embedding[..., 5:30], left=10, right=10)
    torch.testing.assert_close(enough, whole, rtol=0, atol=1e-10)
    for left, right in ((9, 10), (10, 9)):
        less = doubled.decode_embedding(embedding[..., 15 - left : 20 + right], left, right)
        assert (less - whole).abs().max() > 1e-9


@pytest.mark.parametrize("piece_frames", [1, 7, 39])
def test_pieces_of_the_last_layers_do_not_show(
    codec: Codec, piece_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = codec.embed(small_codec.random_codes(1, 8, 40))
    monkeypatch.setattr(acoustic, "_PIECE_FRAMES", 40)
    whole = codec.decode_embedding(embedding)
    monkeypatch.setattr(acoustic, "_PIECE_FRAMES", piece_frames)
    error = (codec.decode_embedding(embedding) - whole).abs().max()
    assert error <= CHUNKED * whole.abs().max()


def test_each_layer_keeps_only_the_context_it_needs() -> None:
    with torch.device("meta"):
        decoder = Decoder(dimension=256, channels=1024, ratios=(8, 5, 4, 2))
    # Worked out by hand from kernels 7, dilations 1, 3, 9 and transposed kernels of twice the stride.
    assert decoder.margins == [7, 12, 16, 22, 3]


def test_the_published_sizes_are_the_defaults() -> None:
    with torch.device("meta"):
        codec = Codec(CodecConfig())
    assert sum(parameter.numel() for parameter in codec.decoder.parameters()) == 20_201_025
    assert codec.context == 10


def test_snake_bends_each_channel_by_its_alpha() -> None:
    snake = Snake(2).requires_grad_(False)
    snake.alpha.copy_(torch.tensor([0.5, 2.0])[None, :, None])
    x = torch.tensor([[[0.0, 1.0, -3.0], [0.0, 1.0, -3.0]]])
    kept = x.clone()
    expected = x + torch.sin(snake.alpha * x) ** 2 / snake.alpha
    torch.testing.assert_close(snake(x), expected)
    assert torch.equal(x, kept)


def test_no_frames_are_refused(codec: Codec) -> None:
    with pytest.raises(CodecError, match=r"codes have shape \[1, 8, 0\]"):
        codec.decode(small_codec.random_codes(1, 8, 0))


def test_a_code_out_of_range_is_refused_before_decoding(codec: Codec) -> None:
    codes = small_codec.random_codes(1, 8, 30)
    codes[0, 3, 29] = small_codec.CODEC.codebook_size
    with pytest.raises(CodecError, match="codes go from 0 to 16; expected 0 to 15"):
        codec.decode(codes, chunk_frames=10)


def test_decoding_leaves_global_precision_as_it_was() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(KeyError), full_precision():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        raise KeyError
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
