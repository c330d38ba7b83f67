"""Lyrics and genre, from bytes to sections, with a word about everything that may not be sung as expected.

Rules `yue` read line by line and lose nothing. Rules `original` and `exl2` read as the published scripts do, and the
warnings say what those lose. Knows no ids and no models.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from yue_cli.errors import LyricsError
from yue_cli.settings import Stage1Settings
from yue_cli.vocab import CONTROL_STRINGS, FRAME_RATE

SECONDS_PER_WORD = 0.6
SEGMENT_LIMIT_S = Stage1Settings().max_new_tokens / (2 * FRAME_RATE)

START_OF_SEGMENT = "[start_of_segment]"
END_OF_SEGMENT = "[end_of_segment]"
START_OF_REFERENCE = "[start_of_reference]"
END_OF_REFERENCE = "[end_of_reference]"
MARKERS = (START_OF_SEGMENT, END_OF_SEGMENT, START_OF_REFERENCE, END_OF_REFERENCE)

# The tags that the prompt guide of YuE's README names, and what else people call such a part.
TAGS: Mapping[str, Sequence[str]] = {
    "verse": "pre-chorus, build-up, part, rap, strophe, couplet, 主歌, 导歌, 導歌, Aメロ, Bメロ, 절, 벌스".split(", "),
    "chorus": "post-chorus, hook, refrain, 副歌, サビ, 후렴, 후렴구, 코러스".split(", "),
    "bridge": "break, breakdown, interlude, instrumental, inst, solo, middle, middle eight".split(", ")
    + "桥段, 橋段, 间奏, 間奏, Cメロ, ブリッジ, 간주, 브릿지".split(", "),
    "intro": "introduction, 前奏, イントロ, 전주, 인트로".split(", "),
    "outro": "ending, end, coda, 尾奏, アウトロ, 후주, 아웃트로".split(", "),
}

# YuE infer.py, split_lyrics: a tag, then everything up to the next bracket.
_PUBLISHED_SECTION = re.compile(r"\[(\w+)\](.*?)(?=\[|\Z)", re.DOTALL)
_TAG_LINE = re.compile(r"\s*[\[［【]([^\[\]［］【】]*)[\]］】]\s*")
_TAG_BEFORE_WORDS = re.compile(r"[\[［【]([^\[\]［］【】]*)[\]］】]")
_TAG_WITHOUT_BRACKETS = re.compile(r"[#*(（_]+([^#*()（）_:：]+)[#*)）_:：]*|([^#*()（）_:：]+)[:：]")
_HEADING_END = re.compile(r"[:(–—|,]|\s-\s")
# Chinese and Japanese characters, of which each counts as a word: 々 〆, kana without its dots, ideographs.
_CHARACTER_WORD = re.compile(
    "[\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_WORD_END = re.compile(r"(?:[\s/|…–—]|--)+")


@dataclass(frozen=True)
class LyricsWarning:
    """What may surprise the user: a whole phrase, line number included, and that line for machines."""

    line: int | None
    text: str
    is_for_all: bool = False  # even where this line is not sung: every prompt holds all the lyrics


@dataclass(frozen=True)
class Section:
    """One part of the lyrics, sung as one segment. `written_tag` is None for text that stood under no tag."""

    tag: str
    text: str  # no blanks at the ends; empty for an instrumental passage
    line: int  # of the tag, or of the first words where there is none
    written_tag: str | None

    @property
    def prompt_text(self) -> str:
        """The section as the model reads it. Source: YuE infer.py, split_lyrics."""
        return f"[{self.tag}]\n{self.text.strip()}\n\n"

    @property
    def words(self) -> int:
        return count_words(self.text)

    @property
    def seconds(self) -> float:
        """About how long it takes to sing; 0 without words, since then the model alone decides."""
        return self.words * SECONDS_PER_WORD


@dataclass(frozen=True)
class Lyrics:
    sections: tuple[Section, ...]
    warnings: tuple[LyricsWarning, ...]

    @property
    def words(self) -> int:
        return sum(section.words for section in self.sections)

    @property
    def seconds(self) -> float:
        return sum(section.seconds for section in self.sections)

    def warnings_about(self, count: int | None) -> list[LyricsWarning]:
        """List what concerns a song of the first `count` sections; None: all."""
        if count is None or count >= len(self.sections):
            return list(self.warnings)
        end = self.sections[count].line
        return [each for each in self.warnings if each.is_for_all or each.line is None or each.line < end]


def read_text(content: bytes, name: str) -> str:
    """Decode UTF-8 with or without a byte-order mark; every line end becomes a newline.

    Raises LyricsError for a file that is not text, not UTF-8 or empty.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise LyricsError(f"{name}: expected UTF-8 text, found UTF-16. Save it as UTF-8.")
    zero = content.find(b"\0")
    if zero >= 0:
        raise LyricsError(f"{name}: not a text file (a zero at byte {zero}). Expected UTF-8 text.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        found = f"0x{error.object[error.start]:02x}"
        raise LyricsError(f"{name}: not UTF-8 text (byte {found} in line {line}). Save it as UTF-8.") from error
    if not text.strip():
        raise LyricsError(f"{name} is empty. Write some text into it.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_genre(text: str, name: str = "genre.txt") -> str:
    """Clean the description of the music. Raises LyricsError if nothing is left."""
    genre = text.strip()
    if not genre:
        raise LyricsError(
            f"{name} is empty. Describe the music by genre, instrument, mood, gender and timbre, "
            "such as: folk acoustic guitar calm female clear vocal."
        )
    return genre


def parse(text: str, name: str, rules: str = "yue", limit_s: float = SEGMENT_LIMIT_S) -> Lyrics:
    """Read the sections of lyrics. `limit_s`: seconds that a segment can last.

    Raises LyricsError, calling the lyrics `name`, if there is no section.
    """
    sections, warnings = _read_lines(text) if rules == "yue" else _read_as_published(text, rules)
    if not any(section.written_tag is not None for section in sections):
        raise LyricsError(
            f"{name} has no section tag. Put each part under a line such as [verse] or [chorus]; "
            f"`yue lyrics {name}` shows how it is read."
        )
    warnings += [*_control_warnings(text, rules), *_singing_warnings(sections, limit_s)]
    return Lyrics(tuple(sections), tuple(sorted(warnings, key=lambda warning: warning.line or 0)))


def count_words(text: str) -> int:
    """Count what is sung: a Chinese or Japanese character is a word; elsewhere blanks and dashes part words."""
    rest, characters = _CHARACTER_WORD.subn(" ", text)
    return characters + sum(any(map(str.isalnum, word)) for word in _WORD_END.split(rest))


def find_tag(written: str) -> str | None:
    """Turn what stands between the brackets into the tag that the model reads; None if it has no letter or digit.

    Case, numbers, signs and what follows a colon, a dash or a parenthesis do not matter: "Verse 2: Ana" is verse,
    "Guitar Solo" is a solo. An unknown tag stays itself, in lower case, its words joined by `_`.
    """
    folded = _fold(written)
    heading = _HEADING_END.split(folded, maxsplit=1)[0]
    words = _letters(heading) or _letters(folded)
    known = _known_tag(words) or _known_tag(_letters(folded))
    return known or "_".join(words) or "".join(filter(str.isalnum, folded)) or None


def _read_lines(text: str) -> tuple[list[Section], list[LyricsWarning]]:
    sections: list[Section] = []
    warnings: list[LyricsWarning] = []
    written: str | None = None
    tag, first_line, body = "verse", 1, list[str]()  # of the section being read

    def close() -> None:
        words = "\n".join(body).strip()
        if written is not None:
            sections.append(Section(tag, words, first_line, written))
        elif words:
            line = next(number for number, line in enumerate(body, start=1) if line.strip())
            sections.append(Section(tag, words, line, None))
            warnings.append(LyricsWarning(line, f"the text before the first tag is sung as a verse (line {line})"))

    for number, line in enumerate(text.split("\n"), start=1):
        match = _TAG_LINE.fullmatch(line)
        found = find_tag(match[1]) if match else None
        if match and found and not {line.strip(), f"[{found}]"} & set(MARKERS):
            close()
            written, tag, first_line, body = match[1], found, number, []
            warnings += _tag_warnings(written, tag, number)
        else:
            body.append(line)
            warnings += _text_warnings(line, number)
    close()
    return sections, warnings


def _read_as_published(text: str, rules: str) -> tuple[list[Section], list[LyricsWarning]]:
    sections: list[Section] = []
    warnings: list[LyricsWarning] = []
    read_up_to = 0

    def lose(start: int, stop: int) -> None:
        lost = text[start:stop]
        if lost.strip():
            line = _line_at(text, start + len(lost) - len(lost.lstrip()))
            warnings.append(LyricsWarning(line, f"lost under rules {rules}: “{' '.join(lost.split())}” (line {line})"))

    for match in _PUBLISHED_SECTION.finditer(text):
        lose(read_up_to, match.start())
        sections.append(Section(match[1], match[2].strip(), _line_at(text, match.start()), match[1]))
        read_up_to = match.end()
    lose(read_up_to, len(text))
    return sections, warnings


def _tag_warnings(written: str, tag: str, line: int) -> Iterator[LyricsWarning]:
    if tag not in TAGS:
        yield LyricsWarning(line, f"[{written}] is none of YuE's own tags; the model reads [{tag}] (line {line})")
    elif "".join(_letters(_fold(written))) != tag:
        yield LyricsWarning(line, f"[{written}] is sung as {tag} (line {line})")


def _text_warnings(line: str, number: int) -> Iterator[LyricsWarning]:
    """Point at what looks like a tag and is sung."""
    shown = line.strip()
    match = _TAG_BEFORE_WORDS.match(shown) or _TAG_WITHOUT_BRACKETS.fullmatch(shown)
    name = next(filter(None, match.groups()), "") if match else ""
    tag = _KNOWN_TAGS.get("".join(_letters(_fold(name))))
    if tag:
        text = f"“{shown}” is sung as text; if it is a tag, put [{tag}] alone on a line (line {number})"
        yield LyricsWarning(number, text)


def _control_warnings(text: str, rules: str) -> Iterator[LyricsWarning]:
    control = "is sung as plain text" if rules == "yue" else f"becomes a control token under rules {rules}"
    for number, line in enumerate(text.split("\n"), start=1):
        for string in CONTROL_STRINGS:
            if string in line:
                yield LyricsWarning(number, f"{string} {control} (line {number})", is_for_all=True)
        for marker in MARKERS:
            if marker in line:
                text = f"{marker} is a marker of the model's own and may confuse it (line {number})"
                yield LyricsWarning(number, text, is_for_all=True)


def _singing_warnings(sections: list[Section], limit_s: float) -> Iterator[LyricsWarning]:
    if sections[0].tag.lower() == "intro":
        line = sections[0].line
        yield LyricsWarning(
            line, f"the song starts with [intro] (line {line}); [verse] or [chorus] start more reliably"
        )
    sung: set[str] = set()
    for section in sections:
        if not section.words and section.tag in sung:
            text = (
                f"the {section.tag} at line {section.line} has no words and is played, not sung: write them out again"
            )
            yield LyricsWarning(section.line, text)
        if section.words:
            sung.add(section.tag)
        if section.seconds > limit_s:
            yield LyricsWarning(
                section.line,
                f"the {section.tag} at line {section.line} has {section.words} words, about {section.seconds:.0f} s: "
                f"it will be cut near {limit_s:g} s",
            )


def _known_tag(words: list[str]) -> str | None:
    """Look for the longest run of words that names a part; of equal ones the last, as in "guitar solo"."""
    for length in range(len(words), 0, -1):
        for start in range(len(words) - length, -1, -1):
            known = _KNOWN_TAGS.get("".join(words[start : start + length]))
            if known:
                return known
    return None


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).lower())


def _letters(folded: str) -> list[str]:
    """Split into words of letters; digits and signs only part them."""
    return "".join(sign if unicodedata.category(sign)[0] in "LM" else " " for sign in folded).split()


_KNOWN_TAGS = {"".join(_letters(_fold(name))): tag for tag, others in TAGS.items() for name in (tag, *others)}
