"""Fill a corpus folder: which songs it has, and the processes that render them. Done songs are never made again."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from training.corpus.bank import load_bank
from training.corpus.compose import HELD_OUT_PAIRS, compose
from training.corpus.layout import RECIPE, is_complete, song_folder
from training.corpus.render import Renderer, write_song
from training.corpus.world import FRAME_RATE
from yue_cli.atomic import write_bytes


class OtherRecipe(RuntimeError):
    """The folder holds songs of another recipe."""


def choose_seeds(hours: float) -> list[int]:
    """The songs from 0 on, in whole pairs, that last at least so long."""
    frames = 0
    seeds: list[int] = []
    while frames < hours * 3600 * FRAME_RATE or len(seeds) % 2:
        frames += compose(len(seeds)).frames
        seeds.append(len(seeds))
    return seeds


def describe(out: Path, seeds: Sequence[int]) -> None:
    """Write corpus.json, before the songs: a song counts once its own score.json is there. Raises OtherRecipe."""
    path = out / "corpus.json"
    if path.exists():
        found = json.loads(path.read_text())["recipe"]
        if found != RECIPE:
            raise OtherRecipe(f"{out} was made by recipe {found}, this is {RECIPE}; choose another --out.")
    split = f"songs 2n and 2n + 1 are held out where n % {HELD_OUT_PAIRS} == {HELD_OUT_PAIRS - 1}"
    text = {"recipe": RECIPE, "count": len(seeds), "seeds": [seeds[0], seeds[-1] + 1], "split": split}
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps(text, indent=1).encode())


def render_songs(out: Path, bank: Path, seeds: Sequence[int], workers: int) -> Iterator[float]:
    """Render what is missing, in any order; yields the seconds of each song as it is done."""
    missing = [seed for seed in seeds if not is_complete(song_folder(out, seed))]
    with ProcessPoolExecutor(workers, get_context("spawn"), _open_bank, (bank,)) as pool:
        for task in as_completed([pool.submit(_make_song, out, seed) for seed in missing]):
            yield task.result()


_renderer: Renderer | None = None  # of this process


def _open_bank(bank: Path) -> None:
    global _renderer
    _renderer = Renderer(*load_bank(bank))


def _make_song(out: Path, seed: int) -> float:
    assert _renderer, "_open_bank comes first"
    song = compose(seed)
    write_song(song_folder(out, seed), _renderer.render(song))
    return song.frames / FRAME_RATE
