"""`yue encode`: sound that a song is to follow, to codes."""

from typing import Annotated

import typer

from yue_cli.commands import options
from yue_cli.commands.fulfil import fulfil
from yue_cli.commands.request import Request, reference


def encode(
    folder: options.Folder,
    audio: options.Audio = None,
    vocal: options.Vocal = None,
    instrumental: options.Instrumental = None,
    start: options.Start = None,
    end: options.End = None,
    crop: options.Crop = False,
    fine: Annotated[
        bool,
        typer.Option("--fine", help="All codebooks of voice and band, into FOLDER/stage2 for `yue decode`: a copy."),
    ] = False,
    preset: options.PresetName = None,
    assignments: options.Assignments = None,
    model: options.Model = None,
    force: options.Force = False,
    device: options.Device = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Turn reference audio, which the song is to follow, into tokens: FOLDER/reference."""
    fulfil(
        Request(
            stages=("reference",),
            folders=[folder],
            preset=preset,
            assignments=assignments or [],
            reference=reference(audio, vocal, instrumental, start, end, crop),
            flags={"decode.codec": model, "execution.device": device},
            fine=fine,
            force=force,
            json=json,
            quiet=quiet,
            verbose=verbose,
        )
    )
