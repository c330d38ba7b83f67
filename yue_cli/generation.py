"""The two loops over tokens: one that samples until an end, one that fills the fine codebooks frame by frame.

They know ids and engines; what the ids mean, and which may be picked, is the stages' business.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from yue_cli.engines.base import Advance, Engine, Head, Pick

Heard = Callable[[int], None]  # is told how many tokens, of all songs, or steps are done

_HEARD_EVERY_S = 0.1
# Reading ids back makes the host wait for the device, so it is done for several at once where that costs.
_TOKENS_A_LOOK = {"cpu": 1, "cuda": 16}
_FRAMES_A_LOOK = {"cpu": 1, "cuda": 8}


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
    look = _TOKENS_A_LOOK.get(engine.device.type, 1)
    pace = _Pace(heard)
    looked = 0  # ids of each song that were read back
    known: list[np.ndarray] = []
    lengths = np.zeros(len(songs), dtype=np.int64)  # ids of each song, `end` included; 0 while it goes on
    picker.prepare(0)
    ids = picker.pick(engine.prefill(rows, picker.head))
    fresh = [ids.clone()]  # an engine may write its next answer over the last one
    while True:
        done = looked + len(fresh)
        if len(fresh) == look or done == limit:
            known.append(torch.cat(fresh, dim=1).cpu().numpy()[list(songs)])
            is_end = known[-1] == end
            lengths = np.where((lengths == 0) & is_end.any(1), looked + is_end.argmax(1) + 1, lengths)
            looked, fresh = done, []
            counts = np.where(lengths > 0, lengths, done)
            is_last = bool(lengths.all()) or done == limit
            pace.tell(int(counts.sum()), is_last)
            if is_last:
                return [row[:count] for row, count in zip(np.concatenate(known, axis=1), counts, strict=True)]
        picker.prepare(done)
        ids = advance(ids)
        fresh.append(ids.clone())


@torch.inference_mode()
def fill_frames(
    engine: Engine, prompts: np.ndarray, given: np.ndarray, choices: Sequence[Choice], *, heard: Heard | None = None
) -> np.ndarray:
    """Pick the ids that follow each frame's given one.

    prompts: int64 [R, p]. given: int64 [R, T], the first id of every frame. choices: one for each other id of a frame.
    Returns int64 [R, T, 1 + choices]. A frame takes as many forwards as choices: its given id goes in together with
    the last pick of the frame before, or with the prompt.
    """
    look = _FRAMES_A_LOOK.get(engine.device.type, 1)
    pace = _Pace(heard)
    frames = given.shape[1]
    firsts = torch.from_numpy(given).to(engine.device)
    first, *others = choices
    known, fresh = [], []
    ids = first.pick(engine.prefill([*np.concatenate([prompts, given[:, :1]], axis=1)], first.head))
    for frame in range(frames):
        if frame:
            ids = first.advance(torch.cat([ids, firsts[:, frame : frame + 1]], dim=1))
        fresh += [firsts[:, frame : frame + 1], ids.clone()]
        for choice in others:
            ids = choice.advance(ids)
            fresh.append(ids.clone())
        if (frame + 1) % look == 0 or frame + 1 == frames:
            known.append(torch.cat(fresh, dim=1).cpu().numpy())
            fresh = []
            pace.tell((frame + 1) * len(choices), frame + 1 == frames)
    return np.concatenate(known, axis=1).reshape(len(prompts), frames, 1 + len(choices))


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
