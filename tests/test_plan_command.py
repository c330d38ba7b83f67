"""`yue plan`, and `run` where it must refuse: what is said of memory, models and stages before anything is made."""

from pathlib import Path

import pytest

from tests.command_line import SHORT, done, refused
from tests.folders import contents
from tests.library import tokens
from yue_cli.artifacts import write_tokens
from yue_cli.project import Project

COMMAND = ["--lyrics", "lyrics.txt", "--genre", "slow folk", "--set", "execution.dtype=bfloat16"]


def test_a_plan_says_what_each_stage_needs_and_makes_nothing(place):
    before = contents(place)
    outcome = done("plan", "song", "--preset", "toy", "--lyrics", "lyrics.txt", "--genre", "slow folk")
    lines = outcome.out.splitlines()
    assert lines[0] == "stage1  would be made: missing (not made yet)"
    assert lines[1].startswith("        toy · 0.0 GB of weights, 0.0 GB of cache for 2 rows of ")
    assert [line for line in lines if line.startswith("device  this machine · float32 · ")]
    assert [line for line in lines if line.startswith("disk    2 MB for the song, ")]
    assert contents(place) == before
    again = done("run", "song", "--dry-run", "--preset", "toy", *COMMAND[:4]).out.splitlines()
    measured = ("device", "disk")  # what is free changes between two looks
    assert [line for line in again if not line.startswith(measured)] == [
        line for line in lines if not line.startswith(measured)
    ]


def test_a_plan_without_models_uses_the_published_sizes(place):
    answer = done("plan", "song", *COMMAND, "--json").answer
    assert [stage["needs"]["model"] for stage in answer["stages"]] == ["en-cot", "s2", "codec"]
    assert answer["disk"]["download"] == 17_879_978_943
    assert answer["dtype"] == "bfloat16"
    assert answer["settings"]["stage1.context"] == 16384
    assert "en-cot (not here: weighed as published) · 12.4 GB of weights" in done("plan", "song", *COMMAND).out


@pytest.mark.parametrize("command", [["plan"], ["run", "--dry-run"]])
def test_a_plan_that_cannot_fit_is_refused(place, command):
    before = contents(place)
    text = refused(*command, "song", *COMMAND, "--set", "execution.memory_limit=11.4")
    assert text.startswith("stage 1 needs 13.2 GB of memory (12.4 GB of weights, ")
    assert "; this machine has 11.4 GB free. " in text
    assert contents(place) == before


def test_a_preset_of_a_card_is_planned_with_weights_that_must_be_made_first_and_refused_without_them(place):
    asked = ["song", *COMMAND, "--preset", "8gb"]
    how = "`yue quantize en-cot --format native-4bit` makes it"
    plan = done("plan", *asked)
    assert f"en-cot@native-4bit (not here: {how}) · " in plan.out
    assert "preset   8gb · For GPUs with 8 GB" in plan.err
    assert refused("run", *asked) == f"en-cot@native-4bit is not on this machine: {how}."
    assert "8gb" not in (place / "song" / "song.yaml").read_text()


def test_a_run_that_cannot_fit_is_refused_before_anything_loads(place):
    options = [*SHORT, "--lyrics", "lyrics.txt", "--genre", "slow folk"]
    text = refused("run", "song", *options, "--set", "execution.memory_limit=0.01")
    assert text.startswith("stage 1 needs 0.0 GB of memory (")
    assert text.endswith(" Nothing was loaded.")
    assert not (place / "song" / "stage1").exists()
    done("run", "song", *options, "--set", "execution.memory_limit=0.02", "--segments", "1")


def test_stages_that_stay_need_nothing(place):
    project = Project(Path("song"))
    project.create()
    for stage in ("stage1", "stage2"):
        write_tokens(project.begin(stage), tokens(stage))
    out = done("plan", "song").out.splitlines()
    assert out[0] == "stage1  stays: foreign (not written by this yue)"
    assert out[1] == "stage2  stays: foreign (not written by this yue)"
    assert out[2] == "audio   would be made: missing (not made yet)"
    assert "codec" in out[3]
