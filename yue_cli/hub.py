"""Repositories on the Hugging Face hub, and its cache on this machine. The only user of huggingface_hub.

The cache is huggingface_hub's own, in its own layout, and so are the variables that steer it: HF_HOME, HF_TOKEN,
HF_HUB_OFFLINE, HF_ENDPOINT. What this file adds: a download that goes on after a kill, sizes before it begins, and the
SHA-256 of every large file.
"""

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from yue_cli.atomic import storage_errors
from yue_cli.errors import DownloadError
from yue_cli.events import Emit, Finished, Progress
from yue_cli.models import Source

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PIECE = 2**24  # bytes read at once
_STUB_BYTES = 200  # git-lfs leaves about 133 where a file should be


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository; `sha256` is known of large ones."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Offer:
    """What the hub has at a revision, which is now a commit."""

    source: Source
    commit: str
    files: tuple[RemoteFile, ...]

    def only(self, names: Sequence[str]) -> "Offer":
        """Leave out all other files."""
        return Offer(self.source, self.commit, tuple(file for file in self.files if file.path in names))


class Hub:
    """The hub, and the cache that was filled from it.

    cache, endpoint: None for what huggingface_hub's variables say. offline: nothing is asked of the network.
    """

    def __init__(self, cache: Path | None = None, endpoint: str | None = None, offline: bool = False) -> None:
        from huggingface_hub import constants
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()  # its remarks would go between our lines
        self.cache = Path(cache or constants.HF_HUB_CACHE)
        self.endpoint = endpoint or constants.ENDPOINT
        self.offline = offline or constants.is_offline_mode()

    # What is here

    def snapshot(self, source: Source) -> tuple[Path, str] | None:
        """Find a revision's folder in the cache, whole or not, and its commit."""
        repository = self._repository(source)
        commit = source.revision
        if not _COMMIT.fullmatch(commit):
            try:
                commit = (repository / "refs" / source.revision).read_text(encoding="ascii").strip()
            except (OSError, ValueError):
                return None
        folder = repository / "snapshots" / commit
        return (folder, commit) if _COMMIT.fullmatch(commit) and folder.is_dir() else None

    def bytes_here(self, source: Source) -> int:
        """Add up what the cache holds of a revision, half downloaded files of its repository too."""
        found = self.snapshot(source)
        files = list(self._repository(source).glob("blobs/*.incomplete"))
        if found is not None:
            files += [path for path in found[0].rglob("*") if path.is_file()]
        return sum(map(_size, files))

    def remove(self, source: Source) -> int:
        """Take a revision, and what was downloaded of it by half, out of the cache. Returns the bytes set free."""
        from huggingface_hub import scan_cache_dir

        freed = 0
        repository = self._repository(source)
        for leftover in repository.glob("blobs/*.incomplete"):
            freed += leftover.stat().st_size
            leftover.unlink()
        found = self.snapshot(source)
        if found is not None:
            strategy = scan_cache_dir(self.cache).delete_revisions(found[1])
            freed += strategy.expected_freed_size
            strategy.execute()
        return freed

    def _repository(self, source: Source) -> Path:
        return self.cache / f"models--{source.repository.replace('/', '--')}"

    # What is there

    def look(self, source: Source) -> Offer:
        """Ask the hub for a revision's commit and files. Raises DownloadError."""
        from huggingface_hub import HfApi

        with self._explained(source):
            info = HfApi(endpoint=self.endpoint).model_info(
                source.repository, revision=source.revision, files_metadata=True
            )
        if info.sha is None or info.siblings is None:
            raise DownloadError(f"{self.endpoint} tells nothing of {source.repository}; is it a hub?")
        files = [
            RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None) for file in info.siblings
        ]
        for file in files:
            known = source.digests.get(file.path)
            if known is not None and file.sha256 is not None and file.sha256 != known:
                raise DownloadError(
                    f"{source.repository}/{file.path}: the hub has SHA-256 {file.sha256[:12]}…, expected "
                    f"{known[:12]}…; it is not the published file. Nothing was downloaded."
                )
        return Offer(source, info.sha, tuple(files))

    def to_fetch(self, offer: Offer) -> int:
        """Count the bytes that are still to be downloaded."""
        return sum(file.size - self._fetched(offer, file) for file in self._missing(offer))

    def fetch(self, offer: Offer, emit: Emit) -> Path:
        """Download what is not here yet and check it. Returns the folder. Raises DownloadError, StorageError."""
        folder = self._repository(offer.source) / "snapshots" / offer.commit
        missing = self._missing(offer)
        total = sum(file.size for file in missing)
        began, label, before, wanted = time.perf_counter(), offer.source.name, 0, self.to_fetch(offer)
        for number, file in enumerate(missing, start=1):
            said = f"{label} {number} of {len(missing)} files" if len(missing) > 1 else label

            def tell(done: int, said: str = said, before: int = before) -> None:
                emit(Progress("download", said, before + done, total, "bytes"))

            tell(self._fetched(offer, file))

            def check(done: int, said: str = said, size: int = file.size) -> None:
                emit(Progress("check", said, done, size, "bytes"))

            with storage_errors(folder), self._explained(offer.source):
                if file.sha256 is not None:
                    self._fetch_large(offer, file, tell, check)
                self._link(offer, file)
            before += file.size
        self._remember(offer)
        if missing:
            emit(Finished("download", label, wanted, "bytes", time.perf_counter() - began))
        return folder

    def _fetch_large(
        self, offer: Offer, file: RemoteFile, tell: Callable[[int], None], check: Callable[[int], None]
    ) -> None:
        """Bring a file into the cache's blobs, going on with what an earlier attempt left.

        tell, check: are told how many bytes are here, and how many of them are hashed.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        assert file.sha256 is not None
        blob = self._blob(offer, file)
        if blob.exists():
            return
        partial = self._partial(offer, file)
        partial.parent.mkdir(parents=True, exist_ok=True)
        if _size(partial) > file.size:
            partial.unlink()
        url = hf_hub_url(offer.source.repository, file.path, revision=offer.commit, endpoint=self.endpoint)
        with partial.open("ab") as target:
            http_get(
                url,
                cast(BinaryIO, _Told(target, tell)),
                resume_size=target.tell(),
                headers=build_hf_headers() | {"Accept-Encoding": "identity"},
                expected_size=file.size,
                displayed_filename=file.path,
                tqdm_class=_NoBar,
            )
        found = sha256(partial, check)
        wanted = offer.source.digests.get(file.path, file.sha256)
        if found != wanted:
            partial.unlink()
            raise DownloadError(
                f"{offer.source.repository}/{file.path}: wrong hash, SHA-256 {found[:12]}…, expected {wanted[:12]}…. "
                f"The file was removed; `{offer.source.command}` fetches it again."
            )
        partial.replace(blob)

    def _link(self, offer: Offer, file: RemoteFile) -> None:
        """Let huggingface_hub put a file into the snapshot; it downloads only what is no blob yet."""
        from huggingface_hub import hf_hub_download

        hf_hub_download(
            offer.source.repository,
            file.path,
            revision=offer.commit,
            cache_dir=self.cache,
            endpoint=self.endpoint,
            tqdm_class=_NoBar,
        )

    def _remember(self, offer: Offer) -> None:
        """Note which commit a branch or tag was, as huggingface_hub does, so that it is found without the network."""
        if _COMMIT.fullmatch(offer.source.revision):
            return
        reference = self._repository(offer.source) / "refs" / offer.source.revision
        with storage_errors(reference):
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(offer.commit, encoding="ascii")

    def _blob(self, offer: Offer, file: RemoteFile) -> Path:
        return self._repository(offer.source) / "blobs" / (file.sha256 or "")

    def _partial(self, offer: Offer, file: RemoteFile) -> Path:
        return self._repository(offer.source) / "blobs" / f"{file.sha256}.incomplete"

    def _missing(self, offer: Offer) -> list[RemoteFile]:
        folder = self._repository(offer.source) / "snapshots" / offer.commit
        return [file for file in offer.files if not (folder / file.path).exists()]

    def _fetched(self, offer: Offer, file: RemoteFile) -> int:
        """Count the bytes of a file that an interrupted download left."""
        if file.sha256 is None:
            return 0
        return min(file.size, _size(self._blob(offer, file)) or _size(self._partial(offer, file)))

    @contextmanager
    def _explained(self, source: Source) -> Iterator[None]:
        """Turn what the hub or the network refuses into one line."""
        from huggingface_hub import errors

        if self.offline:
            raise DownloadError(f"{source.name} is not on this machine, and offline nothing is fetched.")
        place = f"{source.repository} at {source.revision[:12]}"
        try:
            yield
        except errors.GatedRepoError as error:
            raise DownloadError(
                f"{source.repository} is gated: accept its terms on {self.endpoint}/{source.repository} and set "
                "HF_TOKEN."
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise DownloadError(
                f"{source.repository}: there is no such model on {self.endpoint}, or it is private and needs HF_TOKEN; "
                "nor is there such a folder here."
            ) from error
        except errors.RevisionNotFoundError as error:
            raise DownloadError(f"{source.repository} has no revision `{source.revision}`.") from error
        except errors.RemoteEntryNotFoundError as error:
            raise DownloadError(f"{place}: a file that it lists is not there.") from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            remedy = {
                401: "set HF_TOKEN to a token that may read it",
                403: "set HF_TOKEN to a token that may read it",
                429: "wait a while and run the same command again",
            }.get(status, "run the same command again later")
            raise DownloadError(f"{self.endpoint} answered {status} for {place}; {remedy}.") from error
        except (errors.HTTPError, ConnectionError, errors.LocalEntryNotFoundError) as error:
            cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
            raise DownloadError(
                f"no connection to {self.endpoint} ({type(cause).__name__}). What was downloaded is kept; the same "
                "command goes on when there is a network."
            ) from error
        except errors.HFValidationError as error:
            raise DownloadError(f"{source.repository} is no hub id: {_first_line(error)}.") from error
        except ValueError as error:
            raise DownloadError(
                f"{self.endpoint} gave no hub's answer for {place} ({_first_line(error)}). Is something in between?"
            ) from error
        except OSError as error:
            if error.errno is not None:
                raise  # of the disk
            raise DownloadError(f"{place}: the download broke off. The same command goes on.") from error


class _Told:
    """A file that tells how much is in it."""

    def __init__(self, file: IO[bytes], tell: Callable[[int], None]) -> None:
        self._file = file
        self._report = tell

    def write(self, chunk: bytes) -> int:
        written = self._file.write(chunk)
        self._file.flush()  # what a kill finds here need not be downloaded again
        self._report(self._file.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _NoBar:
    """Takes the place of huggingface_hub's progress bar: ours is drawn elsewhere."""

    def __init__(self, **options: Any) -> None:
        pass

    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, count: int) -> None:
        """Take no notice."""


def sha256(path: Path, heard: Callable[[int], None] | None = None) -> str:
    """Hash a file of any size. heard: is told how many bytes are read."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            done += len(piece)
            if heard is not None:
                heard(done)
    return digest.hexdigest()


def known_sha256(path: Path) -> str | None:
    """Tell the SHA-256 that a large file of the cache had when it was downloaded: the name of its blob."""
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None


def is_stub(path: Path) -> bool:
    """Tell whether a file is what git leaves in place of a large one where git-lfs is missing."""
    if path.stat().st_size > _STUB_BYTES:
        return False
    return path.read_bytes().startswith(b"version https://git-lfs")


def free_bytes(folder: Path) -> int:
    """Tell how much may be written where a folder is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
