"""What is told of a machine, and of one that is pretended."""

import pytest
import torch

from yue_cli import machine


def test_a_limit_never_adds_memory():
    cpu = torch.device("cpu")
    assert machine.free_bytes(cpu, 0.25) == 250_000_000
    assert machine.free_bytes(cpu, 1e6) < 10**15


def test_what_a_gpu_has_left_is_what_its_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(machine, "measure_free_bytes", lambda device: 9 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 6 * 10**9)
    assert machine.spare_bytes(gpu) == 9 * 10**9
    assert machine.spare_bytes(gpu, 8) == 2 * 10**9
    assert machine.spare_bytes(gpu, 24) == 9 * 10**9


@pytest.mark.parametrize(("capability", "dtype"), [(7.5, torch.float16), (8.0, torch.bfloat16), (9.0, torch.bfloat16)])
def test_another_compute_capability_may_mean_another_dtype(capability, dtype):
    assert machine.choose_dtype("auto", torch.device("cuda"), capability) == dtype
    assert machine.choose_dtype("float32", torch.device("cuda"), capability) == torch.float32
    assert machine.choose_dtype("auto", torch.device("cpu"), capability) == torch.float32


def test_a_processor_is_named_with_its_threads():
    name = machine.hardware_name(torch.device("cpu"))
    assert name.endswith((" thread", " threads"))
    assert name.split(",")[0].strip()
