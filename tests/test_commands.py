"""The command line from end to end with the toy: exit codes, what is printed where, what is made, kept and refused."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import yue_cli.pipeline  # noqa: F401  loaded once, before a test gives up its rights
from tests.command_line import LYRICS, Outcome, done, refused, yue
from tests.folders import contents, refusing_folder, small_disk
from yue_cli.artifacts import MANIFEST_FILE
from yue_cli.project import STAGES, Project
from yue_cli.resources import resource

GENRE = "slow folk"
SHORT = ["--preset", "demo", "--set", "stage1.min_new_tokens=8", "--set", "stage1.max_new_tokens=8"]
SEED = 7

pytestmark = pytest.mark.usefixtures("place")


@pytest.fixture(scope="session")
def finished_song(home, tmp_path_factory) -> Path:
    """A whole song, sung once."""
    folder = tmp_path_factory.mktemp("songs")
    (folder / "lyrics.txt").write_text(LYRICS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YUE_HOME", str(home))
        done("run", folder / "song", *SHORT, "--lyrics", folder / "lyrics.txt", "--genre", GENRE, "--seed", SEED)
    return folder / "song"


@pytest.fixture
def song(finished_song, place) -> Path:
    """A whole song of one's own."""
    return Path(shutil.copytree(finished_song, place / "song"))


def stored(song: Path) -> dict:
    return yaml.safe_load((song / "song.yaml").read_text())


def history(song: Path) -> list[str]:
    """List what was replaced, without the times."""
    return sorted(path.name.partition("-")[0] for path in song.glob("history/*"))


def is_within(before: dict, song: Path) -> bool:
    """Tell whether every stage of before is still there: in its place or whole in history."""
    places = [song / stage for stage in STAGES] + list(song.glob("history/*"))
    now = [contents(path) for path in places]
    return all(
        {name.removeprefix(f"{stage}/"): held for name, held in before.items() if name.startswith(f"{stage}/")} in now
        for stage in STAGES
    )


def interrupt_after_segment(monkeypatch, number: int) -> None:
    """Press Ctrl-C while the segment after this one is sung."""
    save = Project.save_segment

    def save_or_stop(project, record):
        if record.number > number:
            raise KeyboardInterrupt
        save(project, record)

    monkeypatch.setattr(Project, "save_segment", save_or_stop)


# What is printed where


def test_a_finished_run_answers_with_the_mix_and_tells_the_rest_on_stderr(place):
    outcome = done("run", "song", *SHORT, "--lyrics", "lyrics.txt", "--genre", GENRE, "--seed", SEED)
    assert outcome.out == f"{Path('song/audio/mix.wav')}\n"
    lines = outcome.err.splitlines()
    assert lines[0].startswith("preset   demo · ")
    assert [line for line in lines if line.startswith("stage 1  1/2 verse · 0.1 s of music · 8 tokens in ")]
    assert [line for line in lines if line.startswith("decode   0.2 s of music")]
    assert lines[-1].startswith("done     0:00 of music")
    assert lines[-1].endswith(f"seed {SEED}")


def test_the_same_request_makes_the_same_song(song, finished_song, place):
    done("run", "again", *SHORT, "--lyrics", "lyrics.txt", "--genre", GENRE, "--seed", SEED)
    names = [f"{stage}/{track}.npy" for stage in ("stage1", "stage2") for track in ("vocal", "instrumental")]
    names += [f"audio/{name}.wav" for name in ("vocal", "instrumental")]
    for name in names:
        if name.endswith("npy"):
            assert (place / "again" / name).read_bytes() == (finished_song / name).read_bytes(), name
    assert contents(place / "again").keys() == contents(finished_song).keys()


def test_running_again_says_that_everything_is_current_and_changes_nothing(song):
    before = contents(song)
    outcome = done("run", "song")
    assert outcome.out == f"{Path('song/audio/mix.wav')}\n"
    for title in ("stage 1", "stage 2", "decode "):
        assert f"{title}  is current: kept · 0.2 s of music\n" in outcome.err
    assert contents(song) == before


def test_quiet_leaves_only_the_answer(song):
    outcome = done("run", "song", "-q", "--set", "decode.limit=clip")
    assert (outcome.out, outcome.err) == (f"{Path('song/audio/mix.wav')}\n", "")


def test_quiet_still_tells_errors(song):
    assert refused("run", "song", "-q", "--set", "seeed=3").endswith("did you mean `seed`?")


def test_verbose_tells_where_each_setting_comes_from(song):
    told = done("run", "song", "-v", "--set", "execution.rows=2").err
    assert "setting  stage1.model = toy · preset demo\n" in told
    assert "setting  stage1.max_new_tokens = 8 · song.yaml\n" in told
    assert "setting  execution.rows = 2 · command line\n" in told


def test_a_finished_run_is_one_object_for_programs(song):
    answer = done("run", "song", "--json").answer
    assert answer["song"] == "song"
    assert answer["audio"] == {name: f"song/audio/{name}.wav" for name in ("mix", "vocal", "instrumental")}
    assert answer["seconds_of_music"] == 0.16
    assert answer["seed"] == SEED
    assert [(stage["name"], stage["state"]) for stage in answer["stages"]] == [(name, "current") for name in STAGES]
    assert [segment["section"] for segment in answer["segments"]] == ["verse", "chorus"]
    assert answer["peak_memory_bytes"] > 0
    assert any("it will be cut near" in warning for warning in answer["warnings"])


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_user_error_is_exit_code_1(flags):
    outcome = yue("run", "song", "--set", "seeed=3", *flags)
    assert outcome.code == 1
    message = "command line: unknown key `seeed`; did you mean `seed`?"
    if flags:
        assert outcome.answer == {"error": {"kind": "settings", "message": message, "exit_code": 1}}
        assert outcome.err == ""
    else:
        assert (outcome.out, outcome.err) == ("", f"error: {message}\n")


@pytest.mark.parametrize(
    "arguments", [["run", "--sead", "3"], ["stage1"], ["run", "song", "--segments", "two"], ["sing"], ["run", "a", "b"]]
)
def test_wrong_usage_is_exit_code_2_in_one_line(arguments):
    outcome = yue(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    error = yue(*arguments, "--json").answer["error"]
    assert (error["kind"], error["exit_code"]) == ("usage", 2)


def test_no_arguments_print_the_help():
    outcome = yue()
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("Usage: yue ")
    assert "Make a song from lyrics and genre" in outcome.out


@pytest.mark.parametrize("command", ["run", "stage1", "stage2", "decode", "demo", "lyrics", "status", "presets"])
def test_every_command_explains_itself(command):
    outcome = done(command, "--help")
    assert outcome.out.startswith(f"Usage: yue {command} ")
    assert outcome.err == ""


def test_the_version_is_printed():
    assert done("--version").out.startswith("yue 0.")


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
    save = Project.save_batch

    def save_or_stop(project, number, ids):
        if number == 1:
            raise KeyboardInterrupt
        save(project, number, ids)

    with monkeypatch.context() as patch:
        patch.setattr(Project, "save_batch", save_or_stop)
        outcome = yue("stage2", "song", "--set", "execution.rows=1")
    assert outcome.code == 130
    assert outcome.err.endswith("interrupted: 1 of 2 batches of stage 2 are kept. The same command goes on.\n")
    told = done("stage2", "song", "--set", "execution.rows=2").err
    assert "stage 2  1 of 2 batches are there · going on\n" in told
    assert done("status", "song", "--json").answer["stages"][1]["engine"]["rows"] == "1"
    assert np.load(song / "stage2" / "vocal.npy").shape == (8, 8)
    assert not (song / "stage2" / "batches").exists()


# Trying without doing


def planned(outcome: Outcome) -> list[str]:
    """Pick what is said of the stages, without what they need."""
    return [line for line in outcome.out.splitlines() if line.startswith(STAGES)]


def test_a_dry_run_of_a_new_song_makes_nothing(place):
    before = contents(place)
    outcome = done("run", "song", *SHORT, "--lyrics", "lyrics.txt", "--genre", GENRE, "--dry-run")
    assert planned(outcome) == [f"{stage:<8}would be made: missing (not made yet)" for stage in STAGES]
    assert contents(place) == before


def test_a_dry_run_says_what_would_be_made_anew_and_why(song):
    before = contents(song)
    assert planned(done("run", "song", "--dry-run", "--set", "stage2.tail=short")) == [
        "stage1  stays: current",
        "stage2  would be made: stale (stage2.tail was overlap, now short)",
        "audio   would be made: stale (stage2 is made anew)",
    ]
    assert contents(song) == before


def test_a_dry_run_is_one_object_for_programs(song):
    answer = done("run", "song", "--dry-run", "--json", "--set", "decode.limit=clip").answer
    assert [(stage["name"], stage["do"]) for stage in answer["stages"]] == [
        ("stage1", False),
        ("stage2", False),
        ("audio", True),
    ]


def test_a_forced_dry_run_says_that_all_would_be_made(song):
    before = contents(song)
    assert planned(done("run", "song", "--dry-run", "--force")) == [
        f"{stage:<8}would be made: stale (--force)" for stage in STAGES
    ]
    assert contents(song) == before


def test_a_dry_run_refuses_what_a_run_would_refuse(place):
    text = refused("run", "song", "--dry-run", "--lyrics", "lyrics.txt")
    assert text == "song has no genre.txt yet: give --genre."


# What is made anew


def test_a_changed_setting_redoes_from_that_stage_on_and_says_why_before(song):
    before = contents(song)
    told = done("run", "song", "--set", "stage2.tail=short").err.splitlines()
    why = "stage 2  is made anew: stage2.tail was overlap, now short; the old one is kept in history/"
    assert "stage 1  is current: kept · 0.2 s of music" in told
    assert told.index(why) < [line.startswith("stage 2  0.2 s") for line in told].index(True)
    assert "decode   is made anew: stage2 is made anew; the old one is kept in history/" in told
    assert history(song) == ["audio", "stage2"]
    assert is_within(before, song)
    assert stored(song)["overrides"]["stage2.tail"] == "short"
    assert "is current" in done("run", "song").err


def test_execution_settings_change_nothing(song):
    before = contents(song)
    words = ["--set", "execution.dtype=bfloat16", "--set", "execution.rows=1", "--device", "cpu", "--engine", "native"]
    assert done("run", "song", *words).err.count("is current: kept") == 3
    assert contents(song) == before


def test_a_new_preset_replaces_the_stored_one(song, place):
    (place / "mine.yaml").write_text(
        "stage1: {model: toy, max_new_tokens: 9, context: 4096}\nstage2: {model: toy}\ndecode: {codec: toy}\n"
    )
    told = done("run", "song", "--preset", "mine.yaml", "--dry-run").out
    assert told.startswith("stage1  would be made: stale (stage1.max_new_tokens was 8, now 9)")


def test_edited_lyrics_are_sung_again_from_the_first_section(song):
    (song / "lyrics.txt").write_text(LYRICS.replace("Come", "Go"))
    assert done("run", "song", "--dry-run").out.startswith("stage1  would be made: stale (the lyrics changed)")


def test_a_line_end_that_an_editor_adds_to_the_genre_changes_nothing(song):
    (song / "genre.txt").write_text(f"{GENRE}\n")
    assert done("status", "song").out.count(" current ") == 3
    assert done("run", "song", "--dry-run").out.count("stays: current") == 3


def test_forcing_keeps_the_old_in_history_and_draws_a_new_seed(song):
    before = contents(song)
    told = done("run", "song", "--force").err
    assert told.count("is made anew: --force; the old one is kept in history/") == 3
    assert history(song) == sorted(STAGES)
    assert is_within(before, song)
    assert stored(song)["seed"] != SEED
    assert "forced" not in stored(song)
    assert done("status", "song").out.count(" current ") == 3


@pytest.mark.parametrize("words", [["--seed", SEED], ["--set", f"seed={SEED}"]])
def test_forcing_with_a_seed_uses_that_one(song, words):
    before = {path.name: path.read_bytes() for path in song.glob("stage1/*.npy")}
    done("stage1", "song", "--force", *words)
    assert stored(song)["seed"] == SEED
    assert {path.name: path.read_bytes() for path in song.glob("stage1/*.npy")} == before
    assert history(song) == ["stage1"]


def test_forcing_one_stage_leaves_the_others(song):
    before = contents(song)
    assert done("decode", "song", "--force").out == f"{Path('song/audio/mix.wav')}\n"
    assert history(song) == ["audio"]
    assert {name: held for name, held in contents(song).items() if name.startswith("stage")} == {
        name: held for name, held in before.items() if name.startswith("stage")
    }
    assert stored(song)["seed"] == SEED


# Stages alone


def test_stages_alone_make_the_same_song_as_one_run(finished_song, place):
    answers = [
        done("stage1", "song", *SHORT, "--lyrics", "lyrics.txt", "--genre", GENRE, "--seed", SEED).out,
        done("stage2", "song").out,
        done("decode", "song").out,
    ]
    assert answers == ["song/stage1\n", "song/stage2\n", "song/audio/mix.wav\n"]
    for name in ("stage1/vocal.npy", "stage2/vocal.npy", "stage2/instrumental.npy", "song.yaml", "genre.txt"):
        assert (place / "song" / name).read_bytes() == (finished_song / name).read_bytes(), name
    assert done("run", "song").err.count("is current: kept") == 3


def test_a_stage_alone_makes_no_other(place):
    done("stage1", "song", *SHORT, "--lyrics", "lyrics.txt", "--genre", GENRE)
    assert sorted(path.name for path in (place / "song").iterdir() if path.is_dir()) == ["stage1"]


@pytest.mark.parametrize(("command", "before"), [("stage2", "stage1"), ("decode", "stage2")])
def test_a_stage_without_the_one_before_it_says_what_is_missing(place, command, before):
    (place / "song").mkdir()
    text = refused(command, "song", "--preset", "demo")
    assert text == f"song/{before}/vocal.npy: is missing; `yue {before} song` makes it."


@pytest.mark.parametrize("command", ["stage1", "stage2", "decode"])
def test_a_stage_of_no_song_says_how_one_is_made(place, command):
    assert refused(command, "song") == "song: there is no such folder. `yue run song` makes a song there."
    assert not (place / "song").exists()


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


# Tokens of others


@pytest.mark.parametrize(("stage", "dtype"), [("stage1", np.int64), ("stage2", np.uint32)])
def test_tokens_that_others_made_are_used_and_said_so(place, stage, dtype):
    folder = place / "song" / stage
    folder.mkdir(parents=True)
    for track in ("vocal", "instrumental"):
        np.save(folder / f"{track}.npy", np.arange(40, dtype=dtype).reshape(8, 5)[: 1 if stage == "stage1" else 8] * 9)
    before = contents(folder)
    outcome = done("run", "song", "--preset", "demo")
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
    text = refused("run", "song", "--preset", "demo", "--force")
    assert text == "song has no lyrics.txt or no genre.txt: give --lyrics and --genre."
    assert {name: held for name, held in contents(place).items() if "song/stage1" in name} == {
        name: held for name, held in before.items() if "song/stage1" in name
    }
    assert done("run", "song", "--dry-run", "--preset", "demo").out.startswith("stage1  stays: foreign")


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
    text = refused("run", "song", "--preset", "demo")
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


# Status


def test_status_changes_nothing_and_needs_no_right_to_write(finished_song):
    before = contents(finished_song)
    with refusing_folder(finished_song) as folder:
        rows = done("status", folder).out.splitlines()
        assert [row.split()[:2] for row in rows] == [[stage, "current"] for stage in STAGES]
        assert f"seed {SEED}" in rows[0]
        assert contents(folder) == before


def test_status_is_one_object_for_programs(song):
    answer = done("status", "song", "--json").answer
    assert (answer["song"], answer["seed"]) == ("song", SEED)
    stage1 = answer["stages"][0]
    assert (stage1["name"], stage1["state"], stage1["why"]) == ("stage1", "current", "")
    assert (stage1["seconds_of_music"], stage1["model"]["name"]) == (0.16, "toy")
    assert stage1["truncated"] == [1, 2]


def test_status_of_nothing_says_how_a_song_is_made(place):
    assert refused("status", "song") == "song: there is no such folder. `yue run song` makes a song there."


def test_status_of_a_folder_without_a_song_shows_that_all_is_missing(place):
    (place / "song").mkdir()
    assert [row.split()[:2] for row in done("status", "song").out.splitlines()] == [
        [stage, "missing"] for stage in STAGES
    ]
    assert contents(place / "song") == {}


def test_status_names_a_text_that_cannot_be_read(song):
    (song / "lyrics.txt").write_bytes(b"")
    assert refused("status", "song") == "song/lyrics.txt is empty. Write some text into it."


# Which folder


def start(*arguments: object, stdin: bytes = b"") -> str:
    """Begin a song that cannot end for want of a model, and tell which folder was taken."""
    before = {path.name for path in Path().glob("song-*")}
    text = refused("run", *arguments, "--set", "stage1.model=nowhere", stdin=stdin)
    assert text.startswith("stage1.model: there is no folder nowhere")
    [taken] = {path.name for path in Path().glob("song-*")} - before or {""}
    return taken


def test_songs_without_a_folder_are_numbered_and_an_unfinished_one_is_taken_up_again(place, song):
    words = ["--lyrics", "lyrics.txt", "--genre", GENRE]
    assert start(*words) == "song-001"
    assert start(*words) == "", "the same request goes on in song-001"
    assert start("--lyrics", "lyrics.txt", "--genre", "rock") == "song-002"
    assert start(*words, "--seed", "12") == "song-003"
    shutil.copytree(song, place / "song-009")
    assert start("--lyrics", "lyrics.txt", "--genre", "jazz") == "song-010"


def test_a_finished_song_is_not_taken_up_again(place, finished_song):
    shutil.copytree(finished_song, place / "song-001")
    shutil.rmtree(place / "song-001" / "stage2")
    assert start(*SHORT, "--lyrics", "lyrics.txt", "--genre", GENRE) == "song-002"


def test_a_song_that_cannot_be_read_does_not_keep_a_new_one_from_its_folder(place):
    (place / "song-001").mkdir()
    (place / "song-001" / "song.yaml").write_text("format: yue-song\nversion: 99\n")
    assert start("--lyrics", "lyrics.txt", "--genre", GENRE) == "song-002"


def test_run_alone_goes_on_with_the_unfinished_song(place):
    start("--lyrics", "lyrics.txt", "--genre", GENRE)
    seed = stored(place / "song-001")["seed"]
    assert start() == ""
    assert stored(place / "song-001")["seed"] == seed


def test_run_alone_with_no_song_asks_for_words(place):
    assert refused("run") == "song-001 has no lyrics.txt yet: give --lyrics."
    assert not (place / "song-001").exists()


# Texts


def test_a_genre_is_words_unless_it_looks_like_a_file(place):
    (place / "texts").mkdir()
    (place / "texts" / "genre").write_text("from a file\n")
    (place / "genre.txt").write_text("\ufefffrom a text file\r\n", encoding="utf-8")
    (place / "pop").write_text("a file with a word for a name")
    for source, expected in [
        ("pop", "pop"),
        (" pop, soft ", "pop, soft"),
        ("~dreamy~ pop", "~dreamy~ pop"),
        ("texts/genre", "from a file"),
        ("genre.txt", "from a text file"),
    ]:
        taken = start("--lyrics", "lyrics.txt", "--genre", source)
        assert (place / taken / "genre.txt").read_text() == expected


@pytest.mark.parametrize("source", ["none.txt", "hip/hop"])
def test_a_genre_that_looks_like_a_file_must_be_one(source):
    text = refused("run", "song", "--lyrics", "lyrics.txt", "--genre", source)
    assert text == f"--genre {source}: cannot be read (No such file or directory)."


@pytest.mark.parametrize("genre", ["", "  "])
def test_an_empty_genre_is_refused(place, genre):
    assert refused("run", "song", "--lyrics", "lyrics.txt", "--genre", genre).startswith("--genre is empty. ")
    assert not (place / "song").exists()


def test_lyrics_may_come_from_standard_input(place):
    taken = start("--lyrics", "-", "--genre", GENRE, stdin=b"\xef\xbb\xbf[verse]\r\nH\xc3\xa4\r\n")
    assert (place / taken / "lyrics.txt").read_text(encoding="utf-8") == "[verse]\nHä\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no tag\nat all\n", "bad.txt has no section tag. Put each part under a line such as [verse] or [chorus]"),
        (b"", "bad.txt is empty."),
        (b" \n\n", "bad.txt is empty."),
        (b"[verse]\nla\0la", "bad.txt: not a text file (a zero at byte 10)."),
        (b"[verse]\nl\xe4", "bad.txt: not UTF-8 text (byte 0xe4 in line 2). Save it as UTF-8."),
        ("[verse]\nla".encode("utf-16"), "bad.txt: expected UTF-8 text, found UTF-16. Save it as UTF-8."),
    ],
)
def test_lyrics_that_cannot_be_sung_are_refused_before_anything_is_made(place, content, said):
    (place / "bad.txt").write_bytes(content)
    before = contents(place)
    assert refused("run", "song", "--lyrics", "bad.txt", "--genre", GENRE).startswith(said)
    assert refused("run", "song", "--lyrics", "-", "--genre", GENRE, stdin=content).startswith(
        said.replace("bad.txt", "standard input")
    )
    assert contents(place) == before


def test_lyrics_that_are_not_there_are_told(place):
    assert refused("run", "song", "--lyrics", "none.txt", "--genre", GENRE) == (
        "--lyrics none.txt: cannot be read (No such file or directory)."
    )


def test_bad_lyrics_change_nothing_in_a_song(song, place):
    (place / "bad.txt").write_text("no tag")
    before = contents(song)
    assert refused("run", "song", "--lyrics", "bad.txt").startswith("bad.txt has no section tag")
    assert contents(song) == before


# Settings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "stage1.temprature=1"], "command line: unknown key `stage1.temprature`; did you mean"),
        (["--set", "stage1.temperature=0"], "command line: `stage1.temperature` is 0.0; expected a value from"),
        (["--set", "temperature"], "--set temperature: expected KEY=VALUE"),
        (["--format", "aac"], "command line: `decode.format` is 'aac'; expected one of wav, flac, ogg, mp3."),
        (["--segments", "0"], "command line: `segments` is 0; expected a value from 1 to"),
        (["--seed", "-1"], "command line: `seed` is -1; expected a value from 0 to"),
        (["--preset", "24gigs"], "there is no preset `24gigs`; known presets: "),
        (["--preset", "none.yaml"], "none.yaml: there is no such preset file."),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_changes(song, words, said):
    before = contents(song)
    assert refused("run", "song", *words).startswith(said)
    assert contents(song) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "gpu"], "execution.device is `gpu`; expected auto, cpu, cuda or cuda:N."),
        (["--device", "cuda:99"], ""),
        (["--engine", "magic"], "magic"),
    ],
)
def test_a_device_or_engine_that_is_not_there_is_told(song, words, said):
    stages = {name: held for name, held in contents(song).items() if name.startswith(STAGES)}
    assert said in refused("run", "song", *words, "--set", "stage1.top_p=0.5")
    assert {name: held for name, held in contents(song).items() if name.startswith(STAGES)} == stages
    assert history(song) == []


# Models


@pytest.fixture
def broken_toy(home, finished_song, place) -> Path:
    """A copy of the toy to break a file of."""
    [toy] = home.glob("toy-*")
    return Path(shutil.copytree(toy, place / "broken", copy_function=os.link))


def replace_tensors(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def no_norm(tensors) -> None:
    """no tensor model.norm.weight"""
    del tensors["model.norm.weight"]


def short_norm(tensors) -> None:
    """model.norm.weight"""
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:5]


def short_window(tensors) -> None:
    """head.istft.window"""
    tensors["head.istft.window"] = tensors["head.istft.window"][:5]


@pytest.mark.parametrize(
    ("key", "name", "change"),
    [
        ("stage1.model", "stage1/config.json", None),
        ("stage1.model", "stage1/model.safetensors", None),
        ("stage1.model", "stage1/tokenizer.model", None),
        ("stage1.model", "stage1/model.safetensors", no_norm),
        ("stage1.model", "stage1/model.safetensors", short_norm),
        ("stage2.model", "stage2/config.json", None),
        ("stage2.model", "stage2/model.safetensors", no_norm),
        ("decode.codec", "codec/config.json", None),
        ("decode.codec", "codec/vocal.safetensors", None),
        ("decode.codec", "codec/vocal.safetensors", short_window),
    ],
)
def test_a_broken_model_is_told_by_its_file_and_no_stage_is_lost(song, broken_toy, key, name, change):
    if change is None:
        (broken_toy / name).unlink()
    else:
        replace_tensors(broken_toy / name, change)
    before = {file: held for file, held in contents(song).items() if file.startswith(STAGES)}
    text = refused("run", "song", "--set", f"{key}=broken")
    folder, _, file = name.partition("/")
    assert text.startswith(f"broken/{folder}")
    assert (file if change is None else change.__doc__) in text.replace("model*", "model")
    after = {file: held for file, held in contents(song).items() if file.startswith(STAGES)}
    assert after == before
    assert history(song) == []
    assert done("run", "song", "--set", f"{key}=toy").err.count("is current: kept") == 3


def test_the_path_of_a_model_holds_from_any_folder(song, broken_toy, place, monkeypatch):
    done("decode", "song", "--model", "./broken")
    assert stored(song)["overrides"]["decode.codec"] == str(broken_toy)
    (place / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert done("run", "../song").err.count("is current: kept") == 3
    done("decode", "../song", "--force")


def test_without_a_model_the_command_that_fetches_it_is_told(place, monkeypatch):
    monkeypatch.setenv("YUE_HOME", str(place / "nowhere"))
    text = refused("run", "song", "--lyrics", "lyrics.txt", "--genre", GENRE)
    assert text == (
        "en-cot, s2 and codec are not on this machine, and offline nothing is fetched: `yue models pull en-cot s2 "
        "codec`, with a network, fetches them. `yue demo` tries the tool without a model."
    )
    assert not (place / "nowhere").exists()


# Folders that make trouble


def test_two_runs_on_one_folder_do_not_meet(song):
    before = contents(song)
    with Project(song).locked():
        text = refused("run", "song", "--set", "stage2.tail=short")
        assert text.startswith(f"song is in use by another yue (process {os.getpid()}, since ")
        assert done("status", "song").out.count(" current ") == 3, "looking is free"
    assert contents(song) == before


@pytest.mark.parametrize("stage", STAGES)
def test_a_manifest_of_a_newer_yue_is_not_touched(song, stage):
    path = song / stage / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 9}))
    before = contents(song)
    said = f"song/{stage}/manifest.json: has version 9; this yue reads version 1. Update yue to use this song."
    for command in (["run", "song"], ["run", "song", "--force"], ["status", "song"], ["run", "song", "--dry-run"]):
        assert refused(*command) == said
        assert contents(song) == before


def test_a_song_of_a_newer_yue_is_not_touched(song):
    (song / "song.yaml").write_text("format: yue-song\nversion: 2\n")
    before = contents(song)
    assert "expected yue-song version 1, found yue-song version 2." in refused("run", "song")
    assert contents(song) == before


def test_a_file_in_place_of_the_folder_is_told(place):
    (place / "song").write_bytes(b"x")
    text = refused("run", "song", "--lyrics", "lyrics.txt", "--genre", GENRE)
    assert text == "song: is a file; a song needs a folder. Choose another name."


def test_a_folder_that_may_not_be_written_is_told_and_nothing_changes(finished_song):
    with refusing_folder(finished_song) as folder:
        before = contents(folder)
        text = refused("run", folder, "--set", "stage2.tail=short")
        assert contents(folder) == before
    assert text.startswith(f"{folder}")
    assert text.endswith("cannot be written (Permission denied). Choose a folder you may write to.")


def test_a_new_song_in_a_folder_that_may_not_be_written_is_told():
    with refusing_folder() as folder:
        text = refused("run", folder / "song", "--lyrics", "-", "--genre", GENRE, stdin=LYRICS.encode())
    assert text == f"{folder / 'song'}: cannot be written (Permission denied). Choose a folder you may write to."


def test_a_folder_that_may_not_even_be_looked_into_is_told():
    with refusing_folder(mode=0o000) as folder:
        for command in (["run", folder / "song"], ["status", folder / "song"], ["presets", folder / "x.yaml"]):
            assert "Permission denied" in refused(*command)


@pytest.mark.parametrize("words", [["run", "x" * 300], ["status", "x" * 300], ["presets", "x" * 300]])
def test_a_name_that_is_too_long_is_told(words):
    assert refused(*words) == f"{'x' * 300}: File name too long."


@pytest.mark.parametrize("free_pages", [0, 1, 3, 12])
def test_a_full_disk_loses_nothing_and_the_same_command_goes_on(finished_song, free_pages):
    with small_disk(kilobytes=512) as disk:
        song = Path(shutil.copytree(finished_song, disk / "song"))
        (disk / "spare").write_bytes(bytes(4096 * free_pages))
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        (disk / "spare").unlink()
        before = contents(song)
        text = refused("run", song, "--set", "stage2.tail=short")
        assert text.startswith("no space left for ")
        assert is_within(before, song)
        assert not [name for name in contents(song) if Path(name).name.startswith(".writing-")]
        (disk / "filler").unlink()
        done("run", song, "--set", "stage2.tail=short")
        assert is_within(before, song)
        assert done("status", song).out.count(" current ") == 3


# Looking at lyrics and presets


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_letters_that_a_terminal_lacks_end_no_command(place, flags):
    Path("lyrics.txt").write_text("[verse]\n海の歌\n", encoding="utf-8")
    command = [sys.executable, "-m", "yue_cli", "lyrics", "lyrics.txt", *flags]
    run = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=True)
    assert b"\\u6d77" in run.stdout
    assert not flags or json.loads(run.stdout)["sections"][0]["text"] == "海の歌"


def test_lyrics_are_shown_as_they_are_read(place):
    outcome = done("lyrics", "lyrics.txt")
    rows = outcome.out.splitlines()
    assert [row.split()[:2] for row in rows[:2]] == [["1", "verse"], ["2", "chorus"]]
    assert rows[2] == "2 sections · 4 words · about 2 s"
    answer = done("lyrics", "-", "--json", stdin=b"[hook]\nOne [x] two\n").answer
    [section] = answer["sections"]
    assert (section["tag"], section["written_tag"], section["line"]) == ("chorus", "hook", 1)


def test_lyrics_that_cannot_be_sung_are_refused_when_looked_at(place):
    (place / "bad.txt").write_text("no tag")
    assert refused("lyrics", "bad.txt").startswith("bad.txt has no section tag")


def test_presets_are_listed_and_shown(place):
    rows = done("presets").out.splitlines()
    assert [row.split()[0] for row in rows] == sorted(path.stem for path in resource("configs").glob("*.yaml"))
    shown = done("presets", "demo").out
    assert ["stage1.model", "toy", "(this", "preset)"] in [row.split() for row in shown.splitlines()]
    assert done("presets", "original", "--json").answer["settings"]["seed"] == 42
    assert "demo" in done("presets", "--json").answer["presets"]
    assert refused("presets", "nonsense").startswith("there is no preset `nonsense`")
