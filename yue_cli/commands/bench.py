"""`yue bench`: how fast this machine is."""

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yue_cli import presets
from yue_cli.commands import options
from yue_cli.commands.console import Console, answer, answer_json, counted, duration, gigabytes
from yue_cli.commands.request import home
from yue_cli.settings import Layer, combine, parse_assignments, resolve

if TYPE_CHECKING:
    from yue_cli.timings import DecodeResult, Model, Report, Stage1Result, Stage2Result

WIDTH = 9  # of the first column


class Stage(StrEnum):
    stage1 = "stage1"
    stage2 = "stage2"
    decode = "decode"
    all = "all"


def bench(
    stage: Annotated[Stage, typer.Option("--stage", help="Time this stage alone.")] = Stage.all,
    songs: Annotated[int, typer.Option("--songs", min=1, max=256, metavar="N", help="Songs made together.")] = 1,
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, max=3600, metavar="S", help="Seconds of music of each song.")
    ] = 60.0,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Make up weights of the published sizes even if the models are here.")
    ] = False,
    preset: options.PresetName = None,
    assignments: options.Assignments = None,
    device: options.Device = None,
    engine: options.EngineName = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Time every stage on this machine, with the models that are here or made-up ones, and compute a song's time."""
    console = Console(-1 if quiet else 0)
    flags = {"execution.device": device, "execution.engine": engine}
    given = parse_assignments(assignments or []) | {key: value for key, value in flags.items() if value is not None}
    layers = [presets.find(preset).layer()] if preset else []
    settings, _ = combine([*layers, Layer("command line", given)])

    from yue_cli import bench as measuring
    from yue_cli import speeds  # loads torch
    from yue_cli.weights import Library
    from yue_cli.workbench import MAKERS

    report = measuring.measure(
        resolve(settings),
        Library(home(), MAKERS, console.emit, offline=True),
        stages=measuring.STAGES if stage is Stage.all else (stage.value,),
        songs=songs,
        music_s=seconds,
        synthetic=synthetic,
        emit=console.emit,
    )
    if fresh := report.speeds():
        speeds.remember(home(), fresh)
    if json:
        answer_json(as_json(report))
        return
    for topic, text in _rows(report):
        answer(f"{topic:<{WIDTH}}{text}")


def _rows(report: "Report") -> list[tuple[str, str]]:
    versions = f"torch {report.versions['torch']}, yue {report.versions['yue']}"
    device = report.hardware if report.device == "cpu" else f"{report.hardware} ({report.device})"
    rows = [("device", f"{device} · {report.engine} engine · {report.dtype} · {versions}")]
    if report.stage1 is not None:
        rows += _stage1(report.stage1)
    if report.stage2 is not None:
        rows += _stage2(report.stage2)
    if report.decode is not None:
        rows += _decode(report.decode)
    if report.seconds is not None:
        music_s = report.songs * report.music_s
        rows.append(
            (
                "song" if report.songs == 1 else "songs",
                f"{counted(report.songs, 'song')} of {report.music_s:g} s: {duration(report.seconds)}, "
                f"{report.seconds / music_s:.2f} s for a second of music (computed; loading apart)",
            )
        )
    return rows


def _stage1(result: "Stage1Result") -> list[tuple[str, str]]:
    is_part = result.model.timed_layers is not None
    rows = [("stage 1", _model(result.model, result.open_s))]
    for point in result.points:
        speed = f"{1000 * point.token_s:.2f} ms a token after {point.context:,} · {_certainty(is_part)}"
        rows.append(("", f"{speed} · {counted(result.rows, 'row')}"))
    each = f"{1000 * result.token_s:.2f} ms a token on average"
    rows.append(("", f"{each}: {result.tokens:,} tokens in {duration(result.seconds)} · computed"))
    return [*rows, ("", _memory(result.memory_bytes, result.peak_bytes, result.first_s))]


def _stage2(result: "Stage2Result") -> list[tuple[str, str]]:
    is_part = result.model.timed_layers is not None
    is_whole = not is_part and result.frames >= 300
    batch = f"300 frames of {counted(result.rows, 'window')} in {duration(result.window_s)}"
    rows = [("stage 2", _model(result.model, result.open_s)), ("", f"{batch} · {_certainty(not is_whole)}")]
    if result.windows != result.rows:
        rows.append(("", f"{counted(result.windows, 'window')} in {duration(result.seconds)} · computed"))
    return [*rows, ("", _memory(result.memory_bytes, result.peak_bytes, result.first_s))]


def _decode(result: "DecodeResult") -> list[tuple[str, str]]:
    taken = duration(result.decode_s * result.music_s)
    rows = [
        ("decode", _model(result.model, result.open_s)),
        ("", f"{result.music_s:g} s of music in {taken}, {result.decode_s:.3f} s a second · measured"),
    ]
    if result.peak_bytes is not None:
        rows.append(("", f"{gigabytes(result.peak_bytes)} at the peak · {duration(result.first_s)} the first time"))
    return rows


def _model(model: "Model", open_s: float) -> str:
    how = f"made up in {duration(open_s)}" if model.is_synthetic else f"loaded in {duration(open_s)}"
    text = f"{model.name} · {gigabytes(model.weight_bytes)} of weights"
    if model.timed_layers is not None:
        layers = " and ".join(map(str, model.timed_layers))
        return f"{text} · too slow to time here: {layers} of its layers, made up"
    return f"{text} · {how}"


def _certainty(is_computed: bool) -> str:
    return "computed from a part" if is_computed else "measured"


def _memory(held: int, peak: int | None, first_s: float) -> str:
    text = f"{gigabytes(held)} held" + ("" if peak is None else f" · {gigabytes(peak)} at the peak")
    return f"{text} · {duration(first_s)} for the first of it"


def as_json(report: "Report") -> dict[str, Any]:
    """List a report for programs."""
    return asdict(report) | {"seconds": report.seconds}
