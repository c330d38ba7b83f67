"""Brings tensors from files to a GPU: while it fetches a piece, all threads of the processor read the next one."""

import itertools
from contextlib import suppress

import torch
from torch import Tensor

_PIECE = 32 << 20  # bytes of main memory that the GPU can reach, twice
_WORTH_PIECES = 1 << 20  # bytes: below, the detour takes longer


class Carrier:
    """Copies tensors onto a device, and turns them into the dtype that is wanted there.

    What lies in a mapped file is read, page by page, when it is copied, which one thread does far more slowly than disk
    and GPU allow. On a CPU a copy is a copy.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type != "cuda":
            return
        with suppress(RuntimeError):  # some systems lend a GPU no main memory: then a copy is a copy there, too
            pieces = [torch.empty(_PIECE, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self._turns = itertools.cycle([(piece, torch.cuda.Event()) for piece in pieces])
            self._stream = torch.cuda.current_stream(device)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy source into a target of the same shape. It is there for whatever the current stream does next."""
        if self._stream is None or target.nbytes < _WORTH_PIECES or not target.is_contiguous():
            target.copy_(source)
            return
        flat, there = source.reshape(-1), target.view(-1)
        count = _PIECE // target.itemsize
        for part, place in zip(flat.split(count), there.split(count), strict=True):
            piece, fetched = next(self._turns)
            fetched.synchronize()
            staged = piece.view(target.dtype)[: len(part)]
            staged.copy_(part)
            place.copy_(staged, non_blocking=True)
            fetched.record(self._stream)
