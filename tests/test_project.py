"""A song's folder: what its stages hold, what an interruption leaves, who may work on it."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.folders import contents, refusing_folder, small_disk
from tests.library import begin_windows, make_song, make_stage, record, state, tokens
from yue_cli import project as projects
from yue_cli.artifacts import MANIFEST_FILE, Manifest, write_array, write_tokens
from yue_cli.errors import ArtifactError, ProjectInUseError, StorageError
from yue_cli.project import SEATS_FILE, STAGES, Project, encode_seats


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


# Segments, seats and windows


def test_segments_come_back_in_order_as_they_were_saved(project):
    for number in (1, 2):
        project.save_segment(record(number, key=f"key {number}", truncated=number == 2))
    found = project.segments()
    assert [(each.number, each.key, each.section, each.seed, each.truncated) for each in found] == [
        (1, "key 1", "verse", 7, False),
        (2, "key 2", "verse", 7, True),
    ]
    assert [each.ids.tolist() for each in found] == [[3, 1, 514], [3, 2, 514]]
    assert {each.ids.dtype for each in found} == {np.dtype(np.int32)}


def test_segments_end_at_the_first_gap(project):
    for number in (1, 2, 4):
        project.save_segment(record(number))
    assert [each.number for each in project.segments()] == [1, 2]


def test_a_segment_without_its_facts_is_not_there(project):
    project.save_segment(record(1))
    project.segment_files(1)[1].unlink()
    assert project.segments() == []


def test_the_ids_of_a_segment_are_on_disk_before_its_facts(project, monkeypatch):
    order = []
    write = projects.write_json
    monkeypatch.setattr(
        projects,
        "write_json",
        lambda path, content: (order.append(path.with_suffix(".npy").exists()), write(path, content)),
    )
    project.save_segment(record(1))
    assert order == [True]


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda ids, facts: ids.unlink(), r"001\.npy: is missing; remove its \.json too"),
        (lambda ids, facts: ids.write_bytes(ids.read_bytes()[:40]), r"001\.npy: is truncated or damaged"),
        (
            lambda ids, facts: np.save(ids, np.zeros((2, 2), np.int32)),
            r"001\.npy: expected int32 \[m\], found int32 \[2, 2\]",
        ),
        (lambda ids, facts: np.save(ids, np.zeros(0, np.int32)), r"001\.npy: expected int32 \[m\], found int32 \[0\]"),
        (lambda ids, facts: facts.write_text("{"), r"001\.json: cannot be read"),
        (lambda ids, facts: facts.write_text('{"format": "yue-segment", "version": 2}'), r"001\.json: has version 2"),
        (
            lambda ids, facts: facts.write_text('{"format": "yue-segment", "version": 1}'),
            r"001\.json: a key is missing",
        ),
    ],
)
def test_a_damaged_segment_is_told_and_never_guessed_at(project, break_it, said):
    project.save_segment(record(1))
    break_it(*project.segment_files(1))
    with pytest.raises(ArtifactError, match=said) as refused:
        project.segments()
    assert "\n" not in str(refused.value)


def test_seats_come_back_while_their_key_holds(project):
    seats = begin_windows(project)
    assert project.seats("stage2", "key") == seats
    assert project.seats("stage2", "another key") is None
    assert project.seats("stage1") is None
    project.save_seats("stage2", encode_seats(seats[:2], "key"))
    assert project.seats("stage2", "key") == seats[:2]


def test_windows_come_back_by_number_and_neighbours_share_a_file(project):
    begin_windows(project)
    project.save_windows({number: np.full((3, 8), number, np.int32) for number in (12, 0, 1, 2)})
    project.save_windows({3: np.full((5, 8), 3, np.int32)})
    found = project.windows()
    assert {number: int(ids[0, 0]) for number, ids in found.items()} == {number: number for number in (0, 1, 2, 3, 12)}
    assert (found[2].shape, found[3].shape) == ((3, 8), (5, 8))
    files = sorted(path.name for path in (project.folder("stage2") / "windows").iterdir())
    assert files == ["000.npy", "003.npy", "012.npy"]


def test_windows_of_nothing_are_none(project):
    assert project.windows() == {}


def test_a_damaged_window_says_that_it_may_be_removed(project):
    begin_windows(project)
    project.save_windows({0: np.zeros((1, 8), np.int32)})
    write_array(project.folder("stage2") / "windows" / "000.npy", np.zeros((1, 1, 8)))
    with pytest.raises(
        ArtifactError, match=r"000\.npy: expected integers, .*; remove it, and yue decodes its windows again\.$"
    ):
        project.windows()


@pytest.mark.parametrize("text", ["{", '{"format": "yue-seats", "version": 1, "key": "key"}'])
def test_damaged_seats_are_told(project, text):
    begin_windows(project)
    (project.folder("stage2") / SEATS_FILE).write_text(text)
    with pytest.raises(ArtifactError, match=r"seats\.json: "):
        project.seats("stage2", "key")


# The codes of reference audio


def test_a_reference_of_one_track_is_hashed_as_such(project):
    assert project.hashes("reference") is None
    folder = project.begin("reference", {"vocal.npy": b"codes"})
    assert project.hashes("reference").keys() == {"reference/vocal.npy"}
    (folder / "instrumental.npy").write_bytes(b"codes")
    assert project.hashes("reference").keys() == {"reference/vocal.npy", "reference/instrumental.npy"}


def test_a_reference_that_was_whole_takes_its_place_after_a_kill(project):
    ready = project.root / ".reference.new"
    ready.mkdir(parents=True)
    (ready / "vocal.npy").write_bytes(b"new codes")
    (project.root / ".reference.building").mkdir()
    with project.locked():
        assert (project.folder("reference") / "vocal.npy").read_bytes() == b"new codes"
    assert not list(project.root.glob(".reference*"))
