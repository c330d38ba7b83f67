"""Guided heads: their marks, what is asked of them, and whom it touches."""

import numpy as np
import pytest
import torch

from tests.test_language_model import VOCABULARY, line_up, make
from training.language import guide
from training.language.model import attend_by_rows

# Two rows: three ids of text (the second writes syllables 0 and 1, the third 1), then codes.
WRITTEN = torch.tensor([[-1, -1], [0, 1], [1, 1], [-1, -1], [-1, -1], [-1, -1], [-1, -1], [0, 0], [-1, -1]])
SUNG = torch.tensor([[-1, -1], [-1, -1], [-1, 0], [0, 1], [-1, -1], [-1, -1], [-1, -1], [-1, 0], [0, -1]])
PACKING = line_up(6, 3)
LAYERS = (0, 1)


def look(ids: torch.Tensor, model=None):
    marks = guide.mark(WRITTEN, 64, torch.float32)
    return (model or make()).watch(ids, PACKING, attend_by_rows, torch.float32, LAYERS, marks)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (9,), generator=torch.Generator().manual_seed(1))


def test_an_id_is_marked_with_all_syllables_that_it_writes() -> None:
    marks = guide.mark(torch.tensor([[-1, -1], [3, 5], [127, 128], [140, 140]]), 64, torch.float32).flatten(1)
    assert [torch.nonzero(row).flatten().tolist() for row in marks] == [[], [3, 4, 5], [0, 127], [12]]


def test_looks_are_the_attention_of_the_first_head(ids: torch.Tensor) -> None:
    model = make()
    _, looks = look(ids, model)
    layer = model.model.layers[0]
    x = layer.input_layernorm(model.model.embed_tokens(ids))
    q, k = (project(x)[:, :64] for project in (layer.self_attn.q_proj, layer.self_attn.k_proj))
    cosine, sine = (model.model.get_buffer(name)[PACKING.positions] for name in ("cosine", "sine"))

    def rotate(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)

    attention = (rotate(q)[3] @ rotate(k)[:4].T / 8).softmax(dim=0)
    expected = torch.zeros(guide.SLOTS)
    expected[0], expected[1] = attention[1], attention[1] + attention[2]
    torch.testing.assert_close(looks[0][3, :-1].flatten(), expected)
    values = layer.self_attn.v_proj(x)[:4]
    torch.testing.assert_close(looks[0][3, -1], attention[1:3] @ values[1:3, :64])
    assert (looks[0][6, :-1] == 0).all(), "a row sees no syllables of another"


def test_watching_changes_nothing(ids: torch.Tensor) -> None:
    model = make()
    assert torch.equal(look(ids, model)[0], model(ids, PACKING))


def test_blame_is_worked_out_by_hand() -> None:
    first, second = torch.zeros(2, 9, 3, 64)
    second[2, 0, 0], second[3, 0, 1], second[7, 0, 0] = 0.5, 0.25, 1.0
    first[3, 0, 0], first[8, 0, 0] = 0.5, 0.125
    second[3, 0, 0] = 0.75
    expected = (np.log(2) + np.log(8)) / 2, (np.log(2) + np.log(4) + 0) / 3
    assert guide.blame([first, second], SUNG).item() == pytest.approx(np.mean(expected), abs=1e-3)
    assert guide.hits([first, second], SUNG).tolist() == [[2, 2], [2, 3]], "syllable 1 has less than syllable 0"


def test_blame_touches_only_what_leads_to_the_guided_heads(ids: torch.Tensor) -> None:
    model = make()
    guide.blame(look(ids, model)[1], SUNG).backward()
    touched = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    upper = "model.layers.1."
    assert {name for name in touched if name.startswith(upper)} == {
        f"{upper}{name}.weight" for name in ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj")
    }
    assert "lm_head.weight" not in touched
    for project in (model.model.layers[1].self_attn.q_proj, model.model.layers[1].self_attn.k_proj):
        assert project.weight.grad[:64].abs().sum() > 0
        assert (project.weight.grad[64:] == 0).all(), "other heads are free"


def test_nothing_sung_is_nothing_to_blame(ids: torch.Tensor) -> None:
    assert guide.blame(look(ids)[1], torch.full((9, 2), -1)).item() == 0


def test_blame_counts_little_at_first() -> None:
    assert [guide.weight(step) / guide.WEIGHT for step in (0, guide.WEIGHT_STEPS // 2, 9 * guide.WEIGHT_STEPS)] == [
        0,
        0.5,
        1,
    ]
