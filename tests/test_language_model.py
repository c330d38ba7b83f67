"""The model that learns computes what the product's engine will."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from training.language.model import LanguageModel, Packing, Size, attend_by_rows, choose_attention
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


def line_up(*lengths: int) -> Packing:
    rows = np.repeat(np.arange(len(lengths)), lengths)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    positions = torch.from_numpy(np.arange(len(rows)) - bounds[rows])
    return Packing(torch.from_numpy(rows), positions, torch.from_numpy(bounds.astype(np.int32)), max(lengths))


def test_its_state_is_a_checkpoint_with_the_same_logits(tmp_path: Path) -> None:
    model = make()
    (tmp_path / "config.json").write_text(json.dumps(SIZE.config(VOCABULARY)))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 40)
    with torch.no_grad():
        learned = model.lm_head(model(torch.from_numpy(ids), line_up(40)))
    engine = open_engine("native", tmp_path, rows=1, length=64, device=torch.device("cpu"), dtype=torch.float32)
    assert learned.std() > 1
    torch.testing.assert_close(engine.prefill([ids])[0], learned[-1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(engine.prefill([ids[:25]])[0], learned[24], atol=1e-4, rtol=1e-4)


def test_packed_rows_do_not_see_each_other() -> None:
    model = make()
    ids = torch.randint(0, VOCABULARY, (60,))
    with torch.no_grad():
        together = model(ids, line_up(30, 10, 20))
        alone = [model(part, line_up(len(part))) for part in ids.split([30, 10, 20])]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_a_cpu_attends_row_by_row() -> None:
    assert choose_attention(torch.device("cpu"), torch.float32, 2, 64) is attend_by_rows
