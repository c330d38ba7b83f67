"""Which id means what: frame rate, special tokens and the codebook layout of a checkpoint.

Knows numbers only; how text becomes ids is the tokenizer's business.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from yue_cli.errors import CheckpointError

FRAME_RATE = 50  # frames a second and track
WINDOW_FRAMES = 6 * FRAME_RATE  # what stage 2 decodes in one piece
CODEBOOKS = 8  # codebooks of a finished track: one coarse, seven fine
VOCABULARY_FILE = "vocabulary.json"
VOCABULARY_FORMAT = "yue-vocabulary"
VOCABULARY_VERSION = 1

# YuE's tokenizer. The first 22 are pieces of the published model in this order; the last four are added to it.
_PIECES = """
    <EOD> <SOA> <EOA> <SOI> <EOI> <SOV> <EOV> <s_local> <e_local> <s_global> <e_global>
    <semantic> <acoustic> <stage_1> <dac_16k> <dac_44k> <xcodec> <stage_2>
    <semantic_mert> <semantic_hubert> <visual> <semanticodec>
""".split()
_PUBLISHED_SPECIALS = {
    "<s>": 1,
    "</s>": 2,
    **{name: number for number, name in enumerate(_PIECES, start=32000)},
    "<CLS>": 83734,
    "<SEP>": 83735,
    "<MASK>": 83736,
    "<PAD>": 83737,
}

# YuE mmtokenizer.py: what its tokenizer turns into one id when it stands in a text, and nothing else.
CONTROL_STRINGS = tuple(
    """
    <CLS> <SEP> <EOD> <MASK> <SOA> <EOA> <SOV> <EOV> <SOI> <EOI> <s_local> <e_local> <s_global> <e_global>
    <stage_1> <stage_2> <PAD> <s> </s>
    """.split()
)


@dataclass(frozen=True)
class Vocabulary:
    """Special ids by name, and the codebooks: code c of codebook k is `codebook_start + codebook_size * k + c`."""

    specials: Mapping[str, int] = field(default_factory=lambda: dict(_PUBLISHED_SPECIALS))
    separator: int = _PUBLISHED_SPECIALS["<xcodec>"]  # stands between <SOA> and the codes of stage 1
    codebook_start: int = 45334
    codebook_size: int = 1024
    codebooks: int = 12

    @property
    def start_of_audio(self) -> int:
        return self.specials["<SOA>"]

    @property
    def end_of_audio(self) -> int:
        return self.specials["<EOA>"]

    @property
    def stage_1(self) -> int:
        return self.specials["<stage_1>"]

    @property
    def stage_2(self) -> int:
        return self.specials["<stage_2>"]

    @property
    def codebook_stop(self) -> int:
        """The first id after the last codebook."""
        return self.codebook_start + self.codebook_size * self.codebooks

    def codebook(self, index: int) -> range:
        """Name the ids of one codebook."""
        start = self.codebook_start + self.codebook_size * index
        return range(start, start + self.codebook_size)

    def codes_to_ids(self, codes: np.ndarray) -> np.ndarray:
        """Turn codes [K, T], 0..codebook_size - 1, into int64 ids [T * K], frame after frame."""
        codes = np.asarray(codes, dtype=np.int64)
        assert codes.ndim == 2, f"codes must be [K, T], not of shape {codes.shape}"
        assert codes.size == 0 or (codes.min() >= 0 and codes.max() < self.codebook_size), "a code is out of range"
        offsets = self.codebook_start + self.codebook_size * np.arange(len(codes))
        return (codes + offsets[:, None]).T.ravel()

    @classmethod
    def read(cls, folder: Path) -> "Vocabulary":
        """Read `vocabulary.json` of a checkpoint folder; without that file, the published layout.

        Raises CheckpointError for another format, a newer version, or a missing or foreign key.
        """
        path = folder / VOCABULARY_FILE
        if not path.exists():
            return cls()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if (content.pop("format"), content.pop("version")) != (VOCABULARY_FORMAT, VOCABULARY_VERSION):
                raise ValueError(f"expected format {VOCABULARY_FORMAT}, version {VOCABULARY_VERSION}")
            vocabulary = cls(**content)
            missing = [name for name in ("<SOA>", "<EOA>", "<stage_1>", "<stage_2>") if name not in vocabulary.specials]
            if missing:
                raise ValueError(f"no id for {', '.join(missing)}")
            sizes = (vocabulary.separator, vocabulary.codebook_start, vocabulary.codebook_size, vocabulary.codebooks)
            for number in (*sizes, *vocabulary.specials.values()):
                if type(number) is not int or number < 0:
                    raise ValueError(f"expected whole numbers, found {number!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: not a vocabulary of this version of yue ({error}).") from error
        return vocabulary

    def write(self, folder: Path) -> None:
        """Write `vocabulary.json` into a checkpoint folder that is being made."""
        content = {
            "format": VOCABULARY_FORMAT,
            "version": VOCABULARY_VERSION,
            "specials": dict(self.specials),
            "separator": self.separator,
            "codebook_start": self.codebook_start,
            "codebook_size": self.codebook_size,
            "codebooks": self.codebooks,
        }
        (folder / VOCABULARY_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
