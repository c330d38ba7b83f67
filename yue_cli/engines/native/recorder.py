"""CUDA graphs: what a call launches is recorded once and played again with one launch."""

import time
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from yue_cli.garbage import uncollected

Call = Callable[[], Tensor]


class Recorder:
    """Plays calls that work in place on tensors of fixed address and answer with one.

    The first call of several that are alike is computed as it is, for good: that also loads and compiles what they
    need. From then on each is recorded when it is made for the first time. All recordings share one pool of memory; a
    later one may use what an earlier one does, so an answer is good until the next call. Where there is no CUDA, calls
    are computed as they are.
    """

    def __init__(self, device: torch.device, *, gives_up: bool = False, is_idle: bool = False) -> None:
        """gives_up: where recording fails, compute calls as they are from then on, and keep why in `trouble`.

        is_idle: record nothing from the start.
        """
        self.device = device
        self.gives_up = gives_up
        self.trouble = ""
        self.count = 0
        self.seconds = 0.0  # taken by recording
        self.bytes = 0  # of device memory that recordings hold
        # With each graph the call it was made from: it keeps the tensors alive whose addresses were recorded.
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor, Call]] = {}
        self._loaded: set[Hashable] = set()  # what calls are like that find all they need
        self._pool: Any = None  # PyTorch's handle of the pool
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and not is_idle else None

    def play(self, key: Hashable, call: Call, like: Hashable = None) -> Tensor:
        """Do what `call` does.

        key: equal for calls that do the same to the same tensors. like: equal for those that launch the same kernels;
        None for a call that is like no other.
        """
        if self._stream is None:
            return call()
        kind = key if like is None else like
        if kind not in self._loaded:
            answer = self._compute(call)
            self._loaded.add(kind)
            return answer
        if key not in self._graphs:
            try:
                self._graphs[key] = (*self._record(call), call)
            except RuntimeError as error:
                if not self.gives_up:
                    raise
                # Nothing was computed while it was recorded, so nothing is computed twice.
                self.trouble = str(error).partition("\n")[0]
                self._stream = None
                return call()
        graph, answer, _ = self._graphs[key]
        graph.replay()
        return answer

    def forget(self) -> None:
        """Give the memory of all recordings back."""
        self._graphs.clear()
        self._loaded.clear()
        self._pool = None

    def _compute(self, call: Call) -> Tensor:
        """Compute on the stream that will be recorded: libraries keep workspaces for each stream."""
        assert self._stream is not None
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            answer = call()
        current.wait_stream(self._stream)
        return answer

    def _record(self, call: Call) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        began = time.perf_counter()
        reserved = torch.cuda.memory_reserved(self.device)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as one that draws a progress bar, may do what they like meanwhile.
        recording = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        with uncollected(), recording:  # another graph among the garbage would, when it is destroyed, spoil this one
            answer = call()
        self._pool = graph.pool()
        self.count += 1
        self.seconds += time.perf_counter() - began
        self.bytes += max(0, torch.cuda.memory_reserved(self.device) - reserved)
        return graph, answer
