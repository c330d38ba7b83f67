"""One command line run in this process: its exit code, what it printed where, and that it was refused in one line."""

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.folders import contents
from yue_cli.main import execute
from yue_cli.project import STAGES

GENRE = "slow folk"
LYRICS = "[verse]\nOne light\n\n[chorus]\nCome home\n"
SHORT = ["--preset", "toy", "--set", "stage1.min_new_tokens=8", "--set", "stage1.max_new_tokens=8"]
SEED = 7


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def answer(self) -> dict:
        """The one object of a --json run."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


def yue(*arguments: object, stdin: bytes = b"") -> Outcome:
    """Run one command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = execute([str(argument) for argument in arguments])
    finally:
        sys.stdin = before
    return Outcome(code, out.getvalue(), err.getvalue())


def done(*arguments: object, stdin: bytes = b"") -> Outcome:
    """Run a command line that must succeed."""
    outcome = yue(*arguments, stdin=stdin)
    assert outcome.code == 0, outcome.err
    return outcome


def refused(*arguments: object, stdin: bytes = b"") -> str:
    """Run a command line that must be refused in one line; return that line without its `error: `."""
    outcome = yue(*arguments, stdin=stdin)
    assert (outcome.code, outcome.out) == (1, ""), outcome
    *told, last = outcome.err.splitlines()
    assert last.startswith("error: ")
    assert outcome.err.endswith(f"{last}\n")
    assert not [line for line in told if line.startswith(("error", "Traceback"))]
    return last.removeprefix("error: ")


def stored(song: Path) -> dict:
    return yaml.safe_load((song / "song.yaml").read_text())


def history(song: Path) -> list[str]:
    """List what was replaced, without the times."""
    return sorted(path.name.partition("-")[0] for path in song.glob("history/*"))


def is_within(before: dict, song: Path) -> bool:
    """Tell whether every stage of before is still there: in its place or whole in history."""
    places = [song / stage for stage in STAGES] + list(song.glob("history/*"))
    now = [contents(path) for path in places]
    return all(
        {name.removeprefix(f"{stage}/"): held for name, held in before.items() if name.startswith(f"{stage}/")} in now
        for stage in STAGES
    )


def planned(outcome: Outcome) -> list[str]:
    """Pick what a plan says of the stages, without what they need."""
    return [line for line in outcome.out.splitlines() if " stays: " in line or " would be made: " in line]
