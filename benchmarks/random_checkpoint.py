"""Write models of the published sizes with random weights: their speed and memory are those of the trained ones.

    python benchmarks/random_checkpoint.py FOLDER [--layers 32] [--device cuda]

FOLDER gets `stage1/`, `stage2/` and `codec/` (17 GB with all layers), to be used as `--set stage1.model=FOLDER` and so
on. The texts go through the toy's tokenizer; what is sung is noise.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from xcodec_mini_infer import checkpoint
from xcodec_mini_infer.codec import CodecConfig
from xcodec_mini_infer.vocoder import VocoderConfig
from yue_cli.models import SIZES
from yue_cli.resources import resource
from yue_cli.tokenizer import TOKENIZER_FILE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    for stage, sizes in SIZES.items():
        config = sizes | {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": arguments.layers}
        write_language_model(arguments.folder / stage, config, torch.device(arguments.device))
    write_codec(arguments.folder / "codec")


def write_language_model(folder: Path, config: dict, device: torch.device) -> None:
    """Write one file of tables and one a layer, with the index that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(resource(f"toy/{TOKENIZER_FILE}"), folder / TOKENIZER_FILE)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    hidden, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shared = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    generator = torch.Generator(device).manual_seed(0)

    def matrix(out: int, into: int, scale: float) -> torch.Tensor:
        weight = torch.empty(out, into, device=device, dtype=torch.bfloat16)
        return weight.normal_(0, scale, generator=generator).cpu()

    def ones() -> torch.Tensor:
        return torch.ones(hidden, dtype=torch.bfloat16)

    tables = {"model.embed_tokens.weight": matrix(rows, hidden, 0.5), "model.norm.weight": ones()}
    tables["lm_head.weight"] = matrix(rows, hidden, hidden**-0.5)
    files = {"model-tables.safetensors": list(tables)}
    save_file(tables, folder / "model-tables.safetensors")
    for number in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": ones(),
            "self_attn.q_proj": matrix(hidden, hidden, hidden**-0.5),
            "self_attn.k_proj": matrix(shared, hidden, hidden**-0.5),
            "self_attn.v_proj": matrix(shared, hidden, hidden**-0.5),
            "self_attn.o_proj": matrix(hidden, hidden, hidden**-0.5),
            "post_attention_layernorm": ones(),
            "mlp.gate_proj": matrix(inner, hidden, hidden**-0.5),
            "mlp.up_proj": matrix(inner, hidden, hidden**-0.5),
            "mlp.down_proj": matrix(hidden, inner, inner**-0.5),
        }
        named = {f"model.layers.{number}.{name}.weight": tensor for name, tensor in layer.items()}
        save_file(named, folder / f"model-{number:02d}.safetensors")
        files[f"model-{number:02d}.safetensors"] = list(named)
    where = {name: file for file, names in files.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}, indent=1) + "\n")


def write_codec(folder: Path) -> None:
    """Write codec and vocoders at the published size."""
    generator = torch.Generator().manual_seed(0)

    def fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        # Small values everywhere: what comes out is quiet noise.
        return {name: 0.03 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    codec, vocoder = CodecConfig(), VocoderConfig()
    tensors = {checkpoint.CODEC_FILE: fill(checkpoint.codec_shapes(codec) | checkpoint.encoder_shapes(codec))}
    for file in (checkpoint.VOCAL_FILE, checkpoint.INSTRUMENTAL_FILE):
        tensors[file] = fill(checkpoint.vocoder_shapes(vocoder))
    checkpoint.write(folder, codec, vocoder, tensors)


if __name__ == "__main__":
    main()
