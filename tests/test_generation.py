"""The two loops, on an engine that computes nothing and notes what it is given."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.counting_engine import CountingEngine
from yue_cli import generation
from yue_cli.engines.base import Head
from yue_cli.generation import Choice, fill_frames, sample_until
from yue_cli.sampling import most_likely

END = 99
ROWS = [np.arange(5), np.arange(1)]


class Script:
    """Picks ids from a list, whatever the logits."""

    head: Head | None = (range(100),)

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids, self.prepared = list(ids), list[int]()

    def prepare(self, step: int) -> None:
        self.prepared.append(step)

    def pick(self, logits: Tensor) -> Tensor:
        return torch.full((len(logits), 1), self.ids.pop(0))


def sample(engine: CountingEngine, script: Script, limit: int, heard: Callable[[int], None] | None = None) -> list[int]:
    advance = engine.fuse(script.pick, script.head)
    [picked] = sample_until(engine, ROWS, script, advance, end=END, limit=limit, heard=heard)
    return list(picked.tolist())


def test_sampling_ends_with_the_end() -> None:
    engine, script = CountingEngine(), Script([5, 6, END, 7])
    assert sample(engine, script, limit=10) == [5, 6, END]
    assert engine.prefills == [[[0, 1, 2, 3, 4], [0]]]
    assert engine.steps == [[[5], [5]], [[6], [6]]]
    assert engine.heads == [script.head] * 3
    assert script.prepared == [0, 1, 2]


def test_sampling_stops_at_the_limit() -> None:
    engine = CountingEngine()
    assert sample(engine, Script(range(10)), limit=4) == [0, 1, 2, 3]
    assert engine.forwards == 4


def test_one_token_takes_no_step() -> None:
    engine = CountingEngine()
    assert sample(engine, Script([7]), limit=1) == [7]
    assert engine.forwards == 1


@pytest.mark.parametrize("end_at", range(12))
@pytest.mark.parametrize("behind", [0, 1, 2])
def test_looking_for_the_end_only_now_and_then_changes_nothing(
    end_at: int, behind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(generation._STEPS_A_LOOK, "cpu", 4)
    monkeypatch.setitem(generation._LOOKS_BEHIND, "cpu", behind)
    script = Script([*range(end_at), END, *range(50, 70)])
    engine = CountingEngine()
    assert sample(engine, script, limit=10) == [*range(end_at), END][:10]
    assert engine.forwards == min((end_at // 4 + 1 + behind) * 4, 10)


def test_an_engine_may_write_its_answer_over_the_last_one() -> None:
    engine, script, place = CountingEngine(), Script([1, 2, 3, END]), torch.zeros(2, 1, dtype=torch.int64)

    def advance(ids: Tensor) -> Tensor:
        return place.copy_(script.pick(engine.step(ids)))

    [picked] = sample_until(engine, ROWS, script, advance, end=END, limit=9)
    assert picked.tolist() == [1, 2, 3, END]


def test_progress_is_told_at_the_end_but_not_at_every_token() -> None:
    heard: list[int] = []
    sample(CountingEngine(), Script([*range(90), END]), limit=200, heard=heard.append)
    assert heard[-1] == 91
    assert len(heard) < 50


# Frames. The rule: after an id comes the next one of the next block of ten.


def next_block(ids: list[int]) -> int:
    return (ids[-1] // 10 * 10 + 10) + (ids[-1] + 1) % 10


def frame_choices(engine: CountingEngine, count: int) -> list[Choice]:
    heads = [range(10 * index, 10 * index + 10) for index in range(1, count + 1)]
    return [Choice.of(engine, partial(most_likely, head.start), (head,)) for head in heads]


def test_frames_are_filled_with_one_forward_for_each_pick() -> None:
    engine = CountingEngine(next_block)
    prompts, given = np.array([[90, 91], [90, 92]]), np.array([[3, 4, 5], [7, 8, 9]])
    filled = fill_frames(engine, prompts, given, frame_choices(engine, 3))
    assert filled.tolist() == [
        [[3, 14, 25, 36], [4, 15, 26, 37], [5, 16, 27, 38]],
        [[7, 18, 29, 30], [8, 19, 20, 31], [9, 10, 21, 32]],
    ]
    assert engine.forwards == 3 * 3
    assert engine.prefills == [[[90, 91, 3], [90, 92, 7]]]
    assert [len(step[0]) for step in engine.steps] == [1, 1, 2, 1, 1, 2, 1, 1]
    assert engine.steps[2] == [[36, 4], [30, 8]]  # the last pick of a frame and the next frame's given id
    assert engine.heads == [(range(10, 20),), (range(20, 30),), (range(30, 40),)] * 3


def test_the_engine_has_read_the_whole_stream_but_the_last_pick() -> None:
    engine = CountingEngine(next_block)
    filled = fill_frames(engine, np.array([[90, 91]]), np.array([[3, 4]]), frame_choices(engine, 3))
    assert engine.read[0] == [90, 91, *filled.ravel().tolist()][:-1]


@pytest.mark.parametrize("look", [1, 2, 3, 8])
@pytest.mark.parametrize("behind", [0, 1])
def test_reading_back_several_frames_at_once_changes_nothing(
    look: int, behind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(generation._STEPS_A_LOOK, "cpu", look)
    monkeypatch.setitem(generation._LOOKS_BEHIND, "cpu", behind)
    engine, heard = CountingEngine(next_block), list[int]()
    given = np.arange(7)[None]
    filled = fill_frames(engine, np.array([[90]]), given, frame_choices(engine, 2), heard=heard.append)
    assert filled[0, :, 0].tolist() == list(range(7))
    assert filled[0, 6].tolist() == [6, 17, 28]
    assert heard[-1] == 14


# Several songs. The rule: a row counts on from its last id; the script below ends each song at a number of its own.


class Counter:
    """Picks the most likely id of each row; the rows of a song's guidance are not its own."""

    head: Head | None = None

    def prepare(self, step: int) -> None: ...

    def pick(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1, keepdim=True)


def count_to(ends: dict[int, int]) -> Callable[[list[int]], int]:
    return lambda ids: END if ids[-1] == ends[ids[0]] else min(ids[-1] + 1, 98)


@pytest.mark.parametrize("look", [1, 3, 16])
@pytest.mark.parametrize("behind", [0, 1])
def test_each_song_ends_for_itself_and_all_are_waited_for(
    look: int, behind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(generation._STEPS_A_LOOK, "cpu", look)
    monkeypatch.setitem(generation._LOOKS_BEHIND, "cpu", behind)
    engine = CountingEngine(count_to({0: 3, 10: 15, 20: 21, 30: 97}))
    advance, heard = engine.fuse(Counter().pick), list[int]()
    rows = [np.array([first]) for first in (0, 10, 20, 30)]
    picked = sample_until(engine, rows, Counter(), advance, end=END, limit=50, songs=[0, 2, 1], heard=heard.append)
    assert [ids.tolist() for ids in picked] == [[1, 2, 3, END], [21, END], [11, 12, 13, 14, 15, END]]
    looks = -(-6 // look) + behind  # the last song that is waited for ends after six
    assert engine.forwards == min(looks * look, 50)
    assert heard[-1] == 4 + 2 + 6


def test_a_song_that_goes_on_is_stopped_at_the_limit() -> None:
    engine = CountingEngine(count_to({0: 3, 10: 97}))
    picked = sample_until(
        engine, [np.array([0]), np.array([10])], Counter(), engine.fuse(Counter().pick), end=END, limit=6, songs=[0, 1]
    )
    assert [ids.tolist() for ids in picked] == [[1, 2, 3, END], [11, 12, 13, 14, 15, 16]]
    assert engine.forwards == 6
