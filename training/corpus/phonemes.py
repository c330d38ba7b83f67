"""The phonemes of the world, in ARPAbet's spirit, and what espeak-ng calls them (its American English)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

# Vowels with an r in them are one phoneme in espeak and one nucleus here; EL is the end of "little".
_VOWELS = """
    AA 0 A: O2 | AE a aa | AH V @ @2 a# | AO O: | AR A@ | AW aU | AY aI aI@ | EH E | EHR e@ | EL @L | ER 3 3:
    EY eI | IH I I2 I# | IHR i@3 | IY i i: | OR O@ o@ U@ | OW oU | OY OI | UH U | UW u:
"""
_VOICED = "B b | D d t# | DH D | G g | JH dZ | L l | M m | N n | NG N | R r r- | V v | W w | Y j | Z z"
_UNVOICED = "CH tS | F f | HH h | K k | P p | S s | SH S | T t t2 | TH T"


def _read(table: str) -> dict[str, str]:
    rows = (row.split() for row in table.split("|"))
    return {theirs: ours for ours, *names in rows for theirs in names}


FROM_ESPEAK: Mapping[str, str] = _read(_VOWELS) | _read(_VOICED) | _read(_UNVOICED)
VOWELS = frozenset(_read(_VOWELS).values())
VOICED = VOWELS | frozenset(_read(_VOICED).values())
GLIDING = frozenset("AR AW AY EHR EL EY IHR OR OW OY".split())  # two targets: hold the first, glide late
PHONEMES: Sequence[str] = tuple(dict.fromkeys(FROM_ESPEAK.values()))

_ONSET_PAIRS = frozenset(
    "P.L P.R B.L B.R T.R T.W D.R K.L K.R K.W G.L G.R F.L F.R S.L S.W S.T S.P S.K S.M S.N TH.R SH.R HH.Y M.Y".split()
)


def split_syllables(phonemes: Sequence[str]) -> list[list[int]]:
    """Part a word into syllables: lists of positions, one nucleus each.

    Between two nuclei the last consonant begins the next syllable, the last two if English begins words so.
    """
    nuclei = [position for position, phoneme in enumerate(phonemes) if phoneme in VOWELS]
    assert nuclei, f"{phonemes} has no nucleus"
    edges = [0]
    for left, right in pairwise(nuclei):
        between = right - left - 1
        pair = ".".join(phonemes[right - 2 : right])
        edges.append(right - (2 if between >= 2 and pair in _ONSET_PAIRS else min(between, 1)))
    edges.append(len(phonemes))
    return [list(range(start, stop)) for start, stop in pairwise(edges)]
