"""Every way to attend gives the numbers of the plain one."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from yue_cli.engines.native import attention


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[-2]))


@pytest.fixture(autouse=True)
def processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attend as on a processor that is not Intel's."""
    monkeypatch.setattr(attention, "is_intel", lambda: False)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("places", [2, 7, 300])
def test_two_products_attend_as_one_operation_does(count: int, places: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, keys, values = random(3, count, 4, 16), random(3, 4, places, 16), random(3, 4, places, 16) + 1
    visible = None if count == 1 else torch.ones(1, count, places, dtype=torch.bool).tril(places - count)
    found = attention.masked(q, keys, values, visible)
    monkeypatch.setattr(attention, "_FEW_QUERIES", 0)
    expected = attention.masked(q, keys, values, visible)
    assert found.shape == (3, count, 4, 16)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    if visible is not None:
        # The first of two queries does not see the last place.
        first = F.scaled_dot_product_attention(q[:, :1].transpose(1, 2), keys[:, :, :-1], values[:, :, :-1]).transpose(
            1, 2
        )
        torch.testing.assert_close(found[:, :1], first, rtol=1e-5, atol=1e-6)


def test_two_products_are_taken_for_few_queries_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    two = attention._in_two_products
    monkeypatch.setattr(attention, "_in_two_products", lambda *given: taken.append(given[0].shape[2]) or two(*given))
    keys = random(1, 2, 5, 16)
    attention.masked(random(1, 1, 2, 16), keys, keys, None)  # a query a key
    attention.masked(random(1, 1, 8, 16), keys, keys, None)  # four that share one
    assert taken == [1]
    monkeypatch.setattr(attention, "is_intel", lambda: True)
    attention.masked(random(1, 1, 2, 16), keys, keys, None)
    assert taken == [1]
