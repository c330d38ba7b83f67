"""`yue models`: which models there are, and fetching, checking and deleting them."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from yue_cli import copies, inventory, models
from yue_cli.commands import completion, console, options
from yue_cli.commands.request import home
from yue_cli.errors import CheckpointError
from yue_cli.events import Emit, ignore
from yue_cli.weights import PARTS, Library

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A short name, or a hub id with @revision or without.",
        autocompletion=completion.all_models,
    ),
]
Names = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME",
        help="Short names, or hub ids with @revision or without.",
        autocompletion=completion.all_models,
    ),
]


def list_(json: options.Json = False) -> None:
    """List the models that have short names, and which of them are on this machine."""
    library = _library()
    states = {model: inventory.state(library, model) for model in models.CATALOGUE.values()}
    if json:
        rows = [
            {
                "name": model.name,
                "part": model.part,
                "repository": model.repository,
                "revision": state.commit or model.revision,
                "state": state.word,
                "bytes": state.bytes,
                "download_bytes": model.bytes,
                "path": None if state.path is None else str(state.path),
            }
            for model, state in states.items()
        ]
        rows += [
            {
                "name": copy.name,
                "part": copy.part,
                "repository": copy.repository,
                "revision": copy.revision,
                "state": "here",
                "bytes": copy.bytes,
                "download_bytes": None,
                "path": str(copy.path),
            }
            for copy in library.copies()
        ]
        console.answer_json({"models": rows})
        return
    for model, state in states.items():
        revision = (state.commit or model.revision)[:7]
        size = state.bytes if state.word == "here" else model.bytes
        console.answer(
            f"{model.name:<10}{PARTS[model.part]:<15}{state.word:<13}{console.gigabytes(size):>8}   "
            f"{model.repository} {revision}"
        )
    for copy in library.copies():
        console.answer(
            f"{copy.name}  {PARTS[copy.part]}, quantized here  {console.gigabytes(copy.bytes)}   "
            f"of {copy.repository} {copy.revision[:7]}"
        )


def pull(names: Names, json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Fetch models into the hub's cache, going on with what is there; the codec is also converted."""
    told = console.Console(-1 if quiet else 0)
    with told.watching():
        found = _library(told.emit).pull(names)
    if json:
        console.answer_json({"models": [{"name": model.name, "path": str(model.path)} for model in found]})
    else:
        console.answer("\n".join(str(model.path) for model in found))


def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]",
            show_default=False,
            help="Models; without any, all here.",
            autocompletion=completion.all_models,
        ),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Read every file again and compare its SHA-256 with the hub's."""
    told = console.Console(-1 if quiet else 0)
    library = _library(told.emit)
    if names is None:
        names = [model.name for model in models.CATALOGUE.values() if library.hub.snapshot(model)]
    if not names:
        raise CheckpointError("no model of the hub is on this machine; `yue models pull NAME` fetches one.")
    with told.watching():
        results = {name: inventory.verify(library, name) for name in names}
    if json:
        rows = [
            {"name": name, "files": [{"path": str(path), "state": state} for path, state in files]}
            for name, files in results.items()
        ]
        console.answer_json({"models": rows})
        return
    for name, files in results.items():
        right = sum(state == "right" for _, state in files)
        console.answer(f"{name:<10}{right} large files are right, of {len(files) - right} small ones no hash is known")


def path(name: Name, json: options.Json = False) -> None:
    """Print the folder of a model that is on this machine; the codec's is the converted one."""
    library = _library()
    if copies.split_name(name):
        copy = library.copy(name)
        if copy is None:
            raise copies.absent(name)
        _answer_path(name, copy.path, copy.revision, json)
        return
    source = models.find_source(name)
    part = getattr(source, "part", None)
    found = None
    for each in [part] if part else PARTS:
        found = found or library.find(name, each)
    if found is None:
        raise CheckpointError(f"{name} is not on this machine: `yue models pull {name}` fetches it.")
    _answer_path(name, found.path, found.revision, json)


def rm(name: Name, json: options.Json = False) -> None:
    """Delete a model from this machine: its revision in the hub's cache, and what was converted from it."""
    freed = inventory.remove(_library(), name)
    if json:
        console.answer_json({"name": name, "freed_bytes": freed})
    else:
        console.answer(f"{name}: {console.gigabytes(freed)} freed")


COMMANDS: dict[str, Callable[..., None]] = {"list": list_, "pull": pull, "verify": verify, "path": path, "rm": rm}


def _answer_path(name: str, path: Path, revision: str | None, as_json: bool) -> None:
    if as_json:
        console.answer_json({"name": name, "path": str(path), "revision": revision})
    else:
        console.answer(str(path))


def _library(emit: Emit = ignore) -> Library:
    return Library(home(), {}, emit)
