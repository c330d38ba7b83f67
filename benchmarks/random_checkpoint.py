"""Write models as published, with random weights: names, shapes, files and their speed and memory are the same.

    python -m benchmarks.random_checkpoint FOLDER [--layers 32] [--tokenizer FILE] [--device cuda] [--seed 0]

FOLDER gets `stage1/` (three shards), `stage2/` (one file) and `codec/` (three `.pth` files), 17 GB with all layers, to
be used as `--set stage1.model=FOLDER` and so on. Without --tokenizer the texts go through the toy's; what is sung is
noise.
"""

import argparse
import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xcodec_mini_infer import checkpoint, convert
from yue_cli.models import CODEC_FILES, SIZES
from yue_cli.resources import resource
from yue_cli.tokenizer import TOKENIZER_FILE

SHARDS = {"stage1": 3, "stage2": 1}
_POOL = 2**26 + 3  # random numbers that all weights are cut from; odd, so that no two rows are the same

Shapes = dict[str, tuple[tuple[int, ...], float]]  # name: shape, scale; 0 is a norm's weight of ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokenizer", type=Path, default=resource(f"toy/{TOKENIZER_FILE}"))
    parser.add_argument("--device", default="cpu", help="where the numbers are drawn")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sizes = {stage: found | {"num_hidden_layers": arguments.layers} for stage, found in SIZES.items()}
    write(arguments.folder, sizes, Weights(arguments.seed, arguments.device), arguments.tokenizer)


class Weights:
    """Random numbers without end, at the price of a few. May be drawn from in several threads at once."""

    def __init__(self, seed: int, device: str = "cpu") -> None:
        self._seed = seed
        generator = torch.Generator().manual_seed(seed)
        self._pool = torch.randn(_POOL, generator=generator).bfloat16().to(device)

    def draw(self, name: str, shape: tuple[int, ...], scale: float, dtype: torch.dtype) -> Tensor:
        """Cut normal numbers of this scale out of the pool, from a place that the name decides, and round its end."""
        place = zlib.crc32(f"{self._seed} {name}".encode()) % _POOL
        if scale == 0:
            return torch.ones(shape, dtype=dtype)
        missing, pieces = prod(shape), []
        while missing:
            pieces.append(self._pool[place : place + missing])
            missing, place = missing - len(pieces[-1]), 0
        return (torch.cat(pieces) * scale).to(dtype).view(shape).cpu()


def write(folder: Path, sizes: Mapping[str, Mapping[str, Any]], weights: Weights, tokenizer: Path) -> None:
    """Write all models, their files at the same time. sizes: the config.json of each stage."""
    jobs: list[Callable[[], None]] = [partial(write_codec, folder / "codec", weights)]
    for stage, config in sizes.items():
        jobs += language_model_files(folder / stage, config, weights, SHARDS[stage])
        shutil.copyfile(tokenizer, folder / stage / TOKENIZER_FILE)
    with ThreadPoolExecutor(len(jobs)) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()


def language_model(config: Mapping[str, Any]) -> Shapes:
    """List the tensors of a LLaMA in the order of its files."""
    hidden, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shared = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    found: Shapes = {"model.embed_tokens.weight": ((rows, hidden), 0.5)}
    for number in range(config["num_hidden_layers"]):
        layer: Shapes = {
            "input_layernorm": ((hidden,), 0),
            "self_attn.q_proj": ((hidden, hidden), hidden**-0.5),
            "self_attn.k_proj": ((shared, hidden), hidden**-0.5),
            "self_attn.v_proj": ((shared, hidden), hidden**-0.5),
            "self_attn.o_proj": ((hidden, hidden), hidden**-0.5),
            "post_attention_layernorm": ((hidden,), 0),
            "mlp.gate_proj": ((inner, hidden), hidden**-0.5),
            "mlp.up_proj": ((inner, hidden), hidden**-0.5),
            "mlp.down_proj": ((hidden, inner), inner**-0.5),
        }
        found |= {f"model.layers.{number}.{name}.weight": facts for name, facts in layer.items()}
    return found | {"model.norm.weight": ((hidden,), 0), "lm_head.weight": ((rows, hidden), hidden**-0.5)}


def language_model_files(
    folder: Path, config: Mapping[str, Any], weights: Weights, shards: int
) -> list[Callable[[], None]]:
    """Begin a checkpoint folder in bfloat16: one file, or shards of about one size and the index that names them.

    Returns what writes the files of weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}, indent=1) + "\n")
    tensors = language_model(config)
    total, before, parts = sum(prod(shape) for shape, _ in tensors.values()), 0, [Shapes() for _ in range(shards)]
    for name, facts in tensors.items():
        before += prod(facts[0])
        parts[(before - 1) * shards // total][name] = facts
    if shards == 1:
        return [partial(write_safetensors, folder / "model.safetensors", parts[0], weights)]
    jobs: list[Callable[[], None]] = []
    where: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        jobs.append(partial(write_safetensors, folder / file, part, weights))
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 2 * total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    return jobs


def write_safetensors(path: Path, tensors: Shapes, weights: Weights) -> None:
    """Write bfloat16 tensors one after the other, so that no file is ever whole in memory.

    The format: the header's length as 8 bytes, a JSON header, the tensors' bytes.
    """
    header, at = {}, 0
    for name, (shape, _) in tensors.items():
        size = 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (shape, scale) in tensors.items():
            drawn = weights.draw(name, shape, scale, torch.bfloat16)
            file.write(drawn.view(-1).view(torch.uint8).numpy().data)


def write_codec(folder: Path, weights: Weights) -> None:
    """Write codec and vocoders as published: pickles, with all that inference reads."""
    layout = convert.published_layout()

    def fill(shapes: checkpoint.Shapes) -> dict[str, Tensor]:
        # Small values everywhere: what comes out is quiet noise.
        return {name: weights.draw(name, shape, 0.03, torch.float32) for name, shape in shapes.items()}

    contents = {
        "codec": {"codec_model": fill(layout.decoding | layout.encoding)},
        "vocal": fill(layout.vocoder),
        "instrumental": fill(layout.vocoder),
    }
    for part, file in CODEC_FILES.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(contents[part], folder / file)


if __name__ == "__main__":
    main()
