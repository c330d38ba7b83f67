"""The tiny models' tokenizer: a SentencePiece model with the properties of YuE's, learned from the corpus."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import sentencepiece

from yue_cli.lyrics import MARKERS
from yue_cli.prompt import INSTRUCTION
from yue_cli.tokenizer import TOKENIZER_FILE, Tokenizer
from yue_cli.vocab import CODEBOOKS, Vocabulary

PIECES = 704
SPECIALS = "<EOD> <SOA> <EOA> <stage_1> <stage_2> <xcodec>".split()
_BLANK = "▁"  # what sentencepiece makes of a space
CODEBOOK_START = 768  # leaves room for more specials; a multiple of 64, as is all that follows
BROKEN_TEXTS = 0.2  # of the rows: words in random pieces, so that unknown words mean sounds, too


def learn(texts: Iterable[str], folder: Path) -> None:
    """Write tokenizer.model and vocabulary.json. The same texts give the same bytes with the same sentencepiece."""
    model = io.BytesIO()
    lines = [INSTRUCTION, *MARKERS, *(line for text in texts for line in text.splitlines() if line)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TOKENIZER_FILE).write_bytes(model.getvalue())
    specials = {"<s>": 1, "</s>": 2, **{name: number for number, name in enumerate(SPECIALS, start=PIECES)}}
    Vocabulary(specials, specials["<xcodec>"], CODEBOOK_START, codebooks=CODEBOOKS).write(folder)


class WholeTokenizer(Tokenizer):
    """The product's tokenizer, which can tell where its ids stand in their text."""

    def edges(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Find the bytes at which pieces begin, and the end of the last: int64 [ids + 1].

        The blank that is put before a text is none of its bytes.
        """
        edges = np.concatenate([[0], self._sizes[np.asarray(ids, dtype=np.int64)].cumsum()]) - 1
        return edges.clip(min=0)

    @cached_property
    def _sizes(self) -> np.ndarray:
        """Count the bytes that each piece writes, int64 [pieces]."""
        pieces = self._pieces
        return np.array(
            [
                1 if pieces.IsByte(id) else len(pieces.IdToPiece(id).replace(_BLANK, " ").encode())
                for id in range(len(pieces))
            ]
        )


class BrokenTokenizer(WholeTokenizer):
    """Cuts words into pieces at random: merges are left out. Source: BPE-dropout, arXiv 1910.13267.

    sentencepiece does so, too, but cannot be told to do the same again.
    """

    left_out = 0.1  # of the merges

    def __init__(self, path: Path, vocabulary: Vocabulary) -> None:
        super().__init__(path, vocabulary)
        pieces = self._pieces
        whole = [id for id in range(len(pieces)) if not (pieces.IsControl(id) or pieces.IsByte(id))]
        self._ids = {pieces.IdToPiece(id): id for id in whole}
        self._scores = {pieces.IdToPiece(id): pieces.GetScore(id) for id in whole}
        self.dice = Random(0)

    def encode(self, text: str) -> list[int]:
        words = re.findall(f"{_BLANK}[^{_BLANK}]*", _BLANK * bool(text) + text.replace(" ", _BLANK))
        return [id for word in words for id in self._cut(word)]

    def _cut(self, word: str) -> Iterator[int]:
        parts = list(word)
        while True:
            merges = [
                (self._scores[left + right], -place)
                for place, (left, right) in enumerate(pairwise(parts))
                if left + right in self._scores and self.dice.random() >= self.left_out
            ]
            if not merges:
                break
            place = -max(merges)[1]
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        for part in parts:
            if part in self._ids:
                yield self._ids[part]
            else:
                yield from (self._pieces.PieceToId(f"<0x{byte:02X}>") for byte in part.encode())
