"""Tokens of YuE and YuE-exllamav2 become a project's: found by their names, checked, told apart, nothing lost."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import done, refused
from tests.folders import contents
from tests.library import make_song
from yue_cli import foreign
from yue_cli.artifacts import read_tokens
from yue_cli.errors import ArtifactError
from yue_cli.project import Project
from yue_cli.song import Song, read_song, write_song

LONG = "slow-folk_tp0@93_T1@0_rp1@1_maxtk3000_a0e45c3f-4f6e-9d2d"
OTHER = "pop-rock_tp0@93_T1@0_rp1@1_maxtk200_b1f56d40-5a7f-8e3e"
FRAMES = 30

pytestmark = pytest.mark.usefixtures("place")


def codes(seed: int, frames: int = FRAMES) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1024, (8, frames), dtype=np.uint32)


def write_theirs(tree: Path, name: str = "", seed: int = 1, stages=("stage1", "stage2")) -> None:
    """Write a song as the published programs do: uint32, both tracks, a long name or none."""
    prefix = f"{name}_" if name else ""
    for stage in stages:
        (tree / stage).mkdir(parents=True, exist_ok=True)
        for number, ending in enumerate(("vtrack", "itrack")):
            own = codes(seed + number)
            np.save(tree / stage / f"{prefix}{ending}.npy", own[:1] if stage == "stage1" else own)


def change(path: Path, array: np.ndarray) -> None:
    path.unlink()
    np.save(path, array)


def rows(folder: Path) -> list[list[str]]:
    return [row.split(maxsplit=2) for row in done("status", folder).out.splitlines()]


# What is brought


@pytest.mark.parametrize("name", ["", LONG])
def test_both_stages_of_either_program_become_a_song(place, name):
    write_theirs(place / "out", name)
    outcome = done("import", "out", "song")
    assert outcome.out == "song\n"
    prefix = f"{name}_" if name else ""
    assert outcome.err.splitlines() == [
        f"stage 1  0.6 s of music · from out/stage1/{prefix}vtrack.npy",
        f"stage 2  0.6 s of music · from out/stage2/{prefix}vtrack.npy",
        "next     `yue decode song`",
    ]
    for stage, count in (("stage1", 1), ("stage2", 8)):
        stored = np.load(place / "song" / stage / "vocal.npy")
        assert stored.dtype == np.int16
        assert (stored == codes(1)[:count]).all()
        assert (np.load(place / "song" / stage / "instrumental.npy") == codes(2)[:count]).all()


def test_status_says_where_tokens_came_from_and_stages_go_on_from_them(place):
    write_theirs(place / "out", LONG)
    done("import", "out/stage1", "song")
    assert rows("song") == [
        ["stage1", "foreign", f"brought from {place / 'out' / 'stage1'}"],
        ["stage2", "missing", "not made yet"],
        ["audio", "missing", "not made yet"],
    ]
    before = contents(place / "song" / "stage1")
    told = done("stage2", "song", "--preset", "toy").err
    done("decode", "song")
    assert "stage 1" not in told
    assert "its tokens were brought from" in done("run", "song").err
    assert [row[:2] for row in rows("song")] == [["stage1", "foreign"], ["stage2", "current"], ["audio", "current"]]
    assert contents(place / "song" / "stage1") == before


def test_finished_tokens_need_only_decoding(place):
    write_theirs(place / "out")
    done("import", "out", "song")
    before = contents(place / "song" / "stage2")
    assert done("decode", "song", "--preset", "toy").out == "song/audio/mix.wav\n"
    assert contents(place / "song" / "stage2") == before


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_folder_with_one_pair_is_a_source_whatever_its_name(place, stage):
    write_theirs(place / "out", stages=[stage])
    (place / "out" / stage).rename(place / "mine")
    done("import", "mine", "song")
    assert [path.name for path in (place / "song").iterdir() if path.is_dir()] == [stage]


def test_the_answer_for_programs_lists_stages_and_files(place):
    write_theirs(place / "out", LONG)
    answer = done("import", "out", "song", "--json").answer
    assert (answer["song"], answer["name"], answer["warnings"]) == ("song", LONG, [])
    first = answer["stages"][0]
    assert (first["name"], first["frames"], first["seconds_of_music"], first["replaced"]) == ("stage1", 30, 0.6, False)
    assert first["files"]["instrumental"] == f"out/stage1/{LONG}_itrack.npy"


def test_quiet_leaves_the_answer(place):
    write_theirs(place / "out")
    outcome = done("import", "out", "song", "-q")
    assert (outcome.out, outcome.err) == ("song\n", "")


# Which song


def test_several_songs_are_listed_and_chosen_by_a_part_of_the_name(place):
    write_theirs(place / "out", LONG)
    write_theirs(place / "out", OTHER, seed=7)
    assert refused("import", "out", "song") == f"out: holds 2 songs; choose one by --name PART: {OTHER}, {LONG}."
    assert not (place / "song").exists()
    done("import", "out", "song", "--name", "Pop-Rock")
    assert (np.load(place / "song" / "stage2" / "vocal.npy") == codes(7)).all()


def test_a_part_of_several_names_or_of_none_lists_them(place):
    for number in range(8):
        write_theirs(place / "out", f"take-{number}", stages=["stage1"])
    names = ", ".join(f"take-{number}" for number in range(6))
    text = refused("import", "out", "song", "--name", "take")
    assert text == f"out: holds 8 songs with `take` in their names; choose one by --name PART: {names} and 2 more."
    text = refused("import", "out", "song", "--name", "jazz")
    assert text == f"out: no song has `jazz` in its name; there is {names} and 2 more."


def test_a_whole_name_wins_over_longer_ones(place):
    write_theirs(place / "out", "take", stages=["stage1"])
    write_theirs(place / "out", "take-2", seed=9, stages=["stage1"])
    done("import", "out", "song", "--name", "take")
    assert (np.load(place / "song" / "stage1" / "vocal.npy") == codes(1)[:1]).all()


def test_a_song_without_a_name_is_called_vtrack(place):
    write_theirs(place / "out")
    write_theirs(place / "out", "take", seed=9)
    assert refused("import", "out", "song").endswith("by --name PART: take, vtrack.")
    done("import", "out", "song", "--name", "vtrack")


# What is there already


def test_a_stage_that_is_there_goes_to_history(place):
    make_song(Project(place / "song"))
    before = contents(place / "song")
    write_theirs(place / "out")
    told = done("import", "out", "song").err
    assert told.count("the old one is kept in history/") == 2
    kept = {path.name.partition("-")[0]: contents(path) for path in (place / "song" / "history").iterdir()}
    for stage in ("stage1", "stage2"):
        assert kept[stage] == {
            name.removeprefix(f"{stage}/"): held for name, held in before.items() if name.startswith(f"{stage}/")
        }
    assert [row[:2] for row in rows("song")] == [["stage1", "foreign"], ["stage2", "foreign"], ["audio", "stale"]]


def test_a_stage_2_of_other_tokens_goes_to_history_with_a_word(place):
    write_theirs(place / "out")
    write_theirs(place / "other", seed=9)
    done("import", "out", "song")
    told = done("import", "other/stage1", "song").err
    assert "warning  the stage 2 in song was of other tokens: it is kept in history/\n" in told
    assert [row[:2] for row in rows("song")][:2] == [["stage1", "foreign"], ["stage2", "missing"]]


def test_stages_that_belong_together_may_be_brought_one_after_the_other(place):
    write_theirs(place / "out")
    for stage in ("stage2", "stage1"):
        assert "warning" not in done("import", f"out/{stage}", "song").err
    assert "warning" not in done("import", "out/stage2", "song").err
    assert [row[:2] for row in rows("song")][:2] == [["stage1", "foreign"], ["stage2", "foreign"]]


def test_a_stage_1_of_another_song_stays_with_a_word(place):
    write_theirs(place / "out")
    write_theirs(place / "other", seed=9)
    done("import", "out/stage1", "song")
    told = done("import", "other/stage2", "song").err
    assert "warning  the stage 1 in song is of other tokens than this stage 2; it stays\n" in told
    assert (np.load(place / "song" / "stage1" / "vocal.npy") == codes(1)[:1]).all()


def test_what_was_to_be_made_anew_is_answered_by_what_is_brought(place):
    (place / "song").mkdir()
    write_song(place / "song", Song(seed=7, forced=("stage1", "stage2", "audio")))
    write_theirs(place / "out")
    done("import", "out", "song")
    assert read_song(place / "song") == Song(seed=7)


def test_nothing_of_theirs_is_changed(place):
    write_theirs(place / "out", LONG)
    before = contents(place / "out")
    done("import", "out", "song")
    assert contents(place / "out") == before


# What is left out


def test_half_a_stage_is_left_out_with_a_word(place):
    write_theirs(place / "out")
    (place / "out" / "stage2" / "itrack.npy").unlink()
    answer = done("import", "out", "song", "--json").answer
    assert [stage["name"] for stage in answer["stages"]] == ["stage1"]
    assert answer["warnings"] == ["out/stage2/itrack.npy is missing, so vtrack.npy is left out: both tracks are needed"]


def test_stages_of_two_songs_under_one_name_are_told(place):
    write_theirs(place / "out", stages=["stage1"])
    write_theirs(place / "out", seed=9, stages=["stage2"])
    told = done("import", "out", "song").err
    assert "warning  the first codebook of stage 2 is not what stage 1 holds: they may be of two songs\n" in told


# What is refused


def test_a_source_without_songs_is_refused(place):
    (place / "empty").mkdir()
    (place / "out" / "stage1").mkdir(parents=True)
    expected = "expected the output folder of YuE or of YuE-exllamav2."
    names = "expected vtrack.npy and itrack.npy, or names that end so, in stage1/ and stage2/."
    assert refused("import", "nowhere", "song") == f"nowhere: there is no such folder; {expected}"
    assert refused("import", "lyrics.txt", "song") == f"lyrics.txt: is a file; {expected}"
    assert refused("import", "empty", "song") == f"empty: no token files in it; {names}"
    assert refused("import", "out", "song") == f"out: no token files in stage1/; {names}"
    assert not (place / "song").exists()


def test_one_track_alone_is_refused(place):
    write_theirs(place / "out", LONG, stages=["stage1"])
    (place / "out" / "stage1" / f"{LONG}_vtrack.npy").unlink()
    assert refused("import", "out", "song") == (
        f"out/stage1/{LONG}_vtrack.npy is missing, so {LONG}_itrack.npy is left out: both tracks are needed."
    )


@pytest.mark.parametrize(
    ("stage", "value", "remedy"),
    [
        ("stage1", 47152, "stage 1 left its codebook, so these are no codes of a song; sing it again."),
        ("stage2", 1024, "bring stage 1 alone, by its folder, and `yue stage2` fills in the rest."),
    ],
)
def test_codes_out_of_range_are_refused_with_row_frame_and_count(place, stage, value, remedy):
    write_theirs(place / "out")
    path = place / "out" / stage / "itrack.npy"
    wrong = np.load(path)
    wrong[-1, [5, 9]] = value
    change(path, wrong)
    row = len(wrong) - 1
    assert refused("import", "out", "song") == (
        f"out/{stage}/itrack.npy: 2 codes are outside 0..1023, the first is {value} in row {row} at frame 5; {remedy}"
    )
    assert not (place / "song").exists()


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((1, FRAMES), np.float32), "expected integers, found float32 [1, 30]"),
        (np.zeros((8, FRAMES), np.uint32), "expected codes [1, T], found uint32 [8, 30]"),
        (np.zeros(FRAMES, np.uint32), "expected codes [1, T], found uint32 [30]"),
        (np.zeros((1, 0), np.uint32), "expected codes [1, T], found uint32 [1, 0]"),
    ],
)
def test_files_that_hold_no_codes_are_refused(place, array, found):
    write_theirs(place / "out", stages=["stage1"])
    change(place / "out" / "stage1" / "vtrack.npy", array)
    text = refused("import", "out", "song")
    assert text == f"out/stage1/vtrack.npy: {found}; it was not written by YuE or YuE-exllamav2."


def test_a_pair_of_a_strange_number_of_rows_is_refused(place):
    (place / "mine").mkdir()
    for ending in ("vtrack", "itrack"):
        np.save(place / "mine" / f"{ending}.npy", codes(1)[:3])
    text = refused("import", "mine", "song")
    assert text.startswith("mine/vtrack.npy: expected codes [1, T] or [8, T], found uint32 [3, 30]; ")


def test_tracks_of_two_lengths_are_refused(place):
    write_theirs(place / "out", stages=["stage1"])
    change(place / "out" / "stage1" / "itrack.npy", codes(2, 20)[:1])
    assert refused("import", "out", "song") == (
        "out/stage1: the tracks differ in length: vtrack.npy has 30 frames, itrack.npy has 20; "
        "they are not of one song."
    )


def test_a_file_that_is_no_array_is_refused(place):
    write_theirs(place / "out", stages=["stage1"])
    (place / "out" / "stage1" / "vtrack.npy").write_bytes(b"version https://git-lfs")
    text = refused("import", "out", "song")
    assert text == "out/stage1/vtrack.npy: is not a .npy file; it was not written by YuE or YuE-exllamav2."


def test_the_source_itself_is_no_song_folder(place):
    write_theirs(place / "out")
    before = contents(place / "out")
    assert refused("import", "out", "./out") == "out: is SOURCE itself; name another folder for the song."
    assert contents(place / "out") == before


def test_a_song_of_a_newer_yue_is_not_touched(place):
    (place / "song").mkdir()
    (place / "song" / "song.yaml").write_text("format: yue-song\nversion: 9\n")
    write_theirs(place / "out")
    before = contents(place / "song")
    assert "Update yue to use this song." in refused("import", "out", "song")
    assert contents(place / "song") == before


def test_a_word_on_the_origin_of_a_newer_yue_is_told(place):
    write_theirs(place / "out")
    done("import", "out", "song")
    origin = place / "song" / "stage1" / "origin.json"
    origin.write_text(json.dumps(json.loads(origin.read_text()) | {"version": 2}))
    assert refused("status", "song").startswith("song/stage1/origin.json: has version 2; this yue reads version 1.")


# The module alone


def test_an_import_that_is_killed_leaves_the_old_stage_or_the_new_one(place, monkeypatch):
    """The files are gathered beside the stage, then take its place whole."""
    project = Project(place / "song")
    make_song(project)
    before = contents(place / "song" / "stage1")
    write_theirs(place / "out")
    stages, _ = foreign.read_song(foreign.choose(foreign.find_songs(place / "out"), None, place / "out"))
    with monkeypatch.context() as patch:
        patch.setattr(Project, "_put_in_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            foreign.take_in(project, stages[0])
    assert contents(place / "song" / "stage1") == before
    with project.locked():
        assert (read_tokens(project.folder("stage1"), 1, "").vocal == codes(1)[:1]).all()
    [kept] = (place / "song" / "history").iterdir()
    assert contents(kept) == before


def test_songs_are_found_in_the_order_of_their_names(place):
    write_theirs(place / "out", OTHER)
    write_theirs(place / "out", LONG)
    shutil.rmtree(place / "out" / "stage2")
    songs = foreign.find_songs(place / "out")
    assert [song.name for song in songs] == [OTHER, LONG]
    with pytest.raises(ArtifactError, match="holds 2 songs;"):
        foreign.choose(songs, None, place / "out")
