"""Read a corpus: songs by split, tracks at any rate, and what sounds in each frame as arrays of classes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from training.corpus.band_bank import INSTRUMENTS
from training.corpus.harmony import CHORD_TYPES
from training.corpus.layout import is_complete
from training.corpus.phonemes import PHONEMES
from training.corpus.world import PITCH_NAMES, SAMPLE_RATE, SAMPLES_PER_FRAME, SINGERS
from xcodec_mini_infer.resample import resample

TRACKS = ("vocal", "instrumental")
_LOWEST_SEMITONE = min(singer.lowest for singer in SINGERS.values())
_HIGHEST_SEMITONE = max(singer.highest for singer in SINGERS.values())
_DRUM_KINDS: Mapping[str, str] = {
    "kick": "kick",
    "snare": "snare",
    "rim": "snare",
    "clap": "snare",
    "tambourine": "snare",
    "hat": "hat",
    "open hat": "hat",
    "ride": "hat",
    "crash": "hat",
}
DRUM_FRAMES = 3  # a hit is labelled from its first frame on for so long
_KINDS = ("kick", "snare", "hat")

# What each value of a label means. -1 stands for none: a rest, no drum.
CLASSES: Mapping[str, Sequence[str]] = {
    "phoneme": tuple(PHONEMES),
    "semitone": tuple(str(pitch) for pitch in range(_LOWEST_SEMITONE, _HIGHEST_SEMITONE + 1)),  # MIDI
    "singer": tuple(SINGERS),
    "chord": tuple(f"{root} {type_}" for root, type_ in product(PITCH_NAMES, CHORD_TYPES)),
    "chord_root": tuple(PITCH_NAMES),
    "chord_type": tuple(CHORD_TYPES),
    "drum": tuple("+".join(k for bit, k in enumerate(_KINDS) if mask >> bit & 1) for mask in range(1, 8)),
    "instrument": tuple(name for name in INSTRUMENTS if "bass" not in name),
    "bass": tuple(name for name in INSTRUMENTS if "bass" in name),
}
VOCAL_LABELS = ("phoneme", "semitone", "singer")
BAND_LABELS = ("chord", "chord_root", "chord_type", "drum", "instrument", "bass")


@dataclass(frozen=True)
class CorpusSong:
    folder: Path

    @cached_property
    def score(self) -> dict[str, Any]:
        """All that score.json says; docs/tiny-model.md lists it."""
        score: dict[str, Any] = json.loads((self.folder / "score.json").read_text())
        return score

    @property
    def frames(self) -> int:
        return int(self.score["frames"])

    def load(self, track: str, sample_rate: int = SAMPLE_RATE, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read frames [start, stop) of a track, float32 [frames * sample_rate / 50], about [-1, 1]."""
        path = self.folder / f"{track}.flac"
        stop = self.frames if stop is None else stop
        samples, rate = soundfile.read(
            path, start=start * SAMPLES_PER_FRAME, stop=stop * SAMPLES_PER_FRAME, dtype="float32"
        )
        assert rate == SAMPLE_RATE, f"{path}: expected {SAMPLE_RATE} Hz, found {rate}"
        return resample(torch.from_numpy(samples)[None], SAMPLE_RATE, sample_rate)[0].numpy()

    def labels(self) -> dict[str, np.ndarray]:
        """The class of every frame, int16 [frames] by name of CLASSES, -1 where there is none."""
        runs = self.score["labels"]
        labels = {name: np.full(self.frames, -1, np.int16) for name in CLASSES}
        for name in ("phoneme", "semitone", "singer", "instrument", "bass"):
            for start, stop, value in runs[name]:
                labels[name][start:stop] = CLASSES[name].index(str(value))
        for start, stop, root, type_ in runs["chord"]:
            kind = list(CHORD_TYPES).index(type_)
            labels["chord"][start:stop] = root * len(CHORD_TYPES) + kind
            labels["chord_root"][start:stop] = root
            labels["chord_type"][start:stop] = kind
        masks = np.zeros(self.frames, np.int16)
        for frame, drum in runs["drum"]:
            masks[frame : frame + DRUM_FRAMES] |= 1 << _KINDS.index(_DRUM_KINDS[drum])
        labels["drum"] = masks - 1
        return labels


def list_songs(corpus: Path, split: str) -> list[CorpusSong]:
    """List the finished songs of a split, `train` or `held-out`, by seed."""
    folders = sorted(folder for folder in (corpus / "songs").iterdir() if is_complete(folder))
    return [song for song in map(CorpusSong, folders) if song.score["split"] == split]
