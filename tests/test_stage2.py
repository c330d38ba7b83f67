"""Stage 2: cutting into windows and batches, decoding them, and joining what was decoded."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.counting_engine import CountingEngine
from tests.tiny_llama import CONFIG, write_checkpoint
from yue_cli.engines import open_engine
from yue_cli.engines.base import Engine
from yue_cli.errors import ArtifactError
from yue_cli.events import Event, Finished, Progress
from yue_cli.settings import Stage2Settings
from yue_cli.stages.stage2 import (
    Task,
    Window,
    assemble,
    cache_length,
    cut,
    deal_seats,
    decode,
)
from yue_cli.vocab import WINDOW_FRAMES, Vocabulary

# Ten codebooks of eight codes from id 20 on: codebook 0 is 20..27, codebook 1 28..35, …
TINY = Vocabulary(
    specials={"<SOA>": 11, "<EOA>": 12, "<stage_1>": 13, "<stage_2>": 14},
    separator=15,
    codebook_start=20,
    codebook_size=8,
    codebooks=10,
)
RESTRICTED = Stage2Settings(restrict_picks=True, tail="overlap")
REFERENCE = Stage2Settings(restrict_picks=False, tail="short")


def climb(ids: list[int]) -> int:
    """After a code comes the same code of the next codebook."""
    return min(ids[-1] + 8, 99)


def random_tracks(frames: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 8, (1, frames)), generator.integers(0, 8, (1, frames))


# Windows and batches


@given(st.integers(0, 3000), st.sampled_from(["overlap", "short"]))
def test_windows_keep_every_frame_of_both_tracks_once(frames: int, tail: str) -> None:
    kept = np.zeros((2, frames), dtype=int)
    for window in cut(frames, tail):
        assert 0 <= window.start <= window.kept.start < window.kept.stop <= frames
        assert 1 <= window.length <= WINDOW_FRAMES
        kept[window.track, window.kept] += 1
    assert (kept == 1).all()


def windows_of(frames: int, tail: str) -> list[tuple[int, int, int]]:
    """List start, length and first kept frame of the vocal's windows."""
    return [(w.start, w.length, w.kept_from) for w in cut(frames, tail) if w.track == 0]


def test_the_last_window_overlaps_the_one_before() -> None:
    assert windows_of(650, "overlap") == [(0, 300, 0), (300, 300, 0), (350, 300, 250)]
    assert windows_of(650, "short") == [(0, 300, 0), (300, 300, 0), (600, 50, 0)]


@pytest.mark.parametrize("tail", ["overlap", "short"])
def test_whole_windows_need_no_tail_and_short_tracks_have_nothing_else(tail: str) -> None:
    assert windows_of(600, tail) == [(0, 300, 0), (300, 300, 0)]
    assert windows_of(299, tail) == [(0, 299, 0)]
    assert windows_of(0, tail) == []


def batches_of(songs: Sequence[int], tail: str, rows: int) -> list[tuple[int, int]]:
    """List how many windows sit in each batch, and its rows."""
    engine = CountingEngine(climb, rows=rows)
    tasks = tasks_of([random_tracks(frames) for frames in songs], tail, rows)
    settings = Stage2Settings(restrict_picks=True, tail=tail)
    filled = [sum(map(len, batch.values())) for batch in decode(engine, TINY, tasks, settings=settings)]
    return list(zip(filled, map(len, engine.prefills), strict=True))


def tasks_of(songs: Sequence[tuple[np.ndarray, np.ndarray]], tail: str, rows: int) -> list[Task]:
    windows = [cut(tracks[0].shape[1], tail) for tracks in songs]
    return [Task(*each, finished={}) for each in zip(songs, windows, deal_seats(windows, rows), strict=True)]


def test_both_tracks_share_batches() -> None:
    assert batches_of([23 * 150], "overlap", 20) == [(20, 20), (4, 4)]  # 12 windows a track
    assert batches_of([650], "short", 4) == [(4, 4), (2, 2)]
    assert batches_of([900], "short", 64) == [(6, 8)]


def test_windows_of_one_length_of_all_songs_share_batches() -> None:
    assert batches_of([900, 300], "short", 8) == [(8, 8)]
    assert batches_of([350, 310, 350], "short", 4) == [(4, 4), (2, 2), (4, 4), (2, 2)], "300, 50 and 10 frames long"


# Decoding


def fill(
    engine: Engine,
    tasks: Sequence[Task],
    settings: Stage2Settings,
    emit: Callable[[Event], None] = lambda event: None,
) -> list[dict[int, np.ndarray]]:
    """Return the windows of each song, those that were finished included."""
    filled = [dict(task.finished) for task in tasks]
    for batch in decode(engine, TINY, tasks, settings=settings, emit=emit):
        for number, windows in batch.items():
            filled[number] |= windows
    return filled


def decode_all(engine: Engine, frames: int, settings: Stage2Settings, rows: int = 4) -> tuple[np.ndarray, ...]:
    [task] = tasks_of([random_tracks(frames)], str(settings.tail), rows)
    [filled] = fill(engine, [task], settings)
    return assemble(frames, task.windows, filled, TINY, restrict_picks=bool(settings.restrict_picks))


@pytest.mark.parametrize("settings", [RESTRICTED, REFERENCE], ids=["restricted", "reference"])
@pytest.mark.parametrize("frames", [1, 40, 300, 310])
def test_tracks_come_out_in_order(settings: Stage2Settings, frames: int) -> None:
    engine = CountingEngine(climb, length=cache_length(min(frames, 300)))
    for found, given_ in zip(decode_all(engine, frames, settings), random_tracks(frames), strict=True):
        assert found.dtype == (np.int16 if settings.restrict_picks else np.uint32)
        np.testing.assert_array_equal(found, np.repeat(given_, 8, axis=0))  # the rule copies each code upwards


def test_a_prompt_holds_the_window_between_its_markers() -> None:
    engine = CountingEngine(climb)
    decode_all(engine, 3, RESTRICTED)
    vocal, instrumental = (track[0] + 20 for track in random_tracks(3))
    assert engine.prefills == [
        [[11, 13, *vocal, 14, vocal[0]], [11, 13, *instrumental, 14, instrumental[0]]],
    ]
    assert engine.forwards == 7 * 3


def test_each_pick_comes_from_its_own_codebook_or_from_any() -> None:
    engine = CountingEngine(climb)
    decode_all(engine, 2, RESTRICTED)
    assert engine.heads[:7] == [(range(20 + 8 * index, 28 + 8 * index),) for index in range(1, 8)]
    engine = CountingEngine(climb)
    decode_all(engine, 2, REFERENCE)
    assert set(engine.heads) == {(range(28, 84),)}


def test_a_batch_is_padded_to_a_step_of_the_ladder() -> None:
    engine = CountingEngine(climb)
    [filled] = fill(engine, tasks_of([random_tracks(900)], "overlap", 8), RESTRICTED)
    assert len(engine.prefills[0]) == 8
    assert engine.prefills[0][5] == engine.prefills[0][6] == engine.prefills[0][7]
    assert sorted(filled) == list(range(6))
    assert filled[0].shape == (300, 8)
    assert filled[0].dtype == np.int32


def test_finished_windows_are_not_made_again_and_the_others_keep_their_places() -> None:
    tracks = [random_tracks(600), random_tracks(300, seed=1)]
    tasks = tasks_of(tracks, "overlap", 8)
    engine = CountingEngine(climb)
    whole = fill(engine, tasks, RESTRICTED)
    [together] = engine.prefills
    left = [replace(tasks[0], finished={0: whole[0][0], 2: whole[0][2]}), replace(tasks[1], finished=whole[1])]
    engine = CountingEngine(climb)
    again = fill(engine, left, RESTRICTED)
    [rows] = engine.prefills
    assert (rows[1], rows[3]) == (together[1], together[3])
    assert len(rows) == 8
    for before, after in zip(whole, again, strict=True):
        assert before.keys() == after.keys()
        for number in before:
            np.testing.assert_array_equal(before[number], after[number])


def test_songs_together_are_the_songs_alone() -> None:
    tracks = [random_tracks(frames, seed=frames) for frames in (310, 20, 600)]
    together = fill(CountingEngine(climb), tasks_of(tracks, "overlap", 4), RESTRICTED)
    for both, filled in zip(tracks, together, strict=True):
        [alone] = fill(CountingEngine(climb), tasks_of([both], "overlap", 4), RESTRICTED)
        assert alone.keys() == filled.keys()
        for number in alone:
            np.testing.assert_array_equal(alone[number], filled[number])


def test_events_tell_the_stage_as_a_whole() -> None:
    events: list[Event] = []
    fill(CountingEngine(climb), tasks_of([random_tracks(310)], "short", 4), REFERENCE, events.append)
    progress = [event for event in events if isinstance(event, Progress)]
    assert {(event.topic, event.label, event.total, event.unit) for event in progress} == {
        ("stage 2", "", 7 * 310, "steps")
    }
    done = [event.done for event in progress]
    assert done == sorted(done)
    assert done[-1] == 7 * 310
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.topic, last.label, last.done, last.unit, last.music_s) == ("stage 2", "", 7 * 310, "steps", 6.2)


@pytest.mark.parametrize(
    ("vocal", "instrumental", "text"),
    [
        (
            np.zeros((1, 5), int),
            np.zeros((1, 4), int),
            "stage 2: expected two tracks [1, T] of one length, found [1, 5] and [1, 4].",
        ),
        (
            np.array([[0, 9]]),
            np.array([[0, 1]]),
            "stage 2: stage 1's tracks hold 9, which is no code; expected 0 to 7. `--set rules=yue` makes stage 1 "
            "allow codes of codebook 0 only.",
        ),
    ],
)
def test_tracks_that_cannot_be_decoded(vocal: np.ndarray, instrumental: np.ndarray, text: str) -> None:
    with pytest.raises(ArtifactError) as error:
        fill(CountingEngine(), [Task((vocal, instrumental), [], [], {})], RESTRICTED)
    assert str(error.value) == text


def test_rows_of_real_numbers_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, {**CONFIG, "vocab_size": 100})
    tracks, results = random_tracks(20), []
    for rows in (1, 2):
        engine = open_engine(
            "native", folder, rows=rows, length=cache_length(20), device=torch.device("cpu"), dtype=torch.float32
        )
        [task] = tasks_of([tracks], "overlap", rows)
        [filled] = fill(engine, [task], RESTRICTED)
        results.append(assemble(20, task.windows, filled, TINY, restrict_picks=True))
    np.testing.assert_array_equal(results[0], results[1])


# Joining


def repaired(row: list[int]) -> list[int]:
    """Let `assemble` repair a row of codebook 1; the other rows hold code 0. Codes may be given as 8 and more."""
    ids = np.tile(20 + 8 * np.arange(8), (2, len(row), 1))
    ids[0, :, 1] = np.array(row) + 28
    windows = [Window(0, 0, len(row)), Window(1, 0, len(row))]
    vocal, _ = assemble(len(row), windows, dict(enumerate(ids.astype(np.int32))), TINY, restrict_picks=False)
    assert vocal.dtype == np.uint32
    codes: list[int] = vocal[1].tolist()
    return codes


def test_a_wrong_code_becomes_the_most_frequent_one() -> None:
    assert repaired([3, 3, 8, 5]) == [3, 3, 3, 5]


def test_of_equally_frequent_codes_the_first_is_taken() -> None:
    assert repaired([5, 9, 2, 2, 5]) == [5, 5, 2, 2, 5]


def test_the_most_frequent_value_may_be_wrong_itself() -> None:
    assert repaired([9, 9, 1, 8]) == [9, 9, 1, 9]


def test_too_small_ids_wrap_around() -> None:
    assert repaired([-3, -3, 1]) == [2**32 - 3, 2**32 - 3, 1]
