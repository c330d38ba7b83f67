"""One suite for every engine that is installed here. `test_checkpoints.py` has the errors of bad model folders."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from tests.tiny_llama import CONFIG, Tensors, plain_logits, random_tensors, write_checkpoint, write_quantized
from yue_cli.engines import available, describe, names, open_engine
from yue_cli.engines.base import Engine
from yue_cli.errors import EngineError

ROWS, LENGTH = 8, 1300
LONG = 1100  # more than two of the native engine's prefill chunks

# How far logits (about ±8) may be from an outside reference in float64 that gets the same rounded weights, and from
# the same engine on another way to the same numbers. A quantized model is compared with the weights that its values
# stand for: what quantizing itself changes is measured elsewhere, and is no business of an engine.
#   float32: sums in another order.
#   bfloat16: every activation is rounded to 8 bits, the logits themselves to steps of 0.03; quantized weights are
#   rounded to 8 bits once more when they are multiplied.
#   float16: every activation is rounded to 11 bits. Old GPUs and EXL2 weights compute in it.
TOLERANCES = {torch.float32: (2e-4, 1e-4), torch.bfloat16: (0.4, 0.25), torch.float16: (0.06, 0.04)}
# EXL2 weights times a few rows: exllamav2's kernel rounds every partial sum to 11 bits too and adds blocks of 32 to 64
# inputs in any order. Followed on a CPU, that puts logits off by 0.009 on average (0.0045 where products are rounded
# once) and the worst of two million by 0.11; a GPU gave 0.076 in one run of these tests.
ROUGH = (0.2, 0.2)
DTYPES = [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.gpu)]

# The forms of weights that each engine reads.
PLAIN = "plain"
FORMS = {"native": (PLAIN, "native-8bit", "native-4bit"), "exl2": (PLAIN,)}  # test_exl2_engine.py has EXL2 itself
MODELS = [
    pytest.param((name, form), id=f"{name}-{form}")
    for name, reason in available().items()
    if reason is None
    for form in FORMS[name]
]

# Where and how steps are computed. Prompts are read in the same way everywhere.
WAYS = [
    ("cpu", "eager"),
    ("cpu", "graphs"),
    *[pytest.param(("cuda", mode), marks=pytest.mark.gpu) for mode in ("eager", "graphs", "kernels")],
]

_opened: dict[tuple[str, str, str, str, torch.dtype], Engine] = {}
_written: dict[str, tuple[Path, Tensors]] = {}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Choose an engine and a form of weights."""
    name, form = request.param
    return name, form


@pytest.fixture
def name(model: tuple[str, str]) -> str:
    return model[0]


@pytest.fixture
def written(model: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors]:
    """Write each form of the checkpoint once; with the weights that it stands for."""
    form = model[1]
    if form not in _written:
        folder = tmp_path_factory.mktemp(form)
        if form == PLAIN:
            _written[form] = write_checkpoint(folder), random_tensors()
        else:
            _written[form] = write_quantized(folder, form)
    return _written[form]


@pytest.fixture
def checkpoint(written: tuple[Path, Tensors]) -> Path:
    return written[0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.fixture(params=WAYS, ids="-".join)
def way(request: pytest.FixtureRequest, dtype: torch.dtype) -> tuple[str, str]:
    """Choose a device and a mode."""
    place, mode = request.param
    if mode == "kernels" and dtype == torch.float32:
        pytest.skip("the kernels compute in 16 bits")
    return place, mode


@pytest.fixture
def engine(way: tuple[str, str], model: tuple[str, str], dtype: torch.dtype, checkpoint: Path) -> Engine:
    """Open each engine once for all tests: that a prefill starts fresh is one of the things tested."""
    key = (*model, *way, dtype)
    if key not in _opened:
        _opened[key] = opened(model[0], checkpoint, way, dtype)
    return _opened[key]


def opened(name: str, checkpoint: Path, way: tuple[str, str], dtype: torch.dtype) -> Engine:
    place, mode = way
    device = torch.device(place)
    return open_engine(name, checkpoint, rows=ROWS, length=LENGTH, device=device, dtype=dtype, mode=mode)


def random_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CONFIG["vocab_size"], count)


def columns(*rows: Sequence[int] | np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(rows))


def assert_close(dtype: torch.dtype, found: Tensor, expected: Tensor, *, outside: bool = False) -> None:
    assert found.dtype == torch.float32
    tolerance = TOLERANCES[dtype][0 if outside else 1]
    torch.testing.assert_close(found.double().cpu(), expected.double().cpu(), atol=tolerance, rtol=0)


def stepped(engine: Engine, prompt: np.ndarray, rest: np.ndarray) -> Tensor:
    """Read a prompt, then the rest one by one; the logits after the last."""
    logits = engine.prefill([prompt])
    for number in rest:
        logits = engine.step(columns([number]).to(engine.device))
    return logits


def test_logits_are_those_of_a_plain_llama(engine: Engine, dtype: torch.dtype, written: tuple[Path, Tensors]) -> None:
    tensors: Tensors = {key: value.to(dtype) for key, value in written[1].items()}
    ids = random_ids(40)
    expected = plain_logits(CONFIG, tensors, ids)
    assert_close(dtype, engine.prefill([ids[:30]])[0], expected[29], outside=True)
    assert_close(dtype, engine.step(columns(ids[30:32]).to(engine.device))[0], expected[31], outside=True)
    for position in range(32, 40):
        logits = engine.step(columns([ids[position]]).to(engine.device))
        assert_close(dtype, logits[0], expected[position], outside=True)


def test_a_long_prompt_is_read_as_a_plain_llama_would(
    engine: Engine, dtype: torch.dtype, written: tuple[Path, Tensors]
) -> None:
    tensors: Tensors = {key: value.to(dtype) for key, value in written[1].items()}
    ids = random_ids(LONG)
    assert_close(dtype, engine.prefill([ids])[0], plain_logits(CONFIG, tensors, ids)[-1], outside=True)


def test_a_prompt_in_chunks_equals_single_steps(engine: Engine, dtype: torch.dtype) -> None:
    ids = random_ids(LONG)
    assert_close(dtype, engine.prefill([ids]), stepped(engine, ids[:1000], ids[1000:]))


@pytest.mark.parametrize("start", [0, 5, 700, LONG - 1])
def test_following_a_row_gives_what_its_prompts_give(engine: Engine, dtype: torch.dtype, start: int) -> None:
    ids, head = random_ids(LONG), (range(100, 300), range(7, 8))
    pieces = list(engine.follow(ids, start, head))
    assert max(map(len, pieces)) <= 64
    found = torch.cat(pieces)
    assert found.shape == (LONG - start, 201)
    for position in {start, (start + LONG) // 2, LONG - 2, LONG - 1} - {start - 1}:
        assert_close(dtype, found[position - start], engine.prefill([ids[: position + 1]], head)[0])
    list(engine.follow(ids[:20], 3))
    assert_close(dtype, engine.step(columns(ids[20:21]).to(engine.device)), engine.prefill([ids[:21]]))


def test_every_engine_can_follow_a_row_by_steps(engine: Engine, dtype: torch.dtype) -> None:
    ids = random_ids(30)
    stepped = torch.cat(list(Engine.follow(engine, ids, 4)))
    assert_close(dtype, torch.cat(list(engine.follow(ids, 4))), stepped)


def test_equal_prompts_give_equal_bits_in_any_company(engine: Engine) -> None:
    ids, head = random_ids(700), (range(64),)
    first = engine.prefill([ids, random_ids(1)], head)
    engine.step(columns([1], [2]).to(engine.device))
    again = engine.prefill([ids, random_ids(900, seed=5)], head)
    assert torch.equal(first[0], again[0])


def alike_and_apart(engine: Engine) -> Iterator[tuple[Tensor, Tensor]]:
    """Read many prompts of one length, and each among others: pairs of logits that should be the same."""
    alike, step = [random_ids(40, seed=row) for row in range(ROWS)], columns(*[[7]] * ROWS).to(engine.device)
    together = [(engine.prefill(alike), engine.step(step)) for _ in range(3)]  # computed, recorded, played
    for row in range(ROWS):
        others = [random_ids(10 + number) for number in range(ROWS)]
        apart = engine.prefill([*others[:row], alike[row], *others[row + 1 :]]), engine.step(step)
        yield from ((there[row], here[row]) for known in together for there, here in zip(known, apart, strict=True))


def test_many_prompts_of_one_length_are_read_as_any_other(engine: Engine) -> None:
    assert all(torch.equal(there, here) for there, here in alike_and_apart(engine))


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=ROWS), steps=st.lists(st.integers(1, 3), max_size=3))
def test_ragged_rows_equal_single_rows(
    engine: Engine, dtype: torch.dtype, lengths: list[int], steps: list[int]
) -> None:
    prompts = [random_ids(length, seed=row) for row, length in enumerate(lengths)]
    known = [np.stack([random_ids(n, seed=100 * row + n) for row in range(len(lengths))]) for n in steps]
    together = [engine.prefill(prompts)] + [engine.step(torch.from_numpy(ids).to(engine.device)) for ids in known]
    for row, prompt in enumerate(prompts):
        alone = [engine.prefill([prompt])]
        alone += [engine.step(torch.from_numpy(ids[row : row + 1]).to(engine.device)) for ids in known]
        for number, logits in enumerate(alone):
            assert_close(dtype, together[number][row], logits[0])


def test_rows_do_not_see_each_other(engine: Engine, dtype: torch.dtype) -> None:
    mine, theirs = random_ids(20), [random_ids(20, seed=1), random_ids(20, seed=2)]
    results = []
    for other in theirs:
        engine.prefill([mine, other])
        results.append(engine.step(torch.stack([columns(mine[:1])[0], columns(other[:1])[0]]).to(engine.device))[0])
    assert torch.equal(results[0], results[1])


def test_a_step_of_several_ids_equals_several_steps(engine: Engine, dtype: torch.dtype) -> None:
    prompts, known = [random_ids(50), random_ids(20, seed=1)], columns(random_ids(3, 2), random_ids(3, 3))
    engine.prefill(prompts)
    at_once = engine.step(known.to(engine.device))
    engine.prefill(prompts)
    for column in known.split(1, dim=1):
        one_by_one = engine.step(column.to(engine.device))
    assert_close(dtype, at_once, one_by_one)


def test_rows_that_meet_at_one_position_go_on_together(engine: Engine, dtype: torch.dtype) -> None:
    ids = [random_ids(30, seed=row) for row in range(3)]
    engine.prefill([ids[0], ids[1], ids[2][:7]])
    known = columns([3, 4], [5, 6], [7, 8]).to(engine.device)
    together = engine.step(known)
    for row, prompt in enumerate([ids[0], ids[1], ids[2][:7]]):
        engine.prefill([prompt])
        assert_close(dtype, together[row], engine.step(known[row : row + 1])[0])


@pytest.mark.parametrize("head", [(range(10, 20),), (range(300, 512), range(5, 6)), (range(512),)])
def test_a_head_gives_the_columns_it_names(engine: Engine, dtype: torch.dtype, head: tuple[range, ...]) -> None:
    ids, wanted = random_ids(12), [number for part in head for number in part]
    whole = engine.prefill([ids])
    assert_close(dtype, engine.prefill([ids], head), whole[:, wanted])
    narrow = engine.step(columns([7]).to(engine.device), head)
    engine.prefill([ids])
    assert_close(dtype, narrow, engine.step(columns([7]).to(engine.device))[:, wanted])


def test_fuse_equals_a_step_and_a_pick(engine: Engine) -> None:
    def pick(logits: Tensor) -> Tensor:
        return logits.argmax(-1, keepdim=True) + 100

    prompts, head = [random_ids(9), random_ids(4, seed=1)], (range(100, 400),)
    first = pick(engine.prefill(prompts, head))
    expected = [first]
    for _ in range(6):
        expected.append(pick(engine.step(expected[-1], head)))
    assert torch.equal(pick(engine.prefill(prompts, head)), first)
    advance = engine.fuse(pick, head)
    found = [first]
    for _ in range(6):
        found.append(advance(found[-1]).clone())
    assert torch.equal(torch.cat(found, 1), torch.cat(expected, 1))


def test_a_fused_pick_keeps_what_it_remembers(engine: Engine) -> None:
    count = torch.zeros(1, dtype=torch.int64, device=engine.device)

    def pick(logits: Tensor) -> Tensor:
        count.add_(1)
        return count.expand(len(logits), 1)

    engine.prefill([random_ids(5)])
    advance = engine.fuse(pick)
    ids = columns([0]).to(engine.device)
    seen = []
    for _ in range(5):
        ids = advance(ids).clone()
        seen.append(int(ids))
    assert seen == [1, 2, 3, 4, 5]


def test_the_cache_can_be_filled_to_its_end(engine: Engine, dtype: torch.dtype) -> None:
    ids = random_ids(LENGTH)
    engine.prefill([ids[:-2]])
    last = engine.step(columns(ids[-2:]).to(engine.device))
    assert_close(dtype, last, engine.prefill([ids]))
    with pytest.raises(AssertionError, match="full"):
        engine.step(columns([1]).to(engine.device))


def test_an_engine_tells_its_facts(way: tuple[str, str], checkpoint: Path, dtype: torch.dtype, name: str) -> None:
    engine = opened(name, checkpoint, way, dtype)  # with nothing recorded yet
    facts = describe(checkpoint, dtype=dtype, engine=name)
    assert (engine.vocabulary_size, engine.rows, engine.length) == (CONFIG["vocab_size"], ROWS, LENGTH)
    assert facts.vocabulary_size == CONFIG["vocab_size"]
    assert facts.max_length == CONFIG["max_position_embeddings"]
    assert facts.cache_bytes_per_token == 2 * 2 * 2 * 64 * dtype.itemsize
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert facts.parameter_bytes == sum(
        tensor.numel() * dtype.itemsize if key.endswith(".weight") else tensor.nbytes for key, tensor in stored.items()
    )
    planned = facts.parameter_bytes + facts.cache_bytes_per_token * ROWS * LENGTH
    assert planned <= engine.memory < 1.2 * planned


def test_a_closed_engine_holds_no_memory(name: str, checkpoint: Path) -> None:
    engine = open_engine(name, checkpoint, rows=1, length=8, device=torch.device("cpu"), dtype=torch.float32)
    engine.prefill([random_ids(3)])
    engine.close()
    assert engine.memory == 0
    with pytest.raises(AssertionError, match="closed"):
        engine.prefill([random_ids(3)])


def test_auto_is_the_native_engine(plain: Path) -> None:
    engine = open_engine("auto", plain, rows=1, length=8, device=torch.device("cpu"), dtype=torch.float32)
    assert type(engine).__name__ == "NativeEngine"


def test_an_unknown_engine_names_the_known_ones(plain: Path) -> None:
    with pytest.raises(EngineError) as error:
        open_engine("vllm", plain, rows=1, length=8, device=torch.device("cpu"), dtype=torch.float32)
    assert str(error.value) == f"engine vllm: not known; expected one of {', '.join(['auto', *names()])}."


def test_an_engine_that_cannot_run_here_says_why(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yue_cli.engines.native.available", lambda: "it needs a CUDA GPU")
    with pytest.raises(EngineError) as error:
        open_engine("native", plain, rows=1, length=8, device=torch.device("cpu"), dtype=torch.float32)
    assert str(error.value) == "engine native cannot be used here: it needs a CUDA GPU."


def test_too_large_a_cache_is_one_line(plain: Path) -> None:
    with pytest.raises(EngineError) as error:
        open_engine("native", plain, rows=64, length=10**10, device=torch.device("cpu"), dtype=torch.float32)
    assert str(error.value) == (
        "cpu: not enough memory for 0.0 GB of weights and 1310720.0 GB of cache (64 rows of 10000000000 tokens); "
        "use fewer rows, a shorter context or a smaller model."
    )


def test_the_registry_loads_no_torch() -> None:
    code = "import sys, yue_cli.engines; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
