"""An engine that computes nothing: it notes what it reads and answers by a rule."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from yue_cli.engines.base import Engine, Head

Rule = Callable[[list[int]], int]  # everything a row has read → its most likely next id


class CountingEngine(Engine):
    """Expects the id that `rule` names after each row; everything else is equally unlikely."""

    def __init__(
        self, rule: Rule = lambda ids: 0, *, vocabulary_size: int = 100, rows: int = 64, length: int = 10_000
    ) -> None:
        super().__init__(vocabulary_size=vocabulary_size, rows=rows, length=length, device=torch.device("cpu"))
        self.rule = rule
        self.prefills: list[list[list[int]]] = []
        self.steps: list[list[list[int]]] = []
        self.heads: list[Head | None] = []
        self.read: list[list[int]] = []

    @property
    def memory(self) -> int:
        return 0

    @property
    def forwards(self) -> int:
        return len(self.prefills) + len(self.steps)

    def prefill(self, rows: Sequence[np.ndarray], head: Head | None = None) -> Tensor:
        assert len(rows) <= self.rows
        self.read = [row.tolist() for row in rows]
        self.prefills.append([row.tolist() for row in rows])
        return self._answer(head)

    def step(self, ids: Tensor, head: Head | None = None) -> Tensor:
        for row, new in zip(self.read, ids.tolist(), strict=True):
            row += new
        self.steps.append(ids.tolist())
        return self._answer(head)

    def close(self) -> None:
        self.read = []

    def _answer(self, head: Head | None) -> Tensor:
        assert max(map(len, self.read)) <= self.length, "the cache is too short"
        self.heads.append(head)
        logits = torch.zeros(len(self.read), self.vocabulary_size)
        for row, ids in enumerate(self.read):
            logits[row, self.rule(ids)] = 20
        return logits if head is None else torch.cat([logits[:, part.start : part.stop] for part in head], dim=1)
