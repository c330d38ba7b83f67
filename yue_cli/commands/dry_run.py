"""What `yue plan` and `yue run --dry-run` answer: what would be made, why, and what it needs."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yue_cli import plan
from yue_cli.commands.console import Console, answer, answer_json, clock, duration, gigabytes
from yue_cli.commands.request import Asked
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


def tell_several(console: Console, songs: Sequence[Asked], stages: Sequence[str], home: Path, as_json: bool) -> None:
    """Print the plan of several songs: what would be made of each, and what those need that are made together."""
    from yue_cli import budget  # loads torch
    from yue_cli.workbench import Workbench, companies

    benches = [Workbench(each.project, each.wanted, home, console.emit, console.detail) for each in songs]
    todo: list[list[str]] = []
    rows: list[dict[str, Any]] = []
    for each in songs:
        wanted = plan.with_reference(stages, each.wanted.song)
        states = plan.states(each.project, each.wanted)
        found = {state.stage: state for state in plan.to_do(states, wanted)}
        todo.append(list(found))
        rows.append(
            {
                "song": str(each.project.root),
                "seed": each.wanted.song.seed,
                "stages": [
                    {"name": state.stage, "state": state.state, "why": state.why, "do": state.stage in found}
                    for state in (found.get(state.stage, state) for state in states)
                    if state.stage in wanted
                ],
            }
        )
    groups = []
    for numbers in companies(list(zip(benches, todo, strict=True))):
        bench, others = benches[numbers[0]], [benches[number] for number in numbers[1:]]
        if todo[numbers[0]]:
            budget.choose_forms(bench, todo[numbers[0]])
            for other in others:
                other.forms = bench.forms
            needs = budget.needs(bench, todo[numbers[0]], others)
            for warning in budget.check(bench, needs):
                console.emit(Warned(warning))
            groups.append(([songs[number] for number in numbers], needs))
    bench = benches[0]
    dtype, free = str(bench.dtype).removeprefix("torch."), bench.free_bytes()
    if as_json:
        together = [
            {
                "songs": [str(each.project.root) for each in members],
                "needs": {need.stage: budget.as_json(need) for need in needs},
            }
            for members, needs in groups
        ]
        facts = {"device": str(bench.device), "dtype": dtype, "memory_free": free, "warnings": console.warnings}
        answer_json({"songs": rows, "together": together, **facts})
        return
    width = 2 + max(len(each.label) for each in songs)
    for each, row in zip(songs, rows, strict=True):
        stays = [state["name"] for state in row["stages"] if not state["do"]]
        made = [f"{state['name']} ({state['why']})" for state in row["stages"] if state["do"]]
        parts = [f"would be made: {', '.join(made)}"] * bool(made) + [f"stays: {', '.join(stays)}"] * bool(stays)
        answer(f"{each.label:<{width}}seed {each.wanted.song.seed} · {' · '.join(parts)}")
    for members, needs in groups:
        if len(groups) > 1:
            answer(f"together: {', '.join(each.label for each in members)}")
        for need in needs:
            answer(f"{need.stage:<{width}}{_need(need, budget.describe(need), budget.how_to_make(need.model))}")
    if groups:
        answer(f"{'device':<{width}}{bench.device_name} · {dtype} · {gigabytes(free)} of memory free")


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
