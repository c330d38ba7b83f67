"""`yue presets`: which settings come with yue, and what each of them sets."""

from typing import Annotated

import typer

from yue_cli import presets as library
from yue_cli.commands import completion, console, options
from yue_cli.settings import KEYS, combine, flatten, resolve


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", show_default=False, help="Show one in full.", autocompletion=completion.presets
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """List the presets, or show every setting under one of them."""
    if name is None:
        known = [library.find(each) for each in library.names()]
        if json:
            console.answer_json({"presets": {preset.name: preset.description for preset in known}})
        else:
            width = max(len(preset.name) for preset in known)
            console.answer("\n".join(f"{preset.name:<{width}}  {preset.description}" for preset in known))
        return
    preset = library.find(name)
    settings, sources = combine([preset.layer()])
    resolved = flatten(resolve(settings))
    if json:
        console.answer_json({"name": preset.name, "description": preset.description, "settings": resolved})
        return
    width = max(len(key) for key in KEYS)
    marks = {key: "" if key not in sources else "   (this preset)" for key in KEYS}
    rows = [f"{key:<{width}}  {'null' if resolved[key] is None else resolved[key]}{marks[key]}" for key in KEYS]
    console.answer("\n".join([preset.description, *rows]))
