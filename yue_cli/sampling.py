"""From logits to the next id: pure functions on scores, and a sampler that keeps what they need between steps.

Order of the steps: guidance, repetition penalty, minimum length, allowed ids, temperature, top-k, top-p, draw; that
of YuE's infer.py, which passes it to transformers' `generate`. Knows nothing of music but the order of columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from yue_cli.settings import Stage1Settings
from yue_cli.transfers import send
from yue_cli.vocab import Vocabulary

NOISE_STEPS = 64  # steps whose noise lies on the device

# Philox 4×64 makes four numbers a count: the counter's low word runs over columns, the next one over steps.
_NUMBERS_A_COUNT = 4


def guide(conditional: Tensor, unconditional: Tensor, strength: float | Tensor) -> Tensor:
    """Move log-probabilities away from the unconditional ones; both are logits [..., whole vocabulary].

    Source: classifier-free guidance for language models, arXiv 2306.17806.
    """
    return _guide(torch.log_softmax(conditional, -1), torch.log_softmax(unconditional, -1), strength)


def _guide(given: Tensor, free: Tensor, strength: float | Tensor) -> Tensor:
    return strength * (given - free) + free


def penalize(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the ids marked in `seen` (bool, like scores) less likely, however often they occurred.

    Source: CTRL, arXiv 1909.05858.
    """
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def keep_top_k(scores: Tensor, count: int) -> Tensor:
    """Drop (to -inf) what scores below the `count`-th best; ties with it stay. 0 keeps all."""
    if not 0 < count < scores.shape[-1]:
        return scores
    worst = scores.topk(count, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < worst, -torch.inf)


def keep_top_p(scores: Tensor, mass: float) -> Tensor:
    """Drop (to -inf) the least likely ids that together hold no more than `1 - mass`; the best one stays.

    Source: nucleus sampling, arXiv 1904.09751.
    """
    if mass >= 1:
        return scores
    ascending, order = scores.sort(dim=-1)
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - mass
    dropped[..., -1] = False
    return scores.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)


def most_likely(start: int, logits: Tensor) -> Tensor:
    """Pick the best column of a head that begins at id `start`: float32 [R, columns] → int64 [R, 1]."""
    return logits.argmax(-1, keepdim=True) + start


def noise_columns(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Place ids in the order in which noise is dealt: codebook 0, end-of-audio, then all other ids, ascending.

    An id's column depends neither on which ids are allowed nor on the size of the model's vocabulary.
    """
    coarse, end = vocabulary.codebook(0), vocabulary.end_of_audio
    before = np.clip(ids - coarse.start, 0, len(coarse)) + (ids > end)  # ids below that are not among the others
    others = len(coarse) + 1 + ids - before
    is_coarse = (ids >= coarse.start) & (ids < coarse.stop)
    columns: np.ndarray = np.where(is_coarse, ids - coarse.start, np.where(ids == end, len(coarse), others))
    return columns


@dataclass(frozen=True)
class Noise:
    """Random numbers that are a pure function of seed, segment, step and column, whatever else is drawn."""

    seed: int
    segment: int

    def draw(self, steps: range, columns: np.ndarray) -> np.ndarray:
        """Draw Gumbel noise float32 [steps, columns]: the best of score + noise is a draw from softmax(score).

        Drawn with numpy on the CPU, so that a seed means the same on every device.
        """
        edges = np.flatnonzero(np.diff(columns) != 1) + 1
        runs = [(int(run[0]), len(run)) for run in np.split(columns, edges)]
        numbers = [np.concatenate([self._uniform(step, *run) for run in runs]) for step in steps]
        noise: np.ndarray = -np.log(-np.log(np.stack(numbers)))
        return noise.astype(np.float32)

    def _uniform(self, step: int, start: int, count: int) -> np.ndarray:
        """Deal numbers strictly between 0 and 1 to columns that follow each other."""
        low, skipped = divmod(start, _NUMBERS_A_COUNT)
        counter = np.array([low, step, 0, 0], dtype=np.uint64)
        philox = np.random.Philox(key=np.array([self.seed, self.segment], dtype=np.uint64), counter=counter)
        words = philox.random_raw(skipped + count)[skipped:]
        uniform: np.ndarray = ((words >> np.uint64(12)) + 0.5) * 2.0**-52
        return uniform


class Sampler:
    """Chooses one id a step for each of several songs that began together.

    Its memory is tensors of fixed place and shape, so that an engine may record `pick`. Of logits the first `songs`
    rows are those of the songs' prompts; where there is guidance, as many unconditional ones follow in the same order,
    all over the whole vocabulary. Without guidance rows hold the allowed columns only: those of `head`.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        allowed: Sequence[range],
        settings: Stage1Settings,
        *,
        guided: bool,
        device: torch.device,
        songs: int = 1,
    ) -> None:
        """allowed: ids that may be picked. settings: resolved, with no open value."""
        assert settings.top_k is not None, "settings must be resolved"
        assert settings.min_new_tokens is not None, "settings must be resolved"
        self.head = None if guided else tuple(allowed)
        self._ids_on_host = np.concatenate([np.arange(part.start, part.stop) for part in allowed])
        self._columns = noise_columns(self._ids_on_host, vocabulary)
        self._settings, self._guided, self._songs = settings, guided, songs
        self._top_k = settings.top_k

        count = len(self._columns)
        self._ids = torch.from_numpy(self._ids_on_host).to(device)
        self._is_end = self._ids == vocabulary.end_of_audio
        self._seen = torch.zeros(songs, count, dtype=torch.bool, device=device)
        self._noise = torch.zeros(NOISE_STEPS, songs, count, device=device)
        self._step = torch.zeros(songs, 1, dtype=torch.int64, device=device)  # the same for all songs
        self._minimum = torch.tensor(settings.min_new_tokens, device=device)
        self._strength = torch.ones(songs, 1, device=device)
        self._sources: Sequence[Noise | None] = [None] * songs
        self._drawn: list[np.ndarray] = []  # steps of the next block of noise
        self._prepared = 0  # steps

    def begin(
        self, windows: Sequence[np.ndarray], *, strengths: Sequence[float], noise: Sequence[Noise | None]
    ) -> None:
        """Start a segment of every song.

        windows: every id the model sees, all of which count as seen. strengths: of the guidance, where there is one.
        noise: None picks the best id instead of drawing one.
        """
        assert len(windows) == len(strengths) == len(noise) == self._songs, "one of each for every song"
        ids = torch.from_numpy(self._ids_on_host)  # numpy's isin would import numpy.ma first, which takes 0.1 s
        self._seen.copy_(torch.stack([torch.isin(ids, torch.from_numpy(window)) for window in windows]))
        self._step.zero_()
        self._strength.copy_(torch.tensor(strengths)[:, None])
        self._noise.zero_()
        self._sources, self._drawn, self._prepared = noise, [], 0

    def prepare(self, step: int) -> None:
        """Have the noise of a step at hand before it is picked. Steps come one after the other, from 0 on.

        Noise is sent by blocks, and the next block's drawn step by step, while the device works on this one's.
        """
        assert step == self._prepared, f"step {step} comes after {self._prepared} others"
        self._prepared += 1
        if not any(self._sources):
            return
        if step % NOISE_STEPS == 0:
            block = self._drawn or [self._draw(step + later) for later in range(NOISE_STEPS)]
            send(np.stack(block), self._noise)
            self._drawn = []
        self._drawn.append(self._draw(step + NOISE_STEPS))

    def _draw(self, step: int) -> np.ndarray:
        """Draw the noise of a step, float32 [songs, columns]."""
        nothing = np.zeros((1, len(self._columns)), dtype=np.float32)
        steps = range(step, step + 1)
        return np.concatenate([source.draw(steps, self._columns) if source else nothing for source in self._sources])

    def pick(self, logits: Tensor) -> Tensor:
        """Choose the next id of all rows: float32 [R, columns] → int64 [R, 1]. Waits for nothing."""
        noise = self._noise.index_select(0, self._step[0].remainder(NOISE_STEPS))[0]
        choice = (self.score(logits) + noise).argmax(-1, keepdim=True)  # [songs, 1]
        self._seen.scatter_(1, choice, True)
        self._step.add_(1)
        return self._ids[choice].repeat(len(logits) // self._songs, 1)

    def score(self, logits: Tensor) -> Tensor:
        """Score the allowed ids of every song [songs, allowed]; -inf is what cannot be drawn."""
        settings, songs = self._settings, self._songs
        scores = logits
        if self._guided:
            # Both in one go, and only the columns that count: a GPU waits for the longest row, and for every launch.
            given, free = torch.log_softmax(logits, -1)[:, self._ids].split(songs)
            scores = _guide(given, free, self._strength)
        scores = penalize(scores, self._seen, settings.repetition_penalty)
        scores = scores.masked_fill(self._is_end & (self._step < self._minimum), -torch.inf)
        if settings.temperature != 1:
            scores = scores / settings.temperature
        return keep_top_p(keep_top_k(scores, self._top_k), settings.top_p)
