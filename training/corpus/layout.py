"""Where things lie in a corpus folder."""

from pathlib import Path

RECIPE = 4  # raise it with every change to what is composed, sung or written


def song_folder(corpus: Path, seed: int) -> Path:
    return corpus / "songs" / f"{seed:06d}"


def is_complete(folder: Path) -> bool:
    """The score is written last."""
    return (folder / "score.json").is_file()
