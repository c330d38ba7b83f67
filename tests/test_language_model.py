"""The model that learns computes what the product's engine will."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from training.language.model import LanguageModel, Size
from yue_cli.engines import open_engine

SIZE = Size(hidden=128, inner=192, layers=2, heads=2, key_value_heads=1, length=256)
VOCABULARY = 300


def make() -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(SIZE, VOCABULARY)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)  # so that logits spread over several units
    return model


def test_its_state_is_a_checkpoint_with_the_same_logits(tmp_path: Path) -> None:
    model = make()
    (tmp_path / "config.json").write_text(json.dumps(SIZE.config(VOCABULARY)))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 40)
    with torch.no_grad():
        learned = model(torch.from_numpy(ids)[None], torch.ones(1, 40, dtype=torch.bool))
    engine = open_engine("native", tmp_path, rows=1, length=64, device=torch.device("cpu"), dtype=torch.float32)
    assert learned.std() > 1
    torch.testing.assert_close(engine.prefill([ids])[0], learned[-1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(engine.prefill([ids[:25]])[0], learned[24], atol=1e-4, rtol=1e-4)


def test_what_fills_a_row_up_is_not_seen() -> None:
    model = make()
    ids = torch.randint(0, VOCABULARY, (1, 30))
    wanted = torch.zeros(1, 40, dtype=torch.bool)
    wanted[0, 10:30] = True
    with torch.no_grad():
        zeros = model(torch.cat([ids, torch.zeros(1, 10, dtype=torch.int64)], dim=1), wanted)
        ones = model(torch.cat([ids, torch.ones(1, 10, dtype=torch.int64)], dim=1), wanted)
    assert zeros.shape == (20, VOCABULARY)
    assert torch.equal(zeros, ones)
