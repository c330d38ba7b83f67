"""What every engine can do: logits for a few rows of ids. Knows ids only, neither music nor sampling."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

Head = tuple[range, ...]  # wanted rows of the output head; the logits' columns come in this order
Pick = Callable[[Tensor], Tensor]  # logits float32 [R, columns] → ids int64 [R, 1]
Advance = Callable[[Tensor], Tensor]  # ids int64 [R, n] → ids int64 [R, 1]
Rehearse = Callable[["Engine"], None]  # takes, for nothing, the first steps that an engine of these rows will take


class Engine(ABC):
    """Next-token logits for a few rows of ids, with the key/value cache inside.

    `rows` and `length` are capacities, fixed when the engine is opened: rows decoded together, and ids in each row.
    A row's numbers depend on its own ids only; what the other rows hold never changes them beyond rounding.
    """

    def __init__(self, *, vocabulary_size: int, rows: int, length: int, device: torch.device) -> None:
        self.vocabulary_size = vocabulary_size
        self.rows = rows
        self.length = length
        self.device = device

    @property
    @abstractmethod
    def memory(self) -> int:
        """Bytes held on the device: weights and cache."""

    @property
    def how(self) -> str:
        """How a step is computed, and why not faster, in a few words."""
        return "one operation after the other"

    @property
    def has_kernels(self) -> bool:
        """Tell whether Triton's kernels compute a step, so that they may choose the next id as well."""
        return False

    @property
    def falls_back(self) -> bool:
        """Tell whether a faster way, that this device would allow, cannot be used."""
        return False

    @property
    def cost(self) -> str:
        """What that has cost so far beside the work itself, in a few words; empty for nothing."""
        return ""

    @abstractmethod
    def prefill(self, rows: Sequence[np.ndarray], head: Head | None = None) -> Tensor:
        """Empty the cache, read whole rows and return the logits after the last id of each.

        rows: int64 arrays [n_i], at least one id each, of any lengths; at most `self.rows` of them.
        Returns float32 [R, columns]: the columns that `head` names, or the whole vocabulary.
        The work is cut in fixed sizes, so that equal rows give equal numbers in every run.
        """

    @abstractmethod
    def step(self, ids: Tensor, head: Head | None = None) -> Tensor:
        """Read n more known ids in each row of the last `prefill` and return the logits after the last.

        ids: int64 [R, n] on the engine's device. Returns float32 [R, columns].
        """

    def follow(self, row: np.ndarray, start: int, head: Head | None = None) -> Iterator[Tensor]:
        """Empty the cache, read one whole row and give the logits after each of its ids from `start` on.

        row: int64 [n], n at most `self.length`. Yields float32 [m, columns] piece by piece, n - start rows in all, so
        that a long row needs no more memory than a short one.
        """
        yield self.prefill([row[: start + 1]], head)
        for number in row[start + 1 :]:
            yield self.step(torch.tensor([[int(number)]], device=self.device), head)

    def fuse(self, pick: Pick, head: Head | None = None) -> Advance:
        """Join a step and the choice of the next id.

        pick: works on tensors only and never waits for the device, so that an engine may record it. What it
        remembers lives in tensors that it changes in place.
        """

        def advance(ids: Tensor) -> Tensor:
            return pick(self.step(ids, head))

        return advance

    @abstractmethod
    def close(self) -> None:
        """Give the memory back. The engine cannot be used afterwards."""
