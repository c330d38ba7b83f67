"""A song from a seed and five tags: form, words, chords, melody. No sound is made here."""

from dataclasses import dataclass
from random import Random

from training.corpus.harmony import Chord, write_chords
from training.corpus.lexicon import LEXICON
from training.corpus.lyrics import METRES, write_line
from training.corpus.melody import CHORUS_LIFT, Rhythm, write_pitches, write_rhythm
from training.corpus.song import Section, Song, SungNote
from training.corpus.tags import Tags, draw_tags, write_tags
from training.corpus.tunes import TUNES, set_tune
from training.corpus.world import BAR, KEYS, SINGERS, Key, random_for

HELD_OUT_PAIRS = 20  # one pair of songs in so many is held out
_SAME_WORDS = 0.5  # of the pairs of songs share their words, under other tags
_OLD_TUNE = 0.05  # of the songs in major
_PLAYED_ONLY = 0.1  # of the sections have no words
_FOUR_LINES = 0.4  # of the songs have four lines in each section, the others two
_FORMS = "verse chorus, verse chorus verse chorus, verse verse chorus, chorus verse chorus, verse chorus bridge chorus"
_DOTTED_SIXTEENTH = 8  # frames; a shorter one is too short for a syllable
_SLOW_SIXTEENTH = 9  # frames; from here on four lines share four bars


@dataclass(frozen=True)
class _Tune:
    """What all sections of one name share: everything but the words."""

    metres: tuple[str, ...]
    rhythms: tuple[Rhythm, ...]  # in sixteenths of the section
    pitches: tuple[tuple[int, ...], ...]
    chords: tuple[Chord, ...]
    bars: int


def is_held_out(seed: int) -> bool:
    """Songs 2n and 2n + 1 are a pair, and always on the same side."""
    return seed // 2 % HELD_OUT_PAIRS == HELD_OUT_PAIRS - 1


def tags_of(seed: int) -> Tags:
    return draw_tags(random_for(seed, "tags"))


def compose(seed: int, tags: Tags | None = None) -> Song:
    """Compose the song of this seed; the seed chooses the tags where none are given."""
    tags = tags or tags_of(seed)
    words_seed = seed - seed % 2 if random_for(seed // 2, "pair").random() < _SAME_WORDS else seed
    genre = write_tags(tags, random_for(seed, "tag words"))
    held_out = is_held_out(seed)
    dice = random_for(seed, "music")
    tunes = [tune for tune in TUNES if tune.held_out == held_out]
    if tags.mode == "major" and dice.random() < _OLD_TUNE:
        tune = dice.choice(tunes)
        title: str | None = tune.title
        key, sections = set_tune(tune, SINGERS[tags.singer], held_out, dice)
    else:
        title = None
        key, sections = _write_sections(tags, random_for(words_seed, "words"), dice, held_out)
    return Song(seed, held_out, tags, genre, key, tags.frames_per_sixteenth, sections, title)


def _write_sections(tags: Tags, words_dice: Random, dice: Random, held_out: bool) -> tuple[Key, tuple[Section, ...]]:
    names, metres, words = _write_words(words_dice, held_out)
    key = dice.choice(KEYS[tags.mode])
    lowest = SINGERS[tags.singer].home
    tunes = {
        name: _write_tune(of_lines, tags, key, lowest + (CHORUS_LIFT if name == "chorus" else 0), dice)
        for name, of_lines in metres.items()
    }
    return key, tuple(
        _set_words(name, tunes[name], lines) if lines else _play(name, tunes["chorus"])
        for name, lines in zip(names, words, strict=True)
    )


def _write_words(dice: Random, held_out: bool) -> tuple[list[str], dict[str, list[str]], list[list[str]]]:
    """Returns the sections' names, the metres of each name's lines, and the sections' lines, none if played only."""
    names = dice.choice(_FORMS.split(", ")).split()
    lines = 4 if dice.random() < _FOUR_LINES else 2
    metres = {}
    for name in ("verse", "chorus", "bridge"):
        pair = [dice.choice(METRES), dice.choice(METRES)]
        if dice.random() < 0.5:
            pair[1] = pair[0]
        metres[name] = pair * (lines // 2)
    chorus = [write_line(metre, dice, held_out) for metre in metres["chorus"]]
    words = [
        chorus if name == "chorus" else [write_line(metre, dice, held_out) for metre in metres[name]] for name in names
    ]
    if dice.random() < _PLAYED_ONLY * len(names):
        at = dice.choice((0, len(names) // 2, len(names)))
        names.insert(at, {0: "intro", len(names): "outro"}.get(at, "bridge"))
        words.insert(at, [])
    return names, metres, words


def _write_tune(metres: list[str], tags: Tags, key: Key, lowest: int, dice: Random) -> _Tune:
    is_slow = tags.frames_per_sixteenth >= _SLOW_SIXTEENTH
    bars = 8 if len(metres) == 4 and not is_slow else 4
    length = bars * BAR // len(metres)
    may_dot = tags.frames_per_sixteenth >= _DOTTED_SIXTEENTH
    chords = write_chords(tags.genre, key, bars // 4, dice)
    by_metre = {
        metre: write_rhythm(metre, length, tags.is_dense, may_dot, metre == metres[0], dice)
        for metre in dict.fromkeys(metres)
    }
    rhythms: list[Rhythm] = []
    pitches: list[tuple[int, ...]] = []
    for line, metre in enumerate(metres):
        rhythm = [(start + line * length, stop + line * length) for start, stop in by_metre[metre]]
        closes = line == len(metres) - 1
        earlier = pitches[metres.index(metre)] if metre in metres[:line] else None
        pitches.append(tuple(write_pitches(rhythm, metre, chords, key, lowest, closes, dice, earlier)))
        rhythms.append(rhythm)
    return _Tune(tuple(metres), tuple(rhythms), tuple(pitches), tuple(chords), bars)


def _set_words(name: str, tune: _Tune, lines: list[str]) -> Section:
    notes = []
    for number, line in enumerate(lines):
        syllables = [(word, index) for word in line.split() for index in range(LEXICON[word].syllables)]
        places = zip(tune.rhythms[number], tune.pitches[number], syllables, strict=True)
        notes += [SungNote(*times, pitch, word, index, number) for times, pitch, (word, index) in places]
    return Section(name, tune.bars, tuple(lines), tune.chords, tuple(notes), ())


def _play(name: str, tune: _Tune) -> Section:
    played = tuple(
        SungNote(*times, pitch, "", 0, number)
        for number, (rhythm, pitches) in enumerate(zip(tune.rhythms, tune.pitches, strict=True))
        for times, pitch in zip(rhythm, pitches, strict=True)
    )
    return Section(name, tune.bars, (), tune.chords, (), played)
