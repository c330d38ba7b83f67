"""A song whose stages run on EXL2 weights, from the command line; a stand-in for exllamav2's extension computes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.random_exl2 import write_model
from tests.command_line import done, history, refused
from tests.exl2_stand_in import ExtensionStandIn
from tests.test_exl2_engine import here  # noqa: F401

ABSENT = "the package exllamav2 is not installed"


@pytest.fixture(scope="module")
def exl2(home: Path, finished_song: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's stage 2 in EXL2, most of its bits kept."""
    (toy,) = home.glob("toy-*/stage2")
    folder = tmp_path_factory.mktemp("toy") / "stage2-exl2"
    config, weights = json.loads((toy / "config.json").read_text()), load_file(toy / "model.safetensors")
    write_model(folder, config, 8, 8, generator=torch.Generator().manual_seed(0), weights=weights)
    shutil.copyfile(toy / "vocabulary.json", folder / "vocabulary.json")
    return folder


def manifest(song: Path, stage: str) -> dict:
    found: dict = json.loads((song / stage / "manifest.json").read_text())
    return found


def test_another_model_redoes_stage_2_alone(song: Path, exl2: Path, here: ExtensionStandIn) -> None:  # noqa: F811
    before = (song / "stage1" / "manifest.json").read_bytes()
    done("stage2", song, "--model", exl2)
    assert history(song) == ["stage2"]
    assert (song / "stage1" / "manifest.json").read_bytes() == before
    made = manifest(song, "stage2")
    assert made["model"]["name"] == str(exl2)
    assert (made["engine"]["name"], made["engine"]["dtype"]) == ("exl2", "float16")
    assert made["engine"]["deterministic"] is False
    assert here.calls > 0


def test_what_repeats_says_so(song: Path) -> None:
    engine = manifest(song, "stage2")["engine"]
    assert (engine["name"], engine["dtype"], engine["deterministic"]) == ("native", "float32", True)


def test_status_tells_engine_and_cache(song: Path, exl2: Path, here: ExtensionStandIn) -> None:  # noqa: F811
    done("stage2", song, "--model", exl2, "--set", "execution.stage2_cache=int6")
    assert manifest(song, "stage1")["engine"]["cache"] == "auto"
    assert manifest(song, "stage2")["engine"]["cache"] == "int6"
    first, second, _ = done("status", song).out.splitlines()[:3]
    assert "cache" not in first and second.endswith(f"{exl2} · float16 · cpu · exl2 · cache int6")


def test_absent_exllamav2_is_told_before_anything_is_made(
    song: Path, exl2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yue_cli.engines.exl2.extension.reason", lambda: ABSENT)
    message = refused("run", song, "--set", f"stage2.model={exl2}", "--force")
    assert message == f"{exl2} holds weights for engine exl2, which cannot be used here: {ABSENT}."
    assert history(song) == []
    assert refused("stage2", song, "--engine", "exl2", "--force") == f"engine exl2 cannot be used here: {ABSENT}."


def test_a_plan_weighs_exl2_weights_as_they_are(song: Path, exl2: Path, here: ExtensionStandIn) -> None:  # noqa: F811
    def weights(*flags: object) -> int:
        stages = done("plan", song, "--force", "--json", *flags).answer["stages"]
        found: int = next(stage for stage in stages if stage["name"] == "stage2")["needs"]["weights"]
        return found

    # Of 32-bit weights, 8 of which are left but for the embedding in 16.
    assert 0.25 < weights("--set", f"stage2.model={exl2}") / weights() < 0.4


def test_doctor_says_why_it_cannot_be_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yue_cli.engines.exl2.extension.reason", lambda: ABSENT)
    assert f"engine     exl2 · {ABSENT}" in done("doctor").out
