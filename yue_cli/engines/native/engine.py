"""The native engine: a LLaMA in PyTorch.

Prompts are read by `Llama.forward`, which is also the definition of a step. A faster step (`modes.py`) reads and
writes the same cache, keeps its positions on the device, and can be recorded together with the choice of the next id.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from yue_cli.engines.base import Advance, Engine, Head, Pick, Rehearse
from yue_cli.engines.native import attention, cache, invented, modes
from yue_cli.engines.native.config import LlamaConfig
from yue_cli.engines.native.loader import load
from yue_cli.engines.native.model import Llama, Span, Weights
from yue_cli.engines.native.positioned import PositionedStep
from yue_cli.engines.native.quantized import Matrix, Unpack, join
from yue_cli.engines.native.recorder import Recorder
from yue_cli.engines.native.rehearsal import Begun, load_and_rehearse
from yue_cli.errors import OutOfMemory
from yue_cli.transfers import send

# Prompts are read in pieces of this many ids, one row after the other, so that a prompt's numbers depend on
# nothing but the prompt: neither on other rows nor on how a run was resumed.
CHUNK = 512
_FOLLOWED = 64  # positions whose logits are in memory at once while a row is followed
_FEW = 2  # ids of a row that a fast step reads; more are read as prompts are
_REHEARSED = CHUNK + 64  # ids that a row has room for in a rehearsal
_MANY = 8  # prompts of one length, from which on recording how one is read pays


class Step(Protocol):
    """A fast step. See `positioned.py`."""

    def extent(self, needed: int) -> int: ...

    def logits(self, ids: Tensor, filled: Tensor, extent: int, head: Matrix) -> Tensor: ...


class NativeEngine(Engine):
    def __init__(
        self,
        config: LlamaConfig,
        weights: Weights,
        *,
        rows: int,
        length: int,
        cache_format: str = "auto",
        mode: str = "auto",
        capability: float | None = None,
        is_rehearsal: bool = False,
    ) -> None:
        """capability: compute capability to count on, None for that of the device. is_rehearsal: record nothing."""
        like = weights.embedding
        super().__init__(vocabulary_size=config.vocabulary_size, rows=rows, length=length, device=like.device)
        capability = modes.capability_of(self.device, capability)
        self.mode = modes.choose(mode, config, device=self.device, dtype=like.dtype, capability=capability)
        caches = cache.make(cache_format, config, rows=rows, length=length, like=like)
        can_flash = attention.can_flash(self.device, like.dtype, config.head_size, capability or 0)
        self._model: Llama | None = Llama(
            config, weights, caches, length=length, can_flash=can_flash, unpack=self._unpack()
        )
        self._filled: list[int] = []  # ids in the cache, for each row in use, …
        self._filled_there = torch.zeros(rows, dtype=torch.int64, device=self.device)  # … and the same on the device
        self._heads: dict[Head, Matrix] = {}
        self._step = self._make_step()
        self._recorder = Recorder(self.device, gives_up=mode == "auto", is_idle=is_rehearsal)
        self._places: dict[tuple[int, int], Tensor] = {}  # by rows and ids a row
        self._prompts: dict[int, Tensor] = {}  # by ids: where a recorded prompt is read from
        self._numbers = itertools.count()  # of fused picks

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        rows: int,
        length: int,
        device: torch.device,
        dtype: torch.dtype,
        cache_format: str = "auto",
        mode: str = "auto",
        capability: float | None = None,
        rehearse: Rehearse | None = None,
    ) -> "NativeEngine":
        """Load a checkpoint folder. rehearse: what is done first; on a GPU it is rehearsed meanwhile.

        Raises CheckpointError for a bad folder, EngineError for too little memory or a mode that cannot be.
        """
        config = LlamaConfig.read(folder)
        # A wrong wish is refused before minutes of loading.
        modes.choose(mode, config, device=device, dtype=dtype, capability=modes.capability_of(device, capability))
        how: dict[str, Any] = {"rows": rows, "cache_format": cache_format, "mode": mode, "capability": capability}

        def read(begun: Begun | None = None) -> Weights:
            if config.is_random:
                return invented.load(config, device=device, dtype=dtype, begun=begun)
            return load(folder, config, device=device, dtype=dtype, begun=begun)

        def rehearse_with(first: Weights) -> None:
            assert rehearse is not None
            with torch.cuda.device(device):
                short = min(length, _REHEARSED + length % 16)  # kernels are compiled for multiples of 16, or others
                engine = cls(replace(config, layers=1), first, length=short, is_rehearsal=True, **how)
                try:
                    rehearse(engine)
                finally:
                    engine.close()

        held = cache.bytes_per_token(cache_format, config, dtype) * rows * length
        with enough_memory(device, needs(config.weight_bytes(dtype.itemsize), held, rows, length)):
            rehearses = rehearse is not None and device.type == "cuda"
            weights = load_and_rehearse(read, rehearse_with) if rehearses else read()
            return cls(config, weights, length=length, **how)

    @property
    def memory(self) -> int:
        if self._model is None:
            return 0
        model = self._model
        tensors = model.weights.tensors() + [model.cosine, model.sine]
        kind = type(model.weights.head)  # of which some rows, in their order, are a view
        gathered = [weight for head, weight in self._heads.items() if len(head) > 1 or type(weight) is not kind]
        held = [*tensors, *gathered, *model.caches]
        return sum(part.nbytes for part in held) + self._recorder.bytes

    @property
    def how(self) -> str:
        return self.mode.describe(self.device)

    @property
    def has_kernels(self) -> bool:
        return self.mode.name == "kernels"

    @property
    def falls_back(self) -> bool:
        return bool(self.mode.why)

    @property
    def cost(self) -> str:
        recorder = self._recorder
        if not recorder.count and not recorder.trouble:
            return ""
        words = f"{recorder.count} graphs recorded in {recorder.seconds:.2f} s, {recorder.bytes / 1e9:.2f} GB"
        return words + (f"; then steps were not recorded any more: {recorder.trouble}" if recorder.trouble else "")

    @torch.inference_mode()
    def prefill(self, rows: Sequence[np.ndarray], head: Head | None = None) -> Tensor:
        model = self._opened()
        assert 1 <= len(rows) <= self.rows, f"{len(rows)} rows do not fit an engine opened for {self.rows}"
        self._filled = [0] * len(rows)
        with self._on_device(), enough_memory(self.device, "the work on a prompt"):
            last = self._read_all(rows)
            self._filled = [len(row) for row in rows]
            send(np.array(self._filled), self._filled_there[: len(rows)])
            return model.linear(torch.cat(last), self._head(head)).float()

    def _read_all(self, rows: Sequence[np.ndarray]) -> list[Tensor]:
        """Read each row into its own slot; give the last hidden state [1, hidden] of each."""
        alike = Counter(map(len, rows))
        last = []
        for slot, row in reversed(list(enumerate(rows))):  # the first comes last, for its slot is borrowed until then
            assert 1 <= len(row) <= self.length, f"a row of {len(row)} ids does not fit a cache of {self.length}"
            empty = torch.empty(1, len(row), dtype=torch.int64, device=self.device)
            ids = send(np.asarray(row, dtype=np.int64)[None], empty)
            is_recorded = self._step is not None and len(row) <= CHUNK and alike[len(row)] >= _MANY
            last.append(self._read_recorded(ids, slot) if is_recorded else self._read(ids, slot))
        return last[::-1]

    def _read(self, ids: Tensor, slot: int) -> Tensor:
        """Read ids [1, n] into an empty slot; give the last hidden state [1, hidden]."""
        model, slots = self._opened(), slice(slot, slot + 1)
        hidden = ids.new_empty(0)
        for start in range(0, ids.shape[1], CHUNK):
            hidden = model.forward(ids[:, start : start + CHUNK], [Span(slice(0, 1), slots, start)])
        return hidden

    def _read_recorded(self, ids: Tensor, slot: int) -> Tensor:
        """Do the same for one of many prompts of a length: in the first slot, from where it goes to its own."""
        count = ids.shape[1]
        place = self._prompts.setdefault(count, torch.zeros_like(ids))
        place.copy_(ids)
        hidden = self._recorder.play(("prompt", count), lambda: self._read(place, 0)).clone()
        for kept in self._opened().caches:
            kept.copy(0, slot)
        return hidden

    def follow(self, row: np.ndarray, start: int, head: Head | None = None) -> Iterator[Tensor]:
        model = self._opened()
        assert 0 <= start < len(row) <= self.length, f"{start}, {len(row)}: no place in a row of {self.length}"
        ids = torch.from_numpy(np.asarray(row, dtype=np.int64))[None]
        self._filled = []
        for first in range(0, len(row), CHUNK):
            with torch.inference_mode(), self._on_device(), enough_memory(self.device, "the work on a row"):
                span = Span(slice(0, 1), slice(0, 1), first)
                states = model.read(ids[:, first : first + CHUNK].to(self.device), [span])[0]
                wanted = model.norm(states[max(0, start - first) :], model.weights.norm)
            for part in wanted.split(_FOLLOWED) if len(wanted) else ():
                with torch.inference_mode(), self._on_device():
                    logits = model.linear(part, self._head(head)).float()
                yield logits
        self._filled = [len(row)]
        with torch.inference_mode():
            self._filled_there[:1] = len(row)

    @torch.inference_mode()
    def step(self, ids: Tensor, head: Head | None = None) -> Tensor:
        model = self._opened()
        rows, count = ids.shape
        self._check_room(rows, count)
        with self._on_device(), enough_memory(self.device, "a step"):
            there = self._filled_there[:rows]
            if self._step is not None and count <= _FEW:
                logits = self._step.logits(ids, there, self._extent(count), self._head(head))
            else:
                logits = model.linear(model.forward(ids, self._spans()), self._head(head)).float()
            there.add_(count)
        self._filled = [filled + count for filled in self._filled]
        return logits

    def fuse(self, pick: Pick, head: Head | None = None) -> Advance:
        """Join a step and the choice of the next id; both are recorded where the mode says so.

        The answer is written over by the next call.
        """
        if self._step is None:
            return super().fuse(pick, head)
        number = next(self._numbers)

        @torch.inference_mode()
        def advance(ids: Tensor) -> Tensor:
            rows, count = ids.shape
            assert count <= _FEW, f"{count} ids a row are too many for one fused step"
            self._check_room(rows, count)
            with self._on_device(), enough_memory(self.device, f"recording a step of {_counted(rows)}"):
                place, answer = self._place(rows, count), self._place(rows, 1)
                place.copy_(ids)  # which costs nothing where they are the last answer
                extent, columns, step = self._extent(count), self._head(head), self._step
                there = self._filled_there[:rows]

                def call() -> Tensor:
                    assert step is not None, "the engine is closed"
                    picked = pick(step.logits(place, there, extent, columns))
                    there.add_(count)
                    return answer.copy_(picked)

                # Picks by one function with other values, as of stage 2's codebooks, are alike.
                function = pick.func if isinstance(pick, partial) else pick
                like = function, rows, count, extent, len(columns)
                picked = self._recorder.play((number, rows, count, extent), call, like)
            self._filled = [filled + count for filled in self._filled]
            return picked

        return advance

    def close(self) -> None:
        self._recorder.forget()
        self._model = self._step = None
        self._heads.clear()
        self._places.clear()
        self._prompts.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _make_step(self) -> Step | None:
        if self.mode.name == "eager":
            return None
        if self.mode.name == "kernels":
            from yue_cli.engines.native.fused import FusedStep  # needs Triton

            return FusedStep(self._opened(), length=self.length)
        return PositionedStep(self._opened(), length=self.length)

    def _unpack(self) -> Unpack | None:
        if not self.has_kernels:
            return None
        from yue_cli.engines.native import products  # needs Triton

        return products.unpack

    def _opened(self) -> Llama:
        assert self._model is not None, "the engine is closed"
        return self._model

    def _on_device(self) -> AbstractContextManager[object]:
        """Make this engine's GPU the current one: kernels run, and graphs are recorded, on that."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _check_room(self, rows: int, count: int) -> None:
        assert rows == len(self._filled), f"{rows} rows given, {len(self._filled)} in the cache: prefill comes first"
        assert max(self._filled) + count <= self.length, f"the cache of {self.length} ids is full"

    def _extent(self, count: int) -> int:
        assert self._step is not None, "the engine is closed"
        return self._step.extent(max(self._filled) + count)

    def _place(self, rows: int, count: int) -> Tensor:
        """Find the tensor that so many ids a row are read from, always the same; fused steps answer in that for one."""
        if (rows, count) not in self._places:
            self._places[rows, count] = torch.zeros(rows, count, dtype=torch.int64, device=self.device)
        return self._places[rows, count]

    def _spans(self) -> list[Span]:
        """Join neighbouring rows that stand at the same position."""
        edges = [row for row in range(1, len(self._filled)) if self._filled[row] != self._filled[row - 1]]
        bounds = zip([0, *edges], [*edges, len(self._filled)], strict=True)
        return [Span(slice(low, high), slice(low, high), self._filled[low]) for low, high in bounds]

    def _head(self, head: Head | None) -> Matrix:
        """Find the wanted rows of the head: one range is a view, several are gathered once."""
        weight = self._opened().weights.head
        if head is None:
            return weight
        if head not in self._heads:
            parts = [weight[wanted.start : wanted.stop] for wanted in head]
            assert sum(map(len, parts)) == sum(map(len, head)), f"{head} goes past {self.vocabulary_size} ids"
            self._heads[head] = parts[0] if len(parts) == 1 else join(parts)
        return self._heads[head]


def needs(weights: int, cache: int, rows: int, length: int) -> str:
    """Say what an engine takes; sizes in bytes."""
    room = f"{_counted(rows)} of {length} tokens"
    return f"{weights / 1e9:.1f} GB of weights and {cache / 1e9:.1f} GB of cache ({room})"


def _counted(rows: int) -> str:
    return f"{rows} {'row' if rows == 1 else 'rows'}"


@contextmanager
def enough_memory(device: torch.device, needs: str) -> Iterator[None]:
    """Turn a failed allocation into one line. Raises OutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        free = f" ({torch.cuda.mem_get_info(device)[0] / 1e9:.1f} GB are free)" if device.type == "cuda" else ""
        raise OutOfMemory(
            f"{device}: not enough memory{free} for {needs}; use fewer rows, a shorter context or a smaller model."
        ) from error


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Look for it behind later errors, too: a recording that fails for it fails once more when it is ended."""
    while error is not None:
        # On a CPU PyTorch raises a plain RuntimeError.
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__context__
    return False
