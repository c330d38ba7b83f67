"""`yue eval`: how far a model is from another on songs that are finished."""

from pathlib import Path
from typing import Annotated

import typer

from yue_cli.commands import console, options
from yue_cli.commands.measuring import describe, measure
from yue_cli.commands.request import home


def eval(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Finished songs.")],
    model: Annotated[
        str, typer.Option("--model", metavar="A", help="The model in question: a name, hub id or folder.")
    ],
    against: Annotated[
        str, typer.Option("--against", metavar="B", help="The model that it is compared with, such as its original.")
    ],
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="NAME", help="stage1 or stage2, where the models do not tell.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Stop after N tokens of each stage.")
    ] = None,
    cache: Annotated[
        str, typer.Option("--cache", metavar="FORM", help="Of the first model's keys and values: int8, int6 or int4.")
    ] = "auto",
    device: options.Device = None,
    offline: options.Offline = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Let two models read the tokens of songs and compare what each expects next."""
    from yue_cli import replay  # loads torch
    from yue_cli.weights import Library
    from yue_cli.workbench import MAKERS

    replay.check_cache(cache)
    told = console.Console(-1 if quiet else 0)
    library = Library(home(), MAKERS, told.emit, offline)
    stages = replay.choose_stages(library, [model, against], stage)
    with told.watching():
        rows = [measure(library, each, model, against, folders, limit, device, told.emit, cache) for each in stages]
    if json:
        console.answer_json({"model": model, "against": against, "stages": rows, "warnings": told.warnings})
        return
    for row in rows:
        console.answer(describe(row))
