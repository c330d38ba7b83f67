"""Read lyrics and genre from where the command line says: a file, standard input, or the words themselves."""

import sys
from pathlib import Path

from yue_cli.errors import LyricsError
from yue_cli.lyrics import parse_genre, read_text
from yue_cli.resources import expanded


def read_lyrics(source: str) -> tuple[str, str]:
    """Read lyrics from a file or, for `-`, standard input. Returns text and name. Raises LyricsError."""
    if source == "-":
        return read_text(sys.stdin.buffer.read(), "standard input"), "standard input"
    return read_text(_content(Path(source), "--lyrics"), source), source


def read_genre(source: str) -> str:
    """Read the genre from a file, or take the words themselves. Raises LyricsError.

    What has a path separator or ends in `.txt` is a file and must exist.
    """
    path = Path(source)
    if "/" in source or "\\" in source or path.suffix == ".txt":
        return parse_genre(read_text(_content(path, "--genre"), source), source)
    return parse_genre(source, "--genre")


def _content(path: Path, flag: str) -> bytes:
    try:
        return expanded(path).read_bytes()
    except OSError as error:
        raise LyricsError(f"{flag} {path}: cannot be read ({error.strerror}).") from error
