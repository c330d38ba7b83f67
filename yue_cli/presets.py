"""Named sets of settings: YAML files that come with yue, or the user's own."""

from dataclasses import dataclass

from yue_cli.errors import SettingsError
from yue_cli.resources import expanded, resource
from yue_cli.settings import Flat, Layer, is_execution, read_preset

CARDS = ("24gb", "16gb", "12gb", "8gb", "6gb")  # by the memory that a GPU has, largest first


@dataclass(frozen=True)
class Preset:
    """Settings under a name: that of a preset of ours, or the path of a file."""

    name: str
    description: str
    values: Flat

    @property
    def is_execution(self) -> bool:
        """Tell whether it says only how a song is computed, so that it is no part of a song."""
        return bool(self.values) and all(map(is_execution, self.values))

    def layer(self) -> Layer:
        return Layer(f"preset {self.name}", self.values)


def names() -> list[str]:
    """List the presets that come with yue."""
    return sorted(path.stem for path in resource("configs").glob("*.yaml"))


def find(name: str) -> Preset:
    """Read a preset by name or by path; a word with a separator or `.yaml` is a path. Raises SettingsError."""
    if name in names():
        return Preset(name, *read_preset(resource("configs") / f"{name}.yaml", f"preset {name}"))
    path = expanded(name)
    if path.is_file():
        # An absolute path, so that the song can be taken up again from another folder.
        return Preset(str(path.resolve()), *read_preset(path, name))
    if path.suffix in (".yaml", ".yml") or "/" in name or "\\" in name:
        raise SettingsError(f"{name}: there is no such preset file.")
    raise SettingsError(
        f"there is no preset `{name}`; known presets: {', '.join(names())}, or the path of a YAML file."
    )
