"""A small random LLaMA: its checkpoint folder, and its logits computed plainly, to compare engines with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from yue_cli.engines.native.formats import CONFIG_KEY, Quantization
from yue_cli.engines.native.quantized import CLASSES
from yue_cli.models import EIGHT_BIT

Config = dict[str, Any]
Tensors = dict[str, Tensor]

CONFIG: Config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,  # heads of 64
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "vocab_size": 512,
}


def random_tensors(config: Config = CONFIG, seed: int = 0) -> Tensors:
    """Draw weights of the published names, scaled so that logits spread over several units."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    size = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, shared = config["num_attention_heads"] * size, config["num_key_value_heads"] * size

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    def norm() -> Tensor:
        return 1 + 0.1 * torch.randn(hidden, generator=generator)

    tensors = {"model.embed_tokens.weight": draw(vocabulary, hidden) * 8, "model.norm.weight": norm()}
    if not config.get("tie_word_embeddings"):
        tensors["lm_head.weight"] = draw(vocabulary, hidden) * 2
    for layer in range(config["num_hidden_layers"]):
        tensors |= {
            f"model.layers.{layer}.input_layernorm.weight": norm(),
            f"model.layers.{layer}.self_attn.q_proj.weight": draw(queries, hidden) * 2,
            f"model.layers.{layer}.self_attn.k_proj.weight": draw(shared, hidden) * 2,
            f"model.layers.{layer}.self_attn.v_proj.weight": draw(shared, hidden),
            f"model.layers.{layer}.self_attn.o_proj.weight": draw(hidden, queries),
            f"model.layers.{layer}.post_attention_layernorm.weight": norm(),
            f"model.layers.{layer}.mlp.gate_proj.weight": draw(inner, hidden),
            f"model.layers.{layer}.mlp.up_proj.weight": draw(inner, hidden),
            f"model.layers.{layer}.mlp.down_proj.weight": draw(hidden, inner),
        }
    return tensors


def quantize(tensors: Tensors, format: str) -> tuple[Tensors, Tensors]:
    """Quantize a model that is not tied: the tensors of its file, and what they stand for."""
    stored, meant = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        matrix = name.removesuffix(".weight")
        if matrix == "lm_head" or matrix.endswith("_proj"):
            weight = CLASSES[EIGHT_BIT if matrix == "lm_head" else format].quantize(tensor)
            stored |= {f"{matrix}.{field}": part.contiguous() for field, part in weight.tensors().items()}
            meant[name] = weight.dequantize()
            del stored[name]
    return stored, meant


def write_quantized(folder: Path, format: str, tensors: Tensors | None = None) -> tuple[Path, Tensors]:
    """Write a quantized checkpoint; the weights that it stands for come with it."""
    stored, meant = quantize(random_tensors() if tensors is None else tensors, format)
    config = {**CONFIG, CONFIG_KEY: Quantization(format).as_config()}
    return write_checkpoint(folder, config, stored), meant


def write_checkpoint(folder: Path, config: Config = CONFIG, tensors: Tensors | None = None, shards: int = 1) -> Path:
    """Write config.json and the weights, in one file or in several with an index."""
    tensors = random_tensors(config) if tensors is None else tensors
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = sorted(tensors)
    places = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names[shard::shards]}, folder / file)
        places |= dict.fromkeys(names[shard::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def plain_logits(config: Config, tensors: Tensors, ids: np.ndarray) -> Tensor:
    """Compute the logits after every id, float64 [n, vocabulary], without cache, joins or tricks."""
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    count = len(ids)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * wide[name]

    def rotate(x: Tensor) -> Tensor:  # [n, heads, size]
        angles = torch.arange(count)[:, None] * config["rope_theta"] ** (-torch.arange(0, size, 2).double() / size)
        cosine, sine = angles.cos().repeat(1, 2)[:, None], angles.sin().repeat(1, 2)[:, None]
        swapped = torch.cat((-x[..., size // 2 :], x[..., : size // 2]), dim=-1)
        return x * cosine + swapped * sine

    x = wide["model.embed_tokens.weight"][torch.as_tensor(ids)]
    unseen = torch.ones(count, count).triu(1).bool()
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        y = norm(x, prefix + "input_layernorm.weight")
        q = rotate((y @ wide[prefix + "self_attn.q_proj.weight"].T).view(count, heads, size))
        k = rotate((y @ wide[prefix + "self_attn.k_proj.weight"].T).view(count, shared, size))
        v = (y @ wide[prefix + "self_attn.v_proj.weight"].T).view(count, shared, size)
        outputs = []
        for head in range(heads):
            group = head // (heads // shared)
            scores = (q[:, head] @ k[:, group].T / size**0.5).masked_fill(unseen, -torch.inf)
            outputs.append(scores.softmax(-1) @ v[:, group])
        x = x + torch.cat(outputs, dim=-1) @ wide[prefix + "self_attn.o_proj.weight"].T
        y = norm(x, prefix + "post_attention_layernorm.weight")
        gate, up = y @ wide[prefix + "mlp.gate_proj.weight"].T, y @ wide[prefix + "mlp.up_proj.weight"].T
        x = x + (gate / (1 + (-gate).exp()) * up) @ wide[prefix + "mlp.down_proj.weight"].T
    head = "model.embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight"
    return norm(x, "model.norm.weight") @ wide[head].T
