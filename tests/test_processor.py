"""The processor's name and maker, and what depends on them."""

import platform
from pathlib import Path

import pytest
import torch

from yue_cli import processor
from yue_cli.engines.native import model

WINDOWS = "Intel64 Family 6 Model 154 Stepping 3, GenuineIntel"
XEON = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Pentium(R) Gold\n\nprocessor\t: 1\n"
EPYC = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9654\n"


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a list of processors that is not there yet, and nothing known of this one."""
    monkeypatch.setattr(processor, "_LISTED", tmp_path / "cpuinfo")
    for function in (processor.processor_name, processor.is_intel):
        function.cache_clear()
        monkeypatch.setattr(processor, function.__name__, function.__wrapped__)
    return tmp_path / "cpuinfo"


@pytest.mark.parametrize(
    ("text", "name", "is_intel"), [(XEON, "Pentium(R) Gold", True), (EPYC, "AMD EPYC 9654", False)]
)
def test_linux_lists_name_and_maker(text: str, name: str, is_intel: bool, listed: Path) -> None:
    listed.write_text(text)
    assert (processor.processor_name(), processor.is_intel()) == (name, is_intel)


@pytest.mark.parametrize("text", [None, "processor : 0\n"])
@pytest.mark.parametrize(
    ("told", "name", "is_intel"),
    [
        (
            "Intel64 Family 6 Model 154 Stepping 3, GenuineIntel",
            "Intel64 Family 6 Model 154 Stepping 3, GenuineIntel",
            True,
        ),
        ("", "arm64", False),
    ],
)
def test_other_systems_tell_it_in_their_own_way(
    text: str | None, told: str, name: str, is_intel: bool, listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        listed.write_text(text)
    monkeypatch.setattr(platform, "processor", lambda: told)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert (processor.processor_name(), processor.is_intel()) == (name, is_intel)


@pytest.mark.parametrize("is_intel", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 48, 49])
def test_products_of_few_rows_are_computed_in_the_order_that_suits(
    rows: int, is_intel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    plainly = torch.nn.functional.linear
    monkeypatch.setattr(model, "is_intel", lambda: is_intel)
    monkeypatch.setattr(model.F, "linear", lambda x, weight: asked.append(rows) or plainly(x, weight))
    draw = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, 1, 64, generator=draw), torch.randn(96, 64, generator=draw)
    found = model.linear(x, weight)
    torch.testing.assert_close(found.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-5)
    assert asked == ([rows] if rows == 49 or (is_intel and rows < 8) else [])
