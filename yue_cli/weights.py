"""From a model's name to a folder on this machine; fetched from the hub and converted where it is not there yet."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from yue_cli import copies, models
from yue_cli.atomic import storage_errors
from yue_cli.copies import Copy
from yue_cli.errors import CheckpointError, Interrupted, StorageError
from yue_cli.events import Emit, Note, Progress, ignore
from yue_cli.hub import Hub, Offer, free_bytes, is_stub, known_sha256, sha256
from yue_cli.models import CODEC_FILES, DEFAULTS, Model, Source
from yue_cli.resources import expanded

PARTS = {"stage1": "stage-1 model", "stage2": "stage-2 model", "codec": "codec"}
_FLAGS = {"stage1": "stage1.model", "stage2": "stage2.model", "codec": "decode.codec"}
_CONTENTS = {
    "stage1": "config.json, model.safetensors and tokenizer.model",
    "stage2": "config.json and model.safetensors",
    "codec": "config.json, codec.safetensors, vocal.safetensors and instrumental.safetensors",
}
_CONVERTED_BYTES = 770 * 10**6  # of the codec: what inference reads

Maker = Callable[[Path], Path]  # the models' home → a folder holding stage1/, stage2/ and codec/


@dataclass(frozen=True)
class ModelFolder:
    """A checkpoint folder and the name it was asked for by; `revision` where one is known."""

    name: str
    path: Path
    revision: str | None = None
    format: str | None = None  # of a quantized one


class Library:
    """The models on this machine: the hub's cache, folders of the user's own, and what is made in `home`.

    makers: names whose models are made on first use. offline: nothing is fetched.
    """

    def __init__(
        self,
        home: Path,
        makers: Mapping[str, Maker],
        emit: Emit = ignore,
        offline: bool = False,
        hub: Hub | None = None,
    ) -> None:
        self.home = home
        self.makers = makers
        self.emit = emit
        self._offline = offline
        self._hub = hub
        self._lock = FileLock(home / ".models.lock")  # the same process may take it again within

    @property
    def hub(self) -> Hub:
        """The hub, opened when it is first needed."""
        if self._hub is None:
            self._hub = Hub(offline=self._offline)
        return self._hub

    def locate(self, name: str | None, part: str) -> ModelFolder:
        """Find the folder of one part: `stage1`, `stage2` or `codec`. Nothing is fetched.

        name: a folder (the part's own, or one that holds a folder named like the part), a name among the makers', a
        short name or a hub id with `@revision` or without, `MODEL@FORMAT` for the copy that `yue quantize` made of it,
        or None for the part's default. Raises CheckpointError.
        """
        found = self.find(name, part)
        if found is None and name is not None and copies.split_name(name):
            raise copies.absent(name)
        if found is None:
            raise self._absent([self._source(name or DEFAULTS[part], part)])
        return found

    def find(self, name: str | None, part: str) -> ModelFolder | None:
        """Find the folder of one part; None for a model of the hub that is not here. Raises CheckpointError."""
        if name is not None and name in self.makers:
            made = self.makers[name](self.home)
            return ModelFolder(name, made / part, revision=made.name)
        if name is not None and (folder := _folder(name, part)) is not None:
            own = self._own(folder, part)
            if not (own / copies.RECORD_FILE).is_file():
                return ModelFolder(name, own)
            record = copies.read_record(own)
            return ModelFolder(name, own, record["revision"], record["format"])
        if name is not None and (asked := copies.split_name(name)) is not None:
            self._source(asked[0], part)  # of that part?
            copy = self.copy(name)
            return None if copy is None else ModelFolder(name, copy.path, copy.revision, copy.format)
        source = self._source(name or DEFAULTS[part], part)
        return self._converted(source) if part == "codec" else self.cached(source, part)

    def fetch(self, wanted: Iterable[tuple[str | None, str]]) -> None:
        """Bring those models here that are not, sizes said before. Pairs of name and part, as for `locate`.

        Raises CheckpointError, DownloadError, StorageError.
        """
        sources = {
            (name or DEFAULTS[part], part): self._source(name or DEFAULTS[part], part)
            for name, part in wanted
            if self.find(name, part) is None
        }
        for name, _ in sources:
            if copies.split_name(name):
                raise copies.absent(name)
        if not sources:
            return
        if self.hub.offline:
            raise self._absent(list(sources.values()))
        with self.locked():
            self._fetch([(self.hub.look(source), part) for (_, part), source in sources.items()])

    def pull(self, names: Sequence[str]) -> list[ModelFolder]:
        """Fetch models by name, whatever part they are; what is here already costs one question to the hub."""
        sources = []
        for name in names:
            if copies.split_name(name):
                raise copies.absent(name)
            source = models.find_source(name)
            if source is None:
                raise CheckpointError(f"{name}: expected one of {', '.join(models.CATALOGUE)}, or a hub id OWNER/NAME.")
            sources.append(source)
        with self.locked():
            offers = [self.hub.look(source) for source in sources]
            parts = [models.guess_part(file.path for file in offer.files) for offer in offers]
            self._fetch(list(zip(offers, parts, strict=True)))
        return [self.locate(name, part) for name, part in zip(names, parts, strict=True)]

    def copy(self, name: str) -> Copy | None:
        """Find the quantized copy that `MODEL@FORMAT` names."""
        base, format = copies.split_name(name) or (name, "")
        source = models.find_source(base)
        if source is None or not format:
            return None
        found = self.hub.snapshot(source)
        known = source.revision if len(source.revision) == 40 else None
        return copies.find(self.home, source, found[1] if found else known, format)

    def copies(self) -> list[Copy]:
        """List the quantized copies on this machine."""
        return copies.every(self.home)

    # A folder of the user's own

    def _own(self, folder: Path, part: str) -> Path:
        """Take a folder as it is, but for the codec as published, which is converted. Raises CheckpointError."""
        if not folder.is_dir():
            raise CheckpointError(f"{_FLAGS[part]}: {folder} is a file; expected a folder with {_CONTENTS[part]}.")
        for path in sorted(folder.glob("*.safetensors")) + [folder / "tokenizer.model"]:
            if path.is_file() and is_stub(path):
                raise stub_error(path, models.find_source(DEFAULTS[part]))
        sources = {kind: folder / file for kind, file in CODEC_FILES.items()}
        if part != "codec" or (folder / "config.json").exists() or not all(map(Path.exists, sources.values())):
            return folder
        facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sources.values()]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        return self._convert(sources, self.home / "codec" / f"local-{key}", None)

    # A model of the hub

    def _source(self, name: str, part: str) -> Source:
        source = models.find_source(name)
        if source is None:
            known = [model.name for model in models.CATALOGUE.values() if model.part == part]
            raise CheckpointError(
                f"{_FLAGS[part]}: there is no folder {expanded(name)}; expected a folder with "
                f"{_CONTENTS[part]}, {', '.join([*known, *self.makers])}, or a hub id OWNER/NAME."
            )
        if isinstance(source, Model) and source.part != part:
            raise CheckpointError(f"{_FLAGS[part]}: {name} is a {PARTS[source.part]}; expected a {PARTS[part]}.")
        return source

    def cached(self, source: Source, part: str) -> ModelFolder | None:
        """Find a language model in the hub's cache; None where something of it is missing."""
        found = self.hub.snapshot(source)
        if found is None:
            return None
        folder, commit = found
        there = {path.name for path in folder.iterdir() if path.exists()}
        for index in folder.glob("*.safetensors.index.json"):
            try:
                needed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, KeyError, AttributeError):
                needed = set()  # the engine says what is wrong with it
            # An index that names nothing of what is here was left over when its model was quantized.
            if needed & there and not needed <= there:
                return None
        if models.missing_shards(there):
            return None
        return None if models.missing_files(there, part) else ModelFolder(source.name, folder, commit)

    def conversion(self, source: Source) -> Path | None:
        """Name the folder in which a codec of the hub lies converted; None where its commit is not known yet."""
        found = self.hub.snapshot(source)
        commit = found[1] if found else source.revision
        if found is None and len(commit) != 40:
            return None
        return self.home / "codec" / f"{source.repository.replace('/', '--')}-{commit[:12]}"

    def _converted(self, source: Source) -> ModelFolder | None:
        folder, found = self.conversion(source), self.hub.snapshot(source)
        if folder is None:
            return None
        commit = found[1] if found else source.revision
        if folder.is_dir():
            return ModelFolder(source.name, folder, commit)
        if found is None:
            return None
        if all((found[0] / file).exists() for file in models.CONVERTED_FILES):
            return ModelFolder(source.name, found[0], commit)
        sources = {kind: found[0] / file for kind, file in CODEC_FILES.items()}
        if not all(path.exists() for path in sources.values()):
            return None
        return ModelFolder(source.name, self._convert(sources, folder, source), commit)

    def _fetch(self, offers: list[tuple[Offer, str]]) -> None:
        chosen = []
        for offer, part in offers:
            names = [file.path for file in offer.files]
            if missing := models.missing_files(names, part):
                raise CheckpointError(
                    f"{offer.source.repository} at {offer.commit[:7]} has no {' and no '.join(missing)}; it is no "
                    f"{PARTS[part]} that yue reads."
                )
            chosen.append((offer.only(models.needed_files(names)), part))
        self._tell_sizes([offer for offer, _ in chosen])
        for offer, part in chosen:
            self.hub.fetch(offer, self.emit)
            if part == "codec":
                self._converted(replace(offer.source, revision=offer.commit))

    def _tell_sizes(self, offers: Sequence[Offer]) -> None:
        """Say what will be downloaded, and refuse where the disk has no room for it. Raises StorageError."""
        sizes = {offer.source.name: self.hub.to_fetch(offer) for offer in offers}
        total, free = sum(sizes.values()), free_bytes(self.hub.cache)
        if not total:
            return
        each = ", ".join(f"{name} {_gigabytes(size)}" for name, size in sizes.items() if size)
        if len(sizes) > 1:
            each += f": {_gigabytes(total)}"
        self.emit(Note("models", f"{each} to download · {_gigabytes(free)} free in {self.hub.cache}"))
        needed = total + _CONVERTED_BYTES * any(offer.files[0].path in CODEC_FILES.values() for offer in offers)
        if free < needed:
            raise StorageError(
                f"no space left on {self.hub.cache}: needed {_gigabytes(needed)}, free {_gigabytes(free)}. Nothing was "
                "downloaded; free some space, or put the cache elsewhere with HF_HOME."
            )

    def _convert(self, sources: Mapping[str, Path], folder: Path, source: Source | None) -> Path:
        """Convert the codec as published; None: not of the hub. Raises CheckpointError, StorageError."""
        if folder.is_dir():
            return folder
        from xcodec_mini_infer import CodecError, convert  # loads torch

        def digest(path: Path) -> str:
            found = known_sha256(path) or sha256(path, partial(self.tell_check, path))
            expected = {file: hash for file, hash in source.digests.items() if path.match(file)} if source else {}
            for file, wanted in expected.items():
                if found != wanted:
                    raise CheckpointError(f"{path}: SHA-256 {found[:12]}… is not that of {file}, {wanted[:12]}….")
            return found

        try:
            with self.locked(), storage_errors(folder):
                if folder.is_dir():  # another process was faster
                    return folder
                self.emit(Note("codec", f"converting {sources['codec'].name}, once"))
                files = sources["codec"], sources["vocal"], sources["instrumental"]
                convert.convert(*files, folder, digest=digest, heard=self._tell_conversion)
        except CodecError as error:
            stub = next((path for path in sources.values() if is_stub(path)), None)
            raise (stub_error(stub, models.find_source("codec")) if stub else CheckpointError(str(error))) from error
        return folder

    def tell_check(self, path: Path, done: int) -> None:
        """Tell how many bytes of a file were read."""
        self.emit(Progress("check", path.name, done, path.stat().st_size, "bytes"))

    def _tell_conversion(self, done: int, total: int) -> None:
        self.emit(Progress("codec", "converting", done, total, "bytes"))

    def _absent(self, sources: Sequence[Source]) -> CheckpointError:
        names = [source.name for source in sources]
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        verb = "is" if len(names) == 1 else "are"
        why = ", and offline nothing is fetched" if self.hub.offline else ""
        return CheckpointError(
            f"{listed} {verb} not on this machine{why}: `yue models pull {' '.join(names)}`, with a network, fetches "
            f"{'it' if len(names) == 1 else 'them'}. `yue demo` tries the tool without a model."
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time fetch and convert."""
        with storage_errors(self.home):
            self.home.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                self.emit(Note("models", "another yue is fetching models; waiting for it"))
                self._lock.acquire()
        try:
            yield
        except KeyboardInterrupt as error:
            raise Interrupted("what was downloaded is kept. The same command goes on.") from error
        finally:
            self._lock.release()


def _folder(name: str, part: str) -> Path | None:
    """Read a name as a folder of the user's own, if there is one."""
    root = expanded(name)
    path = root / part if (root / part).is_dir() else root
    return path if path.exists() else None


def stub_error(path: Path, source: Source | None) -> CheckpointError:
    """Say that a file is what git-lfs left in a model's place."""
    remedy = f"`{source.command}` fetches it without git-lfs" if source else "fetch the file itself"
    return CheckpointError(f"{path}: a git-lfs stub of {path.stat().st_size} bytes, not the model. {remedy}.")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
