"""All steps of the codec in a given time, on four seconds of tones: a late failure loses only what is late."""

import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.test_training_codec import PRESET, songs
from training import loop
from training.codec import autoencoder, renderer, runs, semantic, whole
from training.codec.corpus_songs import LABELS
from training.codec.runs import Workplace
from xcodec_mini_infer import SAMPLE_RATE, VOCODER_SAMPLE_RATE, checkpoint

STEPS = ("semantic", "autoencoder", "decoder", "vocal", "instrumental")


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (autoencoder, renderer, semantic):
        monkeypatch.setattr(module, "EXAMINED", 6)
    monkeypatch.setattr(autoencoder, "KMEANS_BATCHES", 4)


def workplace(run: Path, device: str = "cpu") -> Workplace:
    """A place to work whose songs are read already."""
    (run / "songs").mkdir(parents=True)
    labels = {label.name: torch.arange(200) // 50 % label.classes for label in LABELS}
    for rate in (SAMPLE_RATE, VOCODER_SAMPLE_RATE):
        made = songs(rate)
        content = {"waves": made.waves, "bounds": list(made.bounds), "labels": labels}
        for split in runs.SPLITS:
            torch.save(content, run / "songs" / f"{split}-{rate}.pt")
    return Workplace(run / "corpus", run, PRESET, torch.device(device), seed=1)


class Started:
    """Stands in for the processes of the late steps: remembers what they were asked, and lets them end like this."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.asked: dict[str, dict[str, str]] = {}
        self._popen = subprocess.Popen

    def __call__(self, words: Sequence[str]) -> "subprocess.Popen[bytes]":
        _, module_flag, module, step, *options = words
        assert (module_flag, module) == ("-m", "training.codec")
        self.asked[step] = dict(zip(options[::2], options[1::2], strict=True))
        return self._popen([sys.executable, "-c", self.program])


def test_all_steps_share_the_time_and_their_results_are_packed(tmp_path, monkeypatch):
    place = workplace(tmp_path / "run")
    started = Started("pass")
    monkeypatch.setattr(whole.subprocess, "Popen", started)
    monkeypatch.setattr(whole, "_measure", lambda place, seconds: (place.run / "evaluation.json").write_text("{}"))
    whole.train_all(place, "cpu", minutes=30, steps=3)
    assert tuple(started.asked) == whole.LATE_STEPS
    for options in started.asked.values():
        assert (options["--preset"], options["--steps"], options["--seed"]) == ("cpu", "3", "1")
        assert 25 < float(options["--within"]) < 30 - whole.MEASURE_MINUTES
    for step in ("semantic", "autoencoder"):
        assert torch.load(place.run / step / loop.STATE_FILE, weights_only=True)["step"] == 3
    with tarfile.open(place.run / "result.tar") as tar:
        names = set(tar.getnames())
        tar.extractall(tmp_path / "result", filter="data")
    logs = {"semantic/log.jsonl", "autoencoder/log.jsonl"}
    assert names >= {"evaluation.json", *logs} and "copy.png" not in names
    checkpoint.load_encoder(tmp_path / "result" / "checkpoint", codebooks=8)


def test_what_was_learned_is_there_when_all_that_follows_fails(tmp_path, monkeypatch, capfd):
    place = workplace(tmp_path / "run")
    monkeypatch.setattr(whole.subprocess, "Popen", Started("raise SystemExit(3)"))

    def fail(*_: object) -> None:
        raise OSError("no room for a picture")

    monkeypatch.setattr(whole, "_measure", fail)
    whole.train_all(place, "cpu", minutes=30, steps=3)
    said = capfd.readouterr()
    assert all(f"{step}: ended with 3" in said.out for step in whole.LATE_STEPS)
    assert "no room for a picture" in said.err
    with tarfile.open(place.run / "result.tar") as tar:
        assert "checkpoint/vocal.safetensors" in tar.getnames()


def test_the_program_reads_the_options_of_a_late_step(tmp_path, capfd):
    process = whole._start(workplace(tmp_path / "run"), "vocal", "cpu", minutes=1, steps=2)
    assert process.wait(120) == 1
    assert "run the step `autoencoder` first" in capfd.readouterr().err


class Slow(loop.Student):
    """A line that learns to be zero, a hundredth of a second a step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.rates: list[float] = []

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        time.sleep(0.01)
        return self.weight.square().sum(), {}

    def examine(self) -> dict[str, float]:
        return {"weight": float(self.weight.detach().sum())}


def test_rates_fall_by_whatever_ends_first_steps_or_the_clock():
    run = loop.Run(steps=1000, batch=1, learning_rate=1.0, warm_up=10, decay=0.4)
    assert loop.rate_share(run, step=4, done=0) == 0.5
    assert loop.rate_share(run, step=500, done=0.5) == 1
    assert loop.rate_share(run, step=500, done=0.8) == pytest.approx(0.5)  # half of the last 40 % are over
    assert loop.rate_share(run, step=500, done=1) == 0.05


def test_a_run_within_minutes_ends_on_time_with_a_log_and_a_state(tmp_path):
    run = loop.Run(steps=100_000, batch=1, learning_rate=1e-3, warm_up=1)
    began = time.monotonic()
    reached = loop.train(Slow(), run, tmp_path, within=0.5 / 60)
    assert 2 <= reached <= 60
    assert 0.5 <= time.monotonic() - began < 10
    [line] = (tmp_path / loop.LOG_FILE).read_text().splitlines()
    assert json.loads(line)["step"] == reached
    # The time is that of the whole run: it is over, whoever goes on.
    assert loop.train(Slow(), run, tmp_path, within=0.5 / 60) == reached + 1


@pytest.mark.gpu
def test_every_step_learns_on_a_gpu(tmp_path):
    place = workplace(tmp_path / "run", "cuda")
    for step in STEPS:
        assert loop.train(place.student(step), PRESET.semantic, place.run / step) == 6
    checkpoint.load_codec(place.export())
