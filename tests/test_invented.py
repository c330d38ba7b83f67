"""Weights that are made up: a folder of sizes alone becomes a model of that size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_llama import CONFIG
from yue_cli import engines, models
from yue_cli.engines.native.config import LlamaConfig
from yue_cli.engines.native.invented import load

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("format", [None, *models.FORMATS])
def test_a_model_of_the_sizes_is_there_and_counts_to_something(
    tmp_path: Path, format: str | None, dtype: torch.dtype
) -> None:
    engines.write_sizes(tmp_path, CONFIG, format)
    engine = engines.open_engine("native", tmp_path, rows=1, length=8, device=CPU, dtype=dtype)
    logits = engine.prefill([np.arange(5)])
    assert logits.shape == (1, CONFIG["vocab_size"])
    assert logits.isfinite().all()
    assert logits.std() > 0.1
    facts = engines.describe(tmp_path, dtype=dtype)
    assert engine.memory > facts.parameter_bytes


def test_no_weights_are_on_the_disk(tmp_path: Path) -> None:
    engines.write_sizes(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == CONFIG["hidden_size"]


def test_made_up_matrices_have_the_spread_of_real_ones(tmp_path: Path) -> None:
    engines.write_sizes(tmp_path, CONFIG | {"vocab_size": 8192})
    weights = load(LlamaConfig.read(tmp_path), device=CPU, dtype=torch.float32)
    assert float(weights.layers[0].gate_up.std()) == pytest.approx(CONFIG["hidden_size"] ** -0.5, rel=0.02)
    assert float(weights.embedding.std()) == pytest.approx(0.5, rel=0.02)
    # More numbers than are drawn: their repetition is no row's repetition.
    assert len(weights.embedding.unique(dim=0)) == 8192


@pytest.mark.parametrize(("part", "parameters"), [("stage1", 6_224_613_376), ("stage2", 1_962_543_104)])
def test_the_published_sizes_are_those_of_the_published_files(tmp_path: Path, part: str, parameters: int) -> None:
    engines.write_sizes(tmp_path, models.SIZES[part])
    assert engines.describe(tmp_path, dtype=torch.bfloat16).parameter_bytes == 2 * parameters
