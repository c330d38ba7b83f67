"""Rows packed into batches of one length, drawn by processes of their own while the model learns.

A batch is a function of seed and step alone, however many processes draw.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import SpawnContext
from multiprocessing.queues import Queue
from queue import Empty

import numpy as np
import torch

from training.language.alignment import NOBODY
from training.language.model import Packing
from training.language.rows import Row

AHEAD = 6  # batches that each process has ready
PATIENCE_S = 120.0


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows one after the other, and what is asked of them, in groups that choose from the same ids."""

    ids: np.ndarray  # int64 [n]
    bounds: np.ndarray  # int32 [rows + 1]
    asked: np.ndarray  # int64 [groups, m], positions before the ids that are asked for
    answers: np.ndarray  # int64 [groups, m], places among the ids that a group chooses from
    weights: np.ndarray  # float32 [groups, m]; 0 where a group has fewer questions than another
    written: np.ndarray  # int16 [n, 2], syllables that an id writes, numbered through its row
    sung: np.ndarray  # int16 [n, 2], syllables before and in the code of the voice that follows an id
    voiced: np.ndarray  # int64 [v], positions that a syllable is sung after,
    heard: np.ndarray  # int64 [v], and the ids that it is sung in

    def packing(self, device: torch.device) -> Packing:
        lengths = np.diff(self.bounds)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        positions = np.arange(len(rows)) - self.bounds[rows]
        return Packing(
            torch.from_numpy(rows).to(device),
            torch.from_numpy(positions).to(device),
            torch.from_numpy(self.bounds).to(device),
            int(lengths.max()),
        )


def pack(rows: Sequence[Row], groups: Sequence[np.ndarray]) -> Packed:
    """Pack rows. groups: for each group the ids that its answers are, in order."""
    bounds = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    whole = Row.join(rows)
    answers, weights = whole.answers, whole.weights
    assert not weights[bounds[:-1]].any(), "nothing comes before a row's first id"
    wanted = np.flatnonzero(weights > 0)
    questions = []
    for ids in groups:
        order = np.argsort(ids)
        places = np.searchsorted(ids[order], answers[wanted]).clip(max=len(ids) - 1)
        belongs = ids[order][places] == answers[wanted]
        questions.append((wanted[belongs] - 1, order[places[belongs]], weights[wanted[belongs]]))
    most = max(len(positions) for positions, _, _ in questions)
    asked, places, worth = (
        np.stack([np.pad(part[kind], (0, most - len(part[kind]))) for part in questions]) for kind in range(3)
    )
    follows = np.roll(whole.sung, -1, axis=0)  # a row's first id is not sung, so nothing comes from the row after
    voiced = np.flatnonzero(follows[:, 1] != NOBODY)
    heard = answers[voiced + 1]
    return Packed(whole.ids, bounds, asked, places, worth.astype(np.float32), whole.written, follows, voiced, heard)


def draw_batch(
    draw: Callable[[int, np.random.Generator], Row],
    groups: Sequence[np.ndarray],
    length: int,
    seed: int,
    step: int,
) -> Packed:
    """Draw rows until they have `length` ids, and as many as fit of the last one."""
    dice = np.random.default_rng([seed, step])
    rows: list[Row] = []
    missing = length
    while missing:
        row = draw(step, dice)[:missing]
        rows.append(row)
        missing -= len(row)
    return pack(rows, groups)


class Feeder:
    """Batches in the order of their steps, drawn ahead by processes; with none they are drawn when asked for."""

    def __init__(self, make: Callable[[], Callable[[int], Packed]], processes: int) -> None:
        """make: gives, in the process where it is called, the function from a step to its batch; can be pickled."""
        self._make, self._processes = make, processes
        self._draw = None if processes else make()
        self._queues: list[Queue[tuple[int, Packed]]] = []
        self._next = -1

    def batch(self, step: int) -> Packed:
        if self._draw is not None:
            return self._draw(step)
        if not self._queues:
            self._begin(step)
        assert step == self._next, f"batches come in order: {self._next}, not {step}"
        self._next = step + 1
        try:
            drawn, packed = self._queues[step % self._processes].get(timeout=PATIENCE_S)
        except Empty as error:
            raise RuntimeError(f"no batch for step {step} in {PATIENCE_S:.0f} s: what draws them has failed") from error
        assert drawn == step, f"expected batch {step}, found {drawn}"
        return packed

    def _begin(self, step: int) -> None:
        context = get_context("spawn")
        for place in range(self._processes):
            queue: Queue[tuple[int, Packed]] = context.Queue(AHEAD)
            first = step + (place - step) % self._processes
            _start(context, self._make, first, self._processes, queue)
            self._queues.append(queue)
        self._next = step


def _start(
    context: SpawnContext,
    make: Callable[[], Callable[[int], Packed]],
    first: int,
    stride: int,
    queue: "Queue[tuple[int, Packed]]",
) -> None:
    context.Process(target=_draw_on, args=(make, first, stride, queue, os.getpid()), daemon=True).start()


def _draw_on(
    make: Callable[[], Callable[[int], Packed]],
    first: int,
    stride: int,
    queue: "Queue[tuple[int, Packed]]",
    parent: int,
) -> None:
    torch.set_num_threads(1)
    draw = make()
    step = first
    while os.getppid() == parent:  # or nobody asks any more
        queue.put((step, draw(step)))
        step += stride
