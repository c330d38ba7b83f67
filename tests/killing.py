"""A process that makes a song by the real command, and kills itself at a given moment."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yue_cli.pipeline  # noqa: F401 so that processes begin with all of it
from xcodec_mini_infer import checkpoint
from yue_cli.engines.native.engine import NativeEngine
from yue_cli.engines.native.loader import Loader
from yue_cli.main import execute

TIMEOUT_S = 120
STDOUT, STDERR = "stdout.txt", "stderr.txt"
CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")  # of files, as Python's audit hook names them
AMID_LOADING = 5  # tensors of a model that are there by then


@dataclass(frozen=True)
class Ended:
    """How a process ended: its code, or minus the number of the signal, and what it told."""

    code: int
    operations: list[str]  # on files of the song, one after the other; empty where it was killed
    error: str


def run(folder: Path, environment: dict[str, str], mode: str, limit: int, arguments: Sequence[str]) -> Ended:
    """Make a song in `folder/song`.

    mode, limit: where it is killed: before the N-th "operation" on a file of the song, before the N-th "step" of an
    engine, amid the "load" of the N-th language model, or of the "codec"; "never". Raises TimeoutError.
    """
    # One process imports what all need, and each begins as a copy of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["yue_cli.pipeline", __name__])
    process = context.Process(target=_sing, args=(folder, environment, mode, limit, list(arguments)))
    process.start()
    process.join(TIMEOUT_S)
    code = process.exitcode
    told, error = ((folder / name).read_text(encoding="utf-8") for name in (STDOUT, STDERR))
    if code is None:
        process.kill()  # whose code would be that of a process that killed itself
        process.join()
        raise TimeoutError(f"not over after {TIMEOUT_S} s: {error}")
    return Ended(code, told.partition("operations:")[2].split(), error)


def _sing(folder: Path, environment: dict[str, str], mode: str, limit: int, arguments: list[str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    for number, name in ((1, STDOUT), (2, STDERR)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    operations: list[str] = []

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event in CHANGES and not isinstance(details[0], int):
            path = os.path.relpath(os.fsdecode(details[0]), "song")
            if not path.startswith(".."):
                operations.append(path)
                if mode == "operation" and len(operations) == limit:
                    _kill()

    _count(mode, limit)
    sys.addaudithook(watch)  # file operations are seen, steps and tensors only counted: the product does its own work
    code = execute(arguments)
    print("operations:", *operations)
    sys.stdout.flush()
    os._exit(code)


def _count(mode: str, limit: int) -> None:
    """Have steps, and tensors that are read, counted."""
    steps = loads = reads = 0
    step, load, read_into, load_vocoder = NativeEngine.step, Loader.load, Loader.read_into, checkpoint.load_vocoder

    def counted_step(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if mode == "step" and steps == limit:
            _kill()
        return step(*arguments)

    def counted_load(*arguments: Any) -> Any:
        nonlocal loads, reads
        loads, reads = loads + 1, 0
        return load(*arguments)

    def counted_read_into(*arguments: Any, **more: Any) -> Any:
        nonlocal reads
        reads += 1
        if mode == "load" and loads == limit and reads == AMID_LOADING:
            _kill()
        return read_into(*arguments, **more)

    def load_no_vocoder(*arguments: Any) -> Any:
        if mode == "codec":
            _kill()
        return load_vocoder(*arguments)

    NativeEngine.step = counted_step  # type: ignore[method-assign]
    Loader.load, Loader.read_into = counted_load, counted_read_into  # type: ignore[method-assign]
    checkpoint.load_vocoder = load_no_vocoder


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
