"""The command line from end to end with the toy: exit codes, what is printed where, what is made and kept."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import yue_cli.pipeline  # noqa: F401  loaded once, before a test gives up its rights
from tests.command_line import GENRE, LYRICS, SEED, SHORT, done, history, is_within, planned, refused, stored, yue
from tests.folders import contents, refusing_folder
from yue_cli.artifacts import MANIFEST_FILE
from yue_cli.project import STAGES, Project

pytestmark = pytest.mark.usefixtures("place")


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
