"""How kernels follow each other on a GPU: the next may begin before the one before has ended, and then wait for it.

So the pause between two kernels, and the time in which the last programs of one leave the GPU idle, are used to bring
the weights of the next one nearer. Source: CUDA's programmatic dependent launch, which GPUs know from Hopper on.
"""

from functools import lru_cache

import torch

from yue_cli.engines.native import kernels

_HOPPER = 9, 0  # compute capability
_SHARED_BYTES = 200 * 1024  # of shared memory, that the tiles for it take; some younger multiprocessors have half


@lru_cache
def is_hopper(device: torch.device) -> bool:
    """Tell whether a device is a GPU of that generation, or a younger one."""
    return device.type == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= _HOPPER


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Count the multiprocessors of a GPU of that generation; 0 for any other, and for one with less shared memory."""
    if not is_hopper(device):
        return 0
    found = torch.cuda.get_device_properties(device)
    count: int = found.multi_processor_count
    return count if found.shared_memory_per_multiprocessor >= _SHARED_BYTES else 0


@lru_cache
def link(device: torch.device, wanted: bool = True) -> dict[str, bool]:
    """Tell a kernel, by further arguments, whether it is launched as a link of a chain: where it can be."""
    can = wanted and not kernels.INTERPRETED and is_hopper(device)
    return {"CHAINED": True, "launch_pdl": True} if can else {"CHAINED": False}
