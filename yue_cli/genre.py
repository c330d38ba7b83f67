"""Which of the five kinds of words a description of music holds, by a short list of words.

YuE's prompt guide asks for genre, instrument, mood, gender and timbre. The list is no border: the model reads any word.
"""

import re
from collections.abc import Mapping, Sequence

KINDS: Mapping[str, Sequence[str]] = {
    kind: tuple(word.strip() for word in words.split(","))
    for kind, words in {
        "genre": """
            pop, rock, folk, jazz, blues, soul, funk, disco, house, techno, trance, rap, hip hop, r&b,
            country, metal, punk, reggae, ska, gospel, classical, opera, ambient, electronic, edm,
            latin, salsa, samba, bossa nova, swing, indie, trap, synthwave, drum and bass, bluegrass,
            ballad, chanson, musical, lo fi, worship
        """,
        "instrument": """
            guitar, piano, drum, bass, violin, viola, cello, string, synth, synthesizer, keyboard,
            organ, accordion, sax, saxophone, trumpet, trombone, horn, brass, flute, clarinet, oboe,
            harmonica, harp, banjo, mandolin, ukulele, fiddle, percussion, sampler, vibraphone, marimba,
            bell, sitar, erhu, koto, bagpipe, orchestra, 808, whistle
        """,
        "mood": """
            happy, sad, calm, hopeful, dark, dreamy, energetic, melancholic, melancholy, uplifting,
            romantic, angry, tender, nostalgic, joyful, peaceful, playful, epic, lonely, relaxed,
            upbeat, gloomy, tense, wistful, triumphant, sentimental, cheerful, bittersweet, aggressive,
            mysterious, longing, gentle, serene, passionate, rebellious, inspiring, intimate, somber,
            festive, emotional
        """,
        "gender": """
            male, female, man, woman, men, women, boy, girl, child, children, masculine, feminine,
            androgynous, soprano, alto, tenor, baritone
        """,
        "timbre": """
            airy, bright, breathy, clear, husky, raspy, smooth, soft, warm, deep, powerful, rich, rough,
            mellow, thin, full, nasal, gritty, silky, crisp, falsetto, growling, whispering, high, low,
            sweet, hoarse, velvety, resonant, piercing, round, pure, light, clean, strong, hushed,
            throaty, gravelly, shouting, youthful
        """,
    }.items()
}

_BETWEEN_WORDS = re.compile(r"[^\w&]|_")


def find_kinds(genre: str) -> dict[str, list[str]]:
    """List the known words of each kind in the order of the list; a word may be of two kinds, or end in s."""
    spoken = f" {' '.join(_BETWEEN_WORDS.sub(' ', genre.lower()).split())} "
    return {kind: [word for word in words if _stands_in(word, spoken)] for kind, words in KINDS.items()}


def missing_kinds(genre: str) -> list[str]:
    """Name the kinds of which a description holds no known word."""
    return [kind for kind, words in find_kinds(genre).items() if not words]


def _stands_in(word: str, spoken: str) -> bool:
    return f" {word} " in spoken or f" {word}s " in spoken
