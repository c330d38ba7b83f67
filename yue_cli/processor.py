"""What computes where there is no GPU."""

import platform
from functools import cache
from pathlib import Path

_LISTED = Path("/proc/cpuinfo")
_INTEL = ("GenuineIntel", "Intel")  # its own word for itself; part of a name, where a system tells no more


@cache
def processor_name() -> str:
    """Name the processor, as far as the system tells."""
    # Linux on x86, or else
    return _listed("model name") or platform.processor() or platform.machine()


@cache
def is_intel() -> bool:
    """Tell whether Intel made it, whose matrix library treats its own processors in another way than others."""
    maker, name = _INTEL
    return maker == _listed("vendor_id") or name in processor_name()


def _listed(field: str) -> str:
    """Look up what Linux lists of the first processor; empty where it lists no such thing."""
    try:
        lines = _LISTED.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
