"""The suite of every engine over EXL2 weights: with a stand-in for exllamav2's extension, and on a GPU with itself."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.random_exl2 import write_model
from tests import test_engines
from tests.exl2_reader import read_weights
from tests.exl2_stand_in import ExtensionStandIn
from tests.test_engines import LENGTH, ROWS, WAYS, alike_and_apart, assert_close, columns, random_ids
from tests.tiny_llama import CONFIG, Tensors, random_tensors
from yue_cli.engines import describe, open_engine
from yue_cli.engines.base import Engine
from yue_cli.engines.exl2 import extension

_OWN = {  # written anew below: partial sums of few rows come in any order, so last bits may differ
    "test_many_prompts_of_one_length_are_read_as_any_other",
    "test_rows_do_not_see_each_other",
    "test_fuse_equals_a_step_and_a_pick",
    "test_an_engine_tells_its_facts",
}
globals().update(
    {
        name: test
        for name, test in vars(test_engines).items()
        if name.startswith("test_") and name not in _OWN and "engine" in inspect.signature(test).parameters
    }
)

_opened: dict[tuple[str, str], Engine] = {}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors]:
    """Write the tiny model in 5.3 bits, with the weights that its values stand for."""
    folder, weights = tmp_path_factory.mktemp("exl2"), random_tensors()
    write_model(folder, CONFIG, 5.3, 6, generator=torch.Generator().manual_seed(0), weights=weights)
    sizes = {
        name.removesuffix(".weight"): len(weight)
        for name, weight in weights.items()
        if weight.ndim == 2 and "embed" not in name
    }
    return folder, read_weights(folder, sizes)


@pytest.fixture
def checkpoint(written: tuple[Path, Tensors]) -> Path:
    return written[0]


@pytest.fixture
def dtype() -> torch.dtype:
    return torch.float16


@pytest.fixture(autouse=True)
def tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(test_engines.TOLERANCES, torch.float16, test_engines.ROUGH)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> ExtensionStandIn:
    """Have an extension that computes on the CPU."""
    stand_in = ExtensionStandIn()
    monkeypatch.setattr(extension, "reason", lambda: None)
    monkeypatch.setattr(extension, "load", lambda emit: stand_in)
    monkeypatch.setattr(extension, "DEVICE", "cpu")
    return stand_in


@pytest.fixture(params=WAYS, ids="-".join)
def engine(request: pytest.FixtureRequest, checkpoint: Path) -> Engine:
    place, mode = request.param
    if request.param not in _opened:
        if place == "cpu":
            request.getfixturevalue("here")
        _opened[request.param] = opened(checkpoint, torch.device(place), mode=mode)
    return _opened[request.param]


def opened(checkpoint: Path, device: torch.device, mode: str = "auto", cache: str = "auto") -> Engine:
    dtype = torch.float32  # whatever is asked for
    return open_engine("auto", checkpoint, rows=ROWS, length=LENGTH, device=device, dtype=dtype, mode=mode, cache=cache)


def test_many_prompts_of_one_length_are_read_as_any_other(engine: Engine, dtype: torch.dtype) -> None:
    for there, here in alike_and_apart(engine):
        assert_close(dtype, there, here)


def test_rows_do_not_see_each_other(engine: Engine, dtype: torch.dtype) -> None:
    mine, theirs = random_ids(20), [random_ids(20, seed=1), random_ids(20, seed=2)]
    results = []
    for other in theirs:
        engine.prefill([mine, other])
        results.append(engine.step(torch.stack([columns(mine[:1])[0], columns(other[:1])[0]]).to(engine.device))[0])
    assert_close(dtype, results[0], results[1])


def test_fused_steps_see_what_single_steps_see(engine: Engine, dtype: torch.dtype) -> None:
    prompts, head = [random_ids(9), random_ids(4, seed=1)], (range(100, 400),)
    engine.prefill(prompts, head)
    ids = columns([7], [8]).to(engine.device)
    expected = [engine.step(ids, head) for _ in range(6)]
    seen = torch.zeros_like(expected[0])

    def pick(logits: Tensor) -> Tensor:
        seen.copy_(logits)
        return ids

    engine.prefill(prompts, head)
    advance, given = engine.fuse(pick, head), ids
    for logits in expected:
        given = advance(given).clone()
        assert_close(dtype, seen, logits)


def test_an_engine_tells_its_facts(engine: Engine, checkpoint: Path) -> None:
    facts = describe(checkpoint, dtype=torch.float32)
    assert (facts.engine, facts.dtype, facts.deterministic) == ("exl2", "float16", False)
    assert (engine.vocabulary_size, engine.rows, engine.length) == (CONFIG["vocab_size"], ROWS, LENGTH)
    assert facts.vocabulary_size == CONFIG["vocab_size"]
    assert facts.max_length == CONFIG["max_position_embeddings"]
    assert facts.cache_bytes_per_token == 2 * 2 * 2 * 64 * 2
    planned = facts.parameter_bytes + facts.cache_bytes_per_token * ROWS * LENGTH
    recorded = 2 << 21 if engine.device.type == "cuda" else 0  # what graphs of other tests may hold: two blocks
    assert planned <= engine.memory < 1.2 * planned + recorded


@pytest.mark.parametrize(("bits", "most"), [(8, 0.3), (6, 1.0), (4, 4.0)])
def test_keys_and_values_may_have_fewer_bits(here: ExtensionStandIn, checkpoint: Path, bits: int, most: float) -> None:
    plain = opened(checkpoint, torch.device("cpu"))
    small = opened(checkpoint, torch.device("cpu"), cache=f"int{bits}")
    facts = describe(checkpoint, dtype=torch.float32, cache=f"int{bits}")
    assert facts.cache_bytes_per_token == 2 * 2 * 2 * (8 * bits + 4)
    assert small.memory < plain.memory
    ids = random_ids(40)
    difference = (small.prefill([ids]) - plain.prefill([ids])).abs().max()
    assert 0 < difference < most


def test_what_is_planned_is_what_the_weights_take(here: ExtensionStandIn, checkpoint: Path) -> None:
    engine = open_engine("exl2", checkpoint, rows=1, length=1, device=torch.device("cpu"), dtype=torch.float32)
    rest = 2 * 2 * 2 * 64 * 2 + 2 * 32 * 4  # cache and rotary tables of one token
    scratch = 15 * 2  # of each matrix
    assert engine.memory == describe(checkpoint, dtype=torch.float32).parameter_bytes + rest + scratch


def test_a_closed_engine_gives_everything_back(here: ExtensionStandIn, checkpoint: Path) -> None:
    engine = opened(checkpoint, torch.device("cpu"))
    engine.prefill([random_ids(3)], (range(10, 20),))
    assert here.open_handles == 15
    engine.close()
    assert (engine.memory, here.open_handles) == (0, 0)
