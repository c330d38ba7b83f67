"""Settings: frozen values with their defaults, where they come from, and what `rules` makes of an open one.

Result settings (everything but `execution`) shape the song and make a stage stale when they change; execution
settings never do. `None` means "what `rules` says"; `resolve` replaces it.
"""

import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import yaml

from yue_cli.errors import SettingsError

Value = str | int | float | bool | None
Flat = dict[str, Value]  # {"stage1.temperature": 0.9}

RULES = ("yue", "original", "exl2")
WEIGHTS = ("published", "native-8bit", "native-4bit")  # forms of a language model, best first
CACHES = ("int8", "int6", "int4")  # of keys and values, with fewer bits than they are computed in


def _one_of(default: Value, *choices: Value) -> Any:
    return field(default=default, metadata={"choices": choices})


def _between(default: Value, low: float, high: float) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class Stage1Settings:
    model: str | None = None  # a folder, a short name or a hub id; None: en-cot
    temperature: float = _between(1.0, 0.01, 100.0)  # YuE infer.py: 1.0
    top_k: int | None = _between(None, 0, 1_000_000)  # ids kept; 0 is off. Original 50 (a library default), exl2 0
    top_p: float = _between(0.93, 0.0, 1.0)  # probability mass kept. YuE infer.py: 0.93
    repetition_penalty: float = _between(1.1, 0.01, 100.0)  # YuE infer.py: 1.1
    min_new_tokens: int | None = _between(None, 0, 1_000_000)  # tokens a segment. Original 100, exl2 none
    max_new_tokens: int = _between(3000, 2, 1_000_000)  # tokens a segment: 100 are one second. YuE infer.py: 3000
    guidance_first: float = _between(1.5, 0.0, 100.0)  # first segment; 1 is off. YuE infer.py: 1.5
    guidance_later: float = _between(1.2, 0.0, 100.0)  # later segments; 1 is off. YuE infer.py: 1.2
    context: int = _between(16384, 16, 10_000_000)  # tokens the model sees at once. YuE infer.py: 16384
    on_overflow: str | None = _one_of(None, None, "drop_oldest", "keep_last", "error")


@dataclass(frozen=True)
class Stage2Settings:
    model: str | None = None  # a folder, a short name or a hub id; None: s2
    restrict_picks: bool | None = _one_of(None, None, True, False)  # may pick j only come from codebook j?
    tail: str | None = _one_of(None, None, "overlap", "short")  # how the last, shorter window is decoded


@dataclass(frozen=True)
class DecodeSettings:
    codec: str | None = None  # a folder, a short name or a hub id; None: the published one
    limit: str | None = _one_of(None, None, "scale", "clip")  # what happens to sound beyond ±0.99
    format: str = _one_of("wav", "wav", "flac", "ogg", "mp3")


@dataclass(frozen=True)
class ExecutionSettings:
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    engine: str = "auto"
    dtype: str = _one_of("auto", "auto", "float32", "bfloat16", "float16")  # auto: float32 on CPU, else bfloat16
    rows: int | None = _between(None, 1, 4096)  # stage-2 rows decoded together; None: as many as memory holds
    songs: int | None = _between(None, 1, 4096)  # songs sung together; None: as many as memory holds
    mode: str = _one_of("auto", "auto", "kernels", "graphs", "eager")  # how a step is computed; auto: the fastest here
    stage1_weights: str = _one_of("auto", "auto", *WEIGHTS)  # auto: the published ones, or a smaller form that is here
    stage2_weights: str = _one_of("auto", "auto", *WEIGHTS)
    stage1_cache: str = _one_of("auto", "auto", *CACHES)  # keys and values: auto, as computed; or in so many bits
    stage2_cache: str = _one_of("auto", "auto", *CACHES)
    memory_limit: float | None = _between(None, 0.001, 1e6)  # GB; pretend that no more is free
    compute_capability: float | None = _between(None, 1.0, 99.0)  # such as 7.5; pretend to have such a GPU

    def cache(self, stage: str) -> str:
        """Tell in which format a stage keeps keys and values."""
        return {"stage1": self.stage1_cache, "stage2": self.stage2_cache}[stage]


@dataclass(frozen=True)
class Settings:
    rules: str = _one_of("yue", *RULES)  # whose behaviour is computed where the references differ or err
    seed: int | None = _between(None, 0, 2**63 - 1)  # None: drawn once, then stored with the song
    segments: int | None = _between(None, 1, 10_000)  # sections to sing; None: all
    stage1: Stage1Settings = field(default_factory=Stage1Settings)
    stage2: Stage2Settings = field(default_factory=Stage2Settings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)


@dataclass(frozen=True)
class Layer:
    """Settings from one place, named as a user would find it: a preset file, `song.yaml`, the command line."""

    source: str
    values: Mapping[str, Value]


def _describe(kind: type, prefix: str = "") -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """List every key with its type and checks."""
    found: dict[str, tuple[Any, Mapping[str, Any]]] = {}
    hints = get_type_hints(kind)
    for item in fields(kind):
        hint = hints[item.name]
        if is_dataclass(hint):
            found |= _describe(typing.cast(type, hint), f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = (hint, item.metadata)
    return found


_KEYS = _describe(Settings)
KEYS = tuple(_KEYS)
GROUPS = frozenset(key.rpartition(".")[0] for key in KEYS) - {""}


def is_execution(key: str) -> bool:
    """Tell whether a key is an execution setting, which never changes the song."""
    return key.startswith("execution.")


def choices(key: str) -> tuple[Value, ...]:
    """List the values of a setting that has a few; none for a free one, or a key that there is not."""
    found: tuple[Value, ...] = _KEYS[key][1].get("choices", ()) if key in _KEYS else ()
    return found


def combine(layers: Iterable[Layer]) -> tuple[Settings, dict[str, str]]:
    """Put layers over the defaults, later ones winning, and tell where each changed key came from.

    Raises SettingsError for an unknown key (naming the nearest known one) or a value of a wrong type or range.
    """
    settings = Settings()
    sources: dict[str, str] = {}
    for layer in layers:
        for key, value in layer.values.items():
            settings = _with(settings, key, _checked(layer.source, key, value))
            sources[key] = layer.source
    return settings, sources


def flatten(settings: Settings) -> Flat:
    """List every setting by its public key."""
    flat: Flat = {}
    for key in KEYS:
        holder, name = _place(settings, key)
        flat[key] = getattr(holder, name)
    return flat


def resolve(settings: Settings) -> Settings:
    """Replace every open value by what `rules` says."""
    yue, exl2 = settings.rules == "yue", settings.rules == "exl2"
    ruled: Flat = {
        "stage1.top_k": 0 if exl2 else 50,
        "stage1.min_new_tokens": 0 if exl2 else 100,
        "stage1.on_overflow": "keep_last" if settings.rules == "original" else "drop_oldest",
        "stage2.restrict_picks": yue,
        "stage2.tail": "overlap" if yue else "short",
        "decode.limit": "scale" if yue else "clip",
    }
    now = flatten(settings)
    for key, value in ruled.items():
        if now[key] is None:
            settings = _with(settings, key, value)
    return settings


def read_preset(path: Path, name: str | None = None) -> tuple[str, Flat]:
    """Read a preset's description and its settings. Raises SettingsError for a file that is not one."""
    name = name or str(path)
    content = load_yaml(path, name)
    description = content.pop("description", "")
    if not isinstance(description, str):
        raise SettingsError(f"{name}: `description` must be text, found {description!r}.")
    flat = flatten_tree(content)
    for key, value in flat.items():
        _checked(name, key, value)
    return description, flat


def load_yaml(path: Path, name: str) -> dict[Any, Any]:
    """Read a YAML mapping; an empty file is an empty one. Raises SettingsError, calling the file `name`."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{name}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that does not exist
        reason = " ".join(str(error).split())
        raise SettingsError(f"{name}: not a YAML file ({reason}).") from error
    if content is not None and not isinstance(content, dict):
        raise SettingsError(f"{name}: expected settings such as `rules: yue`, found {type(content).__name__}.")
    return content or {}


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """Write plain values as YAML, keys in the order given."""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)


def parse_assignments(assignments: Iterable[str]) -> Flat:
    """Read `KEY=VALUE` words; the value is read as in a preset. Raises SettingsError."""
    flat: Flat = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise SettingsError(f"--set {assignment}: expected KEY=VALUE, such as stage1.temperature=0.9.")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            value = text
        flat[key.strip()] = value
    return flat


def flatten_tree(tree: Mapping[Any, Any], prefix: str = "") -> Flat:
    """Turn nested mappings into dotted keys; a group with nothing in it sets nothing."""
    flat: Flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten_tree(value, f"{prefix}{key}.")
        elif value is not None or f"{prefix}{key}" not in GROUPS:
            flat[f"{prefix}{key}"] = value
    return flat


def _place(settings: Settings, key: str) -> tuple[Any, str]:
    group, _, name = key.rpartition(".")
    return (getattr(settings, group) if group else settings), name


def _with(settings: Settings, key: str, value: Value) -> Settings:
    group, _, name = key.rpartition(".")
    changes: dict[str, Any] = {name: value}
    if group:
        changes = {group: replace(getattr(settings, group), **changes)}
    return replace(settings, **changes)


def _checked(source: str, key: str, value: Value) -> Value:
    """Check one value against its key's type and range; whole numbers serve as fractions."""
    if key not in _KEYS:
        raise SettingsError(f"{source}: unknown key `{key}`{_suggestion(key)}")
    hint, checks = _KEYS[key]
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if float in kinds and type(value) is int:
        value = float(value)
    choices = checks.get("choices")
    if type(value) not in kinds and not (choices and str in kinds):
        wanted = " or ".join("nothing (null)" if kind is type(None) else _KIND_NAMES[kind] for kind in kinds)
        raise SettingsError(f"{source}: `{key}` is {value!r}; expected {wanted}.")
    if choices and (type(value) not in kinds or value not in choices):
        known = ", ".join("null" if choice is None else str(choice) for choice in choices)
        raise SettingsError(f"{source}: `{key}` is {value!r}; expected one of {known}.")
    if "low" in checks and isinstance(value, int | float) and not checks["low"] <= value <= checks["high"]:
        raise SettingsError(f"{source}: `{key}` is {value}; expected a value from {checks['low']} to {checks['high']}.")
    return value


_KIND_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _suggestion(key: str) -> str:
    # Keys of both stages may be equally near.
    near = difflib.get_close_matches(key, KEYS, n=2, cutoff=0.4)
    if len(near) == 2 and _likeness(key, near[0]) > _likeness(key, near[1]):
        near.pop()
    if not near:
        short = {name.rpartition(".")[2]: name for name in KEYS}
        near = [short[match] for match in difflib.get_close_matches(key.rpartition(".")[2], short, n=1, cutoff=0.4)]
    meant = " or ".join(f"`{known}`" for known in sorted(near))
    return f"; did you mean {meant}?" if near else f"; known keys: {', '.join(KEYS)}."


def _likeness(key: str, known: str) -> float:
    return difflib.SequenceMatcher(None, known, key).ratio()
