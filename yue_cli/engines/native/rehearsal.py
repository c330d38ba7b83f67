"""A rehearsal: while weights are loaded, the first steps are taken with one layer, and what comes out is thrown away.

It finds compiled kernels, or compiles them, and has libraries set themselves up, for which a song would have to wait.
"""

from collections.abc import Callable
from contextlib import suppress
from threading import Thread

from yue_cli.engines.native.model import Weights


class Rehearsal:
    """Rehearses in a thread of its own."""

    def __init__(self, rehearse: Callable[[Weights], None]) -> None:
        """rehearse: takes the first steps with the first layer."""
        self._rehearse = rehearse
        self._thread: Thread | None = None

    def begin(self, weights: Weights) -> None:
        """Begin, as soon as the first layer is there."""
        self._thread = Thread(target=self._take_steps, args=(weights,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Wait for its end."""
        if self._thread is not None:
            self._thread.join()

    def _take_steps(self, weights: Weights) -> None:
        with suppress(Exception):  # what fails here fails again, and is told, when it counts
            self._rehearse(weights)
