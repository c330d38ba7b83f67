"""From a corpus folder to joined songs; what a run has once read it keeps, so that it goes on with the same songs."""

from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from training.codec.labels import Label
from training.codec.songs import INSTRUMENTAL, VOCAL, Songs
from training.corpus.dataset import CLASSES, TRACKS, CorpusSong, list_songs
from xcodec_mini_infer import FRAME_RATE
from yue_cli.atomic import write_atomic

_WEIGHTS = {
    "semitone": (VOCAL, 1.0),
    "phoneme": (VOCAL, 1.0),
    "singer": (VOCAL, 0.2),
    "chord": (INSTRUMENTAL, 1.0),
    "drum": (INSTRUMENTAL, 0.5),
    "instrument": (INSTRUMENTAL, 0.2),
    "bass": (INSTRUMENTAL, 0.1),
}
LABELS = tuple(Label(name, len(CLASSES[name]) + 1, track, weight) for name, (track, weight) in _WEIGHTS.items())


def load_songs(corpus: Path, split: str, rate: int, cache: Path, hours: float = float("inf")) -> Songs:
    """Read up to so many hours of a split, `train` or `held-out`, or of what `cache` holds of an earlier run."""
    path = cache / f"{split}-{rate}.pt"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        joined = _join(list_songs(corpus, split), rate, hours)
        content = {"waves": joined.waves, "bounds": list(joined.bounds), "labels": dict(joined.labels)}
        write_atomic(path, lambda temporary: torch.save(content, temporary))
    content = torch.load(path, weights_only=True)
    labels = {name: values.long() for name, values in content["labels"].items()}
    return Songs(content["waves"], content["bounds"], rate // FRAME_RATE, labels).first(hours)


def _join(songs: list[CorpusSong], rate: int, hours: float) -> Songs:
    bounds, unit = [0], rate // FRAME_RATE
    waves: list[np.ndarray] = []
    labels: dict[str, list[np.ndarray]] = {label.name: [] for label in LABELS}
    chosen: list[CorpusSong] = []
    for song in songs:
        if sum(each.frames for each in chosen) >= hours * 3600 * FRAME_RATE:
            break
        chosen.append(song)
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for song, tracks in zip(chosen, pool.map(_read, chosen, repeat(rate)), strict=True):
            waves.append(tracks)
            truth = song.labels()
            for name, parts in labels.items():
                parts.append(truth[name] + 1)
            bounds.append(bounds[-1] + song.frames)
    assert waves, "the corpus has no song of this split"
    joined = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in labels.items()}
    return Songs(torch.from_numpy(np.concatenate(waves, axis=1)), bounds, unit, joined)


def _read(song: CorpusSong, rate: int) -> np.ndarray:
    """Read both tracks of a song: int16 [2, frames * rate / 50]."""
    tracks = np.stack([song.load(track, rate) for track in TRACKS])
    return (tracks * 32_767).round().clip(-32_768, 32_767).astype(np.int16)
