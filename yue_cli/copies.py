"""Quantized copies of models, made here: `en-cot@native-4bit`, and the folder in yue's home that it stands for.

Knows names and records; `quantize.py` makes the copies.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from yue_cli import models
from yue_cli.errors import CheckpointError
from yue_cli.hub import sha256
from yue_cli.models import CATALOGUE, FORMATS, Source

RECORD_FILE = "quantized.json"  # in every quantized folder, wherever it lies: source, settings, hashes, quality
RECORD_FORMAT, RECORD_VERSION = "yue-quantized", 1
_FOLDER = "quantized"


@dataclass(frozen=True)
class Copy:
    """A finished copy in yue's home."""

    name: str  # en-cot@native-4bit
    path: Path
    part: str  # stage1 or stage2
    repository: str
    revision: str  # commit of the original
    format: str
    bytes: int


def split_name(name: str) -> tuple[str, str] | None:
    """Take `MODEL@FORMAT` apart; None for any other name."""
    base, at, format = name.rpartition("@")
    return (base, format) if at and format in FORMATS else None


def absent(name: str) -> CheckpointError:
    """Say how a copy that is not there is made."""
    base, _, format = name.rpartition("@")
    return CheckpointError(f"{name} is not on this machine: `yue quantize {base} --format {format}` makes it.")


def place(home: Path, repository: str, commit: str, format: str) -> Path:
    """Name the folder of a copy of a model of the hub."""
    return home / _FOLDER / f"{repository.replace('/', '--')}-{commit[:12]}-{format}"


def find(home: Path, source: Source, commit: str | None, format: str) -> Copy | None:
    """Find the copy of a model at a commit; where the commit is not known, the one that was made last."""
    made = [copy for copy in every(home) if (copy.repository, copy.format) == (source.repository, format)]
    if commit is not None:
        made = [copy for copy in made if copy.revision == commit]
    return max(made, key=lambda copy: copy.path.stat().st_mtime, default=None)


def every(home: Path) -> list[Copy]:
    """List the finished copies in yue's home."""
    names = {model.repository: model for model in CATALOGUE.values()}
    found = []
    for path in sorted((home / _FOLDER).glob(f"[!.]*/{RECORD_FILE}")):
        record = read_record(path.parent)
        model, format = names.get(record["repository"]), record["format"]
        found.append(
            Copy(
                name=f"{model.name if model else record['repository']}@{format}",
                path=path.parent,
                part=model.part if model else models.guess_part(file.name for file in path.parent.iterdir()),
                repository=record["repository"],
                revision=record["revision"],
                format=format,
                bytes=sum(file.stat().st_size for file in path.parent.iterdir()),
            )
        )
    return found


def verify(copy: Copy, heard: Callable[[str, int], None] | None = None) -> list[Path]:
    """Read every large file of a copy again and compare its SHA-256. Returns the files. Raises CheckpointError.

    heard: is told how many bytes of which file are read.
    """
    files = read_record(copy.path)["files"]
    for file, facts in files.items():
        path = copy.path / file
        tell = partial(heard, file) if heard else None
        if not path.exists() or sha256(path, tell) != facts["sha256"]:
            base, _, format = copy.name.rpartition("@")
            raise CheckpointError(
                f"{path}: not as it was written; `yue models rm {copy.name}`, then `yue quantize {base} --format "
                f"{format}` makes it anew."
            )
    return [copy.path / file for file in files]


def read_record(folder: Path) -> dict[str, Any]:
    """Read what a quantized folder tells of itself. Raises CheckpointError."""
    path = folder / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if (record.pop("record"), record.pop("version")) != (RECORD_FORMAT, RECORD_VERSION):
            raise ValueError(f"expected {RECORD_FORMAT}, version {RECORD_VERSION}")
        if missing := {"repository", "revision", "format", "files", "sources"} - set(record):
            raise ValueError(f"no {', '.join(sorted(missing))}")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not the record of a quantized model of this version of yue ({error}); quantize it again."
        ) from error
    found: dict[str, Any] = record
    return found


def encode_record(record: dict[str, Any]) -> bytes:
    """Write a record for `read_record`."""
    content = {"record": RECORD_FORMAT, "version": RECORD_VERSION} | record
    return (json.dumps(content, indent=1) + "\n").encode()
