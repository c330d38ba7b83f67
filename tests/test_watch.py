"""The hard cap on a process's GPU memory, tried with a driver and an allocator that are made up."""

import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from benchmarks import watch
from benchmarks.watch import Watch

TOTAL, BEFORE = 100_000, 1000  # bytes of the GPU; in use by others


class Driver:
    """A GPU on which this process holds what its allocator reserved, and something outside it."""

    def __init__(self, tells_processes: bool) -> None:
        self.reserved, self.outside, self.is_open, self.fraction = 0, 600, False, 1.0
        self.tells_processes = tells_processes

    def used(self) -> int:
        return BEFORE + (self.reserved + self.outside) * self.is_open

    def processes(self) -> dict[int, int | None]:
        if not self.tells_processes:
            return {}
        return {7: BEFORE} | ({4242: self.reserved + self.outside} if self.is_open else {})

    def torch(self) -> SimpleNamespace:
        def open_context(*_: object, **__: object) -> None:
            self.is_open = True

        def limit(fraction: float, device: torch.device) -> None:
            assert device.index is not None, "PyTorch wants to know which GPU"
            self.fraction = fraction

        cuda = SimpleNamespace(
            synchronize=lambda: None,
            memory_reserved=lambda device: self.reserved,
            memory_allocated=lambda device: self.reserved,
            max_memory_reserved=lambda device: self.reserved,
            max_memory_allocated=lambda device: self.reserved,
            mem_get_info=lambda device: (0, TOTAL),
            set_per_process_memory_fraction=limit,
        )
        return SimpleNamespace(cuda=cuda, zeros=open_context, device=torch.device)


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "nothing was seen of it"
        time.sleep(0.01)


@pytest.mark.parametrize("tells_processes", [True, False])
def test_the_allocator_may_take_what_the_rest_leaves_of_the_cap(
    monkeypatch: pytest.MonkeyPatch, tells_processes: bool
) -> None:
    driver = Driver(tells_processes)
    monkeypatch.setattr(watch, "Gpu", lambda: driver)
    monkeypatch.setattr(watch, "torch", driver.torch())
    part = "stage1"
    with Watch(torch.device("cuda"), 8000, lambda: part) as seen:
        assert (seen.outside, driver.fraction) == (600, 7400 / TOTAL)
        driver.reserved = 5000
        wait_until(lambda: seen.peaks["stage1"]["held"] == 5600)
        part, driver.outside = "stage2", 900
        wait_until(lambda: driver.fraction == 7100 / TOTAL)
    figures = seen.figures()
    assert figures["is_complete"]
    assert (figures["peak"], figures["most_outside"], figures["least_allowed"]) == (5900, 900, 7100)
    assert figures["peaks"]["stage1"]["reserved"] == 5000
    assert (figures["counted_by"] == "process") is tells_processes


def test_without_a_gpu_nothing_is_watched() -> None:
    with Watch(torch.device("cpu"), 8000) as seen:
        pass
    assert seen.figures() == {}
