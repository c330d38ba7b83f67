"""The only place that prints: answers on stdout, everything else on stderr."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from yue_cli.errors import StorageError
from yue_cli.events import Event, Finished, Note, Progress, Warned

if TYPE_CHECKING:
    import rich.progress

PLAIN_INTERVAL_S = 5.0  # between two lines of progress where there is no terminal
TOPIC_WIDTH = 9


def answer(text: str) -> None:
    """Print what was asked for, at once. Raises StorageError where it cannot be written, but not where nobody reads."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        pass
    except OSError as error:
        raise StorageError(f"the answer could not be written: {error.strerror}.") from error


def answer_json(value: Mapping[str, Any]) -> None:
    """Print the one JSON object of a `--json` run, in ASCII, which no terminal or pipe can spoil."""
    answer(json.dumps(value))


def report(kind: str, message: str, exit_code: int, as_json: bool) -> int:
    """Say in one line why a command ended early, and return its exit code."""
    if as_json:
        with suppress(StorageError):  # then it is said where people look
            answer_json({"error": {"kind": kind, "message": message, "exit_code": exit_code}})
            return exit_code
    prefix = "interrupted" if exit_code == 130 else "error"
    print(f"{prefix}: {message}" if message else prefix, file=sys.stderr)
    return exit_code


class Console:
    """Tell about a run on stderr: one line a finished step, one moving line for the step in hand.

    verbosity: -1 errors only, 0 as said above, 1 with timings, memory and where each setting came from.
    """

    def __init__(self, verbosity: int = 0) -> None:
        self.verbosity = verbosity
        self.warnings: list[str] = []
        self._bar: rich.progress.Progress | None = None
        self._task: tuple[str, str] | None = None
        self._began = self._spoke = 0.0
        self._first = 0

    def emit(self, event: Event) -> None:
        """Listen to stages and pipeline."""
        if isinstance(event, Warned):
            self.warnings.append(event.text)
            self.line("warning", event.text)
        elif isinstance(event, Note):
            self.line(event.topic, event.text)
        elif isinstance(event, Progress):
            self._progress(event)
        else:
            self._finished(event)

    def line(self, topic: str, text: str) -> None:
        """Print one line under a topic, above the moving one."""
        if self.verbosity < 0:
            return
        line = f"{topic:<{TOPIC_WIDTH}}{text}"
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr)

    def detail(self, topic: str, text: str) -> None:
        """Print a line that only `-v` asks for."""
        if self.verbosity > 0:
            self.line(topic, text)

    @contextmanager
    def watching(self) -> Iterator["Console"]:
        """Show a moving line within, where stderr is a terminal."""
        if self.verbosity < 0 or not sys.stderr.isatty():
            yield self
            return
        import rich.console
        import rich.progress

        bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.fields[topic]:<8}"),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.TextColumn("{task.description}", markup=False),
            console=rich.console.Console(stderr=True),
            transient=True,
        )
        with bar:
            self._bar = bar
            try:
                yield self
            finally:
                self._bar = None

    def _progress(self, event: Progress) -> None:
        now = time.monotonic()
        if self._task != (event.topic, event.label):
            self._task, self._began, self._first = (event.topic, event.label), now, event.done
            self._spoke = now
            if self._bar is not None:
                for task in self._bar.task_ids:
                    self._bar.remove_task(task)
                self._bar.add_task("", total=event.total, topic=event.topic)
        text = describe_progress(event, event.done - self._first, now - self._began)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[-1], completed=event.done, total=event.total, description=text)
        elif now - self._spoke >= PLAIN_INTERVAL_S:
            self._spoke = now
            self.line(event.topic, f"{100 * event.done // max(event.total, 1)} % · {text}")

    def _finished(self, event: Finished) -> None:
        self._task = None
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
        self.line(event.topic, describe_finished(event))


def describe_progress(event: Progress, done: int, elapsed_s: float) -> str:
    """Say how far a task is, how fast it goes and how long it will take; `done` units were seen in `elapsed_s`."""
    parts = [event.label] if event.label else []
    if event.music_s is not None:
        parts.append(f"{event.music_s:.1f} s of music")
    if event.unit == "bytes":
        parts.append(f"{event.done / 1e9:.1f} of {gigabytes(event.total)}")
    if done > 0 and elapsed_s > 0.5:
        rate = done / elapsed_s
        parts.append(_speed(rate, event.unit))
        parts.append(f"about {duration((event.total - event.done) / rate)} left")
    return " · ".join(parts)


def describe_finished(event: Finished) -> str:
    """Say what a task made and how fast it was."""
    parts = [event.label] if event.label else []
    if event.music_s is not None:
        parts.append(f"{event.music_s:.1f} s of music")
    amount = gigabytes(event.done) if event.unit == "bytes" else f"{event.done:,} {event.unit}"
    parts.append(f"{amount} in {duration(event.seconds)}")
    if event.seconds > 0:
        parts.append(_speed(event.done / event.seconds, event.unit))
    return " · ".join(parts)


def _speed(rate: float, unit: str) -> str:
    return f"{rate / 1e6:.0f} MB/s" if unit == "bytes" else f"{rate:.0f} {short_unit(unit)}/s"


def short_unit(unit: str) -> str:
    """Shorten a unit for a rate."""
    return {"tokens": "tok"}.get(unit, unit)


def duration(seconds: float) -> str:
    """Say a length of time as people do: 9.8 s, 47 s, 1 min 51 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def clock(seconds: float) -> str:
    """Write a length of music: 2:04."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def counted(count: int, noun: str) -> str:
    """Count things: 1 section, 2 sections."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def gigabytes(count: int) -> str:
    """Write a size: 17.6 GB."""
    return f"{count / 1e9:.1f} GB"


def fail(text: str) -> None:
    """Print why one song failed, where others did not."""
    print(f"error: {text}", file=sys.stderr)


def warn(text: str) -> None:
    """Print one warning outside of a run."""
    print(f"warning: {text}", file=sys.stderr)


def hint(text: str) -> None:
    """Print one piece of advice outside of a run."""
    print(f"hint: {text}", file=sys.stderr)
