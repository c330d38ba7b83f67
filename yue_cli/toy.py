"""The toy checkpoint, on which every step can be tried in seconds: random language models and the tiny codec.

The models are of the real architecture, small, with seeded random weights: they choose by chance what they say. The
folder is made on first use, under a hash of its recipe.
"""

import hashlib
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from yue_cli.atomic import make_folder
from yue_cli.resources import resource
from yue_cli.tokenizer import TOKENIZER_FILE
from yue_cli.vocab import VOCABULARY_FILE, Vocabulary

SEED = 21
CONTEXT = 4096
_HIDDEN, _INTERMEDIATE, _LAYERS, _HEADS, _KEY_VALUE_HEADS = 128, 256, 3, 4, 2
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": _HIDDEN,
    "intermediate_size": _INTERMEDIATE,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KEY_VALUE_HEADS,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
CODEC = "checkpoints/tiny/codec"


def make(home: Path) -> Path:
    """Return the toy's folder below `home`, with `stage1/`, `stage2/` and `codec/`; made if it is not there.

    Raises StorageError.
    """
    final = home / f"toy-{_recipe_hash()}"
    if final.is_dir():
        return final

    def fill(building: Path) -> None:
        for stage in ("stage1", "stage2"):
            _write_language_model(building / stage, stage)
        shutil.copytree(resource(CODEC), building / "codec")

    make_folder(final, fill)
    return final


def _recipe_hash() -> str:
    """Hash all that decides the toy's numbers; change `SEED` when the rule of filling changes."""
    digest = hashlib.sha256(json.dumps({"seed": SEED, "llama": _LLAMA}, sort_keys=True).encode())
    parts = [resource(f"toy/{name}") for name in (TOKENIZER_FILE, VOCABULARY_FILE)]
    for path in [*parts, *sorted(resource(CODEC).iterdir())]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _write_language_model(folder: Path, stage: str) -> None:
    folder.mkdir()
    for name in (TOKENIZER_FILE, VOCABULARY_FILE):
        shutil.copyfile(resource(f"toy/{name}"), folder / name)
    rows = -(-Vocabulary.read(folder).codebook_stop // 64) * 64
    (folder / "config.json").write_text(json.dumps(_LLAMA | {"vocab_size": rows}, indent=1) + "\n", encoding="utf-8")
    hidden, intermediate = _HIDDEN, _INTERMEDIATE
    shared = _HIDDEN * _KEY_VALUE_HEADS // _HEADS  # width of keys and values
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (rows, hidden),
    }
    for layer in range(_LAYERS):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (hidden,),
                "self_attn.q_proj": (hidden, hidden),
                "self_attn.k_proj": (shared, hidden),
                "self_attn.v_proj": (shared, hidden),
                "self_attn.o_proj": (hidden, hidden),
                "post_attention_layernorm": (hidden,),
                "mlp.gate_proj": (intermediate, hidden),
                "mlp.up_proj": (intermediate, hidden),
                "mlp.down_proj": (hidden, intermediate),
            }.items()
        }
    tensors = {name: _language_tensor(stage, name, shape) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")


def _language_tensor(stage: str, name: str, shape: tuple[int, ...]) -> Tensor:
    noise = _noise(f"{stage}/{name}", shape)
    if name.endswith("norm.weight"):
        return 1 + 0.1 * noise
    return noise * (0.5 if "embed" in name else shape[-1] ** -0.5)


def _noise(name: str, shape: tuple[int, ...]) -> Tensor:
    """Draw uniform noise of mean 0 and variance 1 that depends on the name alone, on any machine."""
    key = zlib.crc32(name.encode()) + (SEED << 32)
    raw = np.random.Philox(key=key).random_raw(int(np.prod(shape)))
    unit = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return torch.from_numpy(((unit * 2 - 1) * np.float32(3**0.5)).reshape(shape))
