"""The two language models in training: what a batch is, its loss, and what is looked at on held-out songs."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

from training.language.model import LanguageModel, Size
from training.language.rows import (
    CodedSong,
    Noise,
    Row,
    draw_song_row,
    draw_window_row,
    free_row,
    song_row,
    window_row,
)
from training.language.text import BROKEN_TEXTS, BrokenTokenizer
from training.loop import Student
from yue_cli.lyrics import Section
from yue_cli.tokenizer import Tokenizer
from yue_cli.vocab import CODEBOOKS, WINDOW_FRAMES, Vocabulary

_BATCHES_SORTED = 4  # so many batches are drawn at once and sorted by length, so that little is filled up
_WEIGHTS_ALIGNED = 64


class LanguageStudent(Student):
    def __init__(self, size: Size, vocabulary: Vocabulary, batch: int, seed: int, bf16: bool) -> None:
        super().__init__()
        rows = -(-vocabulary.codebook_stop // _WEIGHTS_ALIGNED) * _WEIGHTS_ALIGNED
        self.model = LanguageModel(size, rows)
        self.vocabulary = vocabulary
        self._batch, self._seed, self._bf16 = batch, seed, bf16
        self._drawn: tuple[int, list[list[Row]]] = (-1, [])

    def draw(self, dice: np.random.Generator) -> Row:
        """Draw one row to learn from."""
        raise NotImplementedError

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        losses, weights = self._losses(self._rows(step))
        return (losses * weights).sum() / weights.sum(), {}

    def mean_loss(self, rows: Sequence[Row]) -> float:
        """Compute the mean loss, in nats, over all answers of rows."""
        total = count = 0.0
        with torch.no_grad():
            for row in rows:
                losses, weights = self._losses([row])
                total += (losses * (weights > 0)).sum().item()
                count += (weights > 0).sum().item()
        return total / max(count, 1)

    def _losses(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Compute the loss of every answer and its weight, each float32 [answers]."""
        length = max(map(len, rows))

        def stack(arrays: Sequence[np.ndarray]) -> Tensor:
            filled = [np.pad(array, (0, length - len(array))) for array in arrays]
            return torch.from_numpy(np.stack(filled)).to(self.model.lm_head.weight.device, non_blocking=True)

        ids, answers = stack([row.ids for row in rows])[:, :-1], stack([row.answers for row in rows])[:, 1:]
        weights = stack([row.weights for row in rows])[:, 1:]
        wanted = weights > 0
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self._bf16):
            logits = self.model(ids, wanted)
        return F.cross_entropy(logits.float(), answers[wanted], reduction="none"), weights[wanted]

    def _rows(self, step: int) -> list[Row]:
        """Draw a step's batch: a function of seed and step alone."""
        group, place = divmod(step, _BATCHES_SORTED)
        if self._drawn[0] != group:
            dice = np.random.default_rng([self._seed, group])
            rows = sorted((self.draw(dice) for _ in range(self._batch * _BATCHES_SORTED)), key=len)
            batches = [rows[start : start + self._batch] for start in range(0, len(rows), self._batch)]
            dice.shuffle(batches)
            self._drawn = (group, batches)
        return self._drawn[1][place]


class Singer(LanguageStudent):
    """Stage 1."""

    def __init__(
        self,
        size: Size,
        vocabulary: Vocabulary,
        tokenizer: Tokenizer,
        broken: BrokenTokenizer,
        songs: Sequence[CodedSong],
        held_out: Sequence[CodedSong],
        noise: Noise,
        batch: int,
        *,
        seed: int = 0,
        bf16: bool = False,
    ) -> None:
        super().__init__(size, vocabulary, batch, seed, bf16)
        self._tokenizer, self._broken, self._noise = tokenizer, broken, noise
        self._songs, self._held_out = songs, held_out

    def draw(self, dice: np.random.Generator) -> Row:
        tokenizer = self._tokenizer
        if dice.random() < BROKEN_TEXTS:
            tokenizer = self._broken
            sentencepiece.set_random_generator_seed(int(dice.integers(2**31)))
        return draw_song_row(self._songs, tokenizer, self.vocabulary, self.model.size.length, self._noise, dice)

    def examine(self) -> dict[str, float]:
        """Measure the loss of both tracks and how much worse it is with another song's words, tags, or nothing."""
        songs = self._held_out
        others = [*songs[1:], *songs[:1]]
        true = [self._row(song) for song in songs]
        free = [
            free_row(song, section, self.vocabulary, dice=np.random.default_rng(0))
            for song in songs
            for section in range(len(song.spans))
        ]
        conditional = self.mean_loss(true)
        vocal = self.mean_loss([only_track(row, 0) for row in true])
        lyrics = [
            self._row(replace(song, sections=_reword(song, other))) for song, other in zip(songs, others, strict=True)
        ]
        tags = [self._row(replace(song, genre=other.genre)) for song, other in zip(songs, others, strict=True)]
        return {
            "vocal": vocal,
            "band": self.mean_loss([only_track(row, 1) for row in true]),
            "lyrics_gap": self.mean_loss([only_track(row, 0) for row in lyrics]) - vocal,
            "tag_gap": self.mean_loss(tags) - conditional,
            "guidance_gap": self.mean_loss(free) - conditional,
        }

    def _row(self, song: CodedSong) -> Row:
        length = self.model.size.length
        return song_row(song, self._tokenizer, self.vocabulary, length=length, dice=np.random.default_rng(0))


class Filler(LanguageStudent):
    """Stage 2."""

    def __init__(
        self,
        size: Size,
        vocabulary: Vocabulary,
        songs: Sequence[CodedSong],
        held_out: Sequence[CodedSong],
        noise: Noise,
        own_mistakes: float,
        batch: int,
        *,
        seed: int = 0,
        bf16: bool = False,
    ) -> None:
        super().__init__(size, vocabulary, batch, seed, bf16)
        self._noise, self._own_mistakes = noise, own_mistakes
        self._songs, self._held_out = songs, held_out

    def draw(self, dice: np.random.Generator) -> Row:
        return draw_window_row(self._songs, self.vocabulary, self._noise, self._own_mistakes, dice)

    def examine(self) -> dict[str, float]:
        """Measure the loss of each fine book, over the first window of each track."""
        rows = [
            window_row(track, range(min(WINDOW_FRAMES, track.shape[1])), self.vocabulary, dice=np.random.default_rng(0))
            for song in self._held_out
            for track in (song.vocal, song.instrumental)
        ]
        return {f"book_{book}": self.mean_loss([only_book(row, book) for row in rows]) for book in range(1, CODEBOOKS)}


def only_track(row: Row, track: int) -> Row:
    """Count the codes of one track only: 0 the vocal, where it is no rest (its most frequent code), 1 the band."""
    weights = row.weights.copy()
    starts = np.flatnonzero(np.diff(np.concatenate([[0], weights > 0])) == 1)
    ends = np.flatnonzero(np.diff(np.concatenate([weights > 0, [0]])) == -1)
    for start, end in zip(starts, ends, strict=True):
        weights[start + (1 - track) : end + 1 : 2] = 0
        weights[end] = 0  # end-of-audio
    if track == 0 and weights.any():
        codes, counts = np.unique(row.answers[weights > 0], return_counts=True)
        weights[row.answers == codes[counts.argmax()]] = 0
    return replace(row, weights=weights)


def only_book(row: Row, book: int) -> Row:
    """Count the codes of one book of a window only."""
    first = int(np.flatnonzero(row.weights > 0)[0]) - 1
    weights = np.zeros_like(row.weights)
    weights[first + book :: CODEBOOKS] = 1
    return replace(row, weights=weights)


def _reword(song: CodedSong, other: CodedSong) -> tuple[Section, ...]:
    """Give a song's sections another song's words."""
    return tuple(
        replace(section, text=other.sections[number % len(other.sections)].text)
        for number, section in enumerate(song.sections)
    )
