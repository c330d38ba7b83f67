"""The command line from end to end with the toy: exit codes, what is printed where, what is made and kept."""

from pathlib import Path

import pytest

import yue_cli.pipeline  # noqa: F401  loaded once, before a test gives up its rights
from tests.command_line import GENRE, LYRICS, SEED, SHORT, done, history, is_within, planned, refused, stored, yue
from tests.folders import contents, refusing_folder
from yue_cli.project import STAGES

pytestmark = pytest.mark.usefixtures("place")


# What is printed where


def test_a_finished_run_answers_with_the_mix_and_tells_the_rest_on_stderr(place):
    outcome = done("run", "song", *SHORT, "--lyrics", "lyrics.txt", "--genre", GENRE, "--seed", SEED)
    assert outcome.out == f"{Path('song/audio/mix.wav')}\n"
    lines = outcome.err.splitlines()
    assert lines[0].startswith("preset   toy · ")
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
    assert "setting  stage1.model = toy · preset toy\n" in told
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
    "arguments",
    [["run", "--sead", "3"], ["stage1"], ["run", "song", "--segments", "two"], ["sing"], ["run", "a", "--takes", "0"]],
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


# Trying without doing


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


def test_where_a_faster_way_cannot_be_taken_it_is_said(song, monkeypatch):
    assert "steps:" not in done("stage2", "song", "--force").err
    monkeypatch.setattr("yue_cli.engines.native.engine.NativeEngine.falls_back", True)
    assert "stage 2  steps: one operation after the other\n" in done("stage2", "song", "--force").err


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
    text = refused(command, "song", "--preset", "toy")
    assert text == f"song/{before}/vocal.npy: is missing; `yue {before} song` makes it."


@pytest.mark.parametrize("command", ["stage1", "stage2", "decode"])
def test_a_stage_of_no_song_says_how_one_is_made(place, command):
    assert refused(command, "song") == "song: there is no such folder. `yue run song` makes a song there."
    assert not (place / "song").exists()


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
