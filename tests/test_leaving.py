"""How the process ends: with its exit code, and with all that it had to say."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

needs_shell = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")


def run(*words: str, shell: str = "") -> "subprocess.CompletedProcess[str]":
    """Run `yue` as a process of its own, with its streams turned elsewhere by a shell."""
    command = " ".join([*map(shlex.quote, [sys.executable, "-m", "yue_cli", *words]), shell])
    return subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("words", "code"), [(["presets", "cpu"], 0), (["presets", "none"], 1), (["presets", "-x"], 2)])
def test_a_process_leaves_with_its_code_and_all_that_it_said(words: list[str], code: int) -> None:
    done = run(*words)
    assert done.returncode == code
    said, silent = (done.stderr, done.stdout) if code else (done.stdout, done.stderr)
    assert said.endswith("\n")
    assert not silent


@needs_shell
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_answer_that_cannot_be_written_is_an_error() -> None:
    done = run("presets", "cpu", shell="> /dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: the answer could not be written: No space left on device.\n"


@needs_shell
@pytest.mark.parametrize("shell", [">&-", "2>&-", ">&- 2>&-", "| true"])
def test_streams_that_nobody_reads_are_no_trouble(shell: str) -> None:
    done = run("presets", "cpu", shell=shell)
    assert (done.returncode, done.stderr) == (0, "")
