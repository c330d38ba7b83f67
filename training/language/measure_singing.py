"""Let the product sing prompts, all together, as `yue run` with several folders does."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import typer

from training.language.measure_prompts import Prompt
from yue_cli.commands.fulfil import fulfil
from yue_cli.commands.request import Request
from yue_cli.song import SONG_FILE, Song, write_song


def sing(
    prompts: Sequence[Prompt],
    out: Path,
    checkpoint: Path,
    books: int,
    seed: int,
    assignments: Sequence[str],
    device: str,
    again: int,
) -> list[tuple[float, float]]:
    """Sing what is not sung yet, into OUT/songs. Returns which of the first `again` songs came out alike twice."""
    by_sections: dict[int, list[Path]] = {}
    for number, prompt in enumerate(prompts):
        folder = _write(out / "songs", prompt, seed + number)
        by_sections.setdefault(prompt.sections, []).append(folder)
    for sections, folders in by_sections.items():
        _run(folders, sections, checkpoint, books, assignments, device)
    twice: list[list[Path]] = []
    for name in ("first", "second") if again else ():
        shutil.rmtree(out / name, ignore_errors=True)
        twice.append([_write(out / name, prompt, seed + number) for number, prompt in enumerate(prompts[:again])])
        _run(twice[-1], 1, checkpoint, 1, assignments, device)
    return [(_tokens(one) == _tokens(other), 1) for one, other in zip(*twice, strict=True)] if twice else []


def _write(root: Path, prompt: Prompt, seed: int) -> Path:
    folder = root / prompt.name
    if not (folder / SONG_FILE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_song(folder, Song(lyrics=prompt.song.lyrics, genre=prompt.genre, seed=seed))
    return folder


def _run(
    folders: Sequence[Path], sections: int, checkpoint: Path, books: int, assignments: Sequence[str], device: str
) -> None:
    models = [f"{stage}.model={(checkpoint / stage).resolve()}" for stage in ("stage1", "stage2")]
    request = Request(
        folders=folders,
        flags={"segments": sections, "execution.device": device},
        stages=("stage1",) if books == 1 else ("stage1", "stage2"),
        assignments=[*models, f"decode.codec={(checkpoint / 'codec').resolve()}", *assignments],
        offline=True,
    )
    try:
        fulfil(request)
    except typer.Exit:
        typer.echo("some songs could not be sung; the others are measured", err=True)


def _tokens(folder: Path) -> bytes:
    return b"".join(np.load(folder / "stage1" / f"{track}.npy").tobytes() for track in ("vocal", "instrumental"))
