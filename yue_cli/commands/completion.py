"""What a shell may offer after a flag: names of models, presets, settings, devices. Fast: neither torch nor the hub.

Where nothing is offered, the shell offers files.
"""

from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten

import typer

from yue_cli import engines, models, settings
from yue_cli import presets as library

Offers = Iterator[tuple[str, str]]  # a word and what it is
_WIDTH = 75  # letters; typer breaks longer lines, and a shell takes the rest for another word


def presets(incomplete: str) -> Offers:
    """Offer the presets that come with yue."""
    for name in library.names():
        if name.startswith(incomplete):
            yield name, shorten(library.find(name).description, _WIDTH, placeholder=" …")


def stage_models(context: typer.Context, incomplete: str) -> Offers:
    """Offer the models of the stage that the command makes."""
    part = {"stage1": "stage1", "stage2": "stage2"}.get(context.info_name or "", "codec")
    return (offer for offer in all_models(incomplete) if models.CATALOGUE[offer[0].partition("@")[0]].part == part)


def all_models(incomplete: str) -> Offers:
    """Offer every model with a short name and, after an @, the formats of its quantized copies."""
    for name, model in models.CATALOGUE.items():
        names = [models.in_form(name, form) for form in models.FORMATS] if "@" in incomplete else [name]
        yield from ((each, model.repository) for each in names if each.startswith(incomplete))


def assignments(incomplete: str) -> Offers:
    """Offer keys of settings and, after the equals sign, the values of those that have a few."""
    key, equals, _ = incomplete.partition("=")
    if not equals:
        yield from ((f"{name}=", "") for name in settings.KEYS if name.startswith(key))
        return
    for value in settings.choices(key):
        word = f"{key}={_spelled(value)}"
        if word.startswith(incomplete):
            yield word, ""


def languages(incomplete: str) -> Offers:
    """Offer the languages that stage 1 was trained for."""
    return (offer for offer in models.LANGUAGES.items() if offer[0].startswith(incomplete))


def formats(incomplete: str) -> Offers:
    """Offer the formats of sound files."""
    return ((name, "") for name in map(str, settings.choices("decode.format")) if name.startswith(incomplete))


def devices(incomplete: str) -> Offers:
    """Offer auto, the processor, and the GPUs that the system shows without being asked much."""
    gpus = sorted(Path("/dev").glob("nvidia[0-9]*"))
    names = ["auto", "cpu", "cuda", *(f"cuda:{number}" for number in range(len(gpus)))]
    return ((name, "") for name in names if name.startswith(incomplete))


def engine_names(incomplete: str) -> Offers:
    """Offer the engines, installed or not."""
    return ((name, "") for name in (engines.AUTO, *engines.names()) if name.startswith(incomplete))


def _spelled(value: settings.Value) -> str:
    """Write a value as `--set` reads it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
