from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import small_codec
from xcodec_mini_infer import SAMPLE_RATE, VOCODER_SAMPLE_RATE, checkpoint
from xcodec_mini_infer.resample import resample
from yue_cli.errors import ArtifactError, CheckpointError
from yue_cli.events import Event, Finished, Progress
from yue_cli.mixing import BandFilter
from yue_cli.stages import decode


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> decode.Decoders:
    return decode.open_codec(small_codec.write_checkpoint(tmp_path_factory.mktemp("codec")))


def tracks(frames: int) -> tuple[np.ndarray, np.ndarray]:
    vocal, instrumental = small_codec.random_codes(2, 8, frames, seed=frames).numpy().astype(np.int16)
    return vocal, instrumental


@pytest.mark.parametrize("how", ["clip", "scale"])
def test_a_song_is_made_in_the_published_order(decoders: decode.Decoders, how: str) -> None:
    vocal, instrumental = tracks(12)
    stems = decode.decode(decoders, vocal, instrumental, how)

    def limited(samples: torch.Tensor) -> torch.Tensor:
        if how == "clip":
            return samples.clamp(-0.99, 0.99)
        return samples * min(0.99 / float(samples.abs().max()), 1.0)

    codes = [torch.from_numpy(track)[None] for track in (vocal, instrumental)]
    high = [
        vocoder.decode(decoders.codec.embed(track))
        for vocoder, track in zip((decoders.vocal, decoders.instrumental), codes, strict=True)
    ]
    assert max(float(track.abs().max()) for track in high) > 0.99  # so that the limit has work to do
    low = sum(decoders.codec.decode(track).clamp(-0.99, 0.99) for track in codes)
    low_band = BandFilter("low", 1)(resample(low, SAMPLE_RATE, VOCODER_SAMPLE_RATE))
    mix = limited(high[0] + high[1])
    replaced = BandFilter("low", 1)(mix)
    gain = replaced.square().mean().sqrt() / low_band.square().mean().sqrt()
    expected = gain * low_band + BandFilter("high", 1)(mix)

    np.testing.assert_allclose(stems.vocal, limited(high[0]), atol=1e-5)
    np.testing.assert_allclose(stems.instrumental, limited(high[1]), atol=1e-5)
    np.testing.assert_allclose(stems.mix, expected, atol=2e-5)


@pytest.mark.parametrize("frames", [1, 2, 130])
def test_a_song_has_882_samples_a_frame(decoders: decode.Decoders, frames: int) -> None:
    stems = decode.decode(decoders, *tracks(frames), "scale")
    for samples in (stems.mix, stems.vocal, stems.instrumental):
        assert samples.shape == (1, 882 * frames)
        assert samples.dtype == np.float32
        assert np.isfinite(samples).all()


@settings(max_examples=8)
@given(frames=st.integers(1, 90), chunk_frames=st.integers(1, 95))
def test_chunks_do_not_show(decoders: decode.Decoders, frames: int, chunk_frames: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "CHUNK_FRAMES", 1000)
        whole = decode.decode(decoders, *tracks(frames), "clip")
        patch.setattr(decode, "CHUNK_FRAMES", chunk_frames)
        pieces = decode.decode(decoders, *tracks(frames), "clip")
    for name in ("mix", "vocal", "instrumental"):
        expected = getattr(whole, name)
        np.testing.assert_allclose(getattr(pieces, name), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_progress_is_told_once_a_chunk(decoders: decode.Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "CHUNK_FRAMES", 50)
    told: list[Event] = []
    decode.decode(decoders, *tracks(120), "scale", told.append)
    assert told[:-1] == [
        Progress("decode", "", 0, 120, "frames"),
        Progress("decode", "", 40, 120, "frames", 0.8),
        Progress("decode", "", 80, 120, "frames", 1.6),
        Progress("decode", "", 120, 120, "frames", 2.4),
    ]
    last = told[-1]
    assert isinstance(last, Finished)
    assert (last.topic, last.done, last.unit, last.music_s) == ("decode", 120, "frames", 2.4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_codes_of_any_integer_type_sound_the_same(decoders: decode.Decoders, dtype: type) -> None:
    vocal, instrumental = tracks(3)
    expected = decode.decode(decoders, vocal, instrumental, "clip").mix
    found = decode.decode(decoders, vocal.astype(dtype), instrumental.astype(dtype), "clip").mix
    np.testing.assert_array_equal(found, expected)


def test_codes_of_another_codec_are_refused(decoders: decode.Decoders) -> None:
    vocal, instrumental = tracks(3)
    instrumental[4, 2] = 900
    with pytest.raises(ArtifactError) as error:
        decode.decode(decoders, vocal, instrumental, "clip")
    assert str(error.value) == (
        f"instrumental track: codes go from {instrumental.min()} to 900; expected 0 to 15. "
        "Were its codes made for another codec?"
    )


def test_tracks_of_unequal_length_are_a_mistake_of_the_caller(decoders: decode.Decoders) -> None:
    with pytest.raises(AssertionError, match=r"tracks of shapes \(8, 3\) and \(8, 4\)"):
        decode.decode(decoders, tracks(3)[0], tracks(4)[1], "clip")


def test_an_incomplete_codec_folder_is_a_checkpoint_error(tmp_path: Path) -> None:
    folder = small_codec.write_checkpoint(tmp_path / "codec")
    path = folder / checkpoint.VOCAL_FILE
    path.unlink()
    with pytest.raises(CheckpointError) as error:
        decode.open_codec(folder)
    assert str(error.value) == f"{path}: no such file; expected the weights of Vocoder."
