"""What this machine offers: a device, its free memory, how much was used, which versions run."""

import gc
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from yue_cli import __version__
from yue_cli.errors import EngineError
from yue_cli.processor import processor_name

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


_WORTH_THREADS = 50 * 10**6  # bytes of weights: below, one thread is as fast as two
BFLOAT16_CAPABILITY = 8.0  # compute capability of the first GPUs that compute it
_CAREFUL_GUESS = 4 * 2**30  # bytes, where a system does not tell what is free


@dataclass(frozen=True)
class Gpu:
    """A GPU as PyTorch sees it; sizes in bytes."""

    name: str
    free: int
    total: int
    capability: tuple[int, int]  # compute capability


def choose_device(name: str) -> torch.device:
    """Turn the `execution.device` setting into a device; `auto` is the first GPU, else the CPU. Raises EngineError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"execution.device is `{name}`; expected auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise EngineError(f"execution.device is `{name}`; expected auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"execution.device is `{name}`, but PyTorch {torch.__version__} sees no CUDA GPU; use cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(f"there is no {name}; GPUs seen: {torch.cuda.device_count()}, counted from cuda:0.")
    return device


def choose_dtype(name: str, device: torch.device, pretended_capability: float | None = None) -> torch.dtype:
    """Turn the `execution.dtype` setting into a dtype.

    `auto` is float32 on a CPU and bfloat16 on a GPU, but float16 on one that lacks bfloat16.
    """
    if name == "auto" and device.type == "cpu":
        name = "float32"
    elif name == "auto":
        capability = pretended_capability or float("{}.{}".format(*torch.cuda.get_device_capability(device)))
        name = "bfloat16" if capability >= BFLOAT16_CAPABILITY else "float16"
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype), f"{name} is not a dtype"
    return dtype


def free_bytes(device: torch.device, limit_gb: float | None = None) -> int:
    """Tell how much memory a new allocation on this device may take, `limit_gb` at the most."""
    free = measure_free_bytes(device)
    return free if limit_gb is None else min(free, round(limit_gb * 1e9))


def device_name(device: torch.device) -> str:
    """Name a device as its owner would."""
    if device.type == "cpu":
        return "this machine"
    return f"cuda:{device.index or 0} ({torch.cuda.get_device_name(device)})"


def hardware_name(device: torch.device) -> str:
    """Name the chip that does the work: `NVIDIA H200`, or a processor and the threads that compute on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} {'thread' if threads == 1 else 'threads'}"


def measure_free_bytes(device: torch.device) -> int:
    """Tell how much memory is free, by the driver or the system."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        if hasattr(os, "sysconf"):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        return _CAREFUL_GUESS


def gpus() -> tuple[list[Gpu], str]:
    """List the GPUs that PyTorch sees, and what it says when it cannot see them."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        found = [
            Gpu(
                torch.cuda.get_device_name(index),
                *torch.cuda.mem_get_info(index),
                torch.cuda.get_device_capability(index),
            )
            for index in range(count)
        ]
    except RuntimeError as error:  # a GPU in exclusive use, or broken
        return [], str(error).splitlines()[0]
    return found, " ".join(str(warning.message).splitlines()[0] for warning in said)


def cuda_build() -> tuple[str | None, list[str]]:
    """Tell for which CUDA this PyTorch was built, None for the CPU alone, and for which kinds of GPU (`sm_90`)."""
    return torch.version.cuda, torch.cuda.get_arch_list() if torch.cuda.is_available() else []


@contextmanager
def threads_for(weight_bytes: int) -> Iterator[None]:
    """Compute with one CPU thread within, where the weights are so few that threads only wait for each other.

    On a machine that is busy with other things that waiting can take a hundred times as long as the work.
    """
    before = torch.get_num_threads()
    if weight_bytes < _WORTH_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_bytes() -> tuple[int, int]:
    """Tell the most memory this process has used so far: main memory, GPU memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    main = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit if resource else 0
    return main, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def begin_peak(device: torch.device) -> None:
    """Forget the most GPU memory that was used so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_on(device: torch.device) -> int | None:
    """Tell the most memory of a GPU that was used since `begin_peak`; None for a CPU, which keeps no such count."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def free_memory(device: torch.device) -> None:
    """Give back what a model took, so that the next one fits."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def versions() -> dict[str, str]:
    """List the versions that a result may depend on."""
    return {
        "yue": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
