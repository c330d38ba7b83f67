"""`yue quantize`: a smaller copy of a model."""

from pathlib import Path
from typing import Annotated

import typer

from yue_cli.commands import console, options
from yue_cli.commands.request import home


def quantize(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The original: a name (yue models list), hub id or folder.")
    ],
    format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="native-8bit, native-4bit or exl2, which needs exllamav2.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="Where the copy is to lie, if not in yue's home."),
    ] = None,
    bpw: Annotated[float | None, typer.Option("--bpw", metavar="N", help="Of exl2: bits a weight, 2 to 8.")] = None,
    head_bits: Annotated[
        int | None, typer.Option("--head-bits", metavar="N", help="Of exl2: bits a weight of the output head.")
    ] = None,
    device: options.Device = None,
    offline: options.Offline = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a copy of a model in 8 or 4 bits; run it again to go on after any interruption."""
    from yue_cli import machine, quantize  # loads torch
    from yue_cli.weights import Library

    told = console.Console(-1 if quiet else 0)
    quantize.check_format(format, bpw, head_bits)
    chosen = machine.choose_device(device or "auto")
    library = Library(home(), {}, told.emit, offline)
    with told.watching():
        original = quantize.find_original(library, model)
        folder = quantize.choose_folder(library, original, format, output)
        made = quantize.make(original, format, folder, chosen, told.emit)
    name = f"{model}@{format}" if output is None else str(folder)
    told.line("next", f"`--set {original.part or 'stage1'}.model={name}` sings with it")
    if json:
        console.answer_json({"name": name, "path": str(folder), "format": format, "made": made})
    else:
        console.answer(str(folder))
