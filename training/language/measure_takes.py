"""Songs to be measured, from wherever they come: rendered, copied by the codec, or sung by the models.

All sound is that of the codec's 16 kHz decoder, which makes a mix below 5.5 kHz; tokens are all that is read of songs.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from training.corpus.dataset import TRACKS
from training.corpus.render import Renderer
from training.corpus.world import SAMPLE_RATE as RENDERED_RATE
from training.corpus.world import SAMPLES_PER_FRAME
from training.language.measure_prompts import Prompt
from xcodec_mini_infer import SAMPLE_RATE, checkpoint
from xcodec_mini_infer.resample import resample
from yue_cli.artifacts import read_tokens
from yue_cli.project import Project
from yue_cli.vocab import CODEBOOKS

_REMEDY = "sing it again."


@dataclass(frozen=True, eq=False)
class Take:
    """One song. vocal, band: float32 [320 * frames], 16 kHz. bounds: frames at which sections start, and the end.

    coarse: codebook 0 of both tracks, integers [2, frames]; none where nothing was encoded.
    ended: for each section, whether the model ended it by itself.
    """

    vocal: np.ndarray
    band: np.ndarray
    bounds: tuple[int, ...]
    coarse: np.ndarray | None = None
    ended: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Lesson:
    """A take with what sounds in it: the phoneme of each frame, -1 for none, and the key."""

    take: Take
    phonemes: np.ndarray
    key: tuple[int, str]


class Copier:
    """Turns takes into codes, and codes into takes."""

    def __init__(self, codec: Path, device: str, books: int = CODEBOOKS) -> None:
        self._codec = checkpoint.load_codec(codec, device)
        self._encoder = checkpoint.load_encoder(codec, device, CODEBOOKS)
        self._device, self._books = device, books

    def copy(self, take: Take) -> Take:
        """Encode and decode both tracks of a take."""
        tracks = [torch.from_numpy(track)[None].to(self._device) for track in (take.vocal, take.band)]
        codes = [self._encoder.encode(track)[0].cpu().numpy() for track in tracks]
        return self.play(codes[0], codes[1], take.bounds, take.ended)

    def play(self, vocal: np.ndarray, band: np.ndarray, bounds: tuple[int, ...], ended: tuple[bool, ...]) -> Take:
        """Decode tracks of codes [K, T], their first `books` alone."""
        waves = []
        for codes in (vocal, band):
            given = torch.from_numpy(codes[: self._books].astype(np.int64))[None].to(self._device)
            waves.append(self._codec.decode(given)[0].cpu().numpy())
        return Take(waves[0], waves[1], bounds, np.stack([vocal[0], band[0]]), ended)


def render(prompt: Prompt, renderer: Renderer, names: tuple[str, ...]) -> Lesson:
    """Render what the corpus makes of a prompt. names: of the phonemes, whose places are returned."""
    rendered = renderer.render(prompt.song)
    frames = prompt.bounds[-1]
    tracks = [
        resample(torch.from_numpy(samples[: frames * SAMPLES_PER_FRAME])[None], RENDERED_RATE, SAMPLE_RATE)[0].numpy()
        for samples in (rendered.vocal, rendered.instrumental)
    ]
    phonemes = np.full(frames, -1, np.int64)
    for start, stop, name in rendered.score["labels"]["phoneme"]:
        phonemes[start:stop] = names.index(name)
    key = prompt.song.key
    return Lesson(Take(tracks[0], tracks[1], tuple(prompt.bounds)), phonemes, (key.tonic, key.mode))


def read_song(folder: Path, copier: Copier, books: int) -> Take:
    """Read the tokens of a song's folder. Raises ArtifactError where they are not there."""
    project = Project(folder)
    stage, depth = ("stage1", 1) if books == 1 else ("stage2", CODEBOOKS)
    tokens = read_tokens(project.folder(stage), depth, _REMEDY)
    segments = project.segments()
    bounds = np.cumsum([0, *((len(segment.ids) - 1) // len(TRACKS) for segment in segments)])
    assert bounds[-1] == tokens.vocal.shape[1], f"{folder}: segments of {bounds[-1]} frames, {tokens.vocal.shape}"
    ended = tuple(not segment.truncated for segment in segments)
    return copier.play(tokens.vocal, tokens.instrumental, tuple(map(int, bounds)), ended)
