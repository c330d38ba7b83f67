"""From a model's name to a folder on this machine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from yue_cli.errors import CheckpointError

PARTS = {"stage1": "stage-1 model", "stage2": "stage-2 model", "codec": "codec"}
_FLAGS = {"stage1": "stage1.model", "stage2": "stage2.model", "codec": "decode.codec"}
_CONTENTS = {
    "stage1": "config.json, model.safetensors and tokenizer.model",
    "stage2": "config.json and model.safetensors",
    "codec": "config.json, codec.safetensors, vocal.safetensors and instrumental.safetensors",
}

Maker = Callable[[Path], Path]  # the models' home → a folder holding stage1/, stage2/ and codec/


@dataclass(frozen=True)
class ModelFolder:
    """A checkpoint folder and the name it was asked for by; `revision` where one is known."""

    name: str
    path: Path
    revision: str | None = None


def locate(name: str | None, part: str, home: Path, makers: Mapping[str, Maker]) -> ModelFolder:
    """Find the folder of one part: `stage1`, `stage2` or `codec`.

    name: a folder (the part's own, or one that holds a folder named like the part), a name among `makers`, whose
    models are made on first use, or None: what lies in `home/models`. Raises CheckpointError.
    """
    if name is not None and name in makers:
        made = makers[name](home)
        return ModelFolder(name, made / part, revision=made.name)
    root = home / "models" if name is None else Path(name).expanduser()
    path = root / part if name is None or (root / part).is_dir() else root
    if path.is_dir():
        return ModelFolder(name or part, path)
    wanted = f"a folder with {_CONTENTS[part]}"
    if name is None:
        raise CheckpointError(
            f"no {PARTS[part]} in {path}: expected {wanted} there, or name one with --set {_FLAGS[part]}=FOLDER. "
            "`yue demo` tries the tool without a model."
        )
    raise CheckpointError(f"{_FLAGS[part]}: there is no folder {path}; expected {wanted}, or {' or '.join(makers)}.")
