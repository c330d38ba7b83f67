"""Write a file or a folder whole or not at all. Knows nothing of what is written."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from yue_cli.errors import StorageError

TEMPORARY_PREFIX = ".writing-"


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, bring it to disk, then put it in place.

    A crash or a full disk leaves what was at `path` before. Raises StorageError.
    """
    with storage_errors(path):
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o666 & ~_umask())
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically. Raises StorageError."""
    write_atomic(path, lambda temporary: _fill(temporary, content))


def sync_folder(folder: Path) -> None:
    """Bring a folder's own entries to disk, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a refused write into a StorageError that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free_mb = shutil.disk_usage(_existing(path)).free // 10**6
            raise StorageError(
                f"no space left for {path} ({free_mb} MB free). What was finished before is kept; "
                "free some space and run the same command again."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"{path}: cannot be written ({error.strerror}). Choose a folder you may write to."
            ) from error
        raise StorageError(f"{path}: {error.strerror or error}.") from error


def _fill(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def make_folder(final: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` fill a fresh folder, which appears as `final` when it is whole.

    Another process may be faster; then its folder stays. Raises StorageError.
    """
    with storage_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
        try:
            fill(building)
            building.chmod(0o755)
            try:
                building.rename(final)
            except OSError:
                if not final.is_dir():
                    raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
