"""The five kinds of words in a description of music, and the hint where one is missing."""

import pytest

from tests.command_line import done, refused, yue
from yue_cli.genre import KINDS, find_kinds, missing_kinds
from yue_cli.resources import resource

pytestmark = pytest.mark.usefixtures("place")


def test_our_own_example_names_all_five_kinds():
    assert missing_kinds(resource("prompt_egs/genre.txt").read_text()) == []


@pytest.mark.parametrize(
    ("genre", "missing"),
    [
        ("folk acoustic guitar calm female clear vocal", []),
        ("slow folk", ["instrument", "mood", "gender", "timbre"]),
        ("guitar, calm, female, clear", ["genre"]),
        ("jazz calm female clear", ["instrument"]),
        ("jazz piano female clear", ["mood"]),
        ("jazz piano calm clear", ["gender"]),
        ("jazz piano calm female vocal", ["timbre"]),
        ("", list(KINDS)),
    ],
)
def test_missing_kinds_are_named_in_their_order(genre, missing):
    assert missing_kinds(genre) == missing


@pytest.mark.parametrize(
    ("genre", "kind", "word"),
    [
        ("Hip-Hop", "genre", "hip hop"),
        ("R&B", "genre", "r&b"),
        ("Lo-Fi_beats", "genre", "lo fi"),
        ("electric GUITARS", "instrument", "guitar"),
        ("drums", "instrument", "drum"),
        ("drum'n'bass", "instrument", "bass"),
        ("sad/slow", "mood", "sad"),
        ("女声 female", "gender", "female"),
    ],
)
def test_case_signs_and_plural_do_not_matter(genre, kind, word):
    assert word in find_kinds(genre)[kind]


def test_a_word_within_another_is_none():
    assert missing_kinds("popcorn harpoon sadness females_only clearly") == [kind for kind in KINDS if kind != "gender"]


def test_the_list_is_short_and_says_nothing_twice():
    for kind, words in KINDS.items():
        assert 0 < len(words) <= 40, kind
        assert len(set(words)) == len(words), kind
        assert all(find_kinds(word)[kind] for word in words), kind


# yue lyrics --genre


def test_a_missing_kind_is_a_hint_and_the_words_are_the_answer():
    outcome = done("lyrics", "--genre", "slow folk, female")
    assert outcome.out.splitlines() == [
        "genre       folk",
        "instrument  –",
        "mood        –",
        "gender      female",
        "timbre      –",
    ]
    assert outcome.err == (
        "hint: no word for instrument, mood or timbre was recognised in the genre; "
        "YuE was published with the advice to name all five kinds\n"
    )


def test_a_whole_genre_needs_no_hint(place):
    (place / "genre.txt").write_text("folk guitar calm female clear vocal\n")
    outcome = done("lyrics", "lyrics.txt", "--genre", "genre.txt")
    assert outcome.err == ""
    assert outcome.out.splitlines()[2] == "2 sections · 4 words · about 2 s"
    assert outcome.out.splitlines()[3] == "genre       folk"


def test_the_kinds_are_a_field_for_programs():
    answer = done("lyrics", "--genre", "jazz piano", "--json").answer
    assert answer == {
        "genre": {
            "text": "jazz piano",
            "kinds": {"genre": ["jazz"], "instrument": ["piano"], "mood": [], "gender": [], "timbre": []},
            "missing": ["mood", "gender", "timbre"],
        }
    }
    answer = done("lyrics", "lyrics.txt", "--genre", "jazz", "--json").answer
    assert (answer["words"], answer["genre"]["text"]) == (4, "jazz")
    assert "genre" not in done("lyrics", "lyrics.txt", "--json").answer


def test_nothing_to_look_at_is_wrong_usage():
    outcome = yue("lyrics")
    message = "there is nothing to look at: name a file with lyrics, or give --genre."
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"error: Invalid value: {message}\n")


def test_an_empty_genre_is_refused():
    assert refused("lyrics", "--genre", " ").startswith("--genre is empty. Describe the music by genre, instrument,")
