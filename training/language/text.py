"""The tiny models' tokenizer: a SentencePiece model with the properties of YuE's, learned from the corpus."""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from yue_cli.lyrics import MARKERS
from yue_cli.prompt import INSTRUCTION
from yue_cli.tokenizer import TOKENIZER_FILE, Tokenizer
from yue_cli.vocab import CODEBOOKS, Vocabulary

PIECES = 704
SPECIALS = "<EOD> <SOA> <EOA> <stage_1> <stage_2> <xcodec>".split()
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


class BrokenTokenizer(Tokenizer):
    """Cuts words into pieces at random, another way each time. Source: BPE-dropout, arXiv 1910.13267."""

    def encode(self, text: str) -> list[int]:
        return list(self._pieces.encode(text, enable_sampling=True, alpha=0.1))
