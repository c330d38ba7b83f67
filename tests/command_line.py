"""One command line run in this process: its exit code, what it printed where, and that it was refused in one line."""

import contextlib
import io
import json
import sys
from dataclasses import dataclass

from yue_cli.main import execute

LYRICS = "[verse]\nOne light\n\n[chorus]\nCome home\n"


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
