"""Find files: those that come with yue, in a checkout or inside the installed package, and those that a user names."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """Return the path of a data file or folder such as `configs` or `prompt_egs/lyrics.txt`."""
    inside = _PACKAGE / "data" / name
    return inside if inside.exists() else _PACKAGE.parent / name


def expanded(name: str | Path) -> Path:
    """Put the home folder for `~` and `~user`, as a shell does; an unknown user's name stays as it is."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)
