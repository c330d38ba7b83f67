"""Both language models learn from codes, go on after a stop, and come out as checkpoints that sing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training.language import codes as coded
from training.language.__main__ import make_student
from training.language.export import write_model
from training.language.model import Size
from training.language.presets import Preset
from training.language.rows import CodedSong, Row
from training.language.students import LanguageStudent, only_book, only_track
from training.language.text import learn
from training.loop import Run, train
from yue_cli.engines import open_engine
from yue_cli.lyrics import parse
from yue_cli.vocab import Vocabulary

RUN = Run(steps=8, batch=2, learning_rate=3e-3, warm_up=1)
SIZE = Size(hidden=64, inner=96, layers=1, heads=1, key_value_heads=1, length=512)
PRESET = Preset(singer=SIZE, singing=RUN, filler=SIZE, filling=RUN)
NEIGHBOURS = (np.arange(1024)[:, None] + np.arange(1, 9)) % 1024
LYRICS = "[verse]\nThe harbour lights are low\n[chorus]\nCarry me home\n"


def make_songs(count: int) -> list[CodedSong]:
    """Songs that are easy to learn: few codes, the same in every frame."""
    dice = np.random.default_rng(3)
    sections = parse(LYRICS, "song").sections
    songs = []
    for genre in ["folk calm", "rock loud"] * (count // 2):
        tracks = [np.repeat(dice.integers(0, 4, (8, 1)), 40, axis=1) for _ in range(2)]
        songs.append(CodedSong(genre, sections, (range(24), range(24, 40)), *tracks))
    return songs


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    learn([LYRICS, "[Genre] folk calm", "[Genre] rock loud"], folder)
    return folder


def make(stage: str, text: Path) -> LanguageStudent:
    torch.manual_seed(0)
    return make_student(stage, PRESET, text, make_songs(4), make_songs(2), NEIGHBOURS, bf16=False, seed=5)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_stage_learns(stage: str, text: Path, tmp_path: Path) -> None:
    student = make(stage, text)
    before = student.loss(0)[0].item()
    train(student, RUN, tmp_path)
    after = student.loss(0)[0].item()
    assert before == pytest.approx(np.log(len(student.model.lm_head.weight)), rel=0.1)
    assert after < 0.8 * before


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_stopped_run_learns_the_same(stage: str, text: Path, tmp_path: Path) -> None:
    whole, stopped = make(stage, text), make(stage, text)
    train(whole, RUN, tmp_path / "whole")
    train(stopped, RUN, tmp_path / "stopped", until=3)
    resumed = make(stage, text)
    assert train(resumed, RUN, tmp_path / "stopped") == 8
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_what_was_learned_is_a_checkpoint(stage: str, text: Path, tmp_path: Path) -> None:
    student = make(stage, text)
    write_model(tmp_path, stage, student.model, text)
    vocabulary = Vocabulary.read(tmp_path)
    engine = open_engine("native", tmp_path, rows=1, length=512, device=torch.device("cpu"), dtype=torch.float32)
    row = student.draw(np.random.default_rng(1))
    known = int(np.flatnonzero(row.weights > 0)[0])
    answers = vocabulary.codebook(0 if stage == "stage1" else 1)
    found = engine.prefill([row.ids[:known]], head=(answers,))[0]
    wanted = torch.zeros(1, known, dtype=torch.bool)
    wanted[0, -1] = True
    with torch.no_grad():
        learned = student.model(torch.from_numpy(row.ids[:known])[None], wanted)[0]
    torch.testing.assert_close(found, learned[answers.start : answers.stop], atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == engine.vocabulary_size


def test_rows_nothing_answers_keep_their_share_of_the_softmax(text: Path, tmp_path: Path) -> None:
    student = make("stage1", text)
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
    row = Row(ids, ids, weights)
    assert only_track(row, 0).weights.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert only_track(row, 1).weights.tolist() == [0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0]


def test_the_books_are_told_apart() -> None:
    weights = np.concatenate([np.zeros(3), np.tile([0, 1, 1, 1, 1, 1, 1, 0.5], 2)]).astype(np.float32)
    row = Row(np.arange(19), np.arange(19), weights)
    assert np.flatnonzero(only_book(row, 2).weights).tolist() == [5, 13]
    assert np.flatnonzero(only_book(row, 7).weights).tolist() == [10, 18]


def test_coded_songs_are_read_as_they_were_written(tmp_path: Path) -> None:
    tracks = {
        name: np.arange(80, dtype=np.uint16).reshape(8, 10) + k for k, name in enumerate(["vocal", "instrumental"])
    }
    (tmp_path / "train").mkdir()
    content = json.dumps({"genre": "folk", "lyrics": LYRICS, "spans": [[0, 6], [6, 10]]})
    np.savez_compressed(tmp_path / "train" / "000001.npz", text=np.array(content), **tracks)
    (song,) = coded.load(tmp_path, "train")
    assert song.genre == "folk"
    assert song.spans == (range(6), range(6, 10))
    assert [section.tag for section in song.sections] == ["verse", "chorus"]
    assert np.array_equal(song.instrumental, tracks["instrumental"])
