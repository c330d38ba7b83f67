"""Parts of a benchmark, each in a process of its own."""

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import parts


def see(value: int) -> dict[str, Any]:
    return {"value": value, "sees": os.environ.get("CUDA_VISIBLE_DEVICES"), "process": os.getpid()}


def fail() -> dict[str, Any]:
    raise ValueError("no such figure")


def test_gpus_share_the_parts_and_a_failed_one_harms_no_other(tmp_path: Path) -> None:
    chosen = {"one": partial(see, 1), "bad": fail, "two": partial(see, 2), "three": partial(see, 3)}
    report = parts.run(chosen, tmp_path / "out.json", 100, [], ["5", "7"])
    assert json.loads((tmp_path / "out.json").read_text()) == report
    assert report["bad"]["failed"] == "ValueError: no such figure"
    seen = [report[name] for name in ("one", "two", "three")]
    assert [part["value"] for part in seen] == [1, 2, 3]
    assert all(part["sees"] == part["gpu"] in ("5", "7") for part in seen)
    assert len({part["process"] for part in seen}) == 3


def test_no_part_begins_after_the_limit(tmp_path: Path) -> None:
    report = parts.run({"late": partial(see, 1)}, tmp_path / "out.json", -1, [])
    assert report["late"] == {"failed": "not begun: the time was over"}


def test_parts_may_follow_others(tmp_path: Path) -> None:
    first = parts.run({"one": partial(see, 1)}, tmp_path / "out.json", 100, [])
    both = parts.run({"two": partial(see, 2)}, tmp_path / "out.json", 100, [], before=first)
    assert list(both) == ["date", "command", "one", "two"]
    assert both.items() >= first.items()
    assert json.loads((tmp_path / "out.json").read_text()) == both
    assert "two" not in first


def test_a_part_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    report = parts.run({"slow": partial(time.sleep, 60)}, tmp_path / "out.json", 100, [], part_limit_s=0.2)
    assert report["slow"]["failed"] == "not done after 0 s"
