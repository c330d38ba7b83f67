"""Text to ids with a checkpoint's SentencePiece model. The only importer of sentencepiece."""

import re
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from yue_cli.errors import CheckpointError
from yue_cli.vocab import CONTROL_STRINGS, Vocabulary

TOKENIZER_FILE = "tokenizer.model"


class Tokenizer:
    """Encodes text. Ids of codes and control tokens never come out of `encode`, whatever the text holds."""

    def __init__(self, path: Path, vocabulary: Vocabulary) -> None:
        """Load a `tokenizer.model`. Raises CheckpointError if it is missing or damaged."""
        self._pieces = _load(path)
        self._control_ids = {name: id for name, id in vocabulary.specials.items() if name in CONTROL_STRINGS}
        self._control = re.compile("|".join(map(re.escape, self._control_ids)) or r"(?!)")

    def encode(self, text: str) -> list[int]:
        """Encode as plain text, `<SOA>` and the like included; neither a begin nor an end is added."""
        return list(self._pieces.encode(text))

    def encode_control(self, text: str) -> list[int]:
        """Encode as YuE's tokenizer does: control strings become their ids, each stretch between them is on its own.

        Source: YuE mmtokenizer.py, _MMSentencePieceTokenizer.tokenize.
        """
        ids: list[int] = []
        read_up_to = 0
        for match in self._control.finditer(text):
            ids += [*self.encode(text[read_up_to : match.start()]), self._control_ids[match[0]]]
            read_up_to = match.end()
        return ids + self.encode(text[read_up_to:])


def _load(path: Path) -> SentencePieceProcessor:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}). A checkpoint folder needs its {TOKENIZER_FILE}; "
            "fetch the model again."
        ) from error
    pieces = SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: expected a SentencePiece model, found {len(content)} bytes of something else. "
            "It is damaged or a git-lfs stub; fetch the model again."
        ) from error
    return pieces
