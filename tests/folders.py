"""What lies in a folder, and folders that make trouble: a disk that is full, a place that refuses writing."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534


def contents(folder: Path) -> dict[str, bytes | None]:
    """List every file below a folder with its bytes, every folder with None; the lock is left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if not path.name.startswith(".lock")
    }


@contextmanager
def small_disk(kilobytes: int) -> Iterator[Path]:
    """Mount a disk of this size for a while; the test is skipped where that is not allowed."""
    folder = Path(tempfile.mkdtemp(prefix="yue-disk-"))
    options = f"size={kilobytes}k"
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
    )
    try:
        if not mounted or mounted.returncode != 0:
            pytest.skip("a small disk cannot be mounted here")
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    finally:
        folder.rmdir()


@contextmanager
def refusing_folder(copy_of: Path | None = None, mode: int = 0o555) -> Iterator[Path]:
    """Make a folder that this process may read but not write. Root may write anywhere, so it steps down meanwhile."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs a system with user ids")
    folder = Path(tempfile.mkdtemp(prefix="yue-refusing-"))
    if copy_of is not None:
        shutil.copytree(copy_of, folder, dirs_exist_ok=True)
    folder.chmod(mode)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(NOBODY)
        yield folder
    finally:
        if user == 0:
            os.seteuid(user)
        folder.chmod(0o755)
        shutil.rmtree(folder)
