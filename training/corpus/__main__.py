"""Make the corpus: `python -m training.corpus --hours 10`. The same command goes on where it was stopped."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from training.corpus.band_bank import SOUNDFONT, SoundfontMissing
from training.corpus.bank import LexiconWrong, is_ready, make_bank
from training.corpus.espeak import EspeakMissing
from training.corpus.layout import is_complete, song_folder
from training.corpus.make import OtherRecipe, choose_seeds, describe, render_songs

_SHOW_EVERY_S = 10


def main(
    hours: Annotated[float, typer.Option(help="Hours of music.")] = 10.0,
    out: Annotated[Path, typer.Option(help="Folder of the corpus.")] = Path("corpus"),
    workers: Annotated[int, typer.Option(help="Processes.")] = os.cpu_count() or 1,
    soundfont: Annotated[Path, typer.Option(help="FluidR3 as an sf2 file.")] = SOUNDFONT,
) -> None:
    """Compose, sing and play songs from seed 0 on, until they last HOURS."""
    bank = out / "bank"
    try:
        if not is_ready(bank):
            _say(f"bank     recording voices and instruments into {bank}: a minute or two")
            make_bank(bank, soundfont)
        seeds = choose_seeds(hours)
        describe(out, seeds)
    except (EspeakMissing, SoundfontMissing, LexiconWrong, OtherRecipe) as error:
        _say(f"error: {error}")
        raise typer.Exit(1) from error
    missing = sum(not is_complete(song_folder(out, seed)) for seed in seeds)
    _say(f"songs    {len(seeds)} in all, {missing} to make")
    started = shown = time.monotonic()
    seconds = 0.0
    for done, length in enumerate(render_songs(out, bank, seeds, workers), start=1):
        seconds += length
        now = time.monotonic()
        if now - shown > _SHOW_EVERY_S or done == missing:
            shown = now
            rate = seconds / (now - started)
            _say(f"songs    {done}/{missing} · {seconds / 3600:.2f} h of music · {rate:.0f} × real time")
    typer.echo(out)


def _say(text: str) -> None:
    typer.echo(text, err=True)


if __name__ == "__main__":
    typer.run(main)
