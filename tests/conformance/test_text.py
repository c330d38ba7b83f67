"""Texts to ids, and which of them stage 1 reads, against files made by running the published programs.

The tokenizer's own file is not part of this repository: `YUE_TOKENIZER` names it, and without it its tests are skipped.
"""

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance import folders
from yue_cli.lyrics import END_OF_SEGMENT, START_OF_SEGMENT, parse, parse_genre, read_text
from yue_cli.prompt import Prompts, Reference, build, shorten, window_limit
from yue_cli.tokenizer import Tokenizer
from yue_cli.vocab import Vocabulary

VARIABLE = "YUE_TOKENIZER"
VOCABULARY = Vocabulary()
START_IDS = np.array([518, 2962, 29918, 974, 29918, 28192, 29962])  # [start_of_segment] in the published tokenizer

needs_tokenizer = pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no tokenizer.model")


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(Path(os.environ[VARIABLE]), VOCABULARY)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def assert_same(found: Sequence[int] | np.ndarray, expected: Sequence[int] | np.ndarray, what: str) -> None:
    """Compare ids exactly and show the first that differs."""
    found, expected = np.asarray(found), np.asarray(expected)
    common = min(len(found), len(expected))
    different = np.flatnonzero(found[:common] != expected[:common])
    if len(different):
        at = different[0]
        pytest.fail(f"{what}: id {at} is {found[at]}, expected {expected[at]}")
    assert len(found) == len(expected), f"{what}: {len(found)} ids, expected {len(expected)}"


@needs_tokenizer
@pytest.mark.parametrize("path", folders.files("lm", "tokenizer.json"))
def test_texts_are_encoded_as_published(path: Path) -> None:
    for case in read_json(path):
        assert_same(tokenizer().encode_control(case["text"]), case["ids"], repr(case["text"]))


@needs_tokenizer
@pytest.mark.parametrize("rules", ["original", "exl2"])
@pytest.mark.parametrize("path", folders.files("lm", "prompts.json"))
def test_prompts_are_built_as_published(path: Path, rules: str) -> None:
    for case in read_json(path):
        name = case["name"]
        genre = parse_genre(read_text(case["genre_txt"].encode(), "genre.txt"))
        lyrics = parse(read_text(case["lyrics_txt"].encode(), "lyrics.txt"), "lyrics.txt", rules)
        prompts = build(tokenizer(), VOCABULARY, genre, lyrics.sections, rules, reference_of(case))
        assert_same(prompts.head, case["head_ids"], f"{name}: head")
        assert_same(prompts.reference, case["reference_ids"], f"{name}: reference")
        assert [section.prompt_text for section in lyrics.sections] == [part["text"] for part in case["segments"]]
        for number, part in enumerate(case["segments"]):
            ids = prompts.segments[number] if number else prompts.window(0, [], 1_000_000, "error")
            assert_same(ids, part["prompt_ids"], f"{name}: segment {number + 1}")


def reference_of(case: dict[str, Any]) -> Reference | None:
    if case["mode"] == "cot":
        return None
    names = {"icl_single": ["codes"], "icl_dual": ["vocal_codes", "instrumental_codes"]}[case["mode"]]
    tracks = [np.array(case[name])[None] for name in names]
    return Reference(*tracks, start_s=case["prompt_start_time"], end_s=case["prompt_end_time"])


@pytest.mark.parametrize("path", folders.files("lm", "s1_shorten.json"))
def test_segments_are_searched_for_and_dropped_as_published(path: Path) -> None:
    for number, case in enumerate(read_json(path)):
        assert_same(shorten(np.array(case["seq"]), case["max_context"], START_IDS), case["result"], f"case {number}")


@needs_tokenizer
@pytest.mark.parametrize("path", folders.files("lm", "s1_two_segments*.npz"))
def test_a_second_segment_reads_all_that_was_sung(path: Path) -> None:
    recorded = np.load(path)
    prompts, sung = recorded_song(recorded, 2, "original")
    assert_same(prompts.window(1, sung, 1_000_000, "error"), recorded["input_ids_2"], "segment 2")
    assert_same(prompts.raw(sung), recorded["raw_output"], "everything")


@needs_tokenizer
@pytest.mark.parametrize("path", folders.files("lm", "s1_overflow_original*.npz"))
def test_the_original_keeps_the_last_ids(path: Path) -> None:
    recorded = np.load(path)
    assert_windows(recorded, int(recorded["max_context"]), "keep_last", "original")


@needs_tokenizer
@pytest.mark.parametrize("rules", ["exl2", "yue"])
@pytest.mark.parametrize("path", folders.files("lm", "s1_overflow_exl2*.npz"))
def test_the_exl2_variant_drops_the_oldest_segments(path: Path, rules: str) -> None:
    recorded = np.load(path)
    limit = window_limit(int(recorded["cache_size"]), int(recorded["max_new_tokens"]))
    prompts, sung = assert_windows(recorded, limit, "drop_oldest", rules)
    assert_same(prompts.raw(sung), recorded["raw_output"], "everything")


def assert_windows(recorded: Any, limit: int, on_overflow: str, rules: str) -> tuple[Prompts, list[np.ndarray]]:
    count = int(recorded["n_segments"])
    prompts, sung = recorded_song(recorded, count, rules)
    for index in range(count):
        window = prompts.window(index, sung, limit, on_overflow)
        assert_same(window, recorded[f"input_ids_{index + 1}"], f"segment {index + 1}")
    return prompts, sung


def recorded_song(recorded: Any, count: int, rules: str) -> tuple[Prompts, list[np.ndarray]]:
    """Take a recorded run apart into its prompts and what was sung. It has no reference."""
    start, end = (np.array(tokenizer().encode(marker)) for marker in (START_OF_SEGMENT, END_OF_SEGMENT))
    end_of_audio = VOCABULARY.end_of_audio
    inputs = [recorded[f"input_ids_{number}"].astype(np.int64) for number in range(1, count + 1)]
    places = [place for place in range(len(inputs[0])) if np.array_equal(inputs[0][place:][: len(start)], start)]
    # What follows the last end-of-audio of a window is the prompt of its segment.
    later = [ids[np.flatnonzero(ids == end_of_audio)[-1] + 1 :] for ids in inputs[1:]]
    sung = []
    for number in range(1, count + 1):
        ids = recorded[f"new_ids_{number}"].astype(np.int64)
        sung.append(ids if ids[-1] == end_of_audio else np.append(ids, end_of_audio))
    head, first = inputs[0][: places[-1]], inputs[0][places[-1] :]
    empty = np.array([], dtype=np.int64)
    return Prompts(head, empty, (first, *later), start, end, end_of_audio, rules), sung
