"""The arithmetic of comparing two models: by hand, and against a library's own log-probabilities."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from yue_cli.comparison import Comparison, compare


def logits(*probabilities: list[float]) -> Tensor:
    """Give logits that have these probabilities, shifted by something that must not matter."""
    return torch.tensor(probabilities).log() + 3.5


def test_two_distributions_by_hand() -> None:
    model, reference = logits([0.5, 0.25, 0.25]), logits([0.25, 0.5, 0.25])
    found = compare(model, reference, torch.tensor([1]), (range(3),))
    # 0.25 ln(0.25 / 0.5) + 0.5 ln(0.5 / 0.25) + 0 = 0.25 ln 2
    assert found.kl == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert found.kl_allowed == pytest.approx(found.kl)
    assert (found.tokens, found.agreement) == (1, 0.0)
    assert found.perplexity == pytest.approx(4.0, rel=1e-6)
    assert found.perplexity_reference == pytest.approx(2.0, rel=1e-6)


def test_allowed_ids_are_made_whole_by_hand() -> None:
    """Of ids 0 and 2 alone: the model says 2/3, 1/3, the reference 1/2, 1/2."""
    model, reference = logits([0.5, 0.25, 0.25]), logits([0.25, 0.5, 0.25])
    found = compare(model, reference, torch.tensor([0]), (range(1), range(2, 3)))
    expected = 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))
    assert found.kl_allowed == pytest.approx(expected, rel=1e-6)
    assert found.kl == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert found.agreement == 1.0, "id 0 is the first choice of both among those that are allowed"


def test_the_divergence_is_that_of_the_reference_from_the_model() -> None:
    """KL is no distance: the other direction is another number."""
    model, reference = logits([0.9, 0.1]), logits([0.5, 0.5])
    forwards = compare(model, reference, torch.tensor([0]), (range(2),)).kl
    backwards = compare(reference, model, torch.tensor([0]), (range(2),)).kl
    assert forwards == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-6)
    assert backwards == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), rel=1e-6)


def test_sums_over_pieces_are_sums_over_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    model, reference = (torch.randn(50, 40, generator=generator) * 3 for _ in range(2))
    tokens = torch.randint(0, 40, (50,), generator=generator)
    allowed = (range(10, 30), range(2, 3))
    whole = compare(model, reference, tokens, allowed)
    parts = Comparison()
    for start in range(0, 50, 7):
        piece = slice(start, start + 7)
        parts += compare(model[piece], reference[piece], tokens[piece], allowed)
    for name in ("tokens", "kl", "kl_allowed", "agreement", "perplexity", "perplexity_reference"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12), name


def test_against_plain_numpy() -> None:
    generator = np.random.default_rng(1)
    model, reference = (generator.normal(0, 4, (30, 25)) for _ in range(2))
    tokens = generator.integers(0, 25, 30)

    def log_probabilities(values: np.ndarray) -> np.ndarray:
        return values - np.log(np.exp(values).sum(1, keepdims=True))

    ours, theirs = log_probabilities(model), log_probabilities(reference)
    found = compare(
        torch.from_numpy(model).float(), torch.from_numpy(reference).float(), torch.from_numpy(tokens), (range(25),)
    )
    assert found.kl == pytest.approx((np.exp(theirs) * (theirs - ours)).sum(1).mean(), rel=1e-5)
    assert found.perplexity == pytest.approx(np.exp(-ours[np.arange(30), tokens].mean()), rel=1e-5)
    assert found.agreement == (ours.argmax(1) == theirs.argmax(1)).mean()


def test_equal_models_do_not_differ() -> None:
    same = torch.randn(5, 1000, generator=torch.Generator().manual_seed(2))
    found = compare(same, same.clone(), torch.arange(5), (range(1000),))
    assert (found.kl, found.kl_allowed, found.agreement) == (0.0, 0.0, 1.0)
    assert found.perplexity == found.perplexity_reference


def test_models_that_are_almost_the_same_differ_by_what_they_do() -> None:
    """A second-order expansion: KL = variance of the difference of logits / 2, far below float32's own precision."""
    generator = torch.Generator().manual_seed(3)
    reference = torch.randn(1, 50_000, generator=generator)
    step = 1e-3 * torch.randn(1, 50_000, generator=generator)
    weight = reference.double().softmax(-1)
    change = (reference + step).double() - reference.double()
    variance = float((weight * change.square()).sum() - (weight * change).sum().square())
    found = compare(reference + step, reference, torch.tensor([0]), (range(50_000),))
    assert found.kl == pytest.approx(variance / 2, rel=1e-2)
