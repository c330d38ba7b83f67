"""Lines of verse from templates: slots typed by part of speech and stress, filled from the lexicon.

A line belongs to training or to the held-out songs by its own letters, so no line is ever on both sides.
"""

import re
from collections.abc import Mapping, Sequence
from random import Random
from zlib import crc32

from training.corpus.lexicon import LEXICON, words_of

HELD_OUT_SHARE = 16  # one line in so many belongs to the held-out songs

SLOTS: Mapping[str, tuple[str, str]] = {
    "n": ("noun", "1"),
    "ns": ("nouns", "1"),
    "nn": ("noun", "10"),
    "v": ("verb", "1"),
    "vv": ("verb", "10"),
    "ov": ("verb", "01"),
    "t": ("act", "1"),
    "tt": ("act", "10"),
    "ot": ("act", "01"),
    "ing": ("doing", "10"),
    "a": ("kind", "1"),
    "aa": ("kind", "10"),
    "w": ("when", "01"),
    "ww": ("when", "010"),
    "p": ("by", "01"),
    "pp": ("by", "10"),
}

# By metre: 1 is a beat. Feet are iambs or trochees, so that beats can fall on the beats of the bar.
_TEMPLATES = """
10101
    {n} and {n} and {n}         | {nn} in the {n}           | {ing} to the {n}          | {v} with me {w}
    {aa} {aa} {n}               | {t} the {aa} {n}          | {n} {p} the {n}           | {v} and {v} and {v}
    {ing} in the {n}            | {a} and {aa} {n}          | {nn} of my {n}            | {tt} me {w}
    {pp} all the {ns}           | {n} and {aa} {n}          | {ing} all the {n}         | {t} my {aa} {n}
010101
    the {n} is in the {n}       | I {t} the {aa} {n}        | we {v} and {v} {w}        | my {nn} and my {n}
    you {t} me in the {n}       | oh {nn} {t} my {n}        | the {ns} {p} the {n}      | and I will {v} {w}
    I {t} you in the {n}        | the {aa} {ns} are {a}     | a {n} {p} the {n}         | {w} I {v} with you
    we will {ov} {w}            | I do not {t} the {n}      | the {nn} was so {a}       | so {a} and {a} the {n}
1010101
    {aa} {ns} {p} the {n}       | {ing} in the {nn} {n}     | {t} the {n} and {t} the {n} | {nn} in the {nn} {n}
    {n} and {n} and {aa} {n}    | {ing} {pp} {aa} {ns}      | {v} with me and {v} {w}   | {t} me when the {n} is {a}
    {tt} all the {aa} {ns}      | all my {ns} are {a} {w}   | {t} the {nn} in the {n}   | {a} and {a} the {nn} {n}
    {ing} all the {n} with you  | where the {aa} {n} is {a} | you and I will {v} {w}    | {aa} {nn} in the {n}
01010101
    the {n} is {ing} in the {n} | I {t} the {aa} {n} {w}    | we {v} {p} the {aa} {n}   | my {nn} and my {n} are {a}
    the {ns} are {ing} in the {n} | I do {ot} the {nn} {n}  | you {t} the {n} I {t} the {n} | oh {t} me in the {aa} {n}
    the {aa} {n} is {a} {w}     | and all the {ns} are {a} {w} | I will {ot} the {aa} {n} | and when the {nn} {n} is {a}
    we will {ov} and {v} {w}    | when I was {a} and you will {t} | the {nn} and the {n} are {a}
    I {tt} you across the {n}
10101010
    {ing} in the {nn} {nn}      | {aa} {ns} and {aa} {nn}   | {t} the {n} and {t} the {nn} | {n} and {n} and {aa} {nn}
    {v} with me {p} the {nn}    | all the {ns} and all the {nn} | {ing} with the {aa} {nn} | {t} me in the {aa} {nn}
    where the {aa} {ns} are {ing} | you and I will {v} {ww} | {nn} {nn} I will {tt}     | {v} and {v} and {v} {ww}
0101010
    the {n} is in the {nn}      | I {t} the {aa} {nn}       | we {v} {p} the {nn}       | my {nn} and my {nn}
    you {t} me in the {nn}      | the {ns} and all the {nn} | I {t} you all {ww}        | we {v} and {v} {ww}
    the {aa} {ns} are {ing}     | and I will {v} {ww}       | oh {nn} {t} my {nn}       | the {nn} in the {nn}
101010
    {ing} in the {nn}           | {aa} {nn} {nn}            | {t} the {aa} {nn}         | {n} and {n} and {nn}
    {v} with me {ww}            | all the {ns} are {ing}    | {nn} of the {nn}          | {aa} {ns} are {ing}
"""


def _read(table: str) -> dict[str, list[str]]:
    templates: dict[str, list[str]] = {}
    metre = ""
    for line in table.strip().splitlines():
        if line.startswith(" "):
            templates[metre] += [template.strip() for template in line.split("|")]
        else:
            metre = line
            templates[metre] = []
    return templates


TEMPLATES: Mapping[str, Sequence[str]] = _read(_TEMPLATES)
METRES: Sequence[str] = tuple(TEMPLATES)


def write_line(metre: str, dice: Random, held_out: bool) -> str:
    """Write a line of this metre that belongs to the asked side."""
    while True:
        line = fill(dice.choice(TEMPLATES[metre]), dice)
        long_words = [word for word in line.split() if len(word) > 3]
        if is_held_out(line) == held_out and len(set(long_words)) == len(long_words):
            return line


def fill(template: str, dice: Random) -> str:
    """Put a word of the right kind into each slot."""
    return re.sub(r"{(\w+)}", lambda slot: dice.choice(words_of(*SLOTS[slot[1]])), template)


def is_held_out(line: str) -> bool:
    return crc32(line.lower().encode()) % HELD_OUT_SHARE == 0


def fits(metre: str, line: str) -> bool:
    """Tell whether every stressed syllable of more than one-syllable words stands on a beat of the metre."""
    stress = "".join(LEXICON[word].stress for word in line.split())
    return len(stress) == len(metre) and all(
        beat == "1" or syllable != "1" for beat, syllable in zip(metre, stress, strict=True)
    )
