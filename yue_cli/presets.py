"""Named sets of settings: YAML files that come with yue, or the user's own."""

from dataclasses import dataclass
from pathlib import Path

from yue_cli.errors import SettingsError
from yue_cli.resources import resource
from yue_cli.settings import Flat, Layer, read_preset


@dataclass(frozen=True)
class Preset:
    """Settings under a name: that of a preset of ours, or the path of a file."""

    name: str
    description: str
    values: Flat

    def layer(self) -> Layer:
        return Layer(f"preset {self.name}", self.values)


def names() -> list[str]:
    """List the presets that come with yue."""
    return sorted(path.stem for path in resource("configs").glob("*.yaml"))


def find(name: str) -> Preset:
    """Read a preset by name or by path; a word with a separator or `.yaml` is a path. Raises SettingsError."""
    if name in names():
        return Preset(name, *read_preset(resource("configs") / f"{name}.yaml", f"preset {name}"))
    path = Path(name).expanduser()
    if path.is_file():
        # An absolute path, so that the song can be taken up again from another folder.
        return Preset(str(path.resolve()), *read_preset(path, name))
    if path.suffix in (".yaml", ".yml") or "/" in name or "\\" in name:
        raise SettingsError(f"{name}: there is no such preset file.")
    raise SettingsError(
        f"there is no preset `{name}`; known presets: {', '.join(names())}, or the path of a YAML file."
    )
