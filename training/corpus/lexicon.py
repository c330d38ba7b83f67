"""The words that can be sung, by part of speech, with the stress of each syllable.

A pattern has one sign a syllable: 1 stressed, 0 not, x either way (short words of grammar). The table is typed by hand
and is the only counter of syllables; `python -m training.corpus.bank` compares every entry with espeak's phonemes.
Words on which speakers differ (fire, hour, every, heaven, power) are left out on purpose.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

_TABLE = """
noun 1
    sun moon star sky sea sand rain wind snow light night day dawn dusk home heart hand road street town hill stream
    stone tree leaf rose bird song tune dance dream love hope time year spring hall door wave shore boat ship train
    bridge field farm land world cloud storm flame bell drum voice eye face name word kiss smile ground wall coat ring
    king queen child friend ghost mind soul room house lake well clock
nouns 1
    stars days nights hands hearts dreams birds leaves hills waves bells songs eyes words years clouds trees roads
    lights friends stones ships drums tears wings
noun 10
    river summer winter morning evening garden mountain meadow ocean window candle shadow whisper lover mother father
    sister brother baby daughter singer dancer stranger wonder thunder water feather letter story city valley island
    harbor engine highway station sunlight moonlight starlight rainbow sparrow apple honey sugar paper pocket mirror
    blanket ribbon table kitchen lantern color number music season autumn freedom
verb 1
    run sing dance dream wait stay go fly fall rise shine play rest sleep wake walk ride sail climb swim laugh cry smile
    stand turn burn grow move
act 1
    hold find keep love need want see hear know feel take bring leave call watch touch chase miss hide trust save
act 10
    follow carry gather borrow cover
verb 10
    wander listen tremble tumble travel linger
verb 01
    return remain begin arrive
act 01
    believe forget forgive
doing 10
    walking singing dancing dreaming waiting flying falling rising shining playing running sailing riding burning
    growing turning laughing crying sleeping standing calling looking moving driving knocking rolling drifting
kind 1
    bright dark cold warm sweet soft deep high low long blue green red white wild free true new old young slow loud
    still strong proud clear
kind 10
    golden silver lonely happy gentle tender broken hidden hollow yellow purple little pretty silent sacred frozen open
    early ready heavy easy simple foolish dusty sunny rainy windy sleepy crazy
when 01
    again away alone tonight today along around ahead
when 010
    tomorrow forever together
by 01
    above below behind beyond beside between across against around among upon before
by 10
    under over after into
grammar x
    the a my your his her and or but to in on of for from with by at as I you we he she it they me us them is are
    was will can would do not no so oh when where if then that this all like let how what up down out one who now here
    there come back more had its
tune 1
    lamb fleece fair John ding dang dong fun horse sleigh way
tune 10
    twinkle diamond Mary London lady ringing jingle
"""


@dataclass(frozen=True)
class Word:
    text: str
    kind: str
    stress: str

    @property
    def syllables(self) -> int:
        return len(self.stress)


def _read(table: str) -> Iterator[Word]:
    kind = stress = ""
    for line in table.strip().splitlines():
        if line.startswith(" "):
            yield from (Word(text, kind, stress) for text in line.split())
        else:
            kind, stress = line.split()


LEXICON: Mapping[str, Word] = {word.text: word for word in _read(_TABLE)}


@cache
def words_of(kind: str, stress: str) -> tuple[str, ...]:
    """List the words of one kind and one pattern, in the order of the table."""
    return tuple(word.text for word in _read(_TABLE) if (word.kind, word.stress) == (kind, stress))
