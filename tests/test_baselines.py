"""What benchmarks compare with computes what we compute."""

import numpy as np

from benchmarks.baselines import decoding
from tests import small_codec
from yue_cli.stages import decode


def test_tracks_in_one_piece_become_the_same_song(tmp_path) -> None:
    folder = small_codec.write_checkpoint(tmp_path / "codec")
    ours, theirs = decode.open_codec(folder), decode.open_codec(folder)
    decoding.unfold(theirs.codec.decoder)
    assert any(isinstance(module, decoding.SeparateSnake) for module in theirs.codec.decoder.modules())
    codes = small_codec.random_codes(2, 8, 30).numpy().astype(np.int16)
    found, expected = decoding.decode(theirs, *codes), decode.decode(ours, *codes, "scale")
    for name, samples in vars(expected).items():
        np.testing.assert_allclose(getattr(found, name), samples, atol=2e-5, err_msg=name)
