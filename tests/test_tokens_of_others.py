"""Tokens that yue did not write, or that somebody changed: used, said so, and never replaced unasked."""

import numpy as np
import pytest

import yue_cli.pipeline  # noqa: F401  loaded once, before a test gives up its rights
from tests.command_line import done, history, refused
from tests.folders import contents

pytestmark = pytest.mark.usefixtures("place")


@pytest.mark.parametrize(("stage", "dtype"), [("stage1", np.int64), ("stage2", np.uint32)])
def test_tokens_that_others_made_are_used_and_said_so(place, stage, dtype):
    folder = place / "song" / stage
    folder.mkdir(parents=True)
    for track in ("vocal", "instrumental"):
        np.save(folder / f"{track}.npy", np.arange(40, dtype=dtype).reshape(8, 5)[: 1 if stage == "stage1" else 8] * 9)
    before = contents(folder)
    outcome = done("run", "song", "--preset", "toy")
    title = "stage 1" if stage == "stage1" else "stage 2"
    assert f"{title}  is used as it is: its tokens were not written by this yue\n" in outcome.err
    assert contents(folder) == before
    assert (place / outcome.out.strip()).is_file()
    row = next(row for row in done("status", "song").out.splitlines() if row.startswith(stage))
    assert row.startswith(f"{stage}  foreign")


def test_tokens_of_others_cannot_be_sung_anew_without_words_and_stay(place):
    folder = place / "song" / "stage1"
    folder.mkdir(parents=True)
    for track in ("vocal", "instrumental"):
        np.save(folder / f"{track}.npy", np.zeros((1, 4), np.int64))
    before = contents(place)
    text = refused("run", "song", "--preset", "toy", "--force")
    assert text == "song has no lyrics.txt or no genre.txt: give --lyrics and --genre."
    assert {name: held for name, held in contents(place).items() if "song/stage1" in name} == {
        name: held for name, held in before.items() if "song/stage1" in name
    }
    assert done("run", "song", "--dry-run", "--preset", "toy").out.startswith("stage1  stays: foreign")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 1500), np.float32), "expected integers, found float32 [2, 1500]"),
        (np.zeros((2, 1500), np.int16), "expected int16 [1, T], found int16 [2, 1500]"),
        (np.array([[1, 5000, 3]]), "1 codes are outside 0..1023, the first is 5000 in row 0 at frame 1"),
    ],
)
def test_tokens_that_are_none_are_refused_and_stay(place, array, said):
    folder = place / "song" / "stage1"
    folder.mkdir(parents=True)
    for track in ("vocal", "instrumental"):
        np.save(folder / f"{track}.npy", array)
    before = contents(folder)
    text = refused("run", "song", "--preset", "toy")
    assert text == f"song/stage1/vocal.npy: {said}; `yue stage1 song --force` makes it anew."
    assert contents(folder) == before


def test_edited_tokens_are_used_and_replaced_only_by_force(song):
    path = song / "stage1" / "vocal.npy"
    np.save(path, (np.load(path) + 1) % 1024)
    edited = path.read_bytes()
    row = done("status", "song").out.splitlines()[0]
    assert row.startswith("stage1  edited")
    assert row.endswith("vocal.npy changed since yue wrote it")
    told = done("run", "song", "--segments", "1").err
    assert "stage 1  is kept: vocal.npy changed since yue wrote it; segments was 2, now 1; --force replaces it" in told
    assert "stage 2  is made anew: made from other tokens than are there now" in told
    assert path.read_bytes() == edited
    assert history(song) == ["audio", "stage2"]
    done("stage1", "song", "--force")
    assert path.read_bytes() != edited
    assert [(folder / "vocal.npy").read_bytes() for folder in song.glob("history/stage1-*")] == [edited]


def test_edited_and_removed_sound(song):
    (song / "audio" / "mix.wav").write_bytes(b"mastered")
    assert "decode   is kept: mix.wav changed since yue wrote it; --force replaces it" in done("run", "song").err
    assert (song / "audio" / "mix.wav").read_bytes() == b"mastered"
    (song / "audio" / "vocal.wav").unlink()
    assert "decode   is made anew: vocal.wav was removed; the old one is kept in history/" in done("run", "song").err
    assert [path.read_bytes() for path in song.glob("history/audio-*/mix.wav")] == [b"mastered"]
