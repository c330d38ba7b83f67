"""Held-out prompts to measure on: new words under drawn tags, and the same words under each value of each tag."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from random import Random

from training.corpus.compose import compose, is_held_out
from training.corpus.lexicon import LEXICON
from training.corpus.song import Song
from training.corpus.tags import WORDS, Tags
from training.corpus.world import BAR, random_for


@dataclass(frozen=True)
class Prompt:
    """What a model is asked for, and the song that the corpus would have made of it.

    sections: how many are sung, from the first.
    """

    name: str
    song: Song
    genre: str
    sections: int

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """The lines of each section that is sung."""
        return [section.lines for section in self.song.sections[: self.sections]]

    @property
    def syllables(self) -> list[list[int]]:
        """How many syllables each line of each section has."""
        return [[sum(LEXICON[word].syllables for word in line.split()) for line in lines] for lines in self.lines]

    @property
    def bounds(self) -> list[int]:
        """The frames at which the sections start, and the end, as the corpus would have it."""
        frames = [section.bars * BAR * self.song.frames_per_sixteenth for section in self.song.sections]
        return [sum(frames[:number]) for number in range(self.sections + 1)]

    @property
    def truth(self) -> dict[str, str]:
        """What should be heard, by name."""
        tags = self.song.tags
        return {
            "tempo": str(tags.frames_per_sixteenth),
            "genre": tags.genre,
            "instrument": tags.instrument,
            "singer": tags.singer,
            "mode": tags.mode,
        }


def draw_prompts(songs: int, contrasts: int, sections: int) -> list[Prompt]:
    """Draw prompts of new songs; the first `contrasts` come again with every other value of every tag."""
    drawn = list(islice(_fresh(True, sections), songs))
    prompts = list(drawn)
    for prompt in drawn[:contrasts]:
        for kind, values in WORDS.items():
            for value in values:
                if value != getattr(prompt.song.tags, kind):
                    tags = replace(prompt.song.tags, **{kind: value})
                    prompts += _prompt(prompt.song.seed, tags, sections, f"-{kind}-{value.replace(' ', '-')}")
    return prompts


def draw_lessons(songs: int, sections: int) -> list[Prompt]:
    """Draw songs of the training side, from which the measures learn to listen."""
    return list(islice(_fresh(False, sections), songs))


def say_all(tags: Tags, dice: Random) -> str:
    """Say all tags in one line, in any order: who leaves one out cannot ask whether it was followed."""
    said = [dice.choice(WORDS[kind][value]) for kind, value in asdict(tags).items()]
    dice.shuffle(said)
    return " ".join(said)


def _fresh(held_out: bool, sections: int) -> Iterator[Prompt]:
    for seed in count():
        if is_held_out(seed) == held_out:
            yield from _prompt(seed, None, sections, "")


def _prompt(seed: int, tags: Tags | None, sections: int, suffix: str) -> list[Prompt]:
    """One prompt, or none where the song is an old tune or its first sections have no words."""
    song = compose(seed, tags)
    if song.old_tune is not None or not all(section.lines for section in song.sections[:sections]):
        return []
    genre = say_all(song.tags, random_for(seed, "all tag words"))
    return [Prompt(f"{seed:06d}{suffix}", song, genre, min(sections, len(song.sections)))]
