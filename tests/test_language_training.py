"""Both language models learn from codes, go on after a stop, and come out as checkpoints that sing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training.language.__main__ import make_student
from training.language.batches import draw_batch, pack
from training.language.export import read_weights, write_model
from training.language.model import Packing, Size
from training.language.presets import Preset
from training.language.rows import Row
from training.language.songs import Shelf, write_shard
from training.language.students import LanguageStudent, only_book, only_track
from training.language.text import learn
from training.loop import Run, train
from yue_cli.atomic import TEMPORARY_PREFIX
from yue_cli.engines import open_engine
from yue_cli.vocab import Vocabulary

RUN = Run(steps=8, batch=300, learning_rate=3e-3, warm_up=1)
SIZE = Size(hidden=64, inner=96, layers=2, heads=1, key_value_heads=1, length=512)
PRESET = Preset(singer=SIZE, singing=RUN, filler=SIZE, filling=RUN)
NEIGHBOURS = (np.arange(1024)[:, None] + np.arange(1, 9)) % 1024
LYRICS = "[verse]\nThe harbour lights are low\n[chorus]\nCarry me home\n"


def write_songs(codes: Path) -> None:
    """Write songs that are easy to learn: few codes, the same in every frame."""
    dice = np.random.default_rng(3)
    songs = []
    for genre in ["folk calm", "rock loud"] * 2:
        text = {"genre": genre, "lyrics": LYRICS, "spans": [[0, 24], [24, 40]], "lines": [[[0, 24]], [[24, 40]]]}
        text["syllables"] = [
            [[2, 6, 0, 3], [6, 10, 4, 11], [10, 14, 12, 18], [14, 17, 19, 22], [17, 22, 23, 26]],
            [[26, 30, 0, 5], [30, 33, 6, 8], [33, 38, 9, 13]],
        ]
        songs.append((text, np.repeat(dice.integers(0, 4, (2, 8, 1)), 40, axis=2).astype(np.uint16)))
    write_shard(codes / "train" / "0000.npz", songs)
    write_shard(codes / "held-out" / "0000.npz", songs[:2])


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    write_songs(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    learn([LYRICS, "[Genre] folk calm", "[Genre] rock loud"], folder)
    return folder


def make(stage: str, text: Path, codes: Path, processes: int = 0) -> LanguageStudent:
    torch.manual_seed(0)
    held_out = Shelf(codes, "held-out").songs()
    return make_student(stage, PRESET, text, codes, held_out, NEIGHBOURS, bf16=False, seed=5, processes=processes)


def answers_loss(student: LanguageStudent) -> float:
    loss, figures = student.loss(0)
    return figures.get("answers", loss).item()


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_stage_learns(stage: str, text: Path, codes: Path, tmp_path: Path) -> None:
    student = make(stage, text, codes)
    before = answers_loss(student)
    train(student, RUN, tmp_path)
    after = answers_loss(student)
    assert before == pytest.approx(np.log(1024), rel=0.1)
    assert after < 0.8 * before


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_stopped_run_learns_the_same(stage: str, text: Path, codes: Path, tmp_path: Path) -> None:
    whole, stopped = make(stage, text, codes), make(stage, text, codes)
    train(whole, RUN, tmp_path / "whole")
    train(stopped, RUN, tmp_path / "stopped", until=3)
    resumed = make(stage, text, codes)
    assert train(resumed, RUN, tmp_path / "stopped") == 8
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_what_was_learned_is_a_checkpoint(stage: str, text: Path, codes: Path, tmp_path: Path) -> None:
    student = make(stage, text, codes)
    write_model(tmp_path, stage, student.model, text)
    vocabulary = Vocabulary.read(tmp_path)
    engine = open_engine("native", tmp_path, rows=1, length=512, device=torch.device("cpu"), dtype=torch.float32)
    batch = student._feeder.batch(0)
    known = int(batch.asked[0, 0]) + 1
    ids = batch.ids[:known]
    answers = vocabulary.codebook(0 if stage == "stage1" else 1)
    found = engine.prefill([ids], head=(answers,))[0]
    packing = Packing(
        torch.zeros(known, dtype=torch.int64), torch.arange(known), torch.tensor([0, known], dtype=torch.int32), known
    )
    with torch.no_grad():
        learned = student.model.lm_head(student.model(torch.from_numpy(ids), packing))[-1]
    torch.testing.assert_close(found, learned[answers.start : answers.stop], atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == engine.vocabulary_size


def test_rows_nothing_answers_keep_their_share_of_the_softmax(text: Path, codes: Path, tmp_path: Path) -> None:
    student = make("stage1", text, codes)
    write_model(tmp_path, "stage1", student.model, text)
    vocabulary = Vocabulary.read(tmp_path)
    engine = open_engine("native", tmp_path, rows=1, length=64, device=torch.device("cpu"), dtype=torch.float32)
    logits = engine.prefill([np.array([vocabulary.separator])])[0]
    dead = logits[vocabulary.codebook(3).start : vocabulary.codebook(3).stop]
    assert (dead - dead[0]).abs().max() < 1e-5
    assert dead[0] != 0


def test_the_two_tracks_are_told_apart() -> None:
    weights = np.array([0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1], dtype=np.float32)
    ids = np.array([0, 0, 7, 8, 9, 8, 5, 0, 7, 6, 5])  # 7 is a rest: the most frequent code of the vocal
    row = Row.wordless(ids, ids, weights)
    assert only_track(row, 0).weights.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert only_track(row, 1).weights.tolist() == [0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0]


def test_the_books_are_told_apart() -> None:
    weights = np.concatenate([np.zeros(3), np.tile([0, 1, 1, 1, 1, 1, 1, 0.5], 2)]).astype(np.float32)
    row = Row.wordless(np.arange(19), np.arange(19), weights)
    assert np.flatnonzero(only_book(row, 2).weights).tolist() == [5, 13]
    assert np.flatnonzero(only_book(row, 7).weights).tolist() == [10, 18]


def test_coded_songs_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_songs(tmp_path)
    songs = Shelf(tmp_path, "train", books=1).songs()
    assert len(songs) == 4
    song = Shelf(tmp_path, "train").songs()[1]
    assert (song.genre, song.frames, song.spans) == ("rock loud", 40, (range(24), range(24, 40)))
    assert [section.tag for section in song.sections] == ["verse", "chorus"]
    assert np.array_equal(songs[1].instrumental, song.instrumental[:1])
    assert not np.array_equal(song.vocal, song.instrumental)


def test_songs_that_come_later_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.language.songs._LOOK_EVERY_S", 0.0)
    shelf = Shelf(tmp_path, "train")
    assert not shelf.songs()
    write_songs(tmp_path)
    assert len(shelf.songs()) == 4
    assert len(shelf.songs()) == 4, "no song counts twice"


def test_processes_draw_what_one_would(text: Path, codes: Path) -> None:
    alone, helped = (make("stage1", text, codes, processes)._feeder for processes in (0, 2))
    for step in (3, 4, 5, 6):
        expected, found = alone.batch(step), helped.batch(step)
        assert np.array_equal(found.ids, expected.ids)
        assert np.array_equal(found.answers, expected.answers)


def test_packing_asks_each_group_for_its_own_ids() -> None:
    rows = [Row.wordless(np.array([9, 7, 5]), np.array([9, 7, 5]), np.array([0, 1, 0.5], dtype=np.float32))] * 2
    packed = pack(rows, [np.array([5, 6]), np.array([8, 7])])
    assert packed.bounds.tolist() == [0, 3, 6]
    assert packed.asked.tolist() == [[1, 4], [0, 3]]
    assert packed.answers.tolist() == [[0, 0], [1, 1]]
    assert packed.weights.tolist() == [[0.5, 0.5], [1, 1]]


def test_a_batch_is_full_to_the_last_id() -> None:
    row = Row.wordless(np.arange(7), np.arange(7), np.array([0, 1, 1, 1, 1, 1, 1], dtype=np.float32))
    packed = draw_batch(lambda step, dice: row, [np.arange(7)], 17, 0, 0)
    assert len(packed.ids) == 17
    assert packed.bounds.tolist() == [0, 7, 14, 17]


def test_a_shard_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    write_songs(tmp_path)
    (tmp_path / "train" / f"{TEMPORARY_PREFIX}x.npz").write_bytes(b"PK")
    assert len(Shelf(tmp_path, "train").songs()) == 4


def test_what_only_training_has_is_not_shipped(text: Path, codes: Path, tmp_path: Path) -> None:
    student = make("stage1", text, codes)
    figures = student.loss(0)[1]
    assert figures["reading"].item() == pytest.approx(np.log(1024), rel=0.1)
    write_model(tmp_path, "stage1", student.model, text)
    assert set(read_weights(tmp_path)) == set(student.model.state_dict())
    assert not any("reader" in name for name in read_weights(tmp_path))
