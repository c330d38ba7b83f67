"""What `yue plan` and `yue run --dry-run` answer: what would be made, why, and what it needs."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yue_cli import plan
from yue_cli.commands.console import Console, answer, answer_json, clock, duration, gigabytes
from yue_cli.events import Warned
from yue_cli.project import Project
from yue_cli.settings import flatten

if TYPE_CHECKING:
    from yue_cli.budget import Disk, Need
    from yue_cli.estimate import Estimate


def tell(
    console: Console, project: Project, wanted: plan.Request, stages: Sequence[str], home: Path, as_json: bool
) -> None:
    """Print the plan. Raises EngineError for what cannot fit into memory, and all that a run would raise first."""
    from yue_cli import budget, estimate  # load torch
    from yue_cli.workbench import Workbench

    stages = plan.with_reference(stages, wanted.song)
    states = plan.states(project, wanted)
    todo = {state.stage: state for state in plan.to_do(states, stages)}
    rows: list[dict[str, Any]] = [
        {"name": state.stage, "state": state.state, "why": state.why, "do": state.stage in todo}
        for state in (todo.get(state.stage, state) for state in states)
        if state.stage in stages
    ]
    bench = Workbench(project, wanted, home, console.emit, console.detail)
    budget.choose_forms(bench, list(todo))
    needs = {need.stage: need for need in budget.needs(bench, list(todo))}
    for warning in budget.check(bench, list(needs.values())):
        console.emit(Warned(warning))
    times = estimate.estimate(bench, list(needs.values()), states)
    disk, free = budget.weigh_disk(bench, list(needs.values())), bench.free_bytes()
    dtype = str(bench.dtype).removeprefix("torch.")
    if as_json:
        for row in rows:
            row["needs"] = budget.as_json(needs[row["name"]]) if row["do"] else None
            row["seconds_expected"] = times.seconds.get(row["name"])
        answer_json(
            {
                "song": str(project.root),
                "stages": rows,
                "device": str(bench.device),
                "dtype": dtype,
                "memory_free": free,
                "disk": asdict(disk),
                "seconds_expected": times.total,
                "settings": flatten(wanted.settings),
                "warnings": console.warnings,
            }
        )
        return
    width = 2 + max(len(stage) for stage in ("device", *stages))
    for row in rows:
        why = f" ({row['why']})" if row["why"] else ""
        answer(f"{row['name']:<{width}}{'would be made' if row['do'] else 'stays'}: {row['state']}{why}")
        if row["do"]:
            need, seconds = needs[row["name"]], times.seconds.get(row["name"])
            took = "" if seconds is None else f" · about {duration(seconds)}"
            answer(f"{'':<{width}}{_need(need, budget.describe(need), budget.how_to_make(need.model))}{took}")
    if needs:
        answer(f"{'device':<{width}}{bench.device_name} · {dtype} · {gigabytes(free)} of memory free")
        answer(f"{'disk':<{width}}{_disk(disk)}")
    if times.seconds:
        answer(f"{'time':<{width}}{_time(times)}")


def _need(need: "Need", parts: str, how: str | None) -> str:
    name = need.model if need.is_here else f"{need.model} (not here: {how or 'weighed as published'})"
    return f"{name} · {parts}, {gigabytes(need.work)} of work = {gigabytes(need.total)}"


def _time(times: "Estimate") -> str:
    unknown = [stage for stage, seconds in times.seconds.items() if seconds is None]
    if times.total is not None:
        music = f"{clock(times.music_s)} of music"
        return f"about {duration(times.total)} for {music}, as measured on {times.hardware}; fetching and loading apart"
    if len(unknown) == len(times.seconds):
        return "no measurement on this machine yet: run `yue bench`"
    return f"no measurement of {' and '.join(unknown)} with such a model on this machine yet: run `yue bench`"


def _disk(disk: "Disk") -> str:
    text = f"{disk.song / 1e6:.0f} MB for the song, {gigabytes(disk.song_free)} free"
    if disk.download is None:
        return f"{text} · models of unknown size to download, {gigabytes(disk.download_free)} free"
    if disk.download:
        return f"{text} · {gigabytes(disk.download)} to download, {gigabytes(disk.download_free)} free"
    return text
