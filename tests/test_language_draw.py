"""Two songs drawn beside each other: which codebooks are heard, and how much is drawn."""

import numpy as np
import pytest

from tests import small_codec
from training.language import draw


@pytest.mark.parametrize("books", [1, 8])
def test_two_songs_stand_beside_each_other(tmp_path, monkeypatch, books):
    small_codec.write_checkpoint(tmp_path)
    codes = np.random.default_rng(0).integers(0, 8, (8, 100))
    monkeypatch.setattr(draw, "read_song", lambda song, copier, depth: copier.play(codes, codes, (0, 100), (True,)))
    drawn = []
    monkeypatch.setattr(draw.picture, "draw", lambda *given: drawn.append(given))
    draw.main(tmp_path, tmp_path, tmp_path / "songs.png", tmp_path, ("few", "all"), books, seconds=0.5)
    path, rows, rate, names = drawn[0]
    assert (path.name, rate, names) == ("songs.png", 16_000, ("few", "all"))
    assert [name for name, *_ in rows] == ["vocal", "instrumental"]
    for _, left, right in rows:
        assert left.shape == right.shape == (8_000,)
        assert np.array_equal(left, right) == (books == 8)
