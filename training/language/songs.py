"""Songs of the corpus as codes, in shards on disk that are read while more are made.

A shard is an .npz: `vocal` and `instrumental`, uint16 [8, F], songs one after the other, and `texts`, JSON, one a song.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yue_cli.atomic import write_atomic
from yue_cli.lyrics import Section, parse
from yue_cli.vocab import CODEBOOKS, FRAME_RATE

SPLITS = ("train", "held-out")
DONE_FILE = "done"  # no more shards will come
_LOOK_EVERY_S = 5.0


@dataclass(frozen=True, eq=False)
class CodedSong:
    """A song of the corpus: texts, and its two tracks as codes, integers [K, T], T frames."""

    genre: str
    sections: tuple[Section, ...]
    spans: tuple[range, ...]  # frames of each section
    lines: tuple[tuple[range, ...], ...]  # of each section the frames of its lines; none if that is not known
    syllables: tuple[np.ndarray, ...]  # of each section integers [syllables, 4], as `alignment.align` gives them
    vocal: np.ndarray
    instrumental: np.ndarray

    @property
    def frames(self) -> int:
        return self.vocal.shape[1]

    @classmethod
    def read(cls, text: dict[str, Any], vocal: np.ndarray, instrumental: np.ndarray) -> "CodedSong":
        sections = parse(text["lyrics"], "song").sections
        spans = tuple(range(*span) for span in text["spans"])
        assert len(sections) == len(spans), f"{len(sections)} sections, {len(spans)} spans of frames"
        lines = tuple(tuple(range(*line) for line in lines) for lines in text["lines"])
        syllables = tuple(np.array(runs, dtype=np.int32).reshape(-1, 4) for runs in text["syllables"])
        return cls(text["genre"], sections, spans, lines, syllables, vocal, instrumental)


def write_shard(path: Path, songs: Sequence[tuple[dict[str, Any], np.ndarray]]) -> None:
    """Write songs: each its text and its codes, uint16 [2, 8, T], vocal and instrumental."""
    joined = np.concatenate([codes for _, codes in songs], axis=2)
    texts = [text | {"frames": codes.shape[2]} for text, codes in songs]
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, texts=np.array(json.dumps(texts)), vocal=joined[0], instrumental=joined[1])

    write_atomic(path, write)


class Shelf:
    """All songs of a split that there are so far."""

    def __init__(self, codes: Path, split: str, books: int = CODEBOOKS) -> None:
        """books: how many codebooks are kept in memory."""
        self._codes, self._split, self._books = codes, split, books
        self._read: set[str] = set()
        self._songs: list[CodedSong] = []
        self._looked = -_LOOK_EVERY_S

    def songs(self) -> list[CodedSong]:
        """List the songs, after a look for new ones now and then."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            for path in sorted((self._codes / self._split).glob("[0-9]*.npz")):
                if path.name not in self._read:
                    self._read.add(path.name)
                    self._songs += _read_shard(path, self._books)
        return self._songs

    def wait(self, hours: float) -> list[CodedSong]:
        """Wait until there are so many hours of songs, or no more will come."""
        while not (self._codes / DONE_FILE).exists():
            if sum(song.frames for song in self.songs()) >= hours * 3600 * FRAME_RATE and self._songs:
                return self._songs
            time.sleep(1)
        self._looked = -_LOOK_EVERY_S
        assert self.songs(), f"{self._codes}: no songs of the split {self._split}"
        return self._songs


def _read_shard(path: Path, books: int) -> list[CodedSong]:
    songs, start = [], 0
    with np.load(path, allow_pickle=False) as content:
        vocal, instrumental = (content[name][:books].copy() for name in ("vocal", "instrumental"))
        for text in json.loads(str(content["texts"])):
            place = slice(start, start + text["frames"])
            songs.append(CodedSong.read(text, vocal[:, place], instrumental[:, place]))
            start = place.stop
    return songs
