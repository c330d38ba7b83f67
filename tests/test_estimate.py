"""About how long a song takes: what was measured on this machine, or a word that nothing was."""

from pathlib import Path

import pytest

from tests.command_line import done
from tests.library import record, tokens
from yue_cli import machine
from yue_cli.artifacts import write_tokens
from yue_cli.project import Project
from yue_cli.speeds import Measured, remember

HERE = "a chip"
# Of the toy, whose weights are small; a token takes 10 ms at first, 1 ms more every 100 tokens.
STAGE1 = Measured(HERE, "stage1", 0, {}, "2026-01-02", token_s=((0, 0.01), (4000, 0.05)))
STAGE2 = Measured(HERE, "stage2", 0, {}, "2026-01-02", rows=4, window_s=6.0)
DECODE = Measured(HERE, "decode", 0, {}, "2026-01-02", decode_s=0.5)
COMMAND = ["plan", "song", "--preset", "toy", "--lyrics", "lyrics.txt", "--genre", "slow folk"]


@pytest.fixture
def measured(place, home, monkeypatch):
    """Remember these measurements, of weights as large as the toy's, in a home of their own."""
    monkeypatch.setattr(machine, "hardware_name", lambda device: HERE)
    needs = {stage["name"]: stage["needs"]["weights"] for stage in done(*COMMAND, "--json").answer["stages"]}
    weights = {"stage1": needs["stage1"], "stage2": needs["stage2"], "decode": needs["audio"]}
    (place / "home").mkdir()
    (place / "home" / next(home.glob("toy-*")).name).symlink_to(next(home.glob("toy-*")))
    monkeypatch.setenv("YUE_HOME", str(place / "home"))

    def store(*items: Measured) -> None:
        remember(place / "home", [Measured(**vars(item) | {"weight_bytes": weights[item.stage]}) for item in items])

    return store


def expected(*words: str) -> dict:
    answer = done(*COMMAND, *words, "--json").answer
    return {stage["name"]: stage["seconds_expected"] for stage in answer["stages"]} | {
        "total": answer["seconds_expected"]
    }


def test_without_a_measurement_no_time_is_told(place):
    assert "time    no measurement on this machine yet: run `yue bench`\n" in done(*COMMAND).out
    assert set(expected().values()) == {None}


def test_every_stage_is_told_from_its_own_measurement(measured):
    measured(STAGE1, STAGE2, DECODE)
    found = expected()
    # Two sections of 400 tokens: four seconds each, 200 frames; both tracks of eight seconds are four windows.
    assert found["stage2"] == 6.0
    assert found["audio"] == 0.5 * 8
    first, second = (400 * (0.01 + 1e-5 * middle) for middle in (200, 600))
    prompts = found["stage1"] - first - second
    assert 0 < prompts < 800 * 1e-5 * 150, "a hundred ids of prompts stand before every token"
    assert found["total"] == pytest.approx(found["stage1"] + 6 + 4)
    out = done(*COMMAND).out
    assert f" = 0.0 GB · about {found['stage1']:.0f} s\n" in out
    assert f"time    about {found['total']:.0f} s for 0:08 of music, as measured on {HERE}; fetching and " in out


def test_a_stage_of_which_nothing_is_known_is_named(measured):
    measured(STAGE1, DECODE)
    found = expected()
    assert (found["stage2"], found["total"]) == (None, None)
    assert found["audio"] == 4
    told = "time    no measurement of stage2 with such a model on this machine yet: run `yue bench`\n"
    assert told in done(*COMMAND).out


def test_fewer_rows_are_more_batches(measured):
    measured(STAGE1, STAGE2, DECODE)
    assert expected("--set", "execution.rows=2")["stage2"] == 12.0
    assert expected("--set", "execution.rows=1")["stage2"] == 24.0


def test_what_is_there_takes_no_time(measured):
    measured(STAGE1, STAGE2, DECODE)
    whole = expected()["stage1"]
    project = Project(Path("song"))
    project.create()
    project.save_segment(record(1))
    assert 0.4 * whole < expected()["stage1"] < 0.6 * whole
    for stage in ("stage1", "stage2"):
        write_tokens(project.begin(stage), tokens(stage, frames=50))
    found = expected()
    assert (found["stage1"], found["stage2"], found["audio"]) == (None, None, 0.5)
    assert found["total"] == 0.5
