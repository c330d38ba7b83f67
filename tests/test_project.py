"""A song's folder: what its stages hold, and how a stage is written."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from tests.folders import contents
from tests.library import begin_windows, make_song, make_stage, record, state, tokens
from yue_cli.artifacts import MANIFEST_FILE, Manifest, write_tokens
from yue_cli.errors import ArtifactError
from yue_cli.project import STAGES, Project


@pytest.fixture
def project(tmp_path) -> Project:
    """An empty song's folder."""
    found = Project(tmp_path / "song")
    found.create()
    return found


@pytest.fixture(scope="module")
def finished_song(tmp_path_factory) -> Path:
    """A whole song to be copied."""
    root = tmp_path_factory.mktemp("songs") / "song"
    make_song(Project(root))
    return root


@pytest.fixture
def song(finished_song, tmp_path) -> Project:
    """A whole song of one's own."""
    return Project(Path(shutil.copytree(finished_song, tmp_path / "song")))


def seen(project: Project, stage: str, **changes) -> tuple[str, str]:
    found = state(project, stage, **changes)
    return found.state, found.why


# States


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_not_there_is_missing(project, stage):
    assert seen(project, stage) == ("missing", "not made yet")
    project.folder(stage).mkdir()
    assert seen(project, stage) == ("missing", "not made yet")


@pytest.mark.parametrize("stage", STAGES)
def test_a_whole_stage_is_current_while_nothing_changes(song, stage):
    found = state(song, stage)
    assert (found.state, found.why, found.is_usable) == ("current", "", True)
    assert found.manifest.stage == stage


def test_a_stage_without_manifest_but_with_finished_parts_is_unfinished(project):
    project.save_segment(record(1))
    begin_windows(project)
    assert seen(project, "stage1") == ("unfinished", "the run that made it did not end")
    assert seen(project, "stage2") == ("unfinished", "the run that made it did not end")
    assert not state(project, "stage1").is_usable


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_tokens_without_manifest_and_parts_are_foreign_and_used(project, stage):
    project.folder(stage).mkdir()
    write_tokens(project.folder(stage), tokens(stage))
    assert seen(project, stage) == ("foreign", "not written by this yue")
    assert state(project, stage).is_usable


def test_sound_without_manifest_is_made_anew(project):
    project.folder("audio").mkdir()
    (project.folder("audio") / "mix.wav").write_bytes(b"x")
    assert seen(project, "audio")[0] == "missing"


def test_a_changed_setting_makes_a_stage_stale_and_is_named_with_both_values(song):
    assert seen(song, "stage1", seed="8") == ("stale", "seed was 7, now 8")
    assert seen(song, "stage2", stage2__tail="short") == ("stale", "stage2.tail was overlap, now short")
    assert not state(song, "stage1", seed="8").is_usable


def test_every_changed_setting_is_named(song):
    assert seen(song, "stage1", seed="8", rules="exl2")[1] == "rules was yue, now exl2, seed was 7, now 8"


def test_a_setting_that_is_new_or_gone_is_named_as_unset(song):
    assert seen(song, "stage2", stage2__model="mine")[1] == "stage2.model was unset, now mine"
    assert song.state("stage2", {}, song.hashes("stage1")).why == "stage2.tail was overlap, now unset"


def test_texts_are_told_as_changed_and_not_by_their_hashes(project):
    make_stage(project, "stage1", recipe={"lyrics": "a" * 64, "genre": "b" * 64})
    found = project.state("stage1", {"lyrics": "c" * 64, "genre": "d" * 64}, {})
    assert (found.state, found.why) == ("stale", "the genre changed, the lyrics changed")


def test_what_is_not_known_now_is_not_compared(song):
    assert seen(song, "stage1", seed=None) == ("current", "")


def test_tokens_made_anew_before_it_make_a_stage_stale(song):
    make_stage(song, "stage1", value=9)
    assert seen(song, "stage2") == ("stale", "made from other tokens than are there now")
    assert seen(song, "audio") == ("current", "")


def test_tokens_removed_before_it_make_a_stage_stale(song):
    (song.folder("stage1") / "vocal.npy").unlink()
    assert song.hashes("stage1") is None
    assert seen(song, "stage1") == ("stale", "vocal.npy was removed")
    assert seen(song, "stage2") == ("stale", "made from other tokens than are there now")


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_edited_tokens_are_kept_and_told_even_when_settings_change(song, stage):
    path = song.folder(stage) / "vocal.npy"
    codes = np.load(path)
    codes[0, 0] = 77
    np.save(path, codes)
    assert seen(song, stage) == ("edited", "vocal.npy changed since yue wrote it")
    assert state(song, stage).is_usable
    name, now = ("seed", "8") if stage == "stage1" else ("stage2__tail", "short")
    found = seen(song, stage, **{name: now})
    assert found[0] == "edited"
    assert found[1].startswith("vocal.npy changed since yue wrote it; ")


def test_edited_sound_is_kept_until_something_changes(song):
    (song.folder("audio") / "mix.wav").write_bytes(b"mastered")
    assert seen(song, "audio") == ("edited", "mix.wav changed since yue wrote it")
    assert seen(song, "audio", decode__format="flac")[0] == "stale"


def test_removed_sound_is_made_anew(song):
    (song.folder("audio") / "vocal.wav").unlink()
    assert seen(song, "audio") == ("stale", "vocal.wav was removed")


def test_a_manifest_from_a_newer_yue_is_not_guessed_at(song):
    path = song.folder("stage2") / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(ArtifactError, match=r"has version 2; this yue reads version 1\. Update yue"):
        state(song, "stage2")


# Writing a stage


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_made_anew_goes_whole_into_history(song, stage):
    before = contents(song.folder(stage))
    make_stage(song, stage, value=9)
    [kept] = (song.root / "history").iterdir()
    assert kept.name.startswith(f"{stage}-2")
    assert contents(kept) == before
    assert contents(song.folder(stage)) != before
    assert seen(song, stage) == ("current", "")


def test_history_never_overwrites(song, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "2026-11-22T20-14-05")
    kept = [contents(song.folder("stage1"))]
    for value in (6, 7, 8):
        make_stage(song, "stage1", value)
        kept.append(contents(song.folder("stage1")))
    names = [f"stage1-2026-11-22T20-14-05{suffix}" for suffix in ("", "-2", "-3")]
    assert sorted(path.name for path in (song.root / "history").iterdir()) == names
    assert [contents(song.root / "history" / name) for name in names] == kept[:-1]


def test_an_empty_folder_is_no_history(project):
    (project.folder("stage1") / "segments").mkdir(parents=True)
    project.begin("stage1")
    assert contents(project.root) == {"stage1": None}


def test_a_new_folder_may_start_with_files_of_the_old_one(song):
    ids_path, facts_path = song.segment_files(1)
    ids = ids_path.read_bytes()
    song.begin("stage1", {f"segments/{ids_path.name}": ids_path, f"segments/{facts_path.name}": b"{}"})
    assert contents(song.folder("stage1")) == {"segments": None, "segments/001.npy": ids, "segments/001.json": b"{}"}


def test_raw_arrays_that_cannot_be_tokens_are_kept_each_time(project):
    array = np.array([[5000]], np.uint32)
    folders = [project.keep_raw("stage2", {"vocal": array}) for _ in range(2)]
    assert folders[0] != folders[1]
    for folder in folders:
        assert folder.parent == project.root / "history"
        assert np.load(folder / "vocal.npy").tolist() == [[5000]]


def test_finishing_a_stage_drops_its_half_way_files_after_the_manifest(project, monkeypatch):
    begin_windows(project)
    project.save_windows({0: np.zeros((3, 8), np.int32)})
    order = []
    write, drop = Manifest.write, Project._drop_half_way
    monkeypatch.setattr(Manifest, "write", lambda *given: (order.append("manifest"), write(*given)))
    monkeypatch.setattr(Project, "_drop_half_way", lambda *given: (order.append("drop"), drop(*given)))
    project.finish("stage2", Manifest("stage2", {}, {}, {}, 1.0, 1.0))
    assert order == ["manifest", "drop"]
    assert contents(project.folder("stage2")).keys() == {MANIFEST_FILE}
