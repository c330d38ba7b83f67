"""How weights come onto a device, and what is rehearsed meanwhile."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.counting_engine import CountingEngine
from tests.test_stage1 import END, stage1_settings
from tests.test_stage1 import TINY as SUNG
from tests.test_stage2 import RESTRICTED
from tests.test_stage2 import TINY as FILLED
from tests.tiny_llama import CONFIG, write_checkpoint
from yue_cli.engines import open_engine
from yue_cli.engines.base import Engine
from yue_cli.engines.native.carrier import Carrier
from yue_cli.engines.native.config import LlamaConfig
from yue_cli.engines.native.engine import NativeEngine
from yue_cli.engines.native.loader import load
from yue_cli.engines.native.model import Weights
from yue_cli.engines.native.rehearsal import Begun, load_and_rehearse
from yue_cli.errors import CheckpointError
from yue_cli.stages import stage1, stage2

CPU = torch.device("cpu")


@pytest.mark.parametrize("tied", [False, True])
def test_the_first_layer_is_told_with_all_that_is_no_layer(tied: bool, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, CONFIG | {"tie_word_embeddings": tied})
    told: list[Weights] = []
    weights = load(folder, LlamaConfig.read(folder), device=CPU, dtype=torch.float32, begun=told.append)
    [first] = told
    assert len(first.layers) == 1 < len(weights.layers)
    assert first.layers[0] is weights.layers[0]
    assert first.embedding is weights.embedding and first.norm is weights.norm and first.head is weights.head


def test_nothing_is_rehearsed_on_a_cpu(tmp_path: Path) -> None:
    rehearsed: list[Engine] = []
    folder = write_checkpoint(tmp_path)
    with_one = open_engine(
        "native", folder, rows=1, length=9, device=CPU, dtype=torch.float32, rehearse=rehearsed.append
    )
    assert not rehearsed
    assert with_one.prefill([np.arange(3)]).shape == (1, CONFIG["vocab_size"])


WEIGHTS = Weights(torch.ones(1, 1), [], torch.ones(1), torch.ones(1, 1))


def test_the_first_layer_is_rehearsed_while_the_others_are_loaded() -> None:
    rehearsed = threading.Event()
    whole = replace(WEIGHTS, norm=torch.zeros(1))

    def load_layers(begun: Begun) -> Weights:
        begun(WEIGHTS)
        assert rehearsed.wait(10), "the rehearsal waits for the last layer"
        return whole

    def rehearse(first: Weights) -> None:
        assert first is WEIGHTS
        rehearsed.set()
        raise RuntimeError("a wrong note")  # which is heard when it counts

    assert load_and_rehearse(load_layers, rehearse) is whole


@pytest.mark.parametrize("with_layer", [False, True])
def test_what_fails_while_loading_is_raised_when_the_rehearsal_is_over(with_layer: bool) -> None:
    rehearsed: list[Weights] = []

    def fail(begun: Begun) -> Weights:
        if with_layer:
            begun(WEIGHTS)
        raise CheckpointError("a torn page")

    with pytest.raises(CheckpointError, match="a torn page"):
        load_and_rehearse(fail, rehearsed.append)
    assert rehearsed == [WEIGHTS] * with_layer


def test_an_interruption_of_a_rehearsal_does_not_wait_for_the_rest() -> None:
    goes_on = threading.Event()

    def load_layers(begun: Begun) -> Weights:
        begun(WEIGHTS)
        goes_on.wait(60)
        return WEIGHTS

    def interrupt(first: Weights) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        load_and_rehearse(load_layers, interrupt)
    goes_on.set()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(("strength", "songs"), [(1.0, 6), (1.5, 3)])
def test_stage_1_rehearses_a_prompt_and_a_step_of_all_rows(strength: float, songs: int) -> None:
    settings = stage1_settings(guidance_first=strength, guidance_later=strength)
    engine = CountingEngine(vocabulary_size=40, rows=6)
    stage1.rehearse(engine, SUNG, settings=settings, rules="yue")
    assert engine.prefills == [[[END] * 300] * songs + [[END]] * (6 - songs)]
    assert [len(step) for step in engine.steps] == [6]


def test_stage_1_rehearses_in_a_short_engine() -> None:
    stage1.rehearse(
        CountingEngine(vocabulary_size=40, rows=2, length=20), SUNG, settings=stage1_settings(), rules="yue"
    )


def test_stage_2_leaves_out_what_does_not_fit() -> None:
    engine = CountingEngine(rows=3, length=20)
    stage2.rehearse(engine, FILLED, settings=RESTRICTED)
    assert engine.forwards == 0


@pytest.mark.parametrize("length", [200, 10_000])
def test_stage_2_rehearses_a_frame_and_the_step_to_the_next(length: int) -> None:
    engine = CountingEngine(rows=3, length=length)
    stage2.rehearse(engine, FILLED, settings=RESTRICTED)
    assert [len(prompt) for prompt in engine.prefills[0]] == [min(300, length - 19) + 4] * 3
    assert {(len(step), len(step[0])) for step in engine.steps} == {(3, 1), (3, 2)}
    assert engine.forwards == 14


@pytest.mark.gpu
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("columns", [16, 4099, 65_536])
def test_a_carrier_copies_all_of_a_tensor(source: torch.dtype, columns: int) -> None:
    carrier = Carrier(torch.device("cuda"))
    tensors = [torch.randn(700, columns).to(source) for _ in range(3)]
    targets = [torch.zeros(700, columns, dtype=torch.bfloat16, device="cuda") for _ in tensors]
    targets.append(torch.zeros(columns, 700, dtype=torch.bfloat16, device="cuda").T)
    tensors.append(tensors[0])
    for tensor, target in zip(tensors, targets, strict=True):
        carrier.copy(tensor, target)
    for tensor, target in zip(tensors, targets, strict=True):
        assert torch.equal(target.cpu(), tensor.to(torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager", "graphs", "kernels"])
def test_what_was_rehearsed_is_forgotten(mode: str, tmp_path: Path) -> None:
    rehearsed: list[tuple[int, int]] = []

    def rehearse(engine: Engine) -> None:
        assert isinstance(engine, NativeEngine)
        for prompt in (np.arange(200), np.arange(7)):
            engine.prefill([prompt] * 10)
            engine.step(torch.ones(10, 1, dtype=torch.int64, device="cuda"))
        rehearsed.append((len(engine._opened().weights.layers), engine.rows))

    folder, row = write_checkpoint(tmp_path), np.arange(100)
    how = {"rows": 10, "length": 1400, "device": torch.device("cuda"), "dtype": torch.bfloat16, "mode": mode}
    plain, prepared = (open_engine("native", folder, **how, rehearse=each) for each in (None, rehearse))  # type: ignore[arg-type]
    assert rehearsed == [(1, 10)]
    ids = torch.full((10, 1), 5, device="cuda")
    for engine in (plain, prepared):
        engine.prefill([row] * 10)
    assert torch.equal(plain.step(ids), prepared.step(ids))
