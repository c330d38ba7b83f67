"""How the native engine computes a step: what is chosen, what it falls back to, and that all ways agree."""

import gc
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny_llama import CONFIG, write_checkpoint
from yue_cli.engines import describe, open_engine
from yue_cli.engines.base import Engine
from yue_cli.engines.native import attention, modes
from yue_cli.engines.native.cache import from_bytes, make, to_bytes
from yue_cli.engines.native.config import LlamaConfig
from yue_cli.engines.native.engine import NativeEngine
from yue_cli.engines.native.recorder import Recorder
from yue_cli.errors import EngineError, OutOfMemory

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZES: dict[str, Any] = {
    "hidden": 4096,
    "inner": 11008,
    "layers": 32,
    "heads": 32,
    "key_value_heads": 4,
    "head_size": 128,
    "vocabulary_size": 83968,
    "max_length": 16384,
    "rope_theta": 10000.0,
    "norm_epsilon": 1e-5,
    "tied": False,
}


class Kernels:
    """Stands for the module of kernels where Triton can be imported."""

    INTERPRETED = False
    TRITON = 3, 6


@pytest.fixture
def triton_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yue_cli.engines.native.kernels", Kernels)  # type: ignore[arg-type]


@pytest.fixture
def triton_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "yue_cli.engines.native.kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


def chosen(
    wanted: str,
    capability: float | None = 9.0,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device = CUDA,
    **to: int,
) -> modes.Mode:
    return modes.choose(wanted, LlamaConfig(**(SIZES | to)), device=device, dtype=dtype, capability=capability)


def open_tiny(checkpoint: Path, mode: str, cache: str = "auto", length: int = 1300, rows: int = 2) -> Engine:
    return open_engine(
        "native", checkpoint, rows=rows, length=length, device=CPU, dtype=torch.float32, mode=mode, cache=cache
    )


@pytest.mark.usefixtures("triton_there")
def test_a_gpu_with_triton_runs_the_kernels() -> None:
    assert chosen("auto").describe(CUDA) == "CUDA graphs, Triton kernels"
    assert chosen("auto", capability=8.0, dtype=torch.float16).name == "kernels"
    assert chosen("graphs").describe(CUDA) == "CUDA graphs, PyTorch's operations"
    assert chosen("eager").describe(CUDA) == "one operation after the other"


@pytest.mark.usefixtures("triton_there")
@pytest.mark.parametrize(
    ("to", "why"),
    [
        ({"capability": 7.5}, "they need a GPU of compute capability 8, this one has 7.5"),
        ({"dtype": torch.float32}, "they compute in bfloat16 or float16, not float32"),
        ({"head_size": 80}, "they do not take heads of 80"),
        ({"key_value_heads": 1, "heads": 64}, "they do not take 64 heads to a key"),
        ({"key_value_heads": 2, "heads": 6}, "they do not take 3 heads to a key"),
        ({"inner": 11000}, "they take multiples of 64 only, and intermediate_size is 11000"),
    ],
)
def test_without_kernels_the_graphs_are_there(to: dict[str, Any], why: str) -> None:
    found = chosen("auto", **to)
    assert found.describe(CUDA) == f"CUDA graphs, PyTorch's operations (no kernels: {why})"
    with pytest.raises(EngineError) as error:
        chosen("kernels", **to)
    assert str(error.value) == f"execution.mode is kernels, but {why}; use auto, graphs or eager."


@pytest.mark.usefixtures("triton_there")
def test_an_old_triton_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kernels, "TRITON", (3, 4))
    why = "they need Triton 3.5 or newer, this is 3.4: a newer PyTorch brings it"
    assert chosen("auto") == modes.Mode("graphs", f"no kernels: {why}")


@pytest.mark.usefixtures("triton_absent")
def test_without_triton_the_graphs_are_there() -> None:
    why = "Triton cannot be used here (import of triton halted; None in sys.modules)"
    assert chosen("auto") == modes.Mode("graphs", f"no kernels: {why}")
    with pytest.raises(EngineError, match=r"execution\.mode is kernels, but Triton cannot be used here"):
        chosen("kernels")


@pytest.mark.usefixtures("triton_there")
def test_a_cpu_computes_one_operation_after_the_other(checkpoint: Path) -> None:
    assert chosen("auto", capability=None, device=CPU).name == "eager"
    engine = open_tiny(checkpoint, "auto")
    assert (engine.how, engine.falls_back) == ("one operation after the other", False)
    assert open_tiny(checkpoint, "graphs").how == "no graphs on this device, PyTorch's operations"
    with pytest.raises(EngineError) as error:
        open_tiny(checkpoint, "kernels")
    expected = "execution.mode is kernels, but they run on CUDA GPUs only; use auto, graphs or eager."
    assert str(error.value) == expected


def test_a_wrong_wish_is_refused_before_anything_is_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yue_cli.engines.native.engine.load", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(EngineError, match=r"execution\.mode is kernels"):
        open_tiny(checkpoint, "kernels")


def test_a_capability_can_be_pretended() -> None:
    assert modes.capability_of(CPU, 9.0) is None
    assert modes.capability_of(CUDA, 7.5) == 7.5


# All ways agree


def random_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CONFIG["vocab_size"], count)


@pytest.mark.parametrize("cache", ["auto", "int8", "int6", "int4"])
def test_graphs_give_the_eager_ids(checkpoint: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the first extent, with one id and two in turn: the most likely ids are the same ones."""
    monkeypatch.setattr("yue_cli.engines.native.positioned._SMALLEST_EXTENT", 1024)

    def run(mode: str) -> list[list[int]]:
        engine = open_tiny(checkpoint, mode, cache)
        advance = engine.fuse(lambda logits: logits.argmax(-1, keepdim=True))
        ids = engine.prefill([random_ids(1015), random_ids(3, seed=1)]).argmax(-1, keepdim=True)
        found = []
        for step in range(12):
            ids = advance(torch.cat([ids, ids], dim=1) if step % 3 == 2 else ids).clone()
            found.append(ids.ravel().tolist())
        return found

    assert run("graphs") == run("eager")


def test_extents_grow_by_doubling_up_to_the_length(checkpoint: Path) -> None:
    engine = open_tiny(checkpoint, "graphs", length=5000)
    assert isinstance(engine, NativeEngine)
    step = engine._step
    assert step is not None
    assert [step.extent(needed) for needed in (1, 2048, 2049, 4097, 5000)] == [2048, 2048, 4096, 5000, 5000]


def test_rows_in_line_hold_every_place_of_every_row() -> None:
    whole = torch.arange(3 * 2 * 7 * 4).view(3, 2, 7, 4)
    for cache in (whole, whole[:, :, :5], whole[1:3, :, :1], whole[2:]):
        line = attention.rows_in_line(cache)
        assert line.shape[1:] == (2, 4)
        for row in range(len(cache)):
            start = row * cache.stride(0) // 4
            assert torch.equal(line[start : start + cache.shape[2]], cache[row].transpose(0, 1))


def test_flash_attention_is_for_halves_on_newer_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    assert attention.can_flash(CUDA, torch.bfloat16, 128, 8.0)
    assert not attention.can_flash(CPU, torch.bfloat16, 128, 8.0)
    assert not attention.can_flash(CUDA, torch.float32, 128, 8.0)
    assert not attention.can_flash(CUDA, torch.float16, 128, 7.5)
    assert not attention.can_flash(CUDA, torch.float16, 512, 9.0)


# Keys and values in bytes


def test_bytes_are_near_what_they_stand_for() -> None:
    numbers = torch.randn(5, 3, 64) * torch.tensor([1e-4, 1.0, 300.0])[:, None]
    bytes_, scales = to_bytes(numbers)
    assert (bytes_.dtype, scales.shape) == (torch.int8, (5, 3))
    largest = numbers.abs().amax(-1, keepdim=True)
    assert ((from_bytes(bytes_, scales) - numbers).abs() <= 0.501 / 127 * largest).all()


def test_the_largest_number_and_zero_are_exact() -> None:
    numbers = torch.tensor([[-2.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    bytes_, scales = to_bytes(numbers)
    assert bytes_.tolist() == [[-127, 0, 127], [0, 0, 0]]
    torch.testing.assert_close(from_bytes(bytes_, scales), numbers)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_a_cache_takes_as_many_bits_a_number_as_its_name_says(checkpoint: Path, bits: int) -> None:
    facts = [describe(checkpoint, dtype=torch.bfloat16, cache=cache) for cache in ("auto", f"int{bits}")]
    head = 8 * bits + 4  # bytes of 64 numbers and of their scale
    assert [fact.cache_bytes_per_token for fact in facts] == [2 * 2 * 2 * 64 * 2, 2 * 2 * 2 * head]
    engine = open_tiny(checkpoint, "eager", cache=f"int{bits}")
    plain = open_tiny(checkpoint, "eager")
    # In bytes there are places for so many ids that 64 divides them.
    assert plain.memory - engine.memory == 2 * 2 * 2 * 2 * (1300 * 64 * 4 - 1344 * head)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.04), (6, 0.12), (4, 0.5)])
def test_a_cache_in_bytes_changes_little(checkpoint: Path, bits: int, most: float) -> None:
    """In 8 bits 2 % of the logits' size, as random weights make the most of it. Any slip in a place is far above."""
    ids, known = [random_ids(600), random_ids(40, seed=1)], torch.from_numpy(random_ids(2, seed=2))[:, None]
    found: list[Tensor] = []
    for cache in ("auto", f"int{bits}"):
        engine = open_tiny(checkpoint, "eager", cache)
        engine.prefill(ids)
        found.append(engine.step(known))
    difference = (found[0] - found[1]).norm() / found[0].norm()
    assert 0 < difference < most


@pytest.mark.parametrize(("cache", "close"), [("int8", 0.02), ("int6", 0.07), ("int4", 0.3)])
def test_a_cache_in_bytes_gives_back_what_was_written_at_places(cache: str, close: float) -> None:
    keys, values = torch.randn(2, 2, 2, 3, 8, generator=torch.Generator().manual_seed(0))  # each [rows, heads, n, size]
    config = LlamaConfig(**SIZES | {"layers": 2, "key_value_heads": 2, "head_size": 8})
    caches = make(cache, config, rows=3, length=70, like=torch.zeros(1))
    caches[0].write(slice(2), 62, keys, values)
    caches[1].write_at(torch.arange(62, 65).expand(2, 3), keys, values)
    for stop in (3, 64):  # features of a place side by side, places of a head, too
        assert [part.stride()[2:] for part in caches[0].read(slice(1), stop)] == [(8, 1)] * 2
    for found, same, written in zip(*(cache.read(slice(2), 65) for cache in caches), (keys, values), strict=True):
        assert torch.equal(found, same)
        assert (found[:, :, :62] == 0).all()
        torch.testing.assert_close(found[:, :, 62:], written, atol=close, rtol=0)


@pytest.mark.parametrize("format_", ["int8", "int6", "int4"])
def test_an_empty_cache_in_bytes_is_finite(format_: str) -> None:
    config = LlamaConfig(**SIZES | {"layers": 1, "key_value_heads": 2, "head_size": 8})
    [cache] = make(format_, config, rows=1, length=3, like=torch.zeros(1))
    keys, values = cache.read(slice(1), 3)
    assert torch.equal(keys, torch.zeros(1, 2, 3, 8)) and torch.equal(values, keys)


# Recording


def test_without_cuda_a_call_is_computed_each_time() -> None:
    recorder, calls = Recorder(CPU), list[int]()

    def call() -> Tensor:
        calls.append(len(calls))
        return torch.tensor(len(calls))

    assert [int(recorder.play("key", call)) for _ in range(3)] == [1, 2, 3]
    assert (recorder.count, recorder.bytes) == (0, 0)


def test_where_recording_fails_the_work_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(self: Recorder, call: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand many lines more")

    monkeypatch.setattr(Recorder, "_compute", lambda self, call: call())
    monkeypatch.setattr(Recorder, "_record", record)
    for gives_up in (True, False):
        recorder, calls = Recorder(CPU, gives_up=gives_up), list[int]()
        recorder._stream = object()  # type: ignore[assignment]

        def call(calls: list[int] = calls) -> Tensor:
            calls.append(len(calls))
            return torch.tensor(len(calls))

        assert int(recorder.play("key", call)) == 1
        if gives_up:
            assert [int(recorder.play("key", call)) for _ in range(2)] == [2, 3]
            assert recorder.trouble == "operation not permitted when stream is capturing"
        else:
            with pytest.raises(RuntimeError, match="capturing"):
                recorder.play("key", call)


def test_of_calls_that_are_alike_the_first_is_computed_and_all_others_are_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = list[str]()

    def record(self: Recorder, call: Callable[[], Tensor]) -> tuple[Mock, Tensor]:
        done.append("recorded")
        return Mock(replay=lambda: done.append("played")), call()

    def compute(self: Recorder, call: Callable[[], Tensor]) -> Tensor:
        done.append("computed")
        return call()

    monkeypatch.setattr(Recorder, "_compute", compute)
    monkeypatch.setattr(Recorder, "_record", record)
    recorder = Recorder(CPU)
    recorder._stream = object()  # type: ignore[assignment]

    def play(key: str, like: str | None = None) -> list[str]:
        done.clear()
        assert int(recorder.play(key, lambda: torch.tensor(7), like)) == 7
        return list(done)

    assert play("one", like="both") == ["computed"]
    assert play("other", like="both") == ["recorded", "played"]
    assert play("one", like="both") == ["recorded", "played"]
    assert play("one", like="both") == ["played"]
    assert [play("alone"), play("alone"), play("alone")] == [["computed"], ["recorded", "played"], ["played"]]
    recorder.forget()
    assert play("other", like="both") == ["computed"]


def test_no_garbage_is_collected_while_something_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Mock)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    seen = list[bool]()

    def call() -> Tensor:
        seen.append(gc.isenabled())
        return torch.zeros(1)

    Recorder(CPU)._record(call)
    assert seen == [False] and gc.isenabled()


def test_a_device_without_memory_says_what_was_tried(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_tiny(checkpoint, "graphs")
    advance = engine.fuse(lambda logits: logits.argmax(-1, keepdim=True))
    ids = engine.prefill([random_ids(3)]).argmax(-1, keepdim=True)
    assert isinstance(engine, NativeEngine)

    def fail(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(engine._recorder, "play", fail)
    with pytest.raises(OutOfMemory) as error:
        advance(ids)
    assert str(error.value) == (
        "cpu: not enough memory for recording a step of 1 row; use fewer rows, a shorter context or a smaller model."
    )
