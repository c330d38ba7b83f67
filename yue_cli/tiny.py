"""The tiny checkpoint that comes with yue: models of the real architecture, trained on songs made by a program.

What is shipped are the language models in 8 bits and the codec in float16. On first use they are put into a folder of
the user's cache, the models as float32: on a CPU they are faster so.
"""

import hashlib
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from yue_cli.atomic import make_folder
from yue_cli.resources import resource

NAME = "tiny"
ABOUT = "a toy trained on synthetic songs, to try the tool"  # stands in the manifest of what it makes
SHIPPED = "checkpoints/tiny"
STAGES = ("stage1", "stage2")
_VERSION = 1  # of how the folder is made


def make(home: Path) -> Path:
    """Return the tiny model's folder below `home`, with `stage1/`, `stage2/` and `codec/`; made if it is not there.

    Raises StorageError.
    """
    shipped = resource(SHIPPED)
    final = home / f"{NAME}-{_hash(shipped)}"
    if final.is_dir():
        return final

    def fill(building: Path) -> None:
        shutil.copytree(shipped, building, dirs_exist_ok=True)
        for stage in STAGES:
            _expand(building / stage)

    make_folder(final, fill)
    return final


def _hash(folder: Path) -> str:
    digest = hashlib.sha256(str(_VERSION).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _expand(folder: Path) -> None:
    """Turn a model in 8 bits into one in float32, in its place."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"]
    config["torch_dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    stored = load_file(folder / "model.safetensors")
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        matrix, _, part = name.rpartition(".")
        if part == "values":
            tensors[f"{matrix}.weight"] = (
                tensor.float() * stored[f"{matrix}.scales"][:, None]
            )  # see docs/quantization.md
        elif part != "scales":
            tensors[name] = tensor.float()
    save_file(tensors, folder / "model.safetensors")
