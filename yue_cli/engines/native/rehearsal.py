"""A rehearsal: while weights are loaded, the first steps are taken with one layer, and what comes out is thrown away.

It finds compiled kernels, or compiles them, and has libraries set themselves up, for which a song would have to wait.
"""

from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from threading import Thread
from typing import TypeVar

from yue_cli.engines.native.model import Weights

Begun = Callable[[Weights], None]  # is told of the first layer, with all that is no layer, while the others are loaded
_LOOK_EVERY_S = 0.5  # for Ctrl-C, which Windows does not let a waiting thread hear
Kind = TypeVar("Kind")


def load_and_rehearse(load: Callable[[Begun], Weights], rehearse: Callable[[Weights], None]) -> Weights:
    """Load in a second thread, and rehearse in this one as soon as the first layer is there.

    In this one, since libraries keep memory for every thread that computes. Raises what `load` raises.
    """
    first: Future[Weights | None] = Future()
    loaded: Future[Weights] = Future()

    def work() -> None:
        try:
            loaded.set_result(load(first.set_result))
        except BaseException as error:  # it is raised where it is waited for
            loaded.set_exception(error)
        if not first.done():
            first.set_result(None)

    Thread(target=work, daemon=True).start()
    layer = _result(first)
    if layer is not None:
        with suppress(Exception):  # what fails here fails again, and is told, when it counts
            rehearse(layer)
    return _result(loaded)


def _result(future: "Future[Kind]") -> Kind:
    while not future.done():
        wait([future], timeout=_LOOK_EVERY_S)
    return future.result()
