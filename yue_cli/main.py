"""The `yue` command: joins the commands; a YueError becomes one line and an exit code."""

import functools
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import typer
from typer.exceptions import TyperException

from yue_cli import __version__
from yue_cli.commands import (
    bench,
    console,
    decode,
    demo,
    doctor,
    encode,
    eval,
    import_,
    lyrics,
    models,
    plan,
    presets,
    quantize,
    run,
    stage1,
    stage2,
    status,
)
from yue_cli.errors import YueError

app = typer.Typer(
    name="yue",
    help="Turn lyrics into full songs with the YuE models.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


class _Stopped(Exception):
    """A KeyboardInterrupt on its way through typer, which would keep its words from the user."""


def _stoppable(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def call(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt as error:
            raise _Stopped(str(error)) from error

    return call


for module in (
    run,
    plan,
    encode,
    stage1,
    stage2,
    decode,
    demo,
    lyrics,
    status,
    presets,
    doctor,
    bench,
    import_,
    quantize,
    eval,
):
    name = module.__name__.rpartition(".")[2]
    app.command(name.rstrip("_"))(_stoppable(getattr(module, name)))

_models = typer.Typer(help="List, fetch, check and delete models.", rich_markup_mode=None)
for name, command in models.COMMANDS.items():
    _models.command(name)(_stoppable(command))
app.add_typer(_models, name="models")


def _print_version(wanted: bool) -> None:
    if wanted:
        console.answer(f"yue {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Turn lyrics into full songs with the YuE models."""


def main() -> None:
    """Run the command line and leave with its exit code: 0 done, 1 error, 2 wrong usage, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: no song is lost over a letter
    _leave(execute(sys.argv[1:]))


def _leave(code: int) -> NoReturn:
    """End the process at once: all is on disk, and what Python and PyTorch tidy up takes most of a second."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # what matters was printed at once
            if stream is not None:
                stream.flush()
    os._exit(code)


def execute(arguments: list[str]) -> int:
    """Run one command line and return its exit code, every failure reported as one line (or one JSON object)."""
    as_json = "--json" in arguments
    try:
        code = app(args=arguments or ["--help"], prog_name="yue", standalone_mode=False)
    except YueError as error:
        return console.report(error.kind, str(error), exit_code=1, as_json=as_json)
    except TyperException as error:
        return console.report("usage", error.format_message(), exit_code=2, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort, _Stopped) as error:
        return console.report("interrupted", str(error), exit_code=130, as_json=as_json)
    except OSError as error:
        # What the system refuses of a path before anybody works on it: a name too long, a folder locked away.
        if error.filename is None:
            raise
        return console.report("storage", f"{error.filename}: {error.strerror}.", exit_code=1, as_json=as_json)
    return code if isinstance(code, int) else 0
