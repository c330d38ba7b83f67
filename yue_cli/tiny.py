"""The tiny checkpoint that comes with yue: models of the real architecture, trained on songs made by a program.

What is shipped are the language models in 8 bits and the codec in float16. On first use they are put into a folder of
the user's cache, the models as float32: on a CPU they are faster so.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from yue_cli.atomic import storage_errors
from yue_cli.resources import resource

NAME = "tiny"
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
    with storage_errors(final):
        home.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=home))
        try:
            shutil.copytree(shipped, building, dirs_exist_ok=True)
            for stage in STAGES:
                _expand(building / stage)
            building.chmod(0o755)
            try:
                building.rename(final)
            except OSError:
                if not final.is_dir():  # else another process was faster, with the same numbers
                    raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
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
            tensors[f"{matrix}.weight"] = tensor.float() * stored[f"{matrix}.scales"][:, None]  # see docs/quantization.md
        elif part != "scales":
            tensors[name] = tensor.float()
    save_file(tensors, folder / "model.safetensors")
