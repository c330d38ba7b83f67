"""The table that `benchmarks.targets` prints: what is measured, what is computed, and what stays empty."""

from typing import Any

import pytest

from benchmarks import targets


def points(token_ms: float) -> list[dict[str, Any]]:
    return [{"context": context, "token_s": token_ms / 1000} for context in targets.CONTEXTS]


REPORT: dict[str, Any] = {
    "bandwidth": {"read": targets.H200_READ / 2},
    "ours/stage1-bf16": {"points": points(3.0), "seconds": 18.0},
    "ours/stage1-long": {"points": points(3.0), "seconds": 95.0},
    "ours/stage2-bf16": {"window_s": 7.0, "seconds": 7.0},
    "ours/decode": {"seconds": 0.25},
    "songs/stage1-bf16": {"points": points(4.0), "seconds": 30.0},
    "songs/stage2-bf16": {"window_s": 7.0, "seconds": 80.0},
    "songs/stage1-8bit": {"failed": "not begun: the time was over"},
    "whole/bf16": {"wall_less_loading_s": 28.5, "first_tokens_s": 3.5},
    "whole/fast": {"wall_less_loading_s": 18.5, "first_tokens_s": 4.5},
    "original/stage1": {"points": points(100.0)},
    "original/stage2": {"seconds": 400.0},
    "original/decode": {"seconds": 2.0},
    "exl2/stage1": {"points": points(15.0)},
    "exl2/stage2": {"seconds": 20.0},
    "exl2/stage1-4bit": {"points": points(8.0)},
}


def test_all_figures_are_beside_both_baselines() -> None:
    rows = {cells[0]: cells[1:] for cells in map(cells_of, targets.table(REPORT)[2:])}
    assert len(rows) == len(targets.TARGETS) + len(targets.CONTEXTS)
    assert rows["stage 1, bf16, mean of 60 s"] == ["100", "15", "3", "3.5", "7", "ms a token"]
    assert rows["stage 1, 4 bits, mean of 60 s"][:3] == ["", "8", ""]
    assert rows["decode, 60 s, both tracks, warm"] == ["2", "", "0.25", "0.4", "0.4", "s"]
    # 6,000 tokens, stage 2, and decoding by the original's programs, which YuE-exllamav2 has kept.
    assert rows["whole song of 60 s, bf16, loading apart"] == ["1,002", "112", "28.5", "30", "30", "s"]
    assert rows["… stage 1 in 4 bits, stage 2's cache in 8"][2] == "18.5"
    assert rows["start of the process to first token"][2] == "3.5"
    assert rows["16 songs, bf16"] == ["0.0599", "0.536", "8.42", "6", "3", "s of music a s"]
    assert rows["16 songs, 8 bits, int8 cache"][2] == ""
    assert rows["300 s of music over 60 s"][2] == f"{(95 + 7.25 * 5) / (18 + 7.25):.3g}"
    assert rows["stage 1, bf16, after 4000 tokens"][:3] == ["100", "15", "3"]


@pytest.mark.parametrize("name", [name for name, part in REPORT.items() if "failed" not in part])
def test_a_part_that_is_missing_or_has_failed_harms_no_other(name: str) -> None:
    without = {other: part for other, part in REPORT.items() if other != name}
    failed = without | {name: {"failed": "not done after 120 s"}}
    assert targets.table(without) == targets.table(failed) != targets.table(REPORT)


def cells_of(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("|")[1:-1]]
