"""Sound to the codes of an audio prompt: whole tracks or an excerpt, of one length, refused when too short."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests import small_codec
from xcodec_mini_infer import SAMPLE_RATE, checkpoint
from xcodec_mini_infer.encoder import Encoder
from xcodec_mini_infer.resample import resample
from yue_cli.errors import AudioError, CheckpointError
from yue_cli.events import Event, Finished, Progress, Warned
from yue_cli.stages import reference


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return reference.open_encoder(small_codec.write_checkpoint(tmp_path_factory.mktemp("codec")))


def noise(seconds: float, rate: int = SAMPLE_RATE, seed: int = 0) -> reference.Sound:
    samples = 0.3 * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return samples.astype(np.float32), rate


def test_a_track_becomes_50_codes_a_second(encoder: Encoder) -> None:
    codes = reference.encode(encoder, {"vocal": noise(1.5)})
    assert list(codes) == ["vocal"]
    assert (codes["vocal"].dtype, codes["vocal"].shape) == (np.int16, (1, 75))
    expected = encoder.encode(torch.from_numpy(noise(1.5)[0])[None])[0]
    np.testing.assert_array_equal(codes["vocal"], expected)


def test_other_rates_are_resampled_first(encoder: Encoder) -> None:
    sound, rate = noise(1.2, 44_100)
    expected = encoder.encode(resample(torch.from_numpy(sound)[None], rate, SAMPLE_RATE))[0]
    np.testing.assert_array_equal(reference.encode(encoder, {"vocal": (sound, rate)})["vocal"], expected)


def test_a_crop_encodes_its_seconds_alone_and_gives_other_codes(encoder: Encoder) -> None:
    sound = noise(4.0, seed=5)
    cropped = reference.encode(encoder, {"vocal": sound}, crop=(1.0, 3.0))["vocal"]
    alone = reference.encode(encoder, {"vocal": (sound[0][SAMPLE_RATE : 3 * SAMPLE_RATE], SAMPLE_RATE)})["vocal"]
    np.testing.assert_array_equal(cropped, alone)
    assert cropped.shape == (1, 100)
    assert (cropped != reference.encode(encoder, {"vocal": sound})["vocal"][:, 50:150]).any()


def test_two_tracks_of_unequal_length_share_the_shorter_with_a_warning(encoder: Encoder) -> None:
    told: list[Event] = []
    codes = reference.encode(encoder, {"vocal": noise(2.0), "instrumental": noise(1.5, seed=1)}, emit=told.append)
    assert {name: track.shape for name, track in codes.items()} == {"vocal": (1, 75), "instrumental": (1, 75)}
    # The longer one is encoded whole all the same.
    whole = reference.encode(encoder, {"vocal": noise(2.0)})["vocal"]
    np.testing.assert_array_equal(codes["vocal"], whole[:, :75])
    assert [event.text for event in told if isinstance(event, Warned)] == [
        "the tracks of the reference differ in length (vocal 2.00 s, instrumental 1.50 s); the end of the longer is "
        "left out"
    ]


def test_what_is_encoded_is_told(encoder: Encoder) -> None:
    told: list[Event] = []
    reference.encode(encoder, {"vocal": noise(1.0), "instrumental": noise(1.0)}, emit=told.append)
    # Two layers and one chunk of each track.
    assert told[:4] == [Progress("encode", "vocal", done, 50, "frames") for done in (0, 17, 33, 50)]
    assert [type(event) for event in told] == ([Progress] * 4 + [Finished]) * 2
    last = told[-1]
    assert isinstance(last, Finished)
    assert (last.topic, last.label, last.done, last.unit, last.music_s) == ("encode", "instrumental", 50, "frames", 1.0)


@pytest.mark.parametrize(("seconds", "crop"), [(0.98, None), (3.0, (2.5, 3.0)), (3.0, (9.0, 12.0))])
def test_sound_under_a_second_is_refused(encoder: Encoder, seconds: float, crop: tuple[float, float] | None) -> None:
    with pytest.raises(AudioError) as error:
        reference.encode(encoder, {"instrumental": noise(seconds)}, crop)
    left = {0.98: "0.98", 3.0: "0.50" if crop == (2.5, 3.0) else "0.00"}[seconds]
    assert str(error.value) == f"instrumental: {left} s of sound; expected at least 1 s of reference."


def test_a_codec_without_encoder_is_a_checkpoint_error(tmp_path: Path) -> None:
    folder = small_codec.write_checkpoint(tmp_path / "codec")
    path = folder / checkpoint.CODEC_FILE
    path.unlink()
    with pytest.raises(CheckpointError) as error:
        reference.open_encoder(folder)
    assert str(error.value) == f"{path}: no such file; expected the weights of Encoder."
