"""The GPU memory of this process, watched from a thread of its own, and a hard cap on it.

PyTorch's allocator is only a part of it: CUDA's context, libraries, kernels and graphs lie outside. With a cap the
allocator may take what these leave of it, and no more, as on a smaller card.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.nvml import Gpu

_LOOK_EVERY_S = 0.05
_SETTLED = 5  # looks: the driver may tell a little late what the allocator gave back
_CONTEXT_LOOKS = 8


class Watch:
    """Use it as a context, before anything is on the GPU. All sizes are bytes; where there is no GPU it does nothing.

    cap: of all that this process may hold. part: names what is being done, to tell peaks apart.
    """

    def __init__(self, device: torch.device, cap: int | None = None, part: Callable[[], str] = lambda: "all") -> None:
        # The allocator's fraction is set for a GPU with a number only.
        self.device = torch.device("cuda", device.index or 0) if device.type == "cuda" else device
        self.cap, self.part = cap, part
        self.outside = 0  # what is held outside PyTorch's allocator now, …
        self.most_outside = 0  # … and at the most
        self.allowed: int | None = None  # what the allocator may take now
        self.peaks: dict[str, dict[str, int]] = {}
        self.is_complete = False  # it was watched to the end
        self.is_own = False  # the driver tells of this process, not only of the whole GPU
        self._looks: deque[int] = deque(maxlen=_SETTLED)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        if self.device.type != "cuda":
            return self
        self._gpu = Gpu()
        self._before, others = self._gpu.used(), set(self._gpu.processes())
        torch.zeros(1, device=self.device)  # makes the context
        torch.cuda.synchronize()
        # In a container the process may go by another number: then it is the one that has come.
        seen = self._gpu.processes()
        new = [pid for pid in seen if pid not in others]
        self._pid = os.getpid() if os.getpid() in seen else (new[0] if len(new) == 1 else -1)
        self.is_own = bool(seen.get(self._pid))
        self._total = torch.cuda.mem_get_info(self.device)[1]
        for _ in range(_CONTEXT_LOOKS):
            self._look()
            time.sleep(_LOOK_EVERY_S)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_complete = self._thread.is_alive()  # else asking the driver failed on the way
        if self.is_complete:
            self._over.set()
            self._thread.join()

    def figures(self) -> dict[str, Any]:
        """Tell what was seen: peaks of the driver's count and of PyTorch's allocator."""
        if self.device.type != "cuda":
            return {}
        return {
            "counted_by": "process" if self.is_own else "the GPU's memory in use, less what was in use before",
            "is_complete": self.is_complete,
            "peak": max(peak["held"] for peak in self.peaks.values()),
            "peak_reserved": torch.cuda.max_memory_reserved(self.device),
            "peak_allocated": torch.cuda.max_memory_allocated(self.device),
            "most_outside": self.most_outside,
            "peaks": self.peaks,
        } | ({"cap": self.cap, "least_allowed": self.allowed} if self.cap is not None else {})

    def _run(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        before = torch.cuda.memory_reserved(self.device)
        held = (self._gpu.processes().get(self._pid) or 0) if self.is_own else self._gpu.used() - self._before
        allocated = torch.cuda.memory_allocated(self.device)
        peak = self.peaks.setdefault(self.part(), {"held": 0, "reserved": 0, "allocated": 0})
        for name, size in (("held", held), ("reserved", before), ("allocated", allocated)):
            peak[name] = max(peak[name], size)
        if held and torch.cuda.memory_reserved(self.device) == before:
            self._looks.append(held - before)
        if len(self._looks) < _SETTLED:
            return
        self.outside = min(self._looks)
        self.most_outside = max(self.most_outside, self.outside)
        if self.cap is not None:
            allowed = self.cap - self.most_outside
            if allowed != self.allowed:
                self.allowed = allowed
                torch.cuda.set_per_process_memory_fraction(min(max(allowed / self._total, 0.0), 1.0), self.device)
