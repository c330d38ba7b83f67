"""The two loops over tokens: one that samples until an end, one that fills the fine codebooks frame by frame.

They know ids and engines; what the ids mean, and which may be picked, is the stages' business.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from yue_cli.engines.base import Advance, Engine, Head, Pick
from yue_cli.transfers import fetch

Heard = Callable[[int], None]  # is told how many tokens, of all songs, or steps are done

_HEARD_EVERY_S = 0.1
# Reading ids back makes the host wait for the device, so where that costs it is done for several tokens, or frames, …
_STEPS_A_LOOK = {"cpu": 1, "cuda": 4}
_LOOKS_BEHIND = {"cpu": 0, "cuda": 1}  # … and while the next ones are at work: a device that waits is idle


class Picker(Protocol):
    """What `sample_until` asks of a sampler."""

    head: Head | None

    def prepare(self, step: int) -> None: ...

    def pick(self, logits: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Choice:
    """One pick of a frame: the part of the head it needs, how to choose, and the same joined with a step."""

    head: Head | None
    pick: Pick
    advance: Advance

    @classmethod
    def of(cls, engine: Engine, pick: Pick, head: Head | None) -> "Choice":
        return cls(head, pick, engine.fuse(pick, head))


@torch.inference_mode()
def sample_until(
    engine: Engine,
    rows: Sequence[np.ndarray],
    picker: Picker,
    advance: Advance,
    *,
    end: int,
    limit: int,
    songs: Sequence[int] = (0,),
    heard: Heard | None = None,
) -> list[np.ndarray]:
    """Pick ids after `rows` until `end` is picked for every song or there are `limit` of them.

    advance: `engine.fuse(picker.pick, picker.head)`. songs: the rows that are waited for; the others only go along, as
    does a song that has ended until all have. Returns int64 [m] for each song, `end` included.
    """
    assert limit >= 1, "nothing to pick"
    pace, reader = _Pace(heard), _Reader(engine.device)
    looked = done = 0  # ids of each song: read back, picked
    known: list[np.ndarray] = []
    lengths = np.zeros(len(songs), dtype=np.int64)  # ids of each song, `end` included; 0 while it goes on
    logits = engine.prefill(rows, picker.head)
    picker.prepare(0)
    ids = picker.pick(logits)
    while True:
        done += 1
        # An engine may write its next answer over the last one.
        for read in reader.pass_on([ids.clone()], is_last=done == limit):
            known.append(read[list(songs)])
            is_end = known[-1] == end
            lengths = np.where((lengths == 0) & is_end.any(1), looked + is_end.argmax(1) + 1, lengths)
            looked += read.shape[1]
            counts = np.where(lengths > 0, lengths, looked)
            is_last = bool(lengths.all()) or looked == limit
            pace.tell(int(counts.sum()), is_last)
            if is_last:
                return [row[:count] for row, count in zip(np.concatenate(known, axis=1), counts, strict=True)]
        picker.prepare(done)
        ids = advance(ids)


@torch.inference_mode()
def fill_frames(
    engine: Engine, prompts: np.ndarray, given: np.ndarray, choices: Sequence[Choice], *, heard: Heard | None = None
) -> np.ndarray:
    """Pick the ids that follow each frame's given one.

    prompts: int64 [R, p]. given: int64 [R, T], the first id of every frame. choices: one for each other id of a frame.
    Returns int64 [R, T, 1 + choices]. A frame takes as many forwards as choices: its given id goes in together with
    the last pick of the frame before, or with the prompt.
    """
    pace, reader = _Pace(heard), _Reader(engine.device)
    frames = given.shape[1]
    firsts = torch.from_numpy(given).to(engine.device)
    first, *others = choices
    known: list[np.ndarray] = []
    looked = 0  # ids of each row
    ids = first.pick(engine.prefill([*np.concatenate([prompts, given[:, :1]], axis=1)], first.head))
    for frame in range(frames):
        if frame:
            ids = first.advance(torch.cat([ids, firsts[:, frame : frame + 1]], dim=1))
        fresh = [firsts[:, frame : frame + 1], ids.clone()]
        for choice in others:
            ids = choice.advance(ids)
            fresh.append(ids.clone())
        for read in reader.pass_on(fresh, is_last=frame + 1 == frames):
            known.append(read)
            looked += read.shape[1]
            done = looked // len(fresh)
            pace.tell(done * len(choices), done == frames)
    return np.concatenate(known, axis=1).reshape(len(prompts), frames, 1 + len(choices))


class _Reader:
    """Brings what was picked to the host, some steps at once, perhaps while the next ones are at work."""

    def __init__(self, device: torch.device) -> None:
        self._steps, self._behind = _STEPS_A_LOOK.get(device.type, 1), _LOOKS_BEHIND.get(device.type, 0)
        self._count = 0  # steps that are not on their way yet
        self._fresh: list[Tensor] = []
        self._coming: deque[Callable[[], np.ndarray]] = deque()

    def pass_on(self, ids: Sequence[Tensor], *, is_last: bool) -> list[np.ndarray]:
        """Take the ids of one more step, int64 [R, n]; give those that are read by now, int64 [R, m], in their order.

        is_last: no step follows, so all are waited for.
        """
        self._fresh += ids
        self._count += 1
        if self._count == self._steps or is_last:
            self._coming.append(fetch(torch.cat(self._fresh, dim=1)))
            self._fresh, self._count = [], 0
        read = []
        while len(self._coming) > (0 if is_last else self._behind):
            read.append(self._coming.popleft()())
        return read


class _Pace:
    """Passes counts on, but not more often than anyone can read; the last one always."""

    def __init__(self, heard: Heard | None) -> None:
        self._heard = heard
        self._next = 0.0

    def tell(self, done: int, is_last: bool) -> None:
        now = time.monotonic()
        if self._heard is not None and (is_last or now >= self._next):
            self._next = now + _HEARD_EVERY_S
            self._heard(done)
