"""The two language models in training: their loss, and what is looked at on held-out songs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.language import guide
from training.language.batches import Feeder, Packed, pack
from training.language.lessons import FillingLessons, Lessons, SingingLessons, filling_groups, singing_groups
from training.language.model import Attend, LanguageModel, Linear, Size, choose_attention
from training.language.rows import Row, free_row, song_row, window_row
from training.language.songs import CodedSong
from training.language.text import WholeTokenizer
from training.loop import Student
from yue_cli.lyrics import Section
from yue_cli.tokenizer import TOKENIZER_FILE
from yue_cli.vocab import CODEBOOKS, WINDOW_FRAMES, Vocabulary

_WEIGHTS_ALIGNED = 64
_EXAMINED_IDS = 65_536  # at a time


class LanguageStudent(Student):
    def __init__(
        self,
        size: Size,
        vocabulary: Vocabulary,
        lessons: Lessons,
        groups: Sequence[np.ndarray],
        *,
        bf16: bool,
        processes: int,
    ) -> None:
        super().__init__()
        rows = -(-vocabulary.codebook_stop // _WEIGHTS_ALIGNED) * _WEIGHTS_ALIGNED
        self.model = LanguageModel(size, rows)
        self.vocabulary = vocabulary
        self.register_buffer("_answers", torch.from_numpy(np.stack(groups)), persistent=False)  # [groups, ids]
        self._groups, self._dtype = groups, torch.bfloat16 if bf16 else torch.float32
        self._feeder = Feeder(lessons.draws, processes)

    @cached_property
    def _attend(self) -> Attend:
        size = self.model.size
        return choose_attention(self._device, self._dtype, size.heads, size.head_size)

    @property
    def _device(self) -> torch.device:
        return self.model.lm_head.weight.device

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(step)  # what is dropped out shall not depend on where a run was stopped
        return self._judge(self._feeder.batch(step), step)

    def mean_loss(self, rows: Sequence[Row]) -> float:
        """Compute the mean loss, in nats, over all answers of rows."""
        total = count = 0.0
        with torch.no_grad():
            for batch in self._batches(rows):
                losses, weights = self._losses(self._read(batch), batch)
                total += float((losses * (weights > 0)).sum())
                count += float((weights > 0).sum())
        return total / max(count, 1)

    def _judge(self, batch: Packed, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        losses, weights = self._losses(self._read(batch), batch)
        return (losses * weights).sum() / weights.sum(), {}

    def _batches(self, rows: Sequence[Row]) -> Iterator[Packed]:
        """Pack rows into as few batches as memory allows."""
        part: list[Row] = []
        for row in rows:
            if part and sum(map(len, part)) + len(row) > _EXAMINED_IDS:
                yield pack(part, self._groups)
                part = []
            part.append(row)
        yield pack(part, self._groups)

    def _read(self, batch: Packed) -> Tensor:
        """Compute what the head reads, [n, hidden]."""
        device = self._device
        hidden: Tensor = self.model(bring(batch.ids, device), batch.packing(device), self._attend, self._dtype)
        return hidden

    def _losses(self, hidden: Tensor, batch: Packed) -> tuple[Tensor, Tensor]:
        """Compute the loss of every answer and its weight, each float32 [groups, m]."""
        asked, answers, weights = (bring(array, self._device) for array in (batch.asked, batch.answers, batch.weights))
        heads = self.model.lm_head.weight[self.get_buffer("_answers")].to(self._dtype)  # [groups, ids, hidden]
        logits = hidden[asked] @ heads.transpose(1, 2)  # [groups, m, ids]
        losses = F.cross_entropy(logits.flatten(0, 1).float(), answers.flatten(), reduction="none")
        return losses.unflatten(0, answers.shape), weights


def bring(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy to a device; to a GPU without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Singer(LanguageStudent):
    """Stage 1."""

    def __init__(
        self,
        size: Size,
        lessons: SingingLessons,
        held_out: Sequence[CodedSong],
        *,
        bf16: bool = False,
        processes: int = 0,
    ) -> None:
        vocabulary = Vocabulary.read(lessons.text)
        super().__init__(size, vocabulary, lessons, singing_groups(vocabulary), bf16=bf16, processes=processes)
        self._tokenizer = WholeTokenizer(lessons.text / TOKENIZER_FILE, vocabulary)
        self._held_out, self._begun = held_out, lessons.begun
        self.reader = Linear(size.head_size, vocabulary.codebook_size)  # of what the second guided head reads

    def _judge(self, batch: Packed, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Blame the guided heads, too; see `guide`."""
        hidden, looks, sung = self._watch(batch)
        losses, weights = self._losses(hidden, batch)
        loss, blame = (losses * weights).sum() / weights.sum(), guide.blame(looks, sung)
        voiced, heard = (bring(array, self._device) for array in (batch.voiced, batch.heard))
        told = self.reader(looks[-1][voiced, -1]).float()  # [voiced, codes]
        reading = F.cross_entropy(told, heard - self.vocabulary.codebook_start, reduction="sum") / max(len(heard), 1)
        total = loss + guide.weight(self._begun + step) * (blame + reading)
        return total, {"answers": loss, "blame": blame, "reading": reading}

    def _watch(self, batch: Packed) -> tuple[Tensor, list[Tensor], Tensor]:
        """Compute what the head reads, where the guided heads look, and where they should."""
        device, size = self._device, self.model.size
        ids, written, sung = (bring(array, device) for array in (batch.ids, batch.written, batch.sung))
        marks = guide.mark(written, size.head_size, self._dtype)
        layers = guide.watched_layers(size.layers)
        hidden, looks = self.model.watch(ids, batch.packing(device), self._attend, self._dtype, layers, marks)
        return hidden, looks, sung

    def hit_rates(self, rows: Sequence[Row]) -> list[float]:
        """Tell how often each guided head looks at the right syllable more than at any other."""
        with torch.no_grad():
            counts = sum(guide.hits(*self._watch(batch)[1:]) for batch in self._batches(rows))
        assert isinstance(counts, Tensor)
        return [float(hit) / max(float(all_), 1) for hit, all_ in counts]

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
            self._row(replace(song, sections=_reword(song, other), syllables=_unknown(song)))
            for song, other in zip(songs, others, strict=True)
        ]
        tags = [self._row(replace(song, genre=other.genre)) for song, other in zip(songs, others, strict=True)]
        hit_last, hit_now = self.hit_rates(true)
        return {
            "hit_last": hit_last,
            "hit_now": hit_now,
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
        lessons: FillingLessons,
        held_out: Sequence[CodedSong],
        *,
        bf16: bool = False,
        processes: int = 0,
    ) -> None:
        vocabulary = Vocabulary.read(lessons.text)
        super().__init__(size, vocabulary, lessons, filling_groups(vocabulary), bf16=bf16, processes=processes)
        self._held_out = held_out

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


def _unknown(song: CodedSong) -> tuple[np.ndarray, ...]:
    """Say of no syllable when it is sung."""
    return tuple(runs[:0] for runs in song.syllables)


def _reword(song: CodedSong, other: CodedSong) -> tuple[Section, ...]:
    """Give a song's sections another song's words."""
    return tuple(
        replace(section, text=other.sections[number % len(other.sections)].text)
        for number, section in enumerate(song.sections)
    )
