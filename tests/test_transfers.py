"""Numbers to a device and back; on a GPU nobody waits for what need not be waited for."""

import numpy as np
import pytest
import torch

from yue_cli.transfers import fetch, send

CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_what_is_sent_is_there_and_comes_back(device: str) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    place = torch.zeros(3, 4, device=device)
    send(values, place)
    coming = fetch(place)
    place.zero_()
    np.testing.assert_array_equal(coming(), values)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_what_was_sent_may_be_written_over(device: str) -> None:
    values, place = np.ones(1 << 20, dtype=np.float32), torch.zeros(1 << 20, device=device)
    send(values, place)
    values[:] = 2
    assert float(place.sum()) == 1 << 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_neither_way_waits_for_what_the_gpu_is_at_work_on() -> None:
    place = torch.zeros(4, device="cuda")
    fetch(place)()  # what is needed is made at the first time
    send(np.zeros(4, np.float32), place)
    torch.cuda._sleep(400_000_000)  # cycles: some 0.2 s
    send(np.ones(4, np.float32), place)
    coming = fetch(place)
    assert not torch.cuda.current_stream().query()
    torch.cuda._sleep(400_000_000)
    np.testing.assert_array_equal(coming(), np.ones(4))
    assert not torch.cuda.current_stream().query()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_without_memory_that_a_gpu_can_reach_a_copy_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    place = torch.zeros(2, device="cuda")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no main memory for a GPU")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    monkeypatch.setattr(torch.Tensor, "to", refuse)
    send(np.ones(2, np.float32), place)
    assert fetch(place)().tolist() == [1, 1]
