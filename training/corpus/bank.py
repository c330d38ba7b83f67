"""The bank: all sound that songs are made of, in one folder of about 25 MB. Whoever has it needs numpy alone to render.

`python -m training.corpus.bank FOLDER` makes it by itself, and first compares the lexicon with espeak's phonemes.
"""

import json
import sys
from pathlib import Path

from training.corpus.band_bank import SOUNDFONT, BandBank, make_band_bank
from training.corpus.lexicon import LEXICON
from training.corpus.voice_bank import VoiceBank, make_voice_bank
from yue_cli.atomic import write_bytes

VERSION = 1  # raise it with every change to what is recorded
_MARK = "bank.json"


def is_ready(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / _MARK).read_text())["version"] == VERSION)
    except FileNotFoundError:
        return False


def make_bank(folder: Path, soundfont: Path = SOUNDFONT) -> None:
    """Record voices and instruments. Raises EspeakMissing, SoundfontMissing, LexiconWrong."""
    band = make_band_bank(soundfont)
    voice = make_voice_bank()
    compare_with_lexicon(voice)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).unlink(missing_ok=True)
    band.save(folder)
    voice.save(folder)
    write_bytes(folder / _MARK, json.dumps({"version": VERSION}).encode())


def load_bank(folder: Path) -> tuple[VoiceBank, BandBank]:
    return VoiceBank.load(folder), BandBank.load(folder)


class LexiconWrong(RuntimeError):
    """The typed lexicon and espeak-ng do not count alike."""


def compare_with_lexicon(voice: VoiceBank) -> None:
    """Check the number of syllables of every word against the voice bank. Raises LexiconWrong."""
    wrong = [
        f"{word} ({LEXICON[word].syllables}, {singer} sings {len(syllables)})"
        for singer, words in voice.words.items()
        for word, syllables in words.items()
        if len(syllables) != LEXICON[word].syllables
    ]
    if wrong:
        raise LexiconWrong(f"lexicon.py: syllables differ from espeak's: {', '.join(wrong)}; take these words out.")


if __name__ == "__main__":
    make_bank(Path(sys.argv[1]))
