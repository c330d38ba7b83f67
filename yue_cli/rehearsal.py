"""A rehearsal: while weights are loaded, what is done first with them is done with few or none, and thrown away.

It finds compiled kernels, or compiles them, and has libraries set themselves up, for which a song would have to wait.
"""

from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from threading import Thread
from typing import TypeVar

_LOOK_EVERY_S = 0.5  # for Ctrl-C, which Windows does not let a waiting thread hear
First = TypeVar("First")
Whole = TypeVar("Whole")


def load_and_rehearse(load: Callable[[Callable[[First], None]], Whole], rehearse: Callable[[First], None]) -> Whole:
    """Load in a second thread, and rehearse in this one as soon as `load` has given what that takes.

    In this one, since libraries keep memory for every thread that computes. Raises what `load` raises.
    """
    first: Future[First | None] = Future()
    loaded: Future[Whole] = Future()

    def work() -> None:
        try:
            loaded.set_result(load(first.set_result))
        except BaseException as error:  # it is raised where it is waited for
            loaded.set_exception(error)
        if not first.done():
            first.set_result(None)

    Thread(target=work, daemon=True).start()
    given = _result(first)
    if given is not None:
        with suppress(Exception):  # what fails here fails again, and is told, when it counts
            rehearse(given)
    return _result(loaded)


def _result(future: "Future[Whole]") -> Whole:
    while not future.done():
        wait([future], timeout=_LOOK_EVERY_S)
    return future.result()
