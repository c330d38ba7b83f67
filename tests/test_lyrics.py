"""Lyrics: what is sung, what is warned about, what is refused."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yue_cli.errors import LyricsError
from yue_cli.lyrics import (
    MARKERS,
    SEGMENT_LIMIT_S,
    TAGS,
    Lyrics,
    count_words,
    find_tag,
    parse,
    parse_genre,
    read_text,
)
from yue_cli.vocab import CONTROL_STRINGS

LINES = st.one_of(
    st.sampled_from(["[verse]", "[Chorus 2]", "[pre-chorus: Ana]", "[whisper softly]", "[]", "[verse] go", "", " "]),
    st.sampled_from(["【副歌】", "[start of segment]", "Hook:", "sing <SOA> (a [loud] one)", *MARKERS]),
    st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"]), max_size=12),
    st.text("[]vers7: x-", max_size=10),
)
TEXTS = st.lists(LINES).map(lambda lines: "\n".join(["[verse]", *lines])) | st.lists(LINES).map(
    lambda lines: "\n".join([*lines, "[verse]"])
)


def read(text: str, rules: str = "yue") -> Lyrics:
    return parse(text, "lyrics.txt", rules)


def warnings(text: str, rules: str = "yue") -> list[str]:
    return [warning.text for warning in read(text, rules).warnings]


def shape(lyrics: Lyrics) -> list[tuple[str, str]]:
    return [(section.tag, section.text) for section in lyrics.sections]


@given(TEXTS)
def test_no_word_is_lost(text: str) -> None:
    kept = ""
    for section in read(text).sections:
        kept += f"{section.written_tag or ''} {section.text} "
    brackets = re.compile(r"[\[\]［］【】]")
    assert brackets.sub(" ", kept).split() == brackets.sub(" ", text).split()


@given(TEXTS)
def test_what_the_model_reads_is_read_again_as_the_same(text: str) -> None:
    first = read(text)
    second = read("\n".join(section.prompt_text for section in first.sections))
    assert shape(second) == shape(first)


@given(TEXTS)
def test_lines_of_sections_and_warnings_are_lines_of_the_text(text: str) -> None:
    lyrics = read(text)
    lines = text.split("\n")
    for section in lyrics.sections:
        if section.written_tag is None:
            assert section.text.startswith(lines[section.line - 1].strip())
        else:
            assert section.written_tag in lines[section.line - 1]
    for warning in lyrics.warnings:
        assert warning.line is not None
        assert 1 <= warning.line <= len(lines)
        assert f"line {warning.line}" in warning.text
        assert "\n" not in warning.text


@given(TEXTS, st.sampled_from(["original", "exl2"]))
def test_the_published_rules_read_as_their_pattern_does(text: str, rules: str) -> None:
    found = re.findall(r"\[(\w+)\](.*?)(?=\[|\Z)", text, re.DOTALL)
    assert shape(read(text, rules)) == [(tag, body.strip()) for tag, body in found]


@given(TEXTS)
def test_what_the_published_rules_lose_is_told(text: str) -> None:
    lyrics = read(text, "original")
    kept = "".join(f"[{section.tag}]{section.text}" for section in lyrics.sections)
    told = "".join(w.text.split("“", 1)[1].rsplit("”", 1)[0] for w in lyrics.warnings if w.text.startswith("lost"))
    assert sorted("".join(text.split())) == sorted("".join((kept + told).split()))


def test_a_song_is_read_line_by_line() -> None:
    text = "[Verse 1]\n  Stay a while  \n\nwith me (a [soft] sigh)\n\n [CHORUS]\nOh\n[bridge]\n"
    assert shape(read(text)) == [
        ("verse", "Stay a while  \n\nwith me (a [soft] sigh)"),
        ("chorus", "Oh"),
        ("bridge", ""),
    ]
    assert [section.line for section in read(text).sections] == [1, 6, 8]
    assert warnings(text) == []


def test_the_model_reads_a_tag_a_text_and_two_newlines() -> None:
    first, second = read("[verse]\nla\n\n[outro]").sections
    assert first.prompt_text == "[verse]\nla\n\n"
    assert second.prompt_text == "[outro]\n\n\n"


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        ("verse", "verse"),
        ("VERSE 2", "verse"),
        ("verse2", "verse"),
        ("Verse 1: Ana", "verse"),
        ("Verse – Ana & Ben", "verse"),
        ("Pre-Chorus", "verse"),
        ("pre chorus 2", "verse"),
        ("PRECHORUS", "verse"),
        ("pre - chorus", "verse"),
        ("Hook", "chorus"),
        ("Final Chorus x2", "chorus"),
        ("Post-Chorus", "chorus"),
        ("Guitar Solo", "bridge"),
        ("Instrumental Break", "bridge"),
        ("Middle 8", "bridge"),
        ("Intro: soft piano", "intro"),
        ("Outro (guitar solo)", "outro"),
        ("副歌", "chorus"),
        ("主歌１", "verse"),
        ("Ａメロ", "verse"),
        ("2절", "verse"),
        ("Whisper Softly", "whisper_softly"),
        ("spoken: Ana", "spoken"),
        ("guitar_riff", "guitar_riff"),
        ("7", "7"),
        ("", None),
        ("…", None),
    ],
)
def test_tags_are_found_under_many_names(written: str, tag: str | None) -> None:
    assert find_tag(written) == tag


@pytest.mark.parametrize("tag", TAGS)
def test_every_name_of_a_part_is_found(tag: str) -> None:
    assert [find_tag(name) for name in (tag, *TAGS[tag])] == [tag] * (1 + len(TAGS[tag]))


def test_another_name_of_a_part_is_told() -> None:
    assert warnings("[verse]\nla\n[pre-chorus]\nla") == ["[pre-chorus] is sung as verse (line 3)"]
    assert warnings("[Verse 2: Ana]\nla") == ["[Verse 2: Ana] is sung as verse (line 1)"]


def test_an_unknown_tag_is_kept_and_told() -> None:
    assert shape(read("[verse]\nla\n[Spoken Word]\nlo")) == [("verse", "la"), ("spoken_word", "lo")]
    assert warnings("[Spoken Word]\nlo") == [
        "[Spoken Word] is none of YuE's own tags; the model reads [spoken_word] (line 1)"
    ]


def test_text_before_the_first_tag_is_a_verse() -> None:
    lyrics = read("\n\nNight\nDrive\n\n[chorus]\nla")
    assert shape(lyrics) == [("verse", "Night\nDrive"), ("chorus", "la")]
    assert lyrics.sections[0].written_tag is None
    assert warnings("\n\nNight\nDrive\n\n[chorus]\nla") == ["the text before the first tag is sung as a verse (line 3)"]


@pytest.mark.parametrize("line", ["[verse] la", "Verse:", "(Verse)", "**Verse 2**", "# Verse", "主歌："])
def test_what_looks_like_a_tag_and_is_sung_is_told(line: str) -> None:
    assert shape(read(f"[chorus]\n{line}")) == [("chorus", line)]
    assert warnings(f"[chorus]\n{line}") == [
        f"“{line}” is sung as text; if it is a tag, put [verse] alone on a line (line 2)"
    ]


def test_ordinary_lines_are_not_taken_for_tags() -> None:
    assert warnings("[verse]\n(ooh)\nshe said:\nend\n* star *\n[loud] and clear\n...") == []


@pytest.mark.parametrize("string", CONTROL_STRINGS)
def test_control_strings_are_told(string: str) -> None:
    text = f"[verse]\nla {string}la"
    assert warnings(text) == [f"{string} is sung as plain text (line 2)"]
    assert warnings(text, "exl2") == [f"{string} becomes a control token under rules exl2 (line 2)"]
    assert read(text).sections[0].text == f"la {string}la"


@pytest.mark.parametrize("marker", MARKERS)
def test_markers_are_text_and_told(marker: str) -> None:
    assert shape(read(f"[verse]\n{marker}\nla")) == [("verse", f"{marker}\nla")]
    assert warnings(f"[verse]\n{marker}\nla") == [
        f"{marker} is a marker of the model's own and may confuse it (line 2)"
    ]


def test_a_song_should_not_start_with_its_intro() -> None:
    expected = "the song starts with [intro] (line 1); [verse] or [chorus] start more reliably"
    assert warnings("[intro]\n\n[verse]\nla") == [expected]
    assert warnings("[Intro]\n\n[verse]\nla", "original") == [expected]
    assert warnings("[verse]\nla\n[intro]\n") == []


def test_too_many_words_are_told_before_they_are_cut() -> None:
    words = "la " * 61
    assert warnings(f"[chorus]\nla\n\n[verse]\n{words}") == [
        "the verse at line 4 has 61 words, about 37 s: it will be cut near 30 s"
    ]
    assert parse(f"[verse]\n{words}", "lyrics.txt", limit_s=60.0).warnings == ()
    assert SEGMENT_LIMIT_S == 30.0


@pytest.mark.parametrize(
    ("count", "lines"), [(1, [4, 7]), (2, [3, 3, 4, 7]), (3, [3, 3, 4, 6, 7]), (None, [3, 3, 4, 6, 7])]
)
def test_parts_that_are_not_sung_are_warned_of_only_where_every_prompt_holds_them(count, lines) -> None:
    text = f"[verse]\nla\n[hook]\nlo <SOA>\n{'word ' * 80}\n[zzz]\n[start_of_segment]\n"
    assert [warning.line for warning in parse(text, "lyrics.txt").warnings_about(count)] == lines


def test_a_part_that_is_only_named_again_is_told() -> None:
    assert warnings("[chorus]\nla\n[verse]\n\n[Chorus]\n") == [
        "the chorus at line 5 has no words and is played, not sung: write them out again"
    ]
    assert warnings("[bridge]\n\n[bridge]\n...") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("... — !", 0),
        ("don't let go, back-and-forth", 4),
        ("light—and shade…again/more -- now", 6),
        ("月光洒在窗前，我想起你的脸 🌙", 12),
        ("サクラ・サク 10回 love", 8),
        ("나는 노래를 부른다", 3),
        ("हिन्दी गाना", 2),
    ],
)
def test_words_are_counted_as_they_are_sung(text: str, words: int) -> None:
    assert count_words(text) == words


def test_a_word_takes_the_same_time_everywhere() -> None:
    lyrics = read("[verse]\none two three\n[chorus]\n四五")
    assert [section.words for section in lyrics.sections] == [3, 2]
    assert lyrics.words == 5
    assert [section.seconds for section in lyrics.sections] == pytest.approx([1.8, 1.2])
    assert lyrics.seconds == pytest.approx(3.0)


def test_the_published_rules_tell_what_they_lose() -> None:
    assert warnings("Hello\n[verse]\nla\n\n[pre-chorus]\nmore\n  words\n[chorus]\nla\n[]", "original") == [
        "lost under rules original: “Hello” (line 1)",
        "lost under rules original: “[pre-chorus] more words” (line 5)",
        "lost under rules original: “[]” (line 10)",
    ]


@pytest.mark.parametrize("rules", ["yue", "original", "exl2"])
@pytest.mark.parametrize("text", ["", "la la\nla", "[]\nla", "[...]"])
def test_lyrics_without_a_tag_are_refused(text: str, rules: str) -> None:
    with pytest.raises(LyricsError) as caught:
        read(text, rules)
    assert str(caught.value) == (
        "lyrics.txt has no section tag. Put each part under a line such as [verse] or [chorus]; "
        "`yue lyrics lyrics.txt` shows how it is read."
    )


def test_line_ends_and_the_byte_order_mark_are_made_alike() -> None:
    assert read_text(b"\xef\xbb\xbfa\r\nb\rc\n\xe5\xa4\x9c", "x") == "a\nb\nc\n夜"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.txt is empty. Write some text into it."),
        (b"\xef\xbb\xbf \n\t", "x.txt is empty. Write some text into it."),
        (b"ab\0c", "x.txt: not a text file (a zero at byte 2). Expected UTF-8 text."),
        ("[verse]".encode("utf-16"), "x.txt: expected UTF-8 text, found UTF-16. Save it as UTF-8."),
        (b"\xef\xbb\xbfla\nla\nd\xe9j\xe0", "x.txt: not UTF-8 text (byte 0xe9 in line 3). Save it as UTF-8."),
    ],
)
def test_what_is_not_text_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(LyricsError) as caught:
        read_text(content, "x.txt")
    assert str(caught.value) == message


def test_the_genre_is_cleaned_at_its_ends_only() -> None:
    assert parse_genre("  rock   loud\tmale \n") == "rock   loud\tmale"


def test_an_empty_genre_is_refused() -> None:
    with pytest.raises(LyricsError) as caught:
        parse_genre(" \n", "my.txt")
    assert str(caught.value) == (
        "my.txt is empty. Describe the music by genre, instrument, mood, gender and timbre, "
        "such as: folk acoustic guitar calm female clear vocal."
    )


def test_the_example_song_reads_without_a_warning() -> None:
    folder = Path(__file__).parent.parent / "prompt_egs"
    lyrics = read(read_text((folder / "lyrics.txt").read_bytes(), "lyrics.txt"))
    assert [section.tag for section in lyrics.sections] == ["verse", "chorus"]
    assert not lyrics.warnings
    assert 20 <= lyrics.words <= 32
    assert parse_genre(read_text((folder / "genre.txt").read_bytes(), "genre.txt")).count("\n") == 0


def test_the_table_of_tags_in_the_docs_is_that_of_the_code() -> None:
    rows = [f"| `[{tag}]` | {', '.join(names)} |" for tag, names in TAGS.items()]
    table = "\n".join(["| the model reads | also written |", "|---|---|", *rows])
    assert table in (Path(__file__).parent.parent / "docs" / "lyrics.md").read_text(encoding="utf-8")
