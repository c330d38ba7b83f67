"""Numbers on their way between the host and a GPU: neither waits for the other before it must."""

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor


def send(values: np.ndarray, target: Tensor) -> Tensor:
    """Copy values into a tensor of their shape, and return it: they are there for whatever is launched next."""
    source = torch.from_numpy(values)
    if target.device.type == "cuda":
        with suppress(RuntimeError):  # some systems lend a GPU no main memory
            source = source.pin_memory()  # else the host would wait for all that was launched before
    return target.copy_(source, non_blocking=source.is_pinned())


def fetch(values: Tensor) -> Callable[[], np.ndarray]:
    """Begin to bring what a tensor holds now to the host. What is returned waits for that, but for nothing later."""
    if values.device.type != "cuda":
        return values.clone().cpu().numpy
    try:
        there = values.to("cpu", non_blocking=True)
    except RuntimeError:  # as above
        there = values.cpu()
    arrived = torch.cuda.current_stream(values.device).record_event()

    def wait() -> np.ndarray:
        arrived.synchronize()
        return there.numpy().copy()  # so that the memory that a GPU can reach is used again

    return wait
