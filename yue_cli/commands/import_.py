"""`yue import`: tokens that YuE or YuE-exllamav2 made become a song's."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from yue_cli import foreign, song
from yue_cli.commands import console, options
from yue_cli.errors import StorageError
from yue_cli.foreign import ForeignStage
from yue_cli.project import Project
from yue_cli.resources import expanded

TITLES = {"stage1": "stage 1", "stage2": "stage 2"}


def import_(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The output folder of YuE or of YuE-exllamav2.")],
    folder: options.Folder,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="PART", help="A part of the song's name, where SOURCE holds several."),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Take the tokens that another YuE program wrote into FOLDER; what is there is kept in history/."""
    told = console.Console(-1 if quiet else 0)
    source = expanded(source)
    project = Project(folder)
    if folder.exists() and source.exists() and folder.samefile(source):
        raise StorageError(f"{folder}: is SOURCE itself; name another folder for the song.")
    chosen = foreign.choose(foreign.find_songs(source), name, source)
    stages, warnings = foreign.read_song(chosen)
    project.create()
    with project.locked():
        asked = song.read_song(folder)
        warnings += foreign.part_strangers(project, stages)
        replaced = [stage.stage for stage in stages if foreign.take_in(project, stage)]
        if asked.forced:  # what was to be made anew has been answered
            song.write_song(folder, replace(asked, forced=()))
    for stage in stages:
        words = [f"{stage.tokens.seconds:.1f} s of music", f"from {stage.files['vocal']}"]
        words += ["the old one is kept in history/"] if stage.stage in replaced else []
        told.line(TITLES[stage.stage], " · ".join(words))
    for warning in warnings:
        told.line("warning", warning)
    if json:
        rows = [_facts(stage, stage.stage in replaced) for stage in stages]
        console.answer_json({"song": str(folder), "name": chosen.name, "stages": rows, "warnings": warnings})
        return
    told.line("next", f"`yue {'decode' if stages[-1].stage == 'stage2' else 'stage2'} {folder}`")
    console.answer(str(folder))


def _facts(stage: ForeignStage, replaced: bool) -> dict[str, object]:
    return {
        "name": stage.stage,
        "frames": stage.tokens.frames,
        "seconds_of_music": stage.tokens.seconds,
        "files": {track: str(path) for track, path in stage.files.items()},
        "replaced": replaced,
    }
