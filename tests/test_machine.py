"""What is told of a machine, and of one that is pretended."""

import pytest
import torch

from yue_cli import machine


def test_a_limit_never_adds_memory():
    cpu = torch.device("cpu")
    assert machine.free_bytes(cpu, 0.25) == 250_000_000
    assert machine.free_bytes(cpu, 1e6) < 10**15


@pytest.mark.parametrize(("capability", "dtype"), [(7.5, torch.float16), (8.0, torch.bfloat16), (9.0, torch.bfloat16)])
def test_another_compute_capability_may_mean_another_dtype(capability, dtype):
    assert machine.choose_dtype("auto", torch.device("cuda"), capability) == dtype
    assert machine.choose_dtype("float32", torch.device("cuda"), capability) == torch.float32
    assert machine.choose_dtype("auto", torch.device("cpu"), capability) == torch.float32


def test_a_processor_is_named_with_its_threads():
    name = machine.hardware_name(torch.device("cpu"))
    assert name.endswith((" thread", " threads"))
    assert name.split(",")[0].strip()
