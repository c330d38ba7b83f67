"""All steps in a given time, one after the other, the decoder's last touch and the vocoders beside each other.

What is there is packed up whenever something is done, so that a late failure loses only what is late.
"""

import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from training.codec.presets import CropRun
from training.codec.runs import Workplace
from training.loop import train

# Of the time that is left once the songs are read, before the last minute.
SEMANTIC_SHARE, AUTOENCODER_SHARE = 0.19, 0.58
MEASURE_MINUTES = 0.9
LEAST_MINUTES = 0.02
LATE_STEPS = ("decoder", "vocal", "instrumental")


def train_all(workplace: Workplace, preset: str, minutes: float, steps: int = 0) -> None:
    """Train, export and measure within so many minutes; the results lie in RUN/result.tar and in what it holds.

    steps: at most so many of each step; 0: the preset's.
    """
    began = time.monotonic()

    def left() -> float:
        return max(minutes - MEASURE_MINUTES - (time.monotonic() - began) / 60, LEAST_MINUTES)

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    workplace.run.mkdir(parents=True, exist_ok=True)
    workplace.read_songs()
    say("songs read")
    whole = left()
    for name, share in (("semantic", SEMANTIC_SHARE), ("autoencoder", AUTOENCODER_SHARE)):
        recipe: CropRun = getattr(workplace.preset, name)
        student = workplace.student(name)
        say(f"{name}: {sum(p.numel() for p in student.parameters()) / 1e6:.2f} M values")
        reached = train(student, _limited(recipe, steps), workplace.run / name, within=share * whole)
        del student
        if workplace.device.type == "cuda":
            say(f"{name}: at most {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
            torch.cuda.empty_cache()
        say(f"{name}: step {reached}")
        _pack(workplace.run)
    workplace.export()
    _pack(workplace.run)
    _try(lambda: workplace.codes() and None)
    say("encoded")
    late = [_start(workplace, name, preset, left() - 0.2, steps) for name in LATE_STEPS]
    for name, process in zip(LATE_STEPS, late, strict=True):
        _try(lambda process=process: process.wait(60 * (left() + 0.5)) and None)  # type: ignore[misc]
        process.kill()
        say(f"{name}: ended with {process.wait()}")
    workplace.export()
    _pack(workplace.run)
    _try(lambda: _measure(workplace, max(60 * MEASURE_MINUTES, 20)))
    _pack(workplace.run)
    say("done")


def _limited(recipe: CropRun, steps: int) -> CropRun:
    return replace(recipe, steps=min(steps or recipe.steps, recipe.steps))


def _start(workplace: Workplace, step: str, preset: str, minutes: float, steps: int) -> "subprocess.Popen[bytes]":
    options = {
        "corpus": workplace.corpus,
        "run": workplace.run,
        "preset": preset,
        "device": workplace.device,
        "seed": workplace.seed,
        "hours": workplace.hours,
        "fine-hours": workplace.fine_hours,
        "within": max(minutes, LEAST_MINUTES),
        "steps": steps,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen([sys.executable, "-m", "training.codec", step, *words])


def _measure(workplace: Workplace, seconds: float) -> None:
    """Write evaluation.json and copy.png."""
    folder = workplace.run / "checkpoint"
    words = [str(folder), "--corpus", str(workplace.corpus), "--songs", "6", "--draw", str(workplace.run / "copy.png")]
    with (workplace.run / "evaluation.json").open("wb") as file:
        subprocess.run([sys.executable, "-m", "training.codec.evaluate", *words], stdout=file, timeout=seconds)


def _try(task: Callable[[], None]) -> None:
    """Do what the rest can do without."""
    try:
        task()
    except Exception:
        traceback.print_exc()


def _pack(run: Path) -> None:
    """Put checkpoint, logs and figures into RUN/result.tar."""
    names = ["evaluation.json", "copy.png", *(f"{step}/log.jsonl" for step in ("semantic", "autoencoder", *LATE_STEPS))]
    with tarfile.open(run / "result.part", "w") as tar:
        for name in ["checkpoint", *names]:
            if (run / name).exists():
                tar.add(run / name, name)
    (run / "result.part").replace(run / "result.tar")
