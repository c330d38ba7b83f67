"""The native engine: a LLaMA in eager PyTorch. It is the definition that faster paths are compared with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from yue_cli.engines.base import Engine, Head
from yue_cli.engines.native.config import LlamaConfig
from yue_cli.engines.native.loader import load
from yue_cli.engines.native.model import Llama, Span, Weights, linear
from yue_cli.engines.native.quantized import Matrix, join
from yue_cli.errors import EngineError

# Prompts are read in pieces of this many ids, one row after the other, so that a prompt's numbers depend on
# nothing but the prompt: neither on other rows nor on how a run was resumed.
CHUNK = 512


class NativeEngine(Engine):
    def __init__(self, config: LlamaConfig, weights: Weights, *, rows: int, length: int) -> None:
        super().__init__(
            vocabulary_size=config.vocabulary_size, rows=rows, length=length, device=weights.embedding.device
        )
        self._model: Llama | None = Llama(config, weights, rows=rows, length=length)
        self._filled: list[int] = []  # ids in the cache, for each row in use
        self._heads: dict[Head, Matrix] = {}

    @classmethod
    def open(cls, folder: Path, *, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> "NativeEngine":
        """Load a checkpoint folder. Raises CheckpointError for a bad folder, EngineError for too little memory."""
        config = LlamaConfig.read(folder)
        cache = config.cache_values_per_token * rows * length * dtype.itemsize
        with enough_memory(device, needs(config.weight_bytes(dtype.itemsize), cache, rows, length)):
            weights = load(folder, config, device=device, dtype=dtype)
            return cls(config, weights, rows=rows, length=length)

    @property
    def memory(self) -> int:
        if self._model is None:
            return 0
        model = self._model
        tensors = model.weights.tensors() + model.keys + model.values + [model.cosine, model.sine]
        kind = type(model.weights.head)  # of which some rows, in their order, are a view
        gathered = [weight for head, weight in self._heads.items() if len(head) > 1 or type(weight) is not kind]
        return sum(tensor.nbytes for tensor in tensors) + sum(weight.nbytes for weight in gathered)

    @torch.inference_mode()
    def prefill(self, rows: Sequence[np.ndarray], head: Head | None = None) -> Tensor:
        model = self._opened()
        assert 1 <= len(rows) <= self.rows, f"{len(rows)} rows do not fit an engine opened for {self.rows}"
        self._filled = [0] * len(rows)
        last = []
        for number, row in enumerate(rows):
            assert 1 <= len(row) <= self.length, f"a row of {len(row)} ids does not fit a cache of {self.length}"
            ids = torch.from_numpy(np.asarray(row, dtype=np.int64)).to(self.device)[None]
            hidden = ids.new_empty(0)
            for start in range(0, len(row), CHUNK):
                span = Span(slice(0, 1), slice(number, number + 1), start)
                hidden = model.forward(ids[:, start : start + CHUNK], [span])
            self._filled[number] = len(row)
            last.append(hidden)
        return linear(torch.cat(last), self._head(head)).float()

    @torch.inference_mode()
    def step(self, ids: Tensor, head: Head | None = None) -> Tensor:
        model = self._opened()
        rows, count = ids.shape
        assert rows == len(self._filled), f"{rows} rows given, {len(self._filled)} in the cache: prefill comes first"
        assert max(self._filled) + count <= self.length, f"the cache of {self.length} ids is full"
        hidden = model.forward(ids, self._spans())
        self._filled = [filled + count for filled in self._filled]
        return linear(hidden, self._head(head)).float()

    def close(self) -> None:
        self._model = None
        self._heads.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _opened(self) -> Llama:
        assert self._model is not None, "the engine is closed"
        return self._model

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
    return f"{weights / 1e9:.1f} GB of weights and {cache / 1e9:.1f} GB of cache ({rows} rows of {length} tokens)"


@contextmanager
def enough_memory(device: torch.device, needs: str) -> Iterator[None]:
    """Turn a failed allocation into one line. Raises EngineError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On a CPU PyTorch raises a plain RuntimeError.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        raise EngineError(
            f"{device}: not enough memory for {needs}; use fewer rows, a shorter context or a smaller model."
        ) from error
