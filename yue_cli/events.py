"""What stages and the pipeline tell about their work. Only `commands/console.py` turns it into words on a screen."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """One line worth reading under a heading: `lyrics`, `stage 1`, …"""

    topic: str
    text: str


@dataclass(frozen=True)
class Warned:
    """Something that will not be as the user may expect; the work goes on."""

    text: str


@dataclass(frozen=True)
class Progress:
    """Work in progress: `done` of `total` units since this task began."""

    topic: str
    label: str
    done: int
    total: int
    unit: str  # what is counted: "tokens", "steps", "frames"
    music_s: float | None = None  # seconds of music behind `done`, where that grows with it


@dataclass(frozen=True)
class Finished:
    """The end of what the last `Progress` of the same topic and label told about."""

    topic: str
    label: str
    done: int
    unit: str
    seconds: float
    music_s: float | None = None


Event = Note | Warned | Progress | Finished
Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Take no notice: the listener of those who do not watch."""
