"""What computes where there is no GPU."""

import platform
from functools import cache
from pathlib import Path


@cache
def processor_name() -> str:
    """Name the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or not x86
        return platform.processor() or platform.machine()


def is_intel() -> bool:
    """Tell whether Intel made it, whose matrix library treats its own processors in another way than others."""
    return "Intel" in processor_name()
