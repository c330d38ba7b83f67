"""Text to ids: plain text stays text, control strings only where they are asked for."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import toy_tokenizer
from yue_cli.errors import CheckpointError
from yue_cli.tokenizer import TOKENIZER_FILE, Tokenizer
from yue_cli.vocab import CONTROL_STRINGS, Vocabulary

VOCABULARY = toy_tokenizer.vocabulary()
TOY = Tokenizer(toy_tokenizer.FOLDER / TOKENIZER_FILE, VOCABULARY)
LYRICS = st.lists(st.sampled_from([*CONTROL_STRINGS, "<xcodec>", " ", "\n", "light", "夜"]) | st.text()).map("".join)


def test_the_committed_toy_is_what_its_recipe_makes(tmp_path: Path) -> None:
    (tmp_path / TOKENIZER_FILE).write_bytes(toy_tokenizer.train())
    made = Tokenizer(tmp_path / TOKENIZER_FILE, VOCABULARY)
    assert [made.encode(line) for line in toy_tokenizer.TEXTS] == [TOY.encode(line) for line in toy_tokenizer.TEXTS]
    assert Vocabulary.read(toy_tokenizer.FOLDER) == VOCABULARY


def test_the_toy_has_the_habits_of_the_published_tokenizer() -> None:
    assert TOY.encode("") == []
    assert TOY.encode("\n")[-1] == 3 + ord("\n"), "a newline is a byte piece"
    assert len(TOY.encode("[start_of_segment]")) == 7
    assert TOY.encode("low") != TOY.encode(" low") != TOY.encode("  low"), "blanks are kept"
    assert TOY.encode("①") != TOY.encode("1"), "nothing is normalised"


@given(LYRICS)
def test_control_strings_in_plain_text_never_become_control_ids(text: str) -> None:
    ids = TOY.encode(text)
    assert all(id < toy_tokenizer.PIECES for id in ids)
    assert not {1, 2} & set(ids)


@given(st.text())
def test_text_without_control_strings_is_encoded_alike_both_ways(text: str) -> None:
    if not any(string in text for string in CONTROL_STRINGS):
        assert TOY.encode_control(text) == TOY.encode(text)


def test_each_stretch_between_control_strings_is_encoded_on_its_own() -> None:
    specials = VOCABULARY.specials
    ids = TOY.encode_control("light<SOA>light</s><EOD>")
    assert ids == [*TOY.encode("light"), specials["<SOA>"], *TOY.encode("light"), specials["</s>"], specials["<EOD>"]]


def test_only_control_strings_of_the_vocabulary_are_looked_for() -> None:
    assert "<CLS>" not in VOCABULARY.specials
    assert TOY.encode_control("<CLS>") == TOY.encode("<CLS>")
    assert "<xcodec>" in VOCABULARY.specials
    assert TOY.encode_control("<xcodec>") == TOY.encode("<xcodec>")
    assert TOY.encode_control("<soa>") == TOY.encode("<soa>")


def test_a_vocabulary_without_control_strings_leaves_all_as_text() -> None:
    bare = Tokenizer(toy_tokenizer.FOLDER / TOKENIZER_FILE, Vocabulary(specials={}, separator=0))
    assert bare.encode_control("a<SOA>b") == TOY.encode("a<SOA>b")


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        Tokenizer(tmp_path / TOKENIZER_FILE, VOCABULARY)
    assert str(caught.value) == (
        f"{tmp_path / TOKENIZER_FILE}: cannot be read (No such file or directory). "
        "A checkpoint folder needs its tokenizer.model; fetch the model again."
    )


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", bytes(100)])
def test_a_damaged_model_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / TOKENIZER_FILE
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer(path, VOCABULARY)
    assert str(caught.value) == (
        f"{path}: expected a SentencePiece model, found {len(content)} bytes of something else. "
        "It is damaged or a git-lfs stub; fetch the model again."
    )
