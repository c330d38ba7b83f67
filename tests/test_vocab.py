"""Ids: the published layout, and that of a checkpoint that brings its own."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from yue_cli.errors import CheckpointError
from yue_cli.vocab import VOCABULARY_FILE, WINDOW_FRAMES, Vocabulary

PUBLISHED = Vocabulary()
OWN = Vocabulary({"<SOA>": 1, "<EOA>": 2, "<stage_1>": 3, "<stage_2>": 4, "<xcodec>": 5}, 5, 64, 16, 8)


def refusal(folder) -> str:
    with pytest.raises(CheckpointError) as refused:
        Vocabulary.read(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_published_ids_are_those_of_yue():
    # YuE mmtokenizer.py and codecmanipulator.py.
    assert (PUBLISHED.start_of_audio, PUBLISHED.end_of_audio) == (32001, 32002)
    assert (PUBLISHED.stage_1, PUBLISHED.separator, PUBLISHED.stage_2) == (32013, 32016, 32017)
    assert PUBLISHED.specials["<PAD>"] == 83737
    assert PUBLISHED.codebook(0) == range(45334, 46358)
    assert PUBLISHED.codebook(7) == range(52502, 53526)


def test_codebooks_follow_each_other_without_a_gap():
    for vocabulary in (PUBLISHED, OWN):
        ids = [id for index in range(vocabulary.codebooks) for id in vocabulary.codebook(index)]
        assert ids == list(range(vocabulary.codebook_start, vocabulary.codebook_stop))


def test_a_window_is_six_seconds():
    assert WINDOW_FRAMES == 300


def test_codes_become_ids_frame_after_frame():
    codes = np.array([[0, 1, 1023], [5, 0, 1]])
    assert PUBLISHED.codes_to_ids(codes).tolist() == [45334, 46363, 45335, 46358, 46357, 46359]


@given(arrays.arrays(np.int16, st.tuples(st.integers(1, 8), st.integers(0, 9)), elements=st.integers(0, 15)))
def test_every_id_lies_in_its_codebook_and_gives_its_code_back(codes):
    ids = OWN.codes_to_ids(codes)
    assert ids.dtype == np.int64
    assert ids.shape == (codes.size,)
    for place, id in enumerate(ids.tolist()):
        frame, row = divmod(place, len(codes))
        assert OWN.codebook(row).index(id) == codes[row, frame]


@pytest.mark.parametrize("codes", [[[1024]], [[-1]]])
def test_a_code_out_of_range_is_a_programmers_mistake(codes):
    with pytest.raises(AssertionError, match="a code is out of range"):
        PUBLISHED.codes_to_ids(np.array(codes))


def test_a_folder_without_a_vocabulary_has_the_published_one(tmp_path):
    assert Vocabulary.read(tmp_path) == PUBLISHED


@pytest.mark.parametrize("vocabulary", [PUBLISHED, OWN])
def test_a_vocabulary_comes_back_as_it_was_written(tmp_path, vocabulary):
    vocabulary.write(tmp_path)
    assert Vocabulary.read(tmp_path) == vocabulary


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "expected format yue-vocabulary, version 1"),
        ({"format": "other"}, "expected format yue-vocabulary, version 1"),
        ({"mood": 1}, "mood"),
        ({"specials": {"<SOA>": 1}}, "no id for <EOA>, <stage_1>, <stage_2>"),
        ({"specials": 7}, "int"),
        ({"specials": {"<SOA>": 1, "<EOA>": 2, "<stage_1>": 3, "<stage_2>": -4}}, "expected whole numbers, found -4"),
        ({"codebook_start": "many"}, "expected whole numbers, found 'many'"),
        ({"codebooks": 1.5}, "expected whole numbers, found 1.5"),
        ({"separator": None}, "expected whole numbers, found None"),
    ],
)
def test_a_vocabulary_of_another_kind_is_never_guessed_at(tmp_path, change, said):
    OWN.write(tmp_path)
    path = tmp_path / VOCABULARY_FILE
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change))
    text = refusal(tmp_path)
    assert text.startswith(f"{path}: not a vocabulary of this version of yue (")
    assert said in text


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"format": "yue-vocabulary"'])
def test_a_damaged_vocabulary_is_refused(tmp_path, content):
    (tmp_path / VOCABULARY_FILE).write_bytes(content)
    assert refusal(tmp_path).startswith(f"{tmp_path / VOCABULARY_FILE}: not a vocabulary of this version of yue (")
