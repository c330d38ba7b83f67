"""The processor's name, and what depends on it."""

import platform

import pytest
import torch

from yue_cli import processor
from yue_cli.engines.native import model


@pytest.mark.parametrize(
    ("name", "is_intel"),
    [
        ("13th Gen Intel(R) Core(TM) i7-1360P", True),
        ("Intel64 Family 6 Model 154 Stepping 3, GenuineIntel", True),
        ("AMD EPYC 9654 96-Core Processor", False),
        ("arm", False),
    ],
)
def test_its_maker_is_told_by_its_name(name: str, is_intel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "processor_name", lambda: name)
    assert processor.is_intel() == is_intel


def test_a_system_without_cpuinfo_names_it_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor.Path, "read_text", lambda *given, **named: "processor : 0\n")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert processor.processor_name.__wrapped__() == "arm64"


@pytest.mark.parametrize("rows", [1, 2, 8, 9, 48, 49])
def test_products_are_the_same_on_both_makers_processors(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, 1, 64, generator=draw), torch.randn(96, 64, generator=draw)
    found = []
    for is_intel in (True, False):
        monkeypatch.setattr(model, "is_intel", lambda is_intel=is_intel: is_intel)
        monkeypatch.setattr(model, "_few_rows", model._few_rows.__wrapped__)  # not what is known of this one
        found.append(model.linear(x, weight))
        monkeypatch.undo()
    expected = torch.einsum("rni,oi->rno", x.double(), weight.double()).float()
    for product in found:
        torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-5)
