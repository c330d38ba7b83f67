"""Takes: what one song asks for, made several times with seeds of their own, each in a folder below the song's."""

from dataclasses import replace
from pathlib import Path

from yue_cli.artifacts import sha256_json
from yue_cli.errors import SettingsError
from yue_cli.project import Project
from yue_cli.song import Song

FOLDER = "takes"
_HIGHEST_SEED = 2**63 - 1


def folder(root: Path, number: int) -> Path:
    """Name the folder of take `number`, from 1, of the song in `root`."""
    return root / FOLDER / f"{number:02d}"


def find(root: Path) -> list[Path]:
    """List the folders of the takes that there are, in order."""
    found = [path for path in (root / FOLDER).glob("[0-9]*") if path.is_dir() and path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def seed(first: int, number: int) -> int:
    """Tell the seed of take `number`: the song's own for the first, then the next ones. Raises SettingsError."""
    if first + number - 1 > _HIGHEST_SEED:
        raise SettingsError(f"take {number} has no seed: --seed {first} is too high; expected one that leaves room.")
    return first + number - 1


def derive(song: Song, number: int, found: Song, codes: dict[str, str] | None) -> Song:
    """Tell what take `number` asks for.

    song: what all takes are made from. found: what the take's folder holds; it stays, with what was changed in it
    alone, until the song asks for something else. codes: hashes of the song's reference codes, if there are any.
    Raises SettingsError.
    """
    assert song.seed is not None, "a song needs a seed before it has takes"
    reference = None if song.reference is None else song.reference.asked()
    origin = sha256_json(
        {
            "texts": [song.lyrics, song.genre],
            "settings": [song.preset, song.overrides],
            "seed": song.seed,
            "reference": [reference, codes],
        }
    )
    if found.take_of == origin:
        return found
    return replace(song, seed=seed(song.seed, number), reseeded={}, forced=(), take_of=origin)


def bring_reference(song: Project, take: Project) -> None:
    """Give a take the reference codes of its song, so that the sound need not be encoded again."""
    hashes = song.hashes("reference")
    if hashes is not None and hashes != take.hashes("reference"):
        files = [path for path in song.folder("reference").iterdir() if path.is_file()]
        take.begin("reference", {path.name: path for path in files if not path.name.startswith(".")})
