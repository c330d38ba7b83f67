"""What computes where there is no GPU."""

import platform
from functools import cache
from pathlib import Path

_LISTED = Path("/proc/cpuinfo")  # on Linux


@cache
def processor_name() -> str:
    """Name the processor, as far as the system tells."""
    return _listed("model name") or platform.processor() or platform.machine()


@cache
def is_intel() -> bool:
    """Tell whether Intel made it, whose matrix library treats its own processors in another way than others."""
    return _listed("vendor_id") == "GenuineIntel" or "Intel" in processor_name()


def _listed(field: str) -> str:
    """Look up what Linux lists of the first processor; empty where it lists no such thing."""
    try:
        lines = _LISTED.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
