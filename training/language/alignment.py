"""Which part of the words is sung when: known to the composer, followed through the text's pieces to a row's ids."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from training.corpus.lexicon import LEXICON
from training.corpus.song import Section

NOBODY = -1  # no syllable


def align(sections: Sequence[Section], notes: Iterable[Mapping[str, Any]]) -> list[list[list[int]]]:
    """Tell when each section's syllables are sung: runs of first and last frame of the song, first and last character.

    The lasts are no part of a run, which begins with the syllable's first consonant. Characters count in the section's
    lines. Letters are dealt out to the syllables of a word evenly, since nothing says where they part.
    notes: as a score has them.
    """
    runs: list[list[list[int]]] = [[] for _ in sections]
    words = [re.finditer(r"\S+", "\n".join(section.lines)) for section in sections]
    begun = [(0, 0)] * len(sections)
    for note in notes:
        section, syllable, count = note["section"], note["syllable"], LEXICON[note["word"]].syllables
        if syllable == 0:
            word = next(words[section])
            assert word[0] == note["word"], f"expected {note['word']} to be sung, found {word[0]}"
            begun[section] = word.span()
        start, end = begun[section]
        first, last = (start + (end - start) * part // count for part in (syllable, syllable + 1))
        runs[section].append([note["start"] - note["onset"], note["stop"], first, last])
    return runs


def written(runs: np.ndarray, text: str, before: int, edges: np.ndarray) -> np.ndarray:
    """Tell the first and last syllable that each piece of a text writes, NOBODY for none: int16 [pieces, 2].

    runs: integers [syllables, 4] with characters of `text`, which begins `before` bytes after the pieces do.
    edges: bytes at which the pieces begin, and the end of the last: integers [pieces + 1].
    """
    offsets = np.cumsum([before, *(len(sign.encode()) for sign in text)])
    first, end = offsets[runs[:, 2]], offsets[runs[:, 3]]
    found = np.stack(
        [np.searchsorted(end, edges[:-1], side="right"), np.searchsorted(first, edges[1:], side="left") - 1], axis=1
    )
    found[found[:, 0] > found[:, 1]] = NOBODY
    return found.astype(np.int16)


def sung(runs: np.ndarray, span: range) -> np.ndarray:
    """Tell for each frame of a span the last syllable sung before it and the one in it: int16 [frames, 2].

    NOBODY stands where nothing was sung yet, and where the voice rests.
    """
    now = np.full(len(span), NOBODY, dtype=np.int16)
    for number, (start, stop) in enumerate(runs[:, :2] - span.start):
        now[max(start, 0) : max(stop, 0)] = number
    before = np.maximum.accumulate(np.concatenate([[NOBODY], now[:-1]]))
    return np.stack([before, now], axis=1).astype(np.int16)
