"""Draw two songs beside each other: `python -m training.language.draw SONG OTHER PNG`, voice above and band below.

Sound is that of the codec's 16 kHz decoder. A song may stand beside itself with fewer codebooks.
"""

from pathlib import Path
from typing import Annotated

import typer

from training.codec import picture
from training.corpus.dataset import TRACKS
from training.language.measure_takes import Copier, read_song
from xcodec_mini_infer import SAMPLE_RATE
from yue_cli.vocab import CODEBOOKS


def main(
    song: Annotated[Path, typer.Argument(help="A finished song's folder.")],
    other: Annotated[Path, typer.Argument(help="Another's.")],
    out: Annotated[Path, typer.Argument(help="The PNG.")],
    codec: Annotated[Path, typer.Option(help="A codec folder.")] = Path("checkpoints/tiny/codec"),
    names: Annotated[tuple[str, str], typer.Option(help="What stands above the two.")] = ("one", "other"),
    books: Annotated[int, typer.Option(help="Codebooks of the first song that are heard.")] = CODEBOOKS,
    seconds: Annotated[float, typer.Option(help="How much is drawn, from the start.")] = 8.0,
) -> None:
    """Draw spectrograms."""
    left = read_song(song, Copier(codec, "cpu", books), CODEBOOKS)
    right = read_song(other, Copier(codec, "cpu"), CODEBOOKS)
    stop = round(seconds * SAMPLE_RATE)
    vocal, band = (left.vocal, right.vocal), (left.band, right.band)
    rows = [(track, ours[:stop], theirs[:stop]) for track, (ours, theirs) in zip(TRACKS, (vocal, band), strict=True)]
    picture.draw(out, rows, SAMPLE_RATE, names)


if __name__ == "__main__":
    typer.run(main)
