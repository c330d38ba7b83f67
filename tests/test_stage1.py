"""Stage 1 on an engine that answers by a rule, and on a tiny LLaMA where numbers matter."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.counting_engine import CountingEngine
from tests.tiny_llama import CONFIG, write_checkpoint
from yue_cli.engines import open_engine
from yue_cli.engines.base import Engine
from yue_cli.errors import ArtifactError, ContextError
from yue_cli.events import Event, Finished, Progress
from yue_cli.prompt import Prompts
from yue_cli.settings import Settings, Stage1Settings, resolve
from yue_cli.stages.stage1 import Segment, Task, allowed_ids, generate, needed_length, needed_rows, split
from yue_cli.vocab import Vocabulary

# 40 ids: start of audio 11, end 12, separator 15, codebook 0 is 20..27, codebook 1 28..35.
START, END, SEPARATOR, CODE = 11, 12, 15, 20
TINY = Vocabulary(
    specials={"<SOA>": START, "<EOA>": END, "<stage_1>": 13, "<stage_2>": 14},
    separator=SEPARATOR,
    codebook_start=CODE,
    codebook_size=8,
    codebooks=2,
)
HEAD = [1, 2, 3, 4]


def ids_of(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def make_prompts(segments: int = 3, reference: Sequence[int] = ()) -> Prompts:
    return Prompts(
        head=ids_of(*HEAD),
        reference=ids_of(*reference),
        segments=tuple(ids_of(*([7] if number else []), 6, number, START, SEPARATOR) for number in range(segments)),
        start_of_segment=ids_of(6),
        end_of_segment=ids_of(7),
        end_of_audio=END,
    )


def stage1_settings(**values: Any) -> Stage1Settings:
    return resolve(Settings(stage1=Stage1Settings(**{"min_new_tokens": 0, "max_new_tokens": 6, **values}))).stage1


def climb(ids: list[int]) -> int:
    """Sing the eight codes upwards, from where the last one was; end after code 4."""
    return END if ids[-1] == CODE + 4 else max(ids[-1] + 1, CODE)


def sing(
    engine: Engine,
    prompts: Prompts,
    settings: Stage1Settings,
    *,
    seeds: Sequence[int | None] = (None, None, None),
    finished: Sequence[np.ndarray] = (),
    rules: str = "yue",
    emit: Callable[[Event], None] = lambda event: None,
) -> list[Segment]:
    task = Task(prompts, seeds, finished, tags=["verse", "chorus", "outro"])
    sung = generate(engine, TINY, [task], settings=settings, rules=rules, emit=emit)
    return [segment for _, segment in sung]


def test_every_segment_reads_all_that_was_sung_before() -> None:
    engine = CountingEngine(climb, vocabulary_size=40)
    segments = sing(engine, make_prompts(), stage1_settings(repetition_penalty=1.0))
    song = [20, 21, 22, 23, 24, END]
    assert [segment.ids.tolist() for segment in segments] == [song] * 3
    assert [segment.ids.dtype for segment in segments] == [np.int32] * 3
    first = [*HEAD, 6, 0, START, SEPARATOR]
    second = [*first, *song, 7, 6, 1, START, SEPARATOR]
    assert [rows[0] for rows in engine.prefills] == [first, second, [*second, *song, 7, 6, 2, START, SEPARATOR]]


def test_the_unconditional_row_begins_with_the_last_prompt_id() -> None:
    engine = CountingEngine(climb, vocabulary_size=40)
    sing(engine, make_prompts(), stage1_settings())
    assert [rows[1] for rows in engine.prefills] == [[SEPARATOR]] * 3
    assert engine.heads[0] is None


def test_without_guidance_one_row_and_the_allowed_head_are_computed() -> None:
    engine = CountingEngine(climb, vocabulary_size=40, rows=1)
    settings = stage1_settings(guidance_first=1.0, guidance_later=1.0, repetition_penalty=1.0)
    segments = sing(engine, make_prompts(), settings)
    assert needed_rows(settings) == 1
    assert segments[0].ids.tolist() == [20, 21, 22, 23, 24, END]
    assert set(engine.heads) == {(range(20, 28), range(12, 13))}


def test_guidance_may_be_on_for_one_part_only() -> None:
    engine = CountingEngine(climb, vocabulary_size=40)
    settings = stage1_settings(guidance_later=1.0)
    sing(engine, make_prompts(), settings)
    assert needed_rows(settings) == 2
    assert [len(rows) for rows in engine.prefills] == [2, 1, 1]


def test_a_segment_that_is_too_long_is_cut_and_closed() -> None:
    engine = CountingEngine(climb, vocabulary_size=40)
    segments = sing(engine, make_prompts(), stage1_settings(max_new_tokens=3, repetition_penalty=1.0))
    assert segments[0].ids.tolist() == [20, 21, 22, END]
    assert segments[0].truncated


def test_an_end_at_the_last_moment_is_no_cut() -> None:
    engine = CountingEngine(climb, vocabulary_size=40)
    segments = sing(engine, make_prompts(), stage1_settings(max_new_tokens=6, repetition_penalty=1.0))
    assert not segments[0].truncated


def test_the_engine_needs_no_more_room_than_said() -> None:
    prompts, settings = make_prompts(), stage1_settings(repetition_penalty=1.0)
    length = needed_length(prompts, settings, 3)
    assert length == len(HEAD) + 4 + 5 + 5 + 3 * 7
    sing(CountingEngine(lambda ids: CODE, vocabulary_size=40, length=length), prompts, settings)
    assert needed_length(prompts, stage1_settings(context=16), 3) == 16
    assert needed_length(prompts, settings, 1) == len(HEAD) + 4 + 7


def test_a_context_that_is_full_never_grows_past_its_length() -> None:
    settings = stage1_settings(context=26, on_overflow="drop_oldest")
    engine = CountingEngine(lambda ids: CODE, vocabulary_size=40, length=needed_length(make_prompts(), settings, 3))
    sing(engine, make_prompts(), settings)
    assert engine.prefills[2][0] == [*HEAD, 6, 2, START, SEPARATOR]


def test_a_prompt_that_does_not_fit_says_so() -> None:
    with pytest.raises(ContextError, match=r"segment 2: its prompt has 20 tokens, expected at most 19"):
        sing(
            CountingEngine(lambda ids: CODE, vocabulary_size=40),
            make_prompts(),
            stage1_settings(context=26, on_overflow="error"),
        )


def test_events_tell_each_segment() -> None:
    events: list[Event] = []
    engine = CountingEngine(climb, vocabulary_size=40)
    sing(engine, make_prompts(), stage1_settings(repetition_penalty=1.0), seeds=[None], emit=events.append)
    assert isinstance(events[0], Progress)
    assert (events[0].topic, events[0].label, events[0].total, events[0].unit) == ("stage 1", "1/1 verse", 6, "tokens")
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.topic, last.label, last.done, last.unit, last.music_s) == ("stage 1", "1/1 verse", 6, "tokens", 0.06)


# With real numbers


@pytest.fixture(scope="module")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = write_checkpoint(tmp_path_factory.mktemp("tiny"), {**CONFIG, "vocab_size": 40})
    return open_engine("native", folder, rows=2, length=200, device=torch.device("cpu"), dtype=torch.bfloat16)


def test_a_resumed_song_is_the_undisturbed_one(tiny_engine: Engine) -> None:
    settings = stage1_settings(max_new_tokens=30, min_new_tokens=8)
    whole = sing(tiny_engine, make_prompts(), settings, seeds=[5, 6, 7])
    for done in range(4):
        finished = [segment.ids for segment in whole[:done]]
        rest = sing(tiny_engine, make_prompts(), settings, seeds=[5, 6, 7], finished=finished)
        assert [segment.ids.tolist() for segment in [*whole[:done], *rest]] == [s.ids.tolist() for s in whole]


def test_a_seed_belongs_to_its_segment(tiny_engine: Engine) -> None:
    settings = stage1_settings(max_new_tokens=30, min_new_tokens=8)
    first = sing(tiny_engine, make_prompts(), settings, seeds=[5, 6])
    second = sing(tiny_engine, make_prompts(), settings, seeds=[5, 9])
    assert first[0].ids.tolist() == second[0].ids.tolist()
    assert first[1].ids.tolist() != second[1].ids.tolist()


@pytest.mark.parametrize("rules", ["yue", "original", "exl2"])
def test_only_allowed_ids_are_sung(tiny_engine: Engine, rules: str) -> None:
    settings = stage1_settings(max_new_tokens=40, min_new_tokens=8, top_k=0, top_p=1.0, temperature=5.0)
    sung = {
        int(number)
        for segment in sing(tiny_engine, make_prompts(), settings, rules=rules, seeds=[1, 2, 3])
        for number in segment.ids
    }
    allowed = {number for part in allowed_ids(rules, TINY, 40) for number in part}
    assert sung <= allowed
    if rules != "yue":
        assert sung - set(range(20, 28)) - {END}


def test_allowed_ids_of_the_published_model() -> None:
    published, size = Vocabulary(), 83968
    parts = {rules: allowed_ids(rules, published, size) for rules in ("yue", "original", "exl2")}
    ids = {rules: sorted(number for part in parts[rules] for number in part) for rules in parts}
    assert ids["yue"] == [32002, *range(45334, 46358)]
    assert ids["original"] == list(range(32002, 83968))
    assert ids["exl2"] == [32002, *range(45334, 56722)]
    assert all(parts[rules][:2] == (range(45334, 46358), range(32002, 32003)) for rules in parts)


# Taking the output apart


def song_ids(*stretches: Sequence[int]) -> np.ndarray:
    return np.concatenate([[*HEAD, START, SEPARATOR, *stretch, END] for stretch in stretches])


def test_ids_are_dealt_to_the_two_tracks_in_turn() -> None:
    vocal, instrumental = split(song_ids([20, 21, 22, 23], [24, 25]), TINY, skip_reference=False)
    assert (vocal.tolist(), instrumental.tolist()) == ([[0, 2, 4]], [[1, 3, 5]])
    assert (vocal.dtype, vocal.shape) == (np.uint32, (1, 3))


def test_a_reference_and_an_odd_last_code_are_left_out() -> None:
    vocal, instrumental = split(song_ids([27, 27], [20, 21, 22]), TINY, skip_reference=True)
    assert (vocal.tolist(), instrumental.tolist()) == ([[0]], [[1]])


def test_segments_without_codes_give_no_frames() -> None:
    vocal, instrumental = split(song_ids([], [20]), TINY, skip_reference=False)
    assert vocal.shape == instrumental.shape == (1, 0)


def test_a_code_of_a_later_codebook_is_above_the_first() -> None:
    vocal, instrumental = split(song_ids([20, 21, 22, 30]), TINY, skip_reference=False)
    assert (vocal.tolist(), instrumental.tolist()) == ([[0, 2]], [[1, 10]])


def test_stretches_that_do_not_close() -> None:
    with pytest.raises(ArtifactError) as error:
        split(np.append(song_ids([20, 21]), START), TINY, skip_reference=False)
    assert str(error.value) == (
        "stage 1: its output has 2 starts of audio (id 11) but 1 ends (id 12); remove control strings such as <SOA> "
        "from the lyrics."
    )


@pytest.mark.parametrize(
    ("wrong", "expected"), [([20, 21, 22, 5], "20 to 35"), ([20, 21, 22, 36], "20 to 35"), ([30, 21], "20 to 27")]
)
def test_ids_that_are_no_codes(wrong: list[int], expected: str) -> None:
    with pytest.raises(ArtifactError) as error:
        split(song_ids([20, 21], wrong), TINY, skip_reference=False)
    found = next(number for number in wrong if number not in range(20, 28))
    assert str(error.value) == (
        f"stage 1: segment 2 holds id {found}, which is no code here; expected {expected}. "
        "`--set rules=yue` allows codes of codebook 0 only."
    )
