"""All songs of a split in one piece, so that a batch of crops is one look-up, on a CPU or a GPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from xcodec_mini_infer import FRAME_RATE

TRACKS = ("vocal", "instrumental", "mix")
VOCAL, INSTRUMENTAL, MIX = range(3)
SOUNDING = 10 ** (-50 / 20)  # root mean square of a frame, of full scale
_FULL = 32_768.0


@dataclass(frozen=True)
class Crops:
    """Pieces of `frames` frames: which track, and where in the joined songs. [B] each, on the CPU."""

    tracks: Tensor
    starts: Tensor
    frames: int

    def positions(self, unit: int = 1, device: torch.device | None = None) -> Tensor:
        """Index what holds `unit` values a frame: int64 [B, frames * unit], made on the device."""
        starts = self.starts.to(device, non_blocking=True)
        return starts[:, None] * unit + torch.arange(self.frames * unit, device=device)


@dataclass(frozen=True, eq=False)
class Songs:
    """Joined songs of one sample rate.

    waves: int16 [2, frames * unit], vocal and instrumental. bounds: first frame of each song, and the end of the last.
    labels: int64 [frames] by name, 0 where there is none.
    """

    waves: Tensor
    bounds: Sequence[int]
    unit: int  # samples of a frame
    labels: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.waves.shape == (2, self.bounds[-1] * self.unit), "waves must hold whole frames of all songs"

    def to(self, device: torch.device) -> "Songs":
        """Bring all to a device."""
        labels = {name: values.to(device) for name, values in self.labels.items()}
        return Songs(self.waves.to(device), self.bounds, self.unit, labels)

    def first(self, hours: float) -> "Songs":
        """Keep the first songs, until they last so long."""
        limit = hours * 3600 * FRAME_RATE
        bounds = [bound for index, bound in enumerate(self.bounds) if index == 0 or self.bounds[index - 1] < limit]
        labels = {name: values[: bounds[-1]] for name, values in self.labels.items()}
        return Songs(self.waves[:, : bounds[-1] * self.unit], bounds, self.unit, labels)

    @property
    def count(self) -> int:
        return len(self.bounds) - 1

    def wave(self, crops: Crops) -> Tensor:
        """Look up the sound of crops, float32 [B, frames * unit]; the mix is the sum."""
        positions = crops.positions(self.unit, self.waves.device)
        tracks = crops.tracks.to(self.waves.device, non_blocking=True)[:, None]
        vocal = self.waves[VOCAL][positions] * (tracks != INSTRUMENTAL)
        return (vocal + self.waves[INSTRUMENTAL][positions].float() * (tracks != VOCAL)) / _FULL

    def song(self, index: int, track: int) -> Tensor:
        """Look up a whole song: float32 [1, frames * unit]."""
        start, stop = self.bounds[index], self.bounds[index + 1]
        return self.wave(Crops(torch.tensor([track]), torch.tensor([start]), stop - start))

    def sounding(self) -> np.ndarray:
        """Tell for each track and frame whether it is more than silence: bool [3, frames]."""
        levels = [
            part.float().div_(_FULL).square_().unflatten(1, (-1, self.unit)).mean(-1)
            for part in self.waves.split(self.unit * 10_000, dim=1)
        ]
        loud = torch.cat(levels, dim=1).sqrt().cpu().numpy() > SOUNDING
        return np.stack([loud[VOCAL], loud[INSTRUMENTAL], loud.any(axis=0)])


class Sampler:
    """Draws crops that are mostly sound: the vocal track is full of rests."""

    TRIES = 4
    SHARE = 0.4  # of a crop's frames must sound, or another try is made

    def __init__(self, bounds: Sequence[int], sounding: np.ndarray) -> None:
        self._bounds = np.asarray(bounds)
        self._sound = np.concatenate([np.zeros((3, 1), int), np.cumsum(sounding, axis=1)], axis=1)  # [3, frames + 1]

    def draw(self, draw: np.random.Generator, batch: int, frames: int, shares: Sequence[float]) -> Crops:
        """Draw `batch` crops; shares: how often each track is taken."""
        lengths = np.diff(self._bounds) - frames + 1
        chances = np.maximum(lengths, 0) / np.maximum(lengths, 0).sum()
        tracks = draw.choice(3, batch, p=np.asarray(shares))
        starts = np.full(batch, -1)  # none yet
        for _ in range(self.TRIES):
            quiet = self._sound[tracks, starts + frames] - self._sound[tracks, starts] < self.SHARE * frames
            quiet |= starts < 0
            songs = draw.choice(len(chances), batch, p=chances)
            fresh = self._bounds[songs] + (draw.random(batch) * lengths[songs]).astype(int)
            starts = np.where(quiet, fresh, starts)
        return Crops(torch.from_numpy(tracks), torch.from_numpy(starts), frames)
