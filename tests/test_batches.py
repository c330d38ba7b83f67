"""Several songs sung together: each is what it would be alone, whoever else sings, ends or stays away."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.counting_engine import CountingEngine
from tests.test_stage1 import CODE, END, HEAD, SEPARATOR, TINY, climb, ids_of, make_prompts, stage1_settings
from tests.tiny_llama import CONFIG, write_checkpoint
from yue_cli.engines import open_engine
from yue_cli.engines.base import Engine
from yue_cli.events import Event, Finished
from yue_cli.prompt import Prompts
from yue_cli.seats import Seat, deal
from yue_cli.settings import Stage1Settings
from yue_cli.stages.stage1 import Task, generate


def prompts_of(song: int, segments: int) -> Prompts:
    """Prompts whose head tells the song, and is longer for later ones."""
    made = make_prompts(segments)
    return Prompts(**{**vars(made), "head": ids_of(*HEAD, *[30 + song] * song)})


def sing(engine: Engine, tasks: Sequence[Task], settings: Stage1Settings, **more: Any) -> list[list[list[int]]]:
    """Return the ids of every segment of every song, those that were finished included."""
    songs = [[ids.tolist() for ids in task.finished] for task in tasks]
    for number, segment in generate(engine, TINY, tasks, settings=settings, rules="yue", **more):
        songs[number].append(segment.ids.tolist())
    return songs


def tasks_of(counts: Sequence[int], rows: int, seeds: Sequence[int | None] | None = None) -> list[Task]:
    """Tasks of songs with these numbers of segments, seated as songs that begin together."""
    seats: list[list[Seat]] = [[] for _ in counts]
    for index in range(max(counts)):
        longer = [song for song, count in enumerate(counts) if count > index]
        for song, seat in zip(longer, deal(len(longer), rows), strict=True):
            seats[song].append(seat)
    return [
        Task(prompts_of(song, count), [None if seeds is None else seeds[song]] * count, seats=seats[song])
        for song, count in enumerate(counts)
    ]


def test_segments_begin_together_and_short_songs_leave() -> None:
    engine = CountingEngine(climb, vocabulary_size=40)
    songs = sing(engine, tasks_of([2, 1, 2, 3], rows=4), stage1_settings(guidance_first=1, guidance_later=1))
    assert [len(song) for song in songs] == [2, 1, 2, 3]
    assert [len(rows) for rows in engine.prefills] == [4, 4, 1], "three songs sit in four places"
    assert engine.prefills[1][3] == [END], "nobody sits there"
    assert engine.prefills[2][0][: len(HEAD) + 3] == [*HEAD, 33, 33, 33]


def test_the_rows_of_guidance_follow_those_of_the_songs() -> None:
    engine = CountingEngine(climb, vocabulary_size=40)
    sing(engine, tasks_of([1, 1, 1], rows=4), stage1_settings())
    [rows] = engine.prefills
    assert [len(row) for row in rows] == [8, 9, 10, 1, 1, 1, 1, 1]
    assert [row[0] for row in rows[4:]] == [SEPARATOR] * 3 + [END]


def test_more_songs_than_rows_sing_one_batch_after_the_other() -> None:
    engine = CountingEngine(climb, vocabulary_size=40)
    songs = sing(engine, tasks_of([1] * 5, rows=2), stage1_settings())
    assert [len(rows) for rows in engine.prefills] == [4, 4, 2]
    assert all(len(song) == 1 for song in songs)


def test_events_tell_of_all_songs_at_once() -> None:
    events: list[Event] = []
    engine = CountingEngine(climb, vocabulary_size=40)
    sing(engine, tasks_of([1, 1], rows=2), stage1_settings(repetition_penalty=1.0), emit=events.append)
    finished = [event for event in events if isinstance(event, Finished)]
    assert [(event.label, event.done) for event in finished] == [("1/1 · 2 songs", 12)]
    sing(engine, tasks_of([1, 2], rows=2), stage1_settings(repetition_penalty=1.0), emit=events.append)
    labels = [event.label for event in events if isinstance(event, Finished)]
    assert labels[1:] == ["segment 1 · 2 songs", "2/2"]


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_no_row_grows_past_the_length_that_its_song_was_said_to_need(guidance: float) -> None:
    """The first song ends at once and goes along, the second reaches the limit."""
    settings = stage1_settings(guidance_first=guidance, guidance_later=guidance, max_new_tokens=30)

    def rule(ids: list[int]) -> int:
        return END if len(HEAD) < len(ids) and ids[len(HEAD)] != 31 else CODE

    tasks = tasks_of([2, 2], rows=2)
    length = len(HEAD) + 1 + 4 + 5 + 2 * 31
    songs = sing(CountingEngine(rule, vocabulary_size=40, length=length), tasks, settings)
    assert [len(segment) for segment in songs[1]] == [31, 31]


# With real numbers


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = write_checkpoint(tmp_path_factory.mktemp("tiny"), {**CONFIG, "vocab_size": 40})
    dtype = getattr(torch, request.param)
    return open_engine("native", folder, rows=8, length=200, device=torch.device("cpu"), dtype=dtype)


@settings(max_examples=8)
@given(
    counts=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    guidance=st.sampled_from([(1.5, 1.2), (1.0, 1.0), (1.5, 1.0)]),
    first_seed=st.integers(0, 1000),
    data=st.data(),
)
def test_songs_resumed_in_any_company_are_the_undisturbed_ones(
    engine: Engine, counts: list[int], guidance: tuple[float, float], first_seed: int, data: st.DataObject
) -> None:
    settings = stage1_settings(
        max_new_tokens=20, min_new_tokens=4, guidance_first=guidance[0], guidance_later=guidance[1]
    )
    tasks = tasks_of(counts, rows=4, seeds=range(first_seed, first_seed + len(counts)))
    whole = sing(engine, tasks, settings)
    for song, segments in enumerate(whole):
        done = data.draw(st.integers(0, len(segments)), label=f"finished segments of song {song}")
        finished = [np.array(ids, dtype=np.int32) for ids in segments[:done]]
        tasks[song] = Task(tasks[song].prompts, tasks[song].seeds, finished, tasks[song].seats)
    chosen = data.draw(st.lists(st.sampled_from(range(len(counts))), min_size=1, unique=True), label="songs")
    resumed = sing(engine, [tasks[song] for song in chosen], settings)
    assert resumed == [whole[song] for song in chosen]


@settings(max_examples=8, derandomize=True)
@given(counts=st.lists(st.integers(1, 2), min_size=2, max_size=4), guided=st.booleans(), first_seed=st.integers(0, 99))
def test_a_song_in_company_is_the_song_alone(engine: Engine, counts: list[int], guided: bool, first_seed: int) -> None:
    """Logits may differ in their last bits; with so few tokens no pick is that close."""
    strength = 1.5 if guided else 1.0
    settings = stage1_settings(max_new_tokens=20, min_new_tokens=4, guidance_first=strength, guidance_later=strength)
    together = tasks_of(counts, rows=4, seeds=range(first_seed, first_seed + len(counts)))
    alone = [Task(task.prompts, task.seeds) for task in together]
    assert sing(engine, together, settings) == [sing(engine, [task], settings)[0] for task in alone]
