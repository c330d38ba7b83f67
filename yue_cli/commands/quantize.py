"""`yue quantize`: a smaller copy of a model."""

from pathlib import Path
from typing import Annotated

import typer

from yue_cli.commands import console, options
from yue_cli.commands.measuring import describe, measure
from yue_cli.commands.request import home
from yue_cli.errors import SettingsError

LIMIT = 20_000  # tokens of a measurement after quantizing: what tells a good copy from a bad one


def quantize(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The original: a name (yue models list), hub id or folder.")
    ],
    songs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SONG]...",
            show_default=False,
            help="Finished songs on which the copy is measured; EXL2 is fitted to them. None: it sings some for EXL2.",
        ),
    ] = None,
    *,
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
    calibrate: Annotated[
        list[Path] | None,
        typer.Option("--calibrate", metavar="SONG", help="The same as SONG: more songs may follow."),
    ] = None,
    sing: Annotated[
        bool, typer.Option("--sing", help="Let the original sing a few songs to measure the copy on; EXL2 always does.")
    ] = False,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="NAME", help="stage1 or stage2, where the model does not tell.")
    ] = None,
    device: options.Device = None,
    offline: options.Offline = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a copy of a model in 8 or 4 bits; run it again to go on after any interruption."""
    from yue_cli import calibration, copies, machine, quantize, quantize_exl2, replay  # loads torch
    from yue_cli.weights import Library

    songs = [*(calibrate or []), *(songs or [])]
    sings = not songs and (sing or format == quantize.EXL2)
    told = console.Console(-1 if quiet else 0)
    quantize.check_format(format, bpw, head_bits)
    chosen = machine.choose_device(device or "auto")
    replay.check_stage(stage)
    library = Library(home(), {}, told.emit, offline)
    with told.watching():
        original = quantize.find_original(library, model)
        if format == quantize.EXL2:
            quantize_exl2.check(output)
        folder = quantize.choose_folder(library, original, format, output)
        stage = stage or original.part
        if (songs or sings) and stage is None:
            raise SettingsError(f"of which stage {model} is is not clear: give --stage stage1 or stage2.")
        singer = calibration.Singer(original, stage or "", folder, str(chosen), library.home, offline, told.emit)
        if bpw is not None:  # exl2
            made = quantize_exl2.make(singer, songs, bits=bpw, head_bits=head_bits)
        else:
            made = quantize.make(original, format, folder, chosen, told.emit)
        quality = copies.read_record(folder)["quality"] if sings else []
        if stage is not None and (songs or sings) and not quality:
            heard = songs or singer.sing()
            quality = [measure(library, stage, str(folder), str(original.path), heard, LIMIT, device, told.emit)]
            quantize.add_quality(folder, quality)
        singer.forget()
    name = f"{model}@{format}" if output is None else str(folder)
    use = f"`--set {stage}.model={name}` sings with it" if stage else f"`yue stage1` or `stage2 --model {name}` uses it"
    told.line("next", use)
    for row in quality:
        told.line("quality", describe(row))
    if json:
        answer = {"name": name, "path": str(folder), "format": format, "made": made, "quality": quality}
        console.answer_json(answer)
    else:
        console.answer(str(folder))
