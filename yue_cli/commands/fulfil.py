"""From flags to songs: reads what is wanted, makes it, and tells about it."""

import gc
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import typer

from yue_cli import driver, models, presets
from yue_cli import plan as plans
from yue_cli.commands import closing, dry_run
from yue_cli.commands.console import Console, answer, answer_json, counted, duration
from yue_cli.commands.request import Asked, Reader, Request, home
from yue_cli.events import Warned
from yue_cli.garbage import uncollected
from yue_cli.settings import flatten


def fulfil(request: Request) -> None:
    """Do what the command line asks, print the answer. Raises YueError; Exit where some songs failed."""
    console = Console(-1 if request.quiet else int(request.verbose))
    reader = Reader(request)
    folders = reader.folders()
    # Every mistake in words and settings is found before a folder is made or locked.
    songs = reader.read(folders)
    _tell(console, request, songs, reader)
    if request.dry_run:
        if request.force:
            forced = [replace(each.wanted, song=replace(each.wanted.song, forced=request.stages)) for each in songs]
            songs = [replace(each, wanted=wanted) for each, wanted in zip(songs, forced, strict=True)]
        if request.several:
            dry_run.tell_several(console, songs, request.stages, home(), as_json=request.json)
        else:
            dry_run.tell(console, songs[0].project, songs[0].wanted, request.stages, home(), as_json=request.json)
        return
    with ExitStack() as locks:
        for project in reader.projects(folders):
            project.create()
            locks.enter_context(project.locked())
        songs = reader.read(folders)  # again: another process may have changed a folder until now
        if not request.fine:  # a copy is no song: nothing is asked for later
            reader.store(folders)
        os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # as PyTorch wants it, before the driver looks
        driver.wake(songs[0].wanted.settings.execution.device)
        with uncollected():  # while so much is made that stays: to look through it takes a tenth of the time
            from yue_cli.pipeline import Pipeline, Workbench  # loads torch

            gc.freeze()  # nor is it looked through later, which would take a quarter of a second
        benches = [
            Workbench(each.project, each.wanted, home(), console.emit, console.detail, request.offline, each.label)
            for each in songs
        ]
        if request.fine:
            with console.watching():
                tokens = str(Pipeline(benches).copy())
            answer_json({"song": str(songs[0].project.root), "tokens": tokens}) if request.json else answer(tokens)
            return
        with console.watching():
            results = Pipeline(benches).run(
                request.stages, request.force, request.from_segment, reader.new_seeds(songs)
            )
    failures = [(bench.label, str(bench.project.root), bench.failure) for bench in benches if bench.failure]
    if not request.several:
        closing.tell_one(console, results[0], request.json)
    else:
        labels = {each.project.root: each.label for each in songs}
        closing.tell_several(console, results, failures, labels, request.json)
    if failures:
        raise typer.Exit(1)


def _tell(console: Console, request: Request, songs: Sequence[Asked], reader: Reader) -> None:
    """Say what is wanted: presets, words, takes, settings. What is the same for all takes of a song is said once."""
    seen = set()
    for each in songs:
        wanted, source = each.wanted, each.origin or each.project
        if source.root in seen:
            continue
        seen.add(source.root)
        stored = presets.find(wanted.song.preset) if wanted.song.preset else None
        for shown in [stored, reader.preset] if reader.preset != stored else [reader.preset]:
            if shown is not None:
                console.line("preset", f"{shown.name} · {shown.description}" if shown.description else shown.name)
        if "stage1" in request.stages:
            name = f"{source.root}/lyrics.txt" if len(request.folders) > 1 else reader.lyrics_name
            _tell_lyrics(console, wanted, name)
            _tell_misfits(console, wanted)
        for key, value in flatten(wanted.settings).items():
            if key in each.sources:
                console.detail("setting", f"{key} = {value} · {each.sources[key]}")
        if each.origin is not None:
            seeds = [other.wanted.song.seed or 0 for other in songs if other.origin is each.origin]
            console.line("takes", f"{counted(len(seeds), 'take')} · {_list_seeds(seeds)}")


def _list_seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"


def _tell_lyrics(console: Console, wanted: plans.Request, name: str) -> None:
    if wanted.lyrics is None:
        return
    sections = wanted.lyrics.sections[: wanted.segments]
    words, seconds = sum(section.words for section in sections), sum(section.seconds for section in sections)
    total = len(wanted.lyrics.sections)
    shown = counted(total, "section") if len(sections) == total else f"{len(sections)} of {counted(total, 'section')}"
    console.line("lyrics", f"{name} · {shown} · {counted(words, 'word')} · about {duration(seconds)}")
    for warning in wanted.lyrics.warnings_about(wanted.segments):
        console.emit(Warned(warning.text))


def _tell_misfits(console: Console, wanted: plans.Request) -> None:
    """Warn of a stage-1 model that was made for another language, or to follow a reference, or not to."""
    if wanted.lyrics is not None:
        has_reference = wanted.song.reference is not None
        name = wanted.settings.stage1.model or models.choose_stage1("en", has_reference)
        texts = [section.text for section in wanted.lyrics.sections[: wanted.segments]]
        for remark in models.remarks(name, texts, has_reference):
            console.emit(Warned(remark))
