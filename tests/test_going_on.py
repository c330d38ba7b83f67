"""A song taken up again: after an interruption, from a segment on, with more or fewer of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import yue_cli.pipeline  # noqa: F401  loaded once, before a test gives up its rights
from tests.command_line import GENRE, LYRICS, SEED, SHORT, done, history, is_within, refused, stored, yue
from tests.folders import contents
from yue_cli.artifacts import MANIFEST_FILE
from yue_cli.project import Project

pytestmark = pytest.mark.usefixtures("place")


def interrupt_after_segment(monkeypatch, number: int) -> None:
    """Press Ctrl-C while the segment after this one is sung."""
    save = Project.save_segment

    def save_or_stop(project, record):
        if record.number > number:
            raise KeyboardInterrupt
        save(project, record)

    monkeypatch.setattr(Project, "save_segment", save_or_stop)


# Interruption


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupted_run_says_what_is_kept_and_goes_on_there(finished_song, monkeypatch, place, as_json):
    command = ["run", "song", *SHORT, "--lyrics", "lyrics.txt", "--genre", GENRE, "--seed", SEED]
    with monkeypatch.context() as patch:
        interrupt_after_segment(patch, 1)
        outcome = yue(*command, *["--json"] * as_json)
    message = "section 1 is kept. The same command goes on with section 2."
    assert outcome.code == 130
    if as_json:
        assert outcome.answer == {"error": {"kind": "interrupted", "message": message, "exit_code": 130}}
    else:
        assert outcome.out == ""
        assert outcome.err.splitlines()[-1] == f"interrupted: {message}"
    assert not (place / "song" / "stage1" / MANIFEST_FILE).exists()
    kept = (place / "song" / "stage1" / "segments" / "001.npy").read_bytes()
    assert done("status", "song").out.startswith("stage1  unfinished")
    again = done(*command)
    assert "stage 1  section 1 is there · going on with 2\n" in again.err
    assert (place / "song" / "stage1" / "segments" / "001.npy").read_bytes() == kept
    for track in ("vocal", "instrumental"):
        for stage in ("stage1", "stage2"):
            name = f"{stage}/{track}.npy"
            assert (place / "song" / name).read_bytes() == (finished_song / name).read_bytes()
    assert history(place / "song") == []


def test_a_run_interrupted_between_batches_goes_on_with_the_same_rows(finished_song, monkeypatch, place):
    song = Path(shutil.copytree(finished_song, place / "song"))
    shutil.rmtree(song / "stage2")
    save = Project.save_windows

    def save_or_stop(project, filled):
        if 1 in filled:
            raise KeyboardInterrupt
        save(project, filled)

    with monkeypatch.context() as patch:
        patch.setattr(Project, "save_windows", save_or_stop)
        outcome = yue("stage2", "song", "--set", "execution.rows=1")
    assert outcome.code == 130
    assert outcome.err.endswith("interrupted: 1 of 2 windows of stage 2 are kept. The same command goes on.\n")
    told = done("stage2", "song", "--set", "execution.rows=2").err
    assert "stage 2  1 of 2 windows of stage 2 are there · going on\n" in told
    assert done("status", "song", "--json").answer["stages"][1]["engine"]["rows"] == "1"
    assert np.load(song / "stage2" / "vocal.npy").shape == (8, 8)
    assert not (song / "stage2" / "windows").exists()


def test_a_run_interrupted_after_a_stage_says_that_it_is_kept(place, monkeypatch):
    begin = Project.begin

    def stop(project, stage, keep=None):
        if stage == "stage2":
            raise KeyboardInterrupt
        return begin(project, stage, keep)

    monkeypatch.setattr(Project, "begin", stop)
    outcome = yue("run", "song", *SHORT, "--lyrics", "lyrics.txt", "--genre", GENRE)
    assert outcome.code == 130
    assert outcome.err.endswith("interrupted: stage 1 is kept. The same command goes on after it.\n")


# From a segment on


def segment_bytes(song: Path, number: int) -> bytes:
    return (song / "stage1" / "segments" / f"{number:03d}.npy").read_bytes()


def test_from_a_segment_on_the_rest_is_sung_anew_and_the_start_is_kept_byte_for_byte(song):
    before = contents(song)
    first, second = segment_bytes(song, 1), segment_bytes(song, 2)
    told = done("stage1", "song", "--from-segment", "2").err
    assert "stage 1  is made anew: from segment 2; the old one is kept in history/\n" in told
    assert "stage 1  section 1 is there · going on with 2\n" in told
    assert segment_bytes(song, 1) == first
    assert segment_bytes(song, 2) != second
    assert is_within(before, song)
    assert stored(song)["seed"] == SEED
    new_seed = stored(song)["reseeded"][2]
    assert new_seed != SEED
    rows = done("status", "song").out.splitlines()
    assert rows[0].startswith("stage1  current")
    assert f"seed {SEED}, {new_seed} from segment 2" in rows[0]
    assert rows[1].startswith("stage2  stale")
    segments = done("stage1", "song", "--json").answer["segments"]
    assert [segment["seed"] for segment in segments] == [SEED, new_seed]


@pytest.mark.parametrize("words", [["--seed", "11"], ["--set", "seed=11"]])
def test_a_seed_given_with_a_segment_is_for_that_segment(song, words):
    first = segment_bytes(song, 1)
    done("stage1", "song", "--from-segment", "2", *words)
    assert (stored(song)["seed"], stored(song)["reseeded"]) == (SEED, {2: 11})
    assert segment_bytes(song, 1) == first


def test_the_same_line_after_an_interruption_goes_on_with_its_seed(song, monkeypatch):
    (song / "lyrics.txt").write_text(LYRICS + "\n[outro]\nBye\n")
    first = segment_bytes(song, 1)
    with monkeypatch.context() as patch:
        interrupt_after_segment(patch, 2)
        outcome = yue("stage1", "song", "--from-segment", "2")
    assert outcome.code == 130
    assert outcome.err.endswith("interrupted: sections 1–2 are kept. The same command goes on with section 3.\n")
    seeds, second = stored(song)["reseeded"], segment_bytes(song, 2)
    told = done("stage1", "song", "--from-segment", "2").err
    assert "stage 1  sections 1–2 are there · going on with 3\n" in told
    assert stored(song)["reseeded"] == seeds
    assert (segment_bytes(song, 1), segment_bytes(song, 2)) == (first, second)
    assert history(song) == ["stage1"]
    done("stage1", "song", "--from-segment", "2")
    assert stored(song)["reseeded"] != seeds, "after the end the same line asks for another try"


@pytest.mark.parametrize("number", ["0", "-1", "3"])
def test_from_a_segment_that_there_is_not_changes_nothing(song, number):
    before = contents(song)
    text = refused("stage1", "song", "--from-segment", number)
    assert text == f"--from-segment {number}: expected a number from 1 to 2, the segments to be sung."
    assert contents(song) == before


def test_from_a_segment_after_a_missing_one_changes_nothing(song):
    (song / "stage1" / "segments" / "001.json").unlink()
    before = contents(song)
    assert "segment 1 is not there yet" in refused("stage1", "song", "--from-segment", "2")
    assert contents(song) == before


def test_more_segments_go_on_where_the_song_stood(place):
    song = place / "song"
    done("stage1", "song", *SHORT, "--lyrics", "lyrics.txt", "--genre", GENRE, "--segments", "1", "--seed", SEED)
    first = segment_bytes(song, 1)
    assert not (song / "stage1" / "segments" / "002.npy").exists()
    told = done("stage1", "song", "--segments", "2").err
    assert "stage 1  is made anew: segments was 1, now 2; the old one is kept in history/\n" in told
    assert "stage 1  section 1 is there · going on with 2\n" in told
    assert "1/2 verse" not in told
    assert segment_bytes(song, 1) == first


def test_fewer_segments_need_no_singing(song, finished_song):
    told = done("stage1", "song", "--segments", "1").err
    assert "tokens in" not in told
    assert np.load(song / "stage1" / "vocal.npy").shape == (1, 4)
    assert segment_bytes(song, 1) == segment_bytes(finished_song, 1)
