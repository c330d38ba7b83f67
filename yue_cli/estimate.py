"""About how long each stage will take, by what this machine was measured to do. Never a guess: what is not known is
told as not known.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from yue_cli import budget, machine, speeds
from yue_cli.budget import Need
from yue_cli.project import StageState
from yue_cli.speeds import Speeds
from yue_cli.stages import stage2
from yue_cli.stages.stage1 import TOKENS_A_SECOND
from yue_cli.vocab import FRAME_RATE
from yue_cli.workbench import Workbench


@dataclass(frozen=True)
class Estimate:
    """Seconds by stage; None where nothing like it was measured."""

    hardware: str
    seconds: dict[str, float | None]
    music_s: float

    @property
    def total(self) -> float | None:
        known = [each for each in self.seconds.values() if each is not None]
        return sum(known) if len(known) == len(self.seconds) else None


def estimate(bench: Workbench, needs: Sequence[Need], states: Sequence[StageState]) -> Estimate:
    """Tell how long the stages that are to be made will take, loading and the reference's encoding apart.

    states: what the folder holds of the stages.
    """
    hardware = machine.hardware_name(bench.device)
    known = speeds.remembered(bench.library.home, hardware) or Speeds()
    sings = any(need.stage == "stage1" for need in needs)
    frames = budget.count_frames(bench, sings)
    unfinished = {state.stage for state in states if state.state == "unfinished"}
    seconds: dict[str, float | None] = {}
    for need in needs:
        if need.stage == "stage1":
            there = len(bench.project.segments()) if "stage1" in unfinished else 0
            seconds["stage1"] = _stage1_s(bench, known, need, there)
        elif need.stage == "stage2":
            seconds["stage2"] = _stage2_s(bench, known, need, frames)
        elif need.stage == "audio":
            seconds["audio"] = known.decode_s(frames / FRAME_RATE)
    return Estimate(hardware, seconds, frames / FRAME_RATE)


def _stage1_s(bench: Workbench, known: Speeds, need: Need, there: int) -> float | None:
    """Add up the segments that are not there. Every token takes longer, the more there are before it."""
    assert need.length is not None
    lengths = [round(seconds * TOKENS_A_SECOND) for seconds in budget.section_seconds(bench)]
    # What of a row is neither sung nor room for singing: the prompts, all taken as standing at the start.
    room = len(lengths) * (bench.settings.stage1.max_new_tokens + 1)
    prompts = max(0, need.length - room)
    total = 0.0
    for number, tokens in enumerate(lengths):
        if number < there:
            continue
        context = min(prompts + sum(lengths[:number]), max(0, bench.settings.stage1.context - tokens))
        took = known.stage1_s(need.weights, context, tokens, bench.settings.execution.stage1_cache)
        if took is None:
            return None
        total += took
    return total


def _stage2_s(bench: Workbench, known: Speeds, need: Need, frames: int) -> float | None:
    """Add up the batches. One of fewer rows than were measured takes about as long, since weights are read once."""
    tail = bench.settings.stage2.tail
    assert tail is not None and need.rows is not None
    total = 0.0
    lengths = Counter(window.length for window in stage2.cut(frames, tail))
    batches = [
        (min(need.rows, count - first), length)
        for length, count in lengths.items()
        for first in range(0, count, need.rows)
    ]
    for windows, length in batches:
        took = known.stage2_s(need.weights, windows, length, bench.settings.execution.stage2_cache)
        if took is None:
            return None
        total += took
    return total
