"""Five tags say how a song sounds. Each is drawn by itself, so that none can be guessed from another."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random

from training.corpus.world import FASTEST, SLOWEST

DROPPED = 0.1  # how often a tag is left unsaid

# Each kind: what it may be, and the words for it. A word stands for one thing only.
WORDS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "genre": {
        "pop": ("pop", "indie pop"),
        "rock": ("rock", "punk rock"),
        "ballad": ("ballad", "chanson"),
        "folk": ("folk", "country", "bluegrass"),
        "dance": ("dance", "disco", "techno"),
    },
    "instrument": {
        "piano": ("piano", "keyboard"),
        "acoustic guitar": ("acoustic guitar", "nylon guitar"),
        "electric guitar": ("electric guitar", "overdriven guitar"),
        "strings": ("strings", "orchestra"),
        "organ": ("organ", "church organ"),
        "synth": ("synth", "synthesizer"),
    },
    "mood": {
        "happy": ("happy", "cheerful", "joyful"),
        "calm": ("calm", "gentle", "peaceful"),
        "sad": ("sad", "melancholic", "lonely"),
        "dark": ("dark", "tense", "angry"),
    },
    "singer": {
        "low": ("male vocal", "man", "baritone"),
        "middle": ("boy vocal", "tenor", "youthful"),
        "high": ("female vocal", "woman", "soprano"),
    },
    "tempo": {
        "slow": ("slow", "largo"),
        "medium": ("moderate", "medium"),
        "fast": ("fast", "quick"),
    },
}

_GENRE_SIXTEENTH = {"pop": 6, "rock": 6, "ballad": 9, "folk": 8, "dance": 7}  # frames, at medium tempo
_TEMPO_STEP = {"slow": 2, "medium": 0, "fast": -1}


@dataclass(frozen=True)
class Tags:
    genre: str
    instrument: str
    mood: str
    singer: str
    tempo: str

    @property
    def frames_per_sixteenth(self) -> int:
        return min(max(_GENRE_SIXTEENTH[self.genre] + _TEMPO_STEP[self.tempo], FASTEST), SLOWEST)

    @property
    def mode(self) -> str:
        return "major" if self.mood in ("happy", "calm") else "minor"

    @property
    def is_dense(self) -> bool:
        """Whether notes come quickly; else they are held."""
        return self.mood in ("happy", "dark")


def draw_tags(dice: Random) -> Tags:
    return Tags(**{kind: dice.choice(list(words)) for kind, words in WORDS.items()})


def write_tags(tags: Tags, dice: Random) -> str:
    """Say the tags in one line: a synonym each, in any order, some left out; never an empty line."""
    said = [dice.choice(WORDS[kind][value]) for kind, value in asdict(tags).items() if dice.random() >= DROPPED]
    dice.shuffle(said)
    return " ".join(said) or tags.genre
