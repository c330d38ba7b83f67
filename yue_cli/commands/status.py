"""`yue status`: what a song's folder holds, and whether it is what was asked for."""

from pathlib import Path
from typing import Annotated, Any

import typer

from yue_cli import plan, song, takes
from yue_cli.atomic import write_bytes
from yue_cli.commands import console, options
from yue_cli.commands.request import read_song
from yue_cli.engines import AUTO
from yue_cli.errors import ArtifactError, PlotError
from yue_cli.project import Project, StageState
from yue_cli.resources import expanded
from yue_cli.settings import resolve
from yue_cli.song import Song

_GENRE_WIDTH = 110  # letters that fit above a picture


def status(
    folder: options.Folder,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="PNG", help="Draw sections, levels and spectrograms into this file instead."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show which stages are there, current, stale or edited, and how they were made."""
    project = Project(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: there is no such folder. `yue run {folder}` makes a song there.")
    asked, states = _look(project)
    others = {path: _look(Project(path)) for path in takes.find(folder)}
    if plot is not None:
        _draw(project, asked, plot)
    if json:
        facts = _song_facts(folder, asked, states)
        if others:
            facts["takes"] = [_song_facts(path, *found) for path, found in others.items()]
        console.answer_json(facts if plot is None else facts | {"plot": str(plot)})
        return
    if plot is not None:
        console.answer(str(plot))
        return
    if not others or any(state.state != "missing" for state in states):
        for state in states:
            console.answer(_row(state, width=max(7, len(states[0].stage))))
    for path, (take, found) in others.items():
        console.answer(_take_row(path, take, found))
    for state in states:
        if state.state == "stale" and state.stage != "stage1":
            console.warn(f"{state.stage} is stale: `yue {_command(state.stage)} {folder}` makes it anew")


def _look(project: Project) -> tuple[Song, list[StageState]]:
    """Read what is asked of a song and what there is of it."""
    asked = read_song(project)
    settled, settings, _ = song.settle(asked, None, {})
    wanted = plan.try_request(settled if asked.seed is not None else asked, resolve(settings))
    return asked, plan.states(project, wanted)


def _draw(project: Project, asked: Song, path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise PlotError(f"--plot {path}: only PNG pictures are drawn; name a file that ends in .png.")
    from yue_cli.plot import draw, read_picture  # loads what reads sound

    genre = [] if asked.genre is None else [" ".join(asked.genre.split())]
    if genre and len(genre[0]) > _GENRE_WIDTH:
        genre = [f"{genre[0][:_GENRE_WIDTH]}…"]
    seed = [] if asked.seed is None else [f"seed {asked.seed}"]
    picture = draw(read_picture(project, [*genre, *seed]))
    write_bytes(expanded(path), picture)


def _row(state: StageState, width: int) -> str:
    parts = [f"{state.stage:<{width}} {state.state:<10}"]
    manifest = state.manifest
    if manifest is not None:
        parts += [console.clock(manifest.music_s), *_made(state)]
    if state.why:
        parts.append(state.why)
    return "  ".join(parts)


def _take_row(path: Path, asked: Song, states: list[StageState]) -> str:
    """Say in one line how far a take is: its first stage that is not as it should be, or its length."""
    rest = next((state for state in states if not state.is_usable), None)
    last = states[-1].manifest
    how = f"{rest.stage} {rest.state}" if rest else "current"
    parts = [f"take {path.name} {how:<14}", console.clock(last.music_s) if last and rest is None else "    "]
    return "  ".join([*parts, f"seed {asked.seed}"])


def _made(state: StageState) -> list[str]:
    manifest = state.manifest
    assert manifest is not None
    engine = manifest.engine
    model = " ".join(str(part) for key in ("name", "revision", "format") if (part := manifest.model.get(key)))
    words = [model, *(str(engine[key]) for key in ("dtype", "device") if key in engine)]
    if engine.get("name", "native") != "native":
        words.append(str(engine["name"]))
    if engine.get("cache", AUTO) != AUTO:
        words.append(f"cache {engine['cache']}")
    if manifest.seed is not None and state.stage == "stage1":
        words.append(f"seed {manifest.recipe.get('seed', manifest.seed)}")
    if manifest.truncated:
        words.append(f"cut: {', '.join(str(number) for number in manifest.truncated)}")
    return [" · ".join(words)]


def _song_facts(folder: Path, asked: Song, states: list[StageState]) -> dict[str, Any]:
    return {"song": str(folder), "seed": asked.seed, "stages": [_facts(each) for each in states]}


def _facts(state: StageState) -> dict[str, Any]:
    manifest = state.manifest
    facts: dict[str, Any] = {"name": state.stage, "state": state.state, "why": state.why}
    if manifest is not None:
        facts |= {
            "seconds_of_music": manifest.music_s,
            "seconds_taken": manifest.seconds,
            "model": dict(manifest.model),
            "engine": dict(manifest.engine),
            "seed": manifest.seed,
            "truncated": list(manifest.truncated),
        }
    return facts


def _command(stage: str) -> str:
    return {"reference": "encode", "audio": "decode"}.get(stage, stage)
