"""`yue status`: what a song's folder holds, and whether it is what was asked for."""

from typing import Any

from yue_cli import plan, song
from yue_cli.commands import console, options
from yue_cli.commands.request import read_song
from yue_cli.errors import ArtifactError
from yue_cli.project import Project, StageState
from yue_cli.settings import resolve


def status(folder: options.Folder, json: options.Json = False) -> None:
    """Show which stages are there, current, stale or edited, and how they were made."""
    project = Project(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: there is no such folder. `yue run {folder}` makes a song there.")
    asked = read_song(project)
    settled, settings, _ = song.settle(asked, None, {})
    wanted = plan.try_request(settled if asked.seed is not None else asked, resolve(settings))
    states = plan.states(project, wanted)
    if json:
        console.answer_json({"song": str(folder), "seed": asked.seed, "stages": [_facts(state) for state in states]})
        return
    for state in states:
        console.answer(_row(state))
    for state in states:
        if state.state == "stale" and state.stage != "stage1":
            console.warn(f"{state.stage} is stale: `yue {_command(state.stage)} {folder}` makes it anew")


def _row(state: StageState) -> str:
    parts = [f"{state.stage:<7} {state.state:<10}"]
    manifest = state.manifest
    if manifest is not None:
        parts += [console.clock(manifest.music_s), *_made(state)]
    if state.why:
        parts.append(state.why)
    return "  ".join(parts)


def _made(state: StageState) -> list[str]:
    manifest = state.manifest
    assert manifest is not None
    model = " ".join(str(part) for part in (manifest.model.get("name"), manifest.model.get("revision")) if part)
    words = [model, *(str(manifest.engine[key]) for key in ("dtype", "device") if key in manifest.engine)]
    if manifest.seed is not None and state.stage == "stage1":
        words.append(f"seed {manifest.recipe.get('seed', manifest.seed)}")
    if manifest.truncated:
        words.append(f"cut: {', '.join(str(number) for number in manifest.truncated)}")
    return [" · ".join(words)]


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
    return "decode" if stage == "audio" else stage
