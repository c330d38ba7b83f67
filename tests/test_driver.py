"""A GPU is readied before PyTorch is there: by calls of the driver, where there is one."""

import ctypes
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.command_line import done
from yue_cli import driver


class Driver:
    """Stands in for CUDA's: notes what it is asked, and fails from one call on."""

    def __init__(self, fails_at: str | None = None) -> None:
        self.asked: list[str] = []
        self.number: int | None = None
        self._fails_at = fails_at

    def __getattr__(self, name: str):
        def call(*arguments: object) -> int:
            self.asked.append(name)
            if name == "cuDeviceGet":
                self.number = int(arguments[1])
            return int(name == self._fails_at)

        return call


CALLS = ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]


@pytest.mark.parametrize(("device", "number"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:3", 3)])
def test_the_device_that_is_wanted_is_readied(device: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Driver()
    monkeypatch.setattr(driver, "_knows_cuda", lambda: True)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
    thread = driver.wake(device)
    assert thread is not None
    thread.join()
    assert found.asked == CALLS
    assert found.number == number


@pytest.mark.parametrize("place", range(3))
def test_nothing_is_asked_of_a_driver_that_fails(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Driver(fails_at=CALLS[place])
    monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
    driver._make_context(0)
    assert found.asked == CALLS[: place + 1]


def test_a_machine_without_a_driver_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[str] = []

    def refuse(name: str) -> None:
        wanted.append(name)
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(driver, "_knows_cuda", lambda: True)
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    monkeypatch.setattr(threading, "excepthook", lambda failed: wanted.append(str(failed.exc_value)))
    thread = driver.wake("auto")
    assert thread is not None
    thread.join()
    assert wanted == [driver._LIBRARY]  # and no more: nothing was raised


@pytest.mark.parametrize("device", ["cpu", "cuda:x", "cuda:-1", "cuda:\u00b2", "cuda:1000000000000", "mps", ""])
def test_what_is_no_gpu_is_left_alone(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_knows_cuda", lambda: True)
    assert driver.wake(device) is None


def test_a_pytorch_without_cuda_has_no_use_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert driver._knows_cuda() == (torch.version.cuda is not None)
    for found in (None, SimpleNamespace(origin=None)):
        monkeypatch.setattr(driver, "find_spec", lambda name, found=found: found)
        assert driver.wake("auto") is None


@pytest.mark.usefixtures("place")
def test_a_song_wakes_the_device_that_it_asks_for(song: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[str] = []
    monkeypatch.setattr(driver, "wake", woken.append)
    done("run", "song", "--device", "auto")
    done("decode", "song", "--device", "cpu", "--force")
    assert woken == ["auto", "cpu"]
    done("run", "song", "--dry-run")
    assert len(woken) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pytorch_works_in_the_context_that_is_there() -> None:
    thread = driver.wake("cuda")
    assert thread is not None
    thread.join()
    assert torch.ones(3, device="cuda").sum().item() == 3
