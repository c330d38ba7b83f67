"""Write a model with random weights in the EXL2 format: its speed and memory are those of a trained one.

    python benchmarks/random_exl2.py FOLDER [--stage stage2] [--bits 4.25] [--head-bits 6] [--layers 32] [--device cuda]

FOLDER is used as `--set stage1.model=FOLDER` or `--set stage2.model=FOLDER`. The weights are drawn and rounded to the
nearest value, without calibration; exllamav2's own converter is for models that are to sing.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from yue_cli.engines.exl2.format import BITS, METHOD, SHORTEST_GROUP, WIDTH_STEP
from yue_cli.models import SIZES
from yue_cli.resources import resource
from yue_cli.tokenizer import TOKENIZER_FILE

PACKED = {"stage1": (4.25, 6), "stage2": (8.0, 8)}  # bits a weight of the layers, of the head, in comparisons
GROUP = 128  # quantized rows that share a scale
_GROUP_BITS = 4 / GROUP  # what a weight costs beside its value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", choices=SIZES, default="stage1")
    parser.add_argument("--bits", type=float, default=4.25, help="bits a weight of the layers")
    parser.add_argument("--head-bits", type=float, default=6, help="bits a weight of the output head")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--device", default="cpu", help="where the weights are drawn")
    arguments = parser.parse_args()
    config, generator = sizes(arguments.stage, arguments.layers), torch.Generator(arguments.device)
    write_model(arguments.folder, config, arguments.bits, arguments.head_bits, generator=generator)
    shutil.copyfile(resource(f"toy/{TOKENIZER_FILE}"), arguments.folder / TOKENIZER_FILE)


def sizes(stage: str, layers: int) -> dict[str, Any]:
    """Tell what a config.json says of a stage's published model with so many layers."""
    return SIZES[stage] | {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers}


def write_stage(folder: Path, stage: str, layers: int, device: str) -> None:
    """Write a model of a stage's published size, but for its layers, in the bits of comparisons."""
    write_model(folder, sizes(stage, layers), *PACKED[stage], generator=torch.Generator(device).manual_seed(0))


def write_model(
    folder: Path,
    config: dict,
    bits: float,
    head_bits: float,
    *,
    generator: torch.Generator,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write config.json and one file a layer, named as exllamav2 names its files.

    weights: the model to round, by the published names; None draws one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    block = {"quant_method": METHOD, "version": "0.3.2", "bits": bits, "head_bits": int(head_bits)}
    described = {**config, "torch_dtype": "float16", "quantization_config": block}
    (folder / "config.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    files = config["num_hidden_layers"] + 1
    for number, group in enumerate(_tensors_by_file(config)):
        tensors = {}
        for name, shape in group.items():
            if weights is not None:
                weight = weights[f"{name}.weight"]
            elif len(shape) == 1:
                weight = torch.ones(shape)
            else:
                weight = torch.empty(shape, device=generator.device).normal_(0, shape[-1] ** -0.5, generator=generator)
            if len(shape) == 1 or name == "model.embed_tokens":
                tensors[f"{name}.weight"] = weight.half().cpu()
            else:
                wanted = head_bits if name == "lm_head" else bits
                packed = quantize(weight, mix(wanted, shape[1]), generator)
                tensors |= {f"{name}.{part}": tensor.cpu() for part, tensor in packed.items()}
        save_file(tensors, folder / f"output-{number + 1:05}-of-{files:05}.safetensors")


def mix(bits: float, columns: int) -> list[tuple[int, int]]:
    """Choose how many inputs get how many bits so that a weight costs `bits` on average, scales included."""
    wanted = min(max(bits - _GROUP_BITS, BITS[-1]), BITS[0])
    low = max(width for width in BITS if width <= wanted)
    if low == wanted:
        return [(low, columns)]
    high = min(width for width in BITS if width > wanted)
    finer = round((wanted - low) / (high - low) * columns / SHORTEST_GROUP) * SHORTEST_GROUP
    return [(width, rows) for width, rows in ((high, finer), (low, columns - finer)) if rows]


def quantize(weight: Tensor, parts: list[tuple[int, int]], generator: torch.Generator) -> dict[str, Tensor]:
    """Round a matrix [out, in] to the nearest EXL2 values; `format.py` tells what they are.

    parts: bits, and how many inputs get them. Which inputs these are is drawn: the order is that of a random
    permutation, where the converter's is that of their importance.
    """
    outputs, inputs = weight.shape
    assert sum(rows for _, rows in parts) == inputs, f"{parts} are not {inputs} inputs"
    order = torch.randperm(inputs, device=generator.device, generator=generator)
    rows = weight.to(generator.device).float().T[order]  # [in, out]
    rows = torch.nn.functional.pad(rows, (0, -outputs % WIDTH_STEP))
    packed: list[Tensor] = []
    scales, largest, groups, start = [], [], [], 0
    for bits, size in parts:
        for group in rows[start : start + size].split(GROUP):
            values, scale, maximum = _round_group(group, bits)
            groups += [bits, sum(map(len, packed))]
            packed.append(_pack(values, bits))
            scales.append(scale)
            largest.append(maximum)
        start += size
    return {
        "q_weight": torch.cat(packed),
        "q_scale": _pack(torch.stack(scales).T, 4).T.contiguous(),
        "q_scale_max": torch.stack(largest),
        "q_groups": torch.tensor(groups, dtype=torch.int16),
        "q_invperm": order.argsort().int(),
    }


def _round_group(group: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round a group [rows, out]: values [rows, out], scales [out] of 4 bits, and the largest scale, float16."""
    half = 2 ** (bits - 1)
    wanted = group.abs().amax(dim=0) / (half - 0.5)
    largest = wanted.amax().clamp(min=2**-12).half()
    steps = (wanted / largest.float()).sqrt().mul(16).ceil().clamp(1, 16)
    scale = steps.square() * (largest / 256).float()
    values = (group / scale).round().add(half).clamp(0, 2 * half - 1)
    return values.int(), (steps - 1).int(), largest


def _pack(values: Tensor, bits: int) -> Tensor:
    """Write values [rows, out] of `bits` bits as one stream a column into words: int32 [rows * bits / 32, out]."""
    shifts = torch.arange(bits, device=values.device, dtype=torch.int32)
    stream = (values[:, None] >> shifts[:, None] & 1).flatten(0, 1)  # [rows * bits, out]
    powers = 1 << torch.arange(32, device=values.device, dtype=torch.int64)
    words = (stream.unflatten(0, (-1, 32)).long() * powers[:, None]).sum(dim=1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _tensors_by_file(config: dict) -> Iterator[dict[str, tuple[int, ...]]]:
    """Name the weights with their shapes, tables first, then a layer at a time."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    size = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, shared = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    yield {"model.embed_tokens": (vocabulary, hidden), "model.norm": (hidden,), "lm_head": (vocabulary, hidden)}
    for number in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (shared, hidden),
            "self_attn.v_proj": (shared, hidden),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        yield {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}


if __name__ == "__main__":
    main()
