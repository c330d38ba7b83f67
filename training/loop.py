"""The loop that all runs share: schedule, steps, log, and a state on disk from which a killed run goes on.

Batches are drawn from (seed, step) alone, so a resumed run computes what an undisturbed one does.
"""

import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yue_cli.atomic import write_atomic

STATE_FILE = "state.pt"
LOG_FILE = "log.jsonl"
SAVE_SECONDS = 180.0
LONGEST_GRADIENT = 1.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """How one model is trained."""

    steps: int
    batch: int  # examples a step
    learning_rate: float
    warm_up: int = 200  # steps until the learning rate is reached
    decay: float = 0.4  # of the steps, the last, in which it falls to a twentieth
    betas: tuple[float, float] = (0.8, 0.99)  # of AdamW
    weight_decay: float = 0.0
    report_steps: int = 200  # between looks at held-out songs


class Student(nn.Module):
    """What learns."""

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one batch, and figures for the log: left on the device, so that no step waits for it."""
        raise NotImplementedError

    def examine(self) -> dict[str, float]:
        """Measure on held-out songs."""
        raise NotImplementedError


def train(
    student: Student,
    run: Run,
    folder: Path,
    minutes: float = float("inf"),
    until: int | None = None,
    within: float = float("inf"),
) -> int:
    """Train until the run's steps, or those before `until`, are done or the minutes are over; returns the step reached.

    within: minutes for the whole run, stops apart; the learning rate falls by the clock where that ends first.
    folder: holds the state, from which a run goes on, and the log: one JSON object a line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    learning = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        learning,
        lr=run.learning_rate,
        betas=run.betas,
        weight_decay=run.weight_decay,
        fused=learning[0].is_cuda or None,
    )
    step, seconds = restore(student, folder, optimiser)
    began = saved = time.monotonic()
    sums: dict[str, Tensor | float] = defaultdict(float)
    counted = 0
    student.train()
    last = run.steps if until is None else min(until, run.steps)
    is_last = False
    while step < last and not is_last:
        spent = time.monotonic() - began
        done = max(step / run.steps, (seconds + spent) / (60 * within))
        is_last = step + 1 == last or done >= 1 or spent >= 60 * minutes
        for group in optimiser.param_groups:
            group["lr"] = run.learning_rate * rate_share(run, step, done)
        loss, figures = student.loss(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        figures["gradient"] = nn.utils.clip_grad_norm_(learning, LONGEST_GRADIENT)
        optimiser.step()
        step, counted = step + 1, counted + 1
        for name, value in (figures | {"loss": loss}).items():
            sums[name] = sums[name] + value.detach()
        if step % run.report_steps == 0 or is_last:
            student.eval()
            held_out = {f"held_out_{name}": value for name, value in student.examine().items()}
            student.train()
            means = {name: float(total) / counted for name, total in sums.items()}
            elapsed = seconds + time.monotonic() - began
            _log(folder, {"step": step, "seconds": round(elapsed, 1)} | means | held_out)
            sums.clear()
            counted = 0
        if time.monotonic() - saved > SAVE_SECONDS:
            _save(student, optimiser, step, seconds + time.monotonic() - began, folder)
            saved = time.monotonic()
    _save(student, optimiser, step, seconds + time.monotonic() - began, folder)
    return step


def rate_share(run: Run, step: int, done: float) -> float:
    """The part of the learning rate that a step takes: up in the warm-up, level, down to a twentieth at the end.

    done: the share of the run that is over, from 0 to 1.
    """
    up = (step + 1) / max(run.warm_up, 1)
    down = max(0.05, (1 - done) / max(run.decay, 1e-9))
    return min(1.0, up, down)


def restore(student: nn.Module, folder: Path, optimiser: torch.optim.Optimizer | None = None) -> tuple[int, float]:
    """Give a student, and its optimiser, what the state on disk holds; returns its step and seconds, 0 without one."""
    path = folder / STATE_FILE
    if not path.is_file():
        return 0, 0.0
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    student.load_state_dict(state["student"])
    if optimiser is not None:
        optimiser.load_state_dict(state["optimiser"])
    return state["step"], state["seconds"]


def has_state(folder: Path) -> bool:
    """Tell whether a run was ever saved."""
    return (folder / STATE_FILE).is_file()


def load_state(folder: Path, part: str) -> dict[str, Tensor]:
    """Read one part of a trained student: its tensors by their names within the part."""
    path = folder / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run the step `{folder.name}` first.")
    state = torch.load(path, map_location="cpu", weights_only=True)["student"]
    return {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}


def _save(student: nn.Module, optimiser: torch.optim.Optimizer, step: int, seconds: float, folder: Path) -> None:
    state = {
        "student": student.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    write_atomic(folder / STATE_FILE, lambda path: torch.save(state, path))


def _log(folder: Path, figures: dict[str, float]) -> None:
    line = json.dumps({name: round(value, 5) for name, value in figures.items()})
    print(line, flush=True)
    with (folder / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
