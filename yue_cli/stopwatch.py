"""A watch on a loop that says how far it is. It does not know what the loop does."""

import math
import time

from yue_cli.events import Event, Progress

LEAST = 3  # reports that a speed is told from


class Enough(Exception):
    """Enough was heard to know the speed."""


class Watch:
    """Looks at the clock whenever a loop says how far it is; stops the loop when that tells enough."""

    def __init__(self, enough_s: float = math.inf) -> None:
        self._enough_s = enough_s
        self._began = time.perf_counter()
        self._marks: list[tuple[int, float]] = []

    def hear(self, done: int) -> None:
        now = time.perf_counter()
        self._marks.append((done, now))
        if len(self._marks) > LEAST and now - self._marks[0][1] >= self._enough_s:
            raise Enough

    def hear_event(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.hear(event.done)

    @property
    def done(self) -> int:
        return self._marks[-1][0]

    @property
    def unit_s(self) -> float:
        """Seconds for one unit, from the first that was heard of to the last."""
        (first, began), (last, ended) = self._marks[0], self._marks[-1]
        assert last > first, "a loop that was over before it could be timed"
        return (ended - began) / (last - first)

    @property
    def before_s(self) -> float:
        """Seconds before the first unit."""
        done, at = self._marks[0]
        return max(0.0, at - self._began - done * self.unit_s)
