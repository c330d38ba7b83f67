"""What the language models learn from: the function from a step to its batch, for any process that draws."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

from training.language.batches import Packed, draw_batch
from training.language.rows import Noise, Row, draw_song_row, draw_window_row
from training.language.songs import Shelf
from training.language.text import BROKEN_TEXTS, BrokenTokenizer, WholeTokenizer
from yue_cli.tokenizer import TOKENIZER_FILE
from yue_cli.vocab import CODEBOOKS, Vocabulary


@dataclass(frozen=True, eq=False)
class Lessons:
    """What batches are made of. Processes that draw them get a copy, and read the songs themselves."""

    codes: Path
    text: Path  # the folder of tokenizer and vocabulary
    noise: Noise
    batch: int  # ids
    length: int  # of the longest row
    seed: int

    def draws(self) -> Callable[[int], Packed]:
        """Give the function from a step to its batch."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class SingingLessons(Lessons):
    begun: int = 0  # steps that an earlier run took; lessons grow harder by them

    def draws(self) -> Callable[[int], Packed]:
        shelf, vocabulary = Shelf(self.codes, "train", books=1), Vocabulary.read(self.text)
        whole = WholeTokenizer(self.text / TOKENIZER_FILE, vocabulary)
        broken = BrokenTokenizer(self.text / TOKENIZER_FILE, vocabulary)

        def draw(step: int, dice: np.random.Generator) -> Row:
            tokenizer: WholeTokenizer = whole
            if dice.random() < BROKEN_TEXTS:
                tokenizer = broken
                broken.dice = Random(int(dice.integers(2**31)))
            return draw_song_row(shelf.songs(), tokenizer, vocabulary, self.length, self.noise, self.begun + step, dice)

        return partial(draw_batch, draw, singing_groups(vocabulary), self.batch, self.seed)


@dataclass(frozen=True, eq=False)
class FillingLessons(Lessons):
    own_mistakes: float = 0.0

    def draws(self) -> Callable[[int], Packed]:
        shelf, vocabulary = Shelf(self.codes, "train"), Vocabulary.read(self.text)

        def draw(step: int, dice: np.random.Generator) -> Row:
            return draw_window_row(shelf.songs(), vocabulary, self.noise, self.own_mistakes, dice)

        return partial(draw_batch, draw, filling_groups(vocabulary), self.batch, self.seed)


def singing_groups(vocabulary: Vocabulary) -> tuple[np.ndarray, ...]:
    """Stage 1 answers with codes of the first book or end-of-audio."""
    return (np.append(np.array(vocabulary.codebook(0)), vocabulary.end_of_audio),)


def filling_groups(vocabulary: Vocabulary) -> tuple[np.ndarray, ...]:
    """Each pick of stage 2 is one of its own book."""
    return tuple(np.array(vocabulary.codebook(book)) for book in range(1, CODEBOOKS))
