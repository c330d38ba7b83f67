"""A corpus folder made by hand: songs by split, tracks, labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from training.corpus.dataset import BAND_LABELS, CLASSES, VOCAL_LABELS, list_songs
from training.corpus.layout import RECIPE, is_complete, song_folder
from training.corpus.make import OtherRecipe, choose_seeds, describe
from training.corpus.world import FRAME_RATE

FRAMES = 50
SCORE = {
    "seed": 3,
    "split": "train",
    "frames": FRAMES,
    "labels": {
        "phoneme": [[10, 12, "S"], [12, 40, "AH"]],
        "semitone": [[10, 40, 60]],
        "singer": [[10, 40, "middle"]],
        "chord": [[0, 25, 0, "major"], [25, 50, 7, "seventh"]],
        "drum": [[0, "kick"], [1, "hat"], [20, "clap"]],
        "instrument": [[0, 50, "piano"]],
        "bass": [[0, 50, "synth bass"]],
    },
}


def write_song(corpus: Path, seed: int, split: str) -> None:
    folder = song_folder(corpus, seed)
    folder.mkdir(parents=True)
    ramp = np.linspace(-0.5, 0.5, FRAMES * 882, dtype=np.float32)
    soundfile.write(folder / "vocal.flac", ramp, 44_100, "PCM_16")
    soundfile.write(folder / "instrumental.flac", -ramp, 44_100, "PCM_16")
    (folder / "score.json").write_text(json.dumps(SCORE | {"seed": seed, "split": split}))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_song(tmp_path, 3, "train")
    write_song(tmp_path, 38, "held-out")
    song_folder(tmp_path, 4).mkdir()  # of a run that was stopped
    return tmp_path


def test_songs_are_listed_by_split_and_unfinished_ones_left_out(corpus: Path) -> None:
    assert [song.score["seed"] for song in list_songs(corpus, "train")] == [3]
    assert [song.score["seed"] for song in list_songs(corpus, "held-out")] == [38]
    assert not is_complete(song_folder(corpus, 4))


def test_tracks_come_at_any_rate_whole_or_in_part(corpus: Path) -> None:
    song = list_songs(corpus, "train")[0]
    assert song.load("vocal", 16_000).shape == (FRAMES * 320,)
    whole = song.load("instrumental")
    np.testing.assert_array_equal(song.load("instrumental", start=10, stop=12), whole[10 * 882 : 12 * 882])
    assert whole.dtype == np.float32 and whole[0] == pytest.approx(0.5, abs=1e-4)


def test_labels_name_what_sounds_in_each_frame(corpus: Path) -> None:
    labels = list_songs(corpus, "train")[0].labels()
    assert set(labels) == set(CLASSES) == {*VOCAL_LABELS, *BAND_LABELS}
    assert all(values.shape == (FRAMES,) and values.dtype == np.int16 for values in labels.values())

    def at(frame: int) -> dict[str, str | None]:
        return {name: CLASSES[name][value[frame]] if value[frame] >= 0 else None for name, value in labels.items()}

    assert at(11) == {
        "phoneme": "S", "semitone": "60", "singer": "middle", "chord": "C major", "chord_root": "C",
        "chord_type": "major", "drum": None, "instrument": "piano", "bass": "synth bass",
    }  # fmt: skip
    assert at(45)["phoneme"] is at(45)["semitone"] is at(45)["singer"] is None
    assert at(45)["chord"] == "G seventh"
    assert [at(frame)["drum"] for frame in (0, 1, 3, 4, 20)] == ["kick", "kick+hat", "hat", None, "snare"]


def test_songs_are_chosen_in_whole_pairs_until_they_last_long_enough() -> None:
    seeds = choose_seeds(0.02)
    assert seeds == list(range(len(seeds))) and len(seeds) % 2 == 0
    assert choose_seeds(0.05)[: len(seeds)] == seeds
    assert len(choose_seeds(30 / 3600)) == 2 and FRAME_RATE == 50


def test_two_recipes_do_not_share_a_folder(tmp_path: Path) -> None:
    describe(tmp_path, range(4))
    assert json.loads((tmp_path / "corpus.json").read_text())["seeds"] == [0, 4]
    (tmp_path / "corpus.json").write_text('{"recipe": 0}')
    with pytest.raises(OtherRecipe) as caught:
        describe(tmp_path, range(4))
    assert str(caught.value) == f"{tmp_path} was made by recipe 0, this is {RECIPE}; choose another --out."
