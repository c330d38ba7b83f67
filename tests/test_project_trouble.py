"""A song's folder in trouble: a full disk, a lock, and what an interruption leaves."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.folders import contents, refusing_folder, small_disk
from tests.library import begin_windows, make_song, record, state
from yue_cli import project as projects
from yue_cli.errors import ProjectInUseError, StorageError
from yue_cli.project import SEATS_FILE, Project


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


def lock_and_release(project: Project) -> None:
    """Let the next run mend what an interruption left."""
    with project.locked():
        pass


# A disk that is full, a folder that refuses


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5])
def test_a_write_that_fails_anywhere_leaves_the_old_stage_or_the_new_one(song, monkeypatch, number, calls):
    before = contents(song.root)
    fsync, left = os.fsync, [calls]

    def fail_at_last(handle):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(number, os.strerror(number))
        fsync(handle)

    ids_path, _ = song.segment_files(1)
    monkeypatch.setattr(os, "fsync", fail_at_last)
    failed = False
    try:
        song.begin("stage1", {"segments/001.npy": ids_path, "segments/001.json": b"{}"})
    except StorageError as error:
        failed = True
        assert str(song.root) in str(error)
    monkeypatch.undo()
    assert failed == (left[0] <= 0)
    lock_and_release(song)
    after = contents(song.root)
    assert not [name for name in after if Path(name).name.startswith(".")]
    if (song.root / "history").exists():
        [kept] = (song.root / "history").iterdir()
        assert contents(kept) == {
            name.removeprefix("stage1/"): held for name, held in before.items() if name.startswith("stage1/")
        }
        assert contents(song.folder("stage1")).keys() == {"segments", "segments/001.npy", "segments/001.json"}
    else:
        assert after == before


def test_a_full_disk_keeps_the_segments_that_are_finished():
    with small_disk(kilobytes=256) as disk:
        project = Project(disk / "song")
        project.create()
        project.save_segment(record(1))
        before = contents(project.root)
        (disk / "filler").write_bytes(bytes(200_000))
        large = record(2)
        with pytest.raises(StorageError, match=r"^no space left for .*002\.npy"):
            project.save_segment(large.__class__(2, np.zeros(50_000, np.int32), "key", "chorus", 7, False))
        assert contents(project.root) == before
        (disk / "filler").unlink()
        assert [found.number for found in project.segments()] == [1]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    with refusing_folder() as folder:
        with pytest.raises(StorageError) as refused:
            Project(folder / "song").create()
        assert contents(folder) == {}
    assert str(refused.value) == (
        f"{folder / 'song'}: cannot be written (Permission denied). Choose a folder you may write to."
    )


def test_a_folder_that_cannot_be_locked_is_told():
    with refusing_folder() as folder:
        with pytest.raises(StorageError) as refused:
            lock_and_release(Project(folder))
        assert list(folder.iterdir()) == []
    assert str(refused.value).startswith(str(folder))
    assert "Permission denied" in str(refused.value)


def test_a_file_is_no_song(tmp_path):
    (tmp_path / "song").write_bytes(b"x")
    with pytest.raises(StorageError) as refused:
        Project(tmp_path / "song").create()
    assert str(refused.value) == f"{tmp_path / 'song'}: is a file; a song needs a folder. Choose another name."


# The lock

HOLD = """
import sys
from pathlib import Path
from yue_cli.project import Project
with Project(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_works_on_the_folder_and_since_when(song):
    before = contents(song.root)
    command = [sys.executable, "-c", HOLD, str(song.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        (song.folder("stage1") / ".writing-x").write_bytes(b"half")  # what the other one may be writing
        with pytest.raises(ProjectInUseError) as refused:
            lock_and_release(song)
        assert (song.folder("stage1") / ".writing-x").exists(), "only the owner may tidy up"
        other.communicate("")
    since = str(refused.value).removesuffix(").")[-5:]
    time.strptime(since, "%H:%M")
    assert str(refused.value) == f"{song.root} is in use by another yue (process {other.pid}, since {since})."
    lock_and_release(song)
    assert contents(song.root) == before


def test_a_killed_process_leaves_the_folder_free(song):
    command = [sys.executable, "-c", HOLD, str(song.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        other.kill()
    lock_and_release(song)
    assert seen(song, "stage1") == ("current", "")


def test_the_lock_is_given_back_after_a_failure(song):
    with pytest.raises(RuntimeError, match="fails within"), song.locked():
        raise RuntimeError("fails within")
    lock_and_release(song)
    assert not (song.root / ".lock.owner").exists()


def test_an_unreadable_owner_does_not_hide_that_the_folder_is_in_use(song):
    with song.locked():
        for content in ("", "[]", '{"process": 1}'):
            (song.root / ".lock.owner").write_text(content)
            with pytest.raises(ProjectInUseError) as refused:
                lock_and_release(Project(song.root))
            assert str(refused.value) == f"{song.root} is in use by another yue."


# What an interruption leaves


def test_a_folder_that_was_being_filled_is_thrown_away(song):
    before = contents(song.root)
    (song.root / ".stage1.building" / "segments").mkdir(parents=True)
    (song.root / ".stage1.building" / "segments" / "001.npy").write_bytes(b"half")
    lock_and_release(song)
    assert contents(song.root) == before


def test_a_new_folder_that_was_whole_takes_the_place_of_the_old_one(song):
    old = contents(song.folder("stage1"))
    new = song.root / ".stage1.new" / "segments"
    new.mkdir(parents=True)
    (new / "001.npy").write_bytes(b"ids")
    lock_and_release(song)
    [kept] = (song.root / "history").iterdir()
    assert contents(kept) == old
    assert contents(song.folder("stage1")) == {"segments": None, "segments/001.npy": b"ids"}
    assert not new.exists()


def test_a_new_folder_whose_old_one_is_in_history_already_takes_its_place(song):
    old = contents(song.folder("stage2"))
    archived = song.archive("stage2")
    (song.root / ".stage2.new" / "windows").mkdir(parents=True)
    (song.root / ".stage2.new" / SEATS_FILE).write_bytes(b"{}")
    lock_and_release(song)
    assert contents(archived) == old
    assert list((song.root / "history").iterdir()) == [archived]
    assert contents(song.folder("stage2")) == {"windows": None, SEATS_FILE: b"{}"}


def test_half_written_files_are_swept_up_everywhere(song):
    before = contents(song.root)
    for place in (song.root, song.folder("stage1"), song.folder("stage1") / "segments", song.folder("audio")):
        (place / ".writing-ab12.npy").write_bytes(b"half")
    lock_and_release(song)
    assert contents(song.root) == before


def test_windows_and_seats_left_beside_a_manifest_are_dropped(song):
    before = contents(song.root)
    windows = song.folder("stage2") / "windows"
    windows.mkdir()
    (windows / "000.npy").write_bytes(b"x")
    for stage in ("stage1", "stage2"):
        (song.folder(stage) / SEATS_FILE).write_bytes(b"{}")
    lock_and_release(song)
    assert contents(song.root) == before


def test_windows_without_a_manifest_stay(project):
    begin_windows(project)
    project.save_windows({0: np.ones((3, 8), np.int32)})
    before = contents(project.root)
    lock_and_release(project)
    assert contents(project.root) == before


@pytest.mark.parametrize("step", range(1, 9))
def test_begin_may_be_killed_at_any_step_and_loses_nothing(song, monkeypatch, step):
    """Fail for good at the n-th change on disk, without any tidying, as a kill would; then let the next run mend it."""
    old = contents(song.folder("stage1"))
    others = {name: held for name, held in contents(song.root).items() if not name.startswith("stage1")}
    left = [step]

    class Killed(BaseException):
        pass

    def dying(function):
        def call(*given, **named):
            left[0] -= 1
            if left[0] <= 0:
                raise Killed
            return function(*given, **named)

        return call

    for name in ("mkdir", "rename", "unlink", "replace"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))
    monkeypatch.setattr(projects.shutil, "rmtree", dying(projects.shutil.rmtree))
    ended = True
    try:
        song.begin("stage1", {"segments/001.npy": b"ids"})
    except Killed:
        ended = False
    monkeypatch.undo()
    lock_and_release(song)
    found = contents(song.root)
    now = contents(song.folder("stage1"))
    history = list((song.root / "history").iterdir()) if (song.root / "history").exists() else []
    whole = [contents(folder) for folder in history]
    assert now == old or (now == {"segments": None, "segments/001.npy": b"ids"} and whole == [old])
    assert ended <= (now != old)
    assert {name: held for name, held in found.items() if not name.startswith(("stage1", "history"))} == others


def test_a_reference_that_was_whole_takes_its_place_after_a_kill(project):
    ready = project.root / ".reference.new"
    ready.mkdir(parents=True)
    (ready / "vocal.npy").write_bytes(b"new codes")
    (project.root / ".reference.building").mkdir()
    with project.locked():
        assert (project.folder("reference") / "vocal.npy").read_bytes() == b"new codes"
    assert not list(project.root.glob(".reference*"))
