"""Listeners that learn from the training side of the corpus, from true sound and the codec's copies of it alike.

One names the genre, the instrument or the singer of a stem, another the phoneme of each frame. They know nothing but
this corpus, so what they recognise a person may not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.codec.losses import LogMel
from xcodec_mini_infer import FRAME_SAMPLES, SAMPLE_RATE

WINDOW, BANDS = 512, 64
REST = 0  # the class of frames without a phoneme; phoneme p of a table is class p + 1
SHORTEST = 2  # frames; what is shorter is no phoneme
_WIDTH = 128
_CROP, _BATCH = 150, 24


def log_mel(samples: np.ndarray) -> Tensor:
    """Two columns a frame, float32 [BANDS, 2 * frames]; silence is 0, full scale about 1. samples: 16 kHz."""
    mel = LogMel(SAMPLE_RATE, WINDOW, BANDS, FRAME_SAMPLES // 2)(torch.from_numpy(samples)[None])[0]
    return (mel[:, : len(samples) // FRAME_SAMPLES * 2] / 11.5 + 1).clamp(min=0)


def summary(mel: Tensor) -> Tensor:
    """Mean and spread of each band, and of its changes, float32 [4 * BANDS]."""
    change = (mel[:, 2:] - mel[:, :-2]).abs()
    return torch.cat([mel.mean(1), mel.std(1), change.mean(1), change.std(1)])


@dataclass(frozen=True)
class Namer:
    """Logistic regression on the summary of a stem."""

    names: tuple[str, ...]
    mean: Tensor
    scale: Tensor
    weight: Tensor  # [4 * BANDS + 1, names]

    def name(self, mel: Tensor) -> str:
        features = functional.pad((summary(mel) - self.mean) / self.scale, (0, 1), value=1.0)
        return self.names[int((features @ self.weight).argmax())]


def learn_names(mels: Sequence[Tensor], truth: Sequence[str], decay: float = 1e-3) -> Namer:
    """Fit a Namer by gradient descent; seconds."""
    names = tuple(sorted(set(truth)))
    features = torch.stack([summary(mel) for mel in mels])
    mean, scale = features.mean(0), features.std(0).clamp(min=1e-3)
    given = functional.pad((features - mean) / scale, (0, 1), value=1.0)
    wanted = torch.tensor([names.index(name) for name in truth])
    weight = torch.zeros(given.shape[1], len(names), requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = functional.cross_entropy(given @ weight, wanted) + decay * weight[:-1].square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return Namer(names, mean, scale, weight.detach())


class Reader(nn.Module):
    """Names the phoneme of each frame from 0.4 s around it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(BANDS, _WIDTH, 8, stride=2, padding=3)
        self.middle = nn.ModuleList(nn.Conv1d(_WIDTH, _WIDTH, 5, padding=2 * d, dilation=d) for d in (1, 2, 2))
        self.last = nn.Conv1d(_WIDTH, classes, 1)

    def forward(self, mel: Tensor) -> Tensor:
        """Turn float32 [B, BANDS, 2 * frames] into logits [B, classes, frames]."""
        hidden = functional.gelu(self.first(mel))
        for layer in self.middle:
            hidden = hidden + functional.gelu(layer(hidden))
        answers: Tensor = self.last(hidden)
        return answers

    @torch.inference_mode()
    def read(self, mel: Tensor) -> np.ndarray:
        """Name the class of every frame: int64 [frames]."""
        return self(mel[None])[0].argmax(0).numpy()


def learn_reading(mels: Sequence[Tensor], truth: Sequence[np.ndarray], classes: int, steps: int = 1200) -> Reader:
    """Train a Reader on crops; about a minute on one core. truth: classes [frames]."""
    dice = np.random.default_rng(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reader = Reader(classes)
    optimiser = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        songs = dice.integers(len(mels), size=_BATCH)
        starts = [int(dice.integers(max(len(truth[song]) - _CROP, 1))) for song in songs]
        places = list(zip(songs, starts, strict=True))
        given = torch.stack(
            [_fill(mels[song][:, 2 * start : 2 * (start + _CROP)], 2 * _CROP) for song, start in places]
        )
        wanted = torch.stack(
            [_fill(torch.from_numpy(truth[song][start : start + _CROP]), _CROP) for song, start in places]
        )
        loss = functional.cross_entropy(reader(given), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return reader.eval()


def spell(classes: np.ndarray) -> list[int]:
    """The phonemes that follow each other in frames: rests and what is too short left out, repeats once."""
    edges = np.flatnonzero(np.diff(np.concatenate([[-1], classes, [-1]])))
    spelled: list[int] = []
    for start, stop in pairwise(edges):
        phoneme = int(classes[start]) - 1
        if stop - start >= SHORTEST and phoneme >= 0 and spelled[-1:] != [phoneme]:
            spelled.append(phoneme)
    return spelled


def edits(found: Sequence[int], wanted: Sequence[int]) -> int:
    """How many phonemes must be put in, taken out or changed to get from one to the other (Levenshtein)."""
    target = np.asarray(wanted)
    steps = np.arange(len(target) + 1)
    row = steps.copy()
    for number, phoneme in enumerate(found, start=1):
        change = np.minimum(row[:-1] + (target != phoneme), row[1:] + 1)
        row = np.concatenate([[number], change])
        row = np.minimum.accumulate(row - steps) + steps
    return int(row[-1])


def _fill(values: Tensor, length: int) -> Tensor:
    return functional.pad(values, (0, length - values.shape[-1]))
