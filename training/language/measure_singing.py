"""Let the product sing prompts, all together, as `yue run` with several folders does."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import typer

from training.corpus.dataset import TRACKS
from training.language.measure_prompts import Prompt
from yue_cli.commands.fulfil import fulfil
from yue_cli.commands.request import Request
from yue_cli.song import SONG_FILE, Song, write_song

TWICE = ("first", "second")


@dataclass(frozen=True)
class Choir:
    """Who sings, and how. books: 1 stops after stage 1."""

    checkpoint: Path
    preset: str | None
    assignments: tuple[str, ...]
    device: str
    books: int


def sing(prompts: Sequence[Prompt], out: Path, choir: Choir, seed: int, again: int) -> None:
    """Sing what is not sung yet into OUT/songs, and the first section of the first `again` songs twice."""
    by_sections: dict[int, list[Path]] = {}
    for number, prompt in enumerate(prompts):
        folder = _write(out / "songs", prompt, seed + number)
        by_sections.setdefault(prompt.sections, []).append(folder)
    for sections, folders in by_sections.items():
        _run(folders, sections, choir)
    for name in TWICE if again else ():
        shutil.rmtree(out / name, ignore_errors=True)
        folders = [_write(out / name, prompt, seed + number) for number, prompt in enumerate(prompts[:again])]
        _run(folders, 1, replace(choir, books=1))


def compare_again(out: Path) -> list[tuple[float, float]]:
    """Tell which of the songs that were sung twice came out alike; none where none were."""
    first, second = (out / name for name in TWICE)
    folders = sorted(first.iterdir()) if first.is_dir() else []
    return [(_tokens(folder) == _tokens(second / folder.name), 1) for folder in folders]


def _write(root: Path, prompt: Prompt, seed: int) -> Path:
    folder = root / prompt.name
    if not (folder / SONG_FILE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_song(folder, Song(lyrics=prompt.song.lyrics, genre=prompt.genre, seed=seed))
    return folder


def _run(folders: Sequence[Path], sections: int, choir: Choir) -> None:
    parts = {"stage1.model": "stage1", "stage2.model": "stage2", "decode.codec": "codec"}
    models = [f"{key}={(choir.checkpoint / part).resolve()}" for key, part in parts.items()]
    request = Request(
        folders=folders,
        flags={"segments": sections, "execution.device": choir.device},
        stages=("stage1",) if choir.books == 1 else ("stage1", "stage2"),
        preset=choir.preset,
        assignments=[*models, *choir.assignments],
        offline=True,
    )
    try:
        fulfil(request)
    except typer.Exit:
        typer.echo("some songs could not be sung; the others are measured", err=True)


def _tokens(folder: Path) -> bytes:
    return b"".join(np.load(folder / "stage1" / f"{track}.npy").tobytes() for track in TRACKS)
