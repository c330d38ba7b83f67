"""What `benchmarks.folder` has engines do before it looks at the clock."""

from benchmarks.folder import filler, singer
from tests.counting_engine import CountingEngine
from yue_cli.vocab import CODEBOOKS, WINDOW_FRAMES, Vocabulary

VOCABULARY = Vocabulary()
SIZE = VOCABULARY.codebook_stop


def test_frames_are_filled_behind_those_that_are_there() -> None:
    engine = CountingEngine(vocabulary_size=SIZE)
    filler(engine, rows=2, filled=5)(3)
    (rows,) = engine.prefills
    frame = CODEBOOKS - 1
    assert [len(row) for row in rows] == [WINDOW_FRAMES + 3 + 5 * CODEBOOKS + 1] * 2
    coarse = rows[0][2 : 2 + WINDOW_FRAMES]
    assert rows[0][-1] == coarse[5]
    assert len(engine.steps) == 3 * frame - 1
    seconds = [ids for ids in engine.steps if len(ids[0]) == 2]  # a frame's first forward reads its given id, too
    assert [ids[0][-1] for ids in seconds] == coarse[6:8]


def test_tokens_are_sung_after_a_prompt() -> None:
    engine = CountingEngine(vocabulary_size=SIZE)
    watch = singer(engine, context=12)(20)
    ((prompt, free),) = engine.prefills
    assert (len(prompt), free) == (12, prompt[-1:])
    assert (len(engine.steps), watch.done) == (19, 20)
    assert watch.unit_s > 0
