"""The sampler's choice by Triton kernels: two launches instead of the about forty that PyTorch's operations take.

It is that of `Sampler.pick` but for two things. Sums are taken in another order, which matters where a score lies on an
edge to the last bit; and of ids that score the same on the edge of top-p all stay.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from yue_cli.sampling import NOISE_STEPS, Sampler

MOST_IDS = 2048  # that may be picked: one program looks at all of them at once
_PART = 2048  # logits whose exponentials one program adds up


class KernelSampler(Sampler):
    """A sampler for a GPU that Triton knows, and for no more than MOST_IDS ids."""

    def pick(self, logits: Tensor) -> Tensor:
        with torch.cuda.device_of(logits):  # kernels run on the current GPU
            return self._pick(logits)

    def _pick(self, logits: Tensor) -> Tensor:
        settings, songs, (rows, columns) = self._settings, self._songs, logits.shape
        parts = triton.cdiv(columns, _PART)
        answer = torch.empty(rows, 1, dtype=torch.int64, device=logits.device)
        sums = None
        if self._guided:
            sums = torch.empty(rows, parts, 2, device=logits.device)
            sum_exponentials[parts, rows](logits, sums, columns, PARTS=parts, PART=_PART)
        count = len(self._ids)
        choose[songs,](
            logits.contiguous(),
            sums,
            self._ids,
            self._is_end.view(torch.uint8),
            self._seen.view(torch.uint8),
            self._noise,
            self._step,
            self._minimum,
            self._strength,
            answer,
            columns,
            songs,
            settings.repetition_penalty,
            settings.temperature,
            self._top_k,
            settings.top_p,
            COUNT=count,
            COLUMNS=triton.next_power_of_2(count),
            PARTS=parts,
            PARTS_ROUNDED=triton.next_power_of_2(parts),
            STEPS=NOISE_STEPS,
            IS_GUIDED=self._guided,
            HAS_TOP_K=0 < self._top_k < count,
            HAS_TOP_P=settings.top_p < 1,
            num_warps=4,
        )
        return answer


@triton.jit
def sum_exponentials(
    logits,  # float32 [rows, columns]
    sums,  # float32 [rows, PARTS, 2]: the highest of a part, and its exponentials relative to that, added up
    columns,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
):
    """Do one part's share of log-softmax."""
    part, row = tl.program_id(0), tl.program_id(1)
    column = part * PART + tl.arange(0, PART)
    values = tl.load(logits + row * columns + column, mask=column < columns, other=float("-inf"))
    highest = tl.max(values, 0)
    place = sums + (row * PARTS + part) * 2
    tl.store(place, highest)
    tl.store(place + 1, tl.sum(tl.exp(values - highest), 0))


@triton.jit
def choose(
    logits,  # float32 [songs, columns]; IS_GUIDED: [2 * songs, columns]
    sums,  # as `sum_exponentials` leaves them, if IS_GUIDED
    ids,  # int64 [COUNT]: those that may be picked
    is_end,  # uint8 [COUNT]
    seen,  # uint8 [songs, COUNT]
    noise,  # float32 [STEPS, songs, COUNT]
    step,  # int64 [songs, 1]
    minimum,  # int64 []: steps before the end may be picked
    strength,  # float32 [songs, 1]
    answer,  # int64 [rows of the logits, 1]
    columns,
    songs,
    penalty,
    temperature,
    top_k,
    top_p,
    COUNT: tl.constexpr,
    COLUMNS: tl.constexpr,  # COUNT, rounded up to a power of two
    PARTS: tl.constexpr,
    PARTS_ROUNDED: tl.constexpr,
    STEPS: tl.constexpr,
    IS_GUIDED: tl.constexpr,
    HAS_TOP_K: tl.constexpr,
    HAS_TOP_P: tl.constexpr,
):
    """Choose one song's next id, in the order of steps that `sampling.py` tells."""
    song = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    is_column = column < COUNT
    now = tl.load(step + song)
    place = ((now % STEPS) * songs + song) * COUNT + column
    drawn = tl.load(noise + place, mask=is_column, other=0.0)  # which takes a while
    if IS_GUIDED:
        picked = tl.load(ids + column, mask=is_column, other=0)
        given = tl.load(logits + song * columns + picked) - _log_sum(sums, song, PARTS, PARTS_ROUNDED)
        row = songs + song
        free = tl.load(logits + row * columns + picked) - _log_sum(sums, row, PARTS, PARTS_ROUNDED)
        scores = tl.load(strength + song) * (given - free) + free
    else:
        scores = tl.load(logits + song * columns + column, mask=is_column, other=0.0)
    was_seen = tl.load(seen + song * COUNT + column, mask=is_column, other=0) > 0
    scores = tl.where(was_seen, tl.where(scores < 0, scores * penalty, scores / penalty), scores)
    may_not_end = (tl.load(is_end + column, mask=is_column, other=0) > 0) & (now < tl.load(minimum))
    scores = tl.where(may_not_end | (column >= COUNT), float("-inf"), scores) / temperature
    if HAS_TOP_K:
        order = _order(scores)
        edge = _edge(order, tl.full((COLUMNS,), 1.0, tl.float32), COLUMNS - top_k)
        scores = tl.where(order >= edge, scores, float("-inf"))
    if HAS_TOP_P:
        order = _order(scores)
        best = tl.max(scores, 0)
        share = tl.exp(scores - best)
        edge = _edge(order, share, (1 - top_p) * tl.sum(share, 0))
        scores = tl.where((order >= edge) | (scores == best), scores, float("-inf"))
    choice = tl.argmax(scores + drawn, 0)
    tl.store(seen + song * COUNT + choice, 1)
    tl.store(step + song, now + 1)
    tl.store(answer + song, tl.load(ids + choice))
    if IS_GUIDED:
        tl.store(answer + songs + song, tl.load(ids + choice))


@triton.jit
def _log_sum(sums, row, PARTS: tl.constexpr, PARTS_ROUNDED: tl.constexpr):
    """Compute the logarithm of all exponentials of a row."""
    part = tl.arange(0, PARTS_ROUNDED)
    place = sums + (row * PARTS + part) * 2
    highest = tl.load(place, mask=part < PARTS, other=float("-inf"))
    found = tl.load(place + 1, mask=part < PARTS, other=0.0)
    best = tl.max(highest, 0)
    return best + tl.log(tl.sum(found * tl.exp(highest - best), 0))


@triton.jit
def _edge(order, weights, limit, BITS: tl.constexpr = 2):
    """Find the highest uint32 below which weights add up to no more than limit: BITS bits, 1, 2 or 4, at a time."""
    digit = tl.arange(0, 1 << BITS).to(tl.uint32)
    edge = tl.zeros((1,), tl.uint32)
    for done in range(BITS, 33, BITS):  # not unrolled: a step's weights leave no instructions in the GPU's cache
        edges = edge + (digit << (32 - done))
        below = tl.sum(tl.where(order[:, None] < edges[None, :], weights[:, None], 0.0), 0)
        # As many of these as are no more than the limit come first, and the first one always is.
        edge += (tl.sum((below <= limit).to(tl.uint32), 0) - 1) << (32 - done)
    return edge


@triton.jit
def _order(scores):
    """Turn float32 into uint32 that are ordered as they are."""
    bits = scores.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)
