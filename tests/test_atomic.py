"""Atomic writing: whole or not at all, whatever the disk does."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.folders import contents, refusing_folder, small_disk
from yue_cli.atomic import TEMPORARY_PREFIX, make_folder, storage_errors, write_atomic, write_bytes
from yue_cli.errors import StorageError


def failing(number: int):
    """Make a function that fails as the system does."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def test_what_is_written_replaces_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_bytes(path, b"first")
    write_bytes(path, b"second")
    assert contents(tmp_path) == {"a.txt": b"second"}


def test_a_written_file_has_the_rights_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a.txt", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.wav"
    seen = []

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        seen.append((path.exists(), temporary.parent, temporary.suffix, temporary.name[: len(TEMPORARY_PREFIX)]))
        temporary.write_bytes(b"whole")

    write_atomic(path, write)
    assert seen == [(False, tmp_path, ".wav", TEMPORARY_PREFIX)]
    assert contents(tmp_path) == {"a.wav": b"whole"}


def test_content_is_on_disk_before_the_name_and_the_name_before_it_is_told(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), fsync(handle)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (order.append("replace"), replace(self, target))[1])
    write_bytes(tmp_path / "a.txt", b"x")
    assert order == ["sync", "replace", "sync"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_leaves_what_was_there_and_says_so(tmp_path, monkeypatch, name, number):
    path = tmp_path / "a.txt"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, name, failing(number))
    with pytest.raises(StorageError) as refused:
        write_bytes(path, b"after")
    monkeypatch.undo()
    assert contents(tmp_path) == {"a.txt": b"before"}
    assert str(refused.value).startswith(f"no space left for {path} (")
    assert str(refused.value).endswith(
        " MB free). What was finished before is kept; free some space and run the same command again."
    )


def test_a_disk_that_fills_up_while_writing_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"before")

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        failing(errno.ENOSPC)()

    with pytest.raises(StorageError, match=r"^no space left for "):
        write_atomic(path, write)
    assert contents(tmp_path) == {"a.txt": b"before"}


def test_a_disk_that_is_really_full_leaves_what_was_there():
    with small_disk(kilobytes=64) as disk:
        path = disk / "a.npy"
        write_bytes(path, b"before")
        with pytest.raises(StorageError, match=r"^no space left for .*a\.npy \(0 MB free\)"):
            write_bytes(path, bytes(100_000))
        assert contents(disk) == {"a.npy": b"before"}


def test_an_interruption_while_writing_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"before")

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, write)
    assert contents(tmp_path) == {"a.txt": b"before"}


def test_a_folder_that_refuses_writing_is_told():
    with refusing_folder() as folder:
        with pytest.raises(StorageError) as refused:
            write_bytes(folder / "a.txt", b"x")
        assert contents(folder) == {}
    expected = f"{folder / 'a.txt'}: cannot be written (Permission denied). Choose a folder you may write to."
    assert str(refused.value) == expected


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EROFS, "cannot be written (Read-only file system). Choose a folder you may write to."),
        (errno.EPERM, "cannot be written (Operation not permitted). Choose a folder you may write to."),
        (errno.EIO, "Input/output error."),
    ],
)
def test_every_other_refusal_names_the_file_too(tmp_path, monkeypatch, number, said):
    monkeypatch.setattr(os, "open", failing(number))
    with pytest.raises(StorageError) as refused:
        write_bytes(tmp_path / "a.txt", b"x")
    monkeypatch.undo()
    assert str(refused.value) == f"{tmp_path / 'a.txt'}: {said}"
    assert contents(tmp_path) == {}


def test_a_missing_folder_is_told_by_the_file_that_was_wanted(tmp_path):
    path = tmp_path / "gone" / "deep" / "a.txt"
    with pytest.raises(StorageError) as refused:
        write_bytes(path, b"x")
    assert str(refused.value) == f"{path}: No such file or directory."


def test_free_space_is_told_for_a_folder_that_is_not_there_yet(tmp_path):
    with (
        pytest.raises(StorageError, match=r"^no space left for .*deep.* \(\d+ MB free\)"),
        storage_errors(tmp_path / "x" / "deep"),
    ):
        failing(errno.ENOSPC)()


def test_other_mistakes_keep_their_own_name(tmp_path):
    def write(temporary: Path) -> None:
        raise ValueError("not about the disk")

    with pytest.raises(ValueError, match="not about the disk"):
        write_atomic(tmp_path / "a.txt", write)
    assert contents(tmp_path) == {}


def test_a_folder_appears_when_it_is_whole(tmp_path):
    def fail(building):
        (building / "half").write_text("…")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        make_folder(tmp_path / "home/made", fail)
    assert list((tmp_path / "home").iterdir()) == []
    make_folder(tmp_path / "home/made", lambda building: (building / "whole").touch())
    assert [path.name for path in (tmp_path / "home").rglob("*")] == ["made", "whole"]


def test_a_folder_that_another_process_made_meanwhile_stays(tmp_path):
    def fill(building):
        (building / "ours").touch()
        (tmp_path / "made").mkdir()
        (tmp_path / "made/theirs").touch()

    make_folder(tmp_path / "made", fill)
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "theirs"]
