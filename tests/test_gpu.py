"""What only a GPU can show: recorded steps, their repeatability, and how they end. Run by `pytest -m gpu`."""

import gc
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_llama import write_checkpoint
from yue_cli.engines import open_engine
from yue_cli.engines.base import Engine
from yue_cli.engines.native.engine import NativeEngine
from yue_cli.engines.native.recorder import Recorder
from yue_cli.errors import OutOfMemory
from yue_cli.generation import Choice, fill_frames, sample_until
from yue_cli.sampling import Noise, Sampler, most_likely
from yue_cli.settings import Settings, resolve
from yue_cli.vocab import Vocabulary

pytestmark = pytest.mark.gpu

SPECIALS = {"<SOA>": 300, "<EOA>": 301, "<stage_1>": 302, "<stage_2>": 303}
VOCABULARY = Vocabulary(SPECIALS, separator=304, codebook_start=310, codebook_size=20, codebooks=8)
MODES = ["eager", "graphs", "kernels"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=MODES)
def engine(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[Engine]:
    opened = open_cuda(checkpoint, request.param)
    yield opened
    opened.close()


def open_cuda(checkpoint: Path, mode: str, *, device: str = "cuda", rows: int = 4, cache: str = "auto") -> Engine:
    return open_engine(
        "native",
        checkpoint,
        rows=rows,
        length=1400,
        device=torch.device(device),
        dtype=torch.bfloat16,
        mode=mode,
        cache=cache,
    )


def sing(engine: Engine, seed: int, limit: int = 300) -> list[int]:
    """Sample with guidance, across two extents of attention and many blocks of noise."""
    window = np.random.default_rng(0).integers(0, 300, 900)
    settings = resolve(Settings()).stage1
    allowed = (VOCABULARY.codebook(0), range(301, 302))
    sampler = Sampler(VOCABULARY, allowed, settings, guided=True, device=engine.device)
    sampler.begin([window], strengths=[1.5], noise=[Noise(seed, 0)])
    advance = engine.fuse(sampler.pick, sampler.head)
    found: list[int] = sample_until(engine, [window, window[-1:]], sampler, advance, end=-1, limit=limit)[0].tolist()
    return found


def test_the_same_seed_gives_the_same_tokens(engine: Engine) -> None:
    assert sing(engine, 1) == sing(engine, 1)
    assert sing(engine, 1) != sing(engine, 2)


@pytest.mark.parametrize("mode", MODES)
def test_a_new_engine_gives_the_same_tokens(mode: str, checkpoint: Path) -> None:
    assert sing(open_cuda(checkpoint, mode), 1) == sing(open_cuda(checkpoint, mode), 1)


@pytest.mark.parametrize("cache", ["auto", "int8", "int6", "int4"])
def test_frames_are_the_same_from_run_to_run(engine: Engine, cache: str, checkpoint: Path) -> None:
    opened = open_cuda(checkpoint, engine.mode.name, cache=cache)  # type: ignore[attr-defined]
    given = np.random.default_rng(3).integers(310, 330, (2, 60))
    heads = [VOCABULARY.codebook(index) for index in range(1, 8)]
    choices = [Choice.of(opened, partial(most_likely, head.start), (head,)) for head in heads]

    def decode() -> np.ndarray:
        return fill_frames(opened, np.full((2, 70), 7), given, choices)

    np.testing.assert_array_equal(decode(), decode())


@pytest.mark.parametrize("mode", ["graphs", "kernels"])
def test_a_step_waits_for_nothing(mode: str, checkpoint: Path) -> None:
    engine = open_cuda(checkpoint, mode)
    advance = engine.fuse(lambda logits: logits.argmax(-1, keepdim=True))
    ids = engine.prefill([np.arange(5), np.arange(9)]).argmax(-1, keepdim=True)
    advance(ids)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.step(ids)
        ids = advance(ids)  # is recorded, …
        ids = advance(ids)  # … and played
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert "1 graphs recorded in" in engine.cost


@pytest.mark.parametrize("mode", ["graphs", "kernels"])
def test_a_pick_that_is_like_another_is_recorded_at_once(mode: str, checkpoint: Path) -> None:
    engine, unrecorded = open_cuda(checkpoint, mode), open_cuda(checkpoint, mode)
    assert isinstance(engine, NativeEngine) and isinstance(unrecorded, NativeEngine)
    unrecorded._recorder = Recorder(engine.device, is_idle=True)
    heads = [range(20 * index, 20 * index + 20) for index in range(3)]
    picks = [[each.fuse(partial(most_likely, head.start), (head,)) for head in heads] for each in (engine, unrecorded)]
    ids, expected = (each.prefill([np.arange(70)] * 2).argmax(-1, keepdim=True) for each in (engine, unrecorded))
    for number in range(6):
        ids, expected = (turns[number % 3](given) for turns, given in zip(picks, (ids, expected), strict=True))
        assert torch.equal(ids, expected), f"pick {number}"
        assert engine._recorder.count == (0, 1, 2, 3, 3, 3)[number]
    assert engine._recorder.trouble == ""


@pytest.mark.parametrize("mode", ["graphs", "kernels"])
def test_what_was_recorded_is_given_back(mode: str, checkpoint: Path) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    engine = open_cuda(checkpoint, mode)
    sing(engine, 1, limit=40)
    assert engine.memory > 0
    engine.close()
    assert engine.memory == 0
    del engine
    # A library may keep a workspace for the stream that was recorded.
    assert torch.cuda.memory_allocated() - before < 10**8


def test_a_lost_graph_does_not_spoil_another() -> None:
    device, x = torch.device("cuda"), torch.ones(3, device="cuda")

    def lose() -> None:
        recorder = Recorder(device)
        for _ in range(2):
            recorder.play("lost", lambda: x + 1)
        recorder.itself = recorder  # type: ignore[attr-defined]

    def call() -> torch.Tensor:
        littered = [[number] for number in range(10_000)]  # Python would collect garbage several times
        return x * len(littered)

    gc.collect()
    lose()
    recorder = Recorder(device)
    assert [recorder.play("kept", call).tolist() for _ in range(3)] == [[10_000.0] * 3] * 3
    assert recorder.count == 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("mode", MODES)
def test_a_second_gpu_gives_the_tokens_of_the_first(mode: str, checkpoint: Path) -> None:
    assert torch.cuda.current_device() == 0
    assert sing(open_cuda(checkpoint, mode, device="cuda:1"), 1) == sing(open_cuda(checkpoint, mode), 1)


def test_an_interruption_is_answered_within_a_second(engine: Engine) -> None:
    sing(engine, 1, limit=40)  # compiles

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            for seed in range(10_000):
                sing(engine, seed, limit=400)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 1.05
    assert sing(engine, 1) == sing(engine, 1)


def test_too_large_a_cache_is_one_line(checkpoint: Path) -> None:
    with pytest.raises(OutOfMemory) as error:
        open_engine(
            "native",
            checkpoint,
            rows=64,
            length=10**8,
            device=torch.device("cuda"),
            dtype=torch.bfloat16,
        )
    assert str(error.value).startswith("cuda: not enough memory (")
    assert " GB are free) for 0.0 GB of weights and " in str(error.value)
