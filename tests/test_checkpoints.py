"""Model folders that are read, and the one line that each bad one gets."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.tiny_llama import CONFIG, plain_logits, quantize, random_tensors, write_checkpoint, write_quantized
from yue_cli.engines import describe, open_engine
from yue_cli.engines.base import Engine
from yue_cli.errors import CheckpointError

IDS = np.array([3, 1, 4, 1, 5])


def open_native(folder: Path) -> Engine:
    return open_engine("native", folder, rows=1, length=16, device=torch.device("cpu"), dtype=torch.float32)


def message(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        open_native(folder)
    return str(error.value)


def with_config(folder: Path, **changes: Any) -> Path:
    return write_checkpoint(folder, {**CONFIG, **changes}, tensors=random_tensors())


@pytest.mark.parametrize("shards", [1, 3])
def test_one_file_and_several_are_read_alike(tmp_path: Path, shards: int) -> None:
    logits = open_native(write_checkpoint(tmp_path, shards=shards)).prefill([IDS])[0]
    torch.testing.assert_close(logits.double(), plain_logits(CONFIG, random_tensors(), IDS)[-1], atol=2e-4, rtol=0)


# VmHWM, not ru_maxrss: that begins with what the process had that started this one.
MEMORY = """
import sys, torch
from pathlib import Path
from yue_cli.engines import open_engine
def peak():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
options = {"rows": 1, "length": 16, "device": torch.device("cpu"), "dtype": torch.bfloat16}
open_engine("native", Path(sys.argv[1]), **options).close()
before = peak()
engine = open_engine("native", Path(sys.argv[2]), **options)
print(peak() - before, engine.memory)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory as Linux tells it")
def test_weights_go_from_file_to_place_one_tensor_at_a_time(tmp_path: Path) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16}
    config = CONFIG | sizes
    tensors = {name: tensor.bfloat16() for name, tensor in random_tensors(config).items()}
    large = write_checkpoint(tmp_path / "large", config, tensors=tensors, shards=3)
    small = write_checkpoint(tmp_path / "small")
    command = [sys.executable, "-c", MEMORY, str(small), str(large)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    grown, held = map(int, told.split())
    assert held > 250 * 10**6
    assert grown < 1.2 * held, f"{grown / held:.2f} times the weights; a second copy would make it two"


def test_several_files_without_an_index_are_read(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, shards=2)
    (folder / "model.safetensors.index.json").unlink()
    assert open_native(folder).prefill([IDS]).shape == (1, CONFIG["vocab_size"])


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"head_dim": 32},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {"rope_theta": 500.0, "rms_norm_eps": 1e-2},
    ],
    ids=str,
)
def test_every_size_is_read_from_the_config(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = {**CONFIG, **changes}
    tensors = random_tensors(config)
    logits = open_native(write_checkpoint(tmp_path, config, tensors)).prefill([IDS])[0]
    torch.testing.assert_close(logits.double(), plain_logits(config, tensors, IDS)[-1], atol=2e-4, rtol=0)
    facts = describe(tmp_path, dtype=torch.bfloat16)
    assert facts.parameter_bytes == 2 * sum(tensor.numel() for tensor in tensors.values())


def test_weights_are_turned_into_the_dtype_asked_for(tmp_path: Path) -> None:
    halves = {name: tensor.bfloat16() for name, tensor in random_tensors().items()}
    logits = open_native(write_checkpoint(tmp_path, CONFIG, halves)).prefill([IDS])[0]
    torch.testing.assert_close(logits.double(), plain_logits(CONFIG, halves, IDS)[-1], atol=2e-4, rtol=0)


def test_rotary_settings_of_newer_files_are_read(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key not in ("rope_theta", "rope_scaling")}
    config["rope_parameters"] = {"rope_theta": 500.0, "rope_type": "default"}
    logits = open_native(write_checkpoint(tmp_path, config, random_tensors())).prefill([IDS])[0]
    expected = plain_logits({**CONFIG, "rope_theta": 500.0}, random_tensors(), IDS)[-1]
    torch.testing.assert_close(logits.double(), expected, atol=2e-4, rtol=0)


def test_quantized_weights_are_not_turned_into_another_dtype(tmp_path: Path) -> None:
    stored, _ = quantize(random_tensors(), "native-4bit")
    name = "model.layers.1.mlp.down_proj.values"
    folder, _ = write_quantized(tmp_path, "native-4bit")
    save_file(stored | {name: stored[name].to(torch.int16)}, folder / "model.safetensors")
    assert message(folder) == (
        f"{folder}/model.safetensors: {name} holds torch.int16; expected torch.uint8. Quantize the original model "
        "again."
    )


def test_a_quantized_folder_without_its_tensors(tmp_path: Path) -> None:
    folder, _ = write_quantized(tmp_path, "native-8bit")
    save_file(random_tensors(), folder / "model.safetensors")
    assert message(folder) == f"{folder}: no tensor lm_head.values in its 1 file(s)."


def test_no_config(tmp_path: Path) -> None:
    assert message(tmp_path) == f"{tmp_path}: no config.json; expected a folder with a model's files."


def test_a_config_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert message(tmp_path).startswith(f"{tmp_path}/config.json: cannot be read as JSON (")
    (tmp_path / "config.json").write_text("[]")
    assert message(tmp_path) == f"{tmp_path}/config.json: expected a JSON object, found list."


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_type": "qwen2"}, "`model_type` is 'qwen2'; this engine reads 'llama' only."),
        ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu'; this engine reads 'silu' only."),
        ({"rope_scaling": {"type": "linear"}}, "`rope_scaling` is {'type': 'linear'}; this engine reads None only."),
        (
            {"rope_parameters": {"rope_type": "llama3"}},
            "`rope_parameters.rope_type` is 'llama3'; this engine reads 'default' only.",
        ),
        ({"attention_bias": True}, "`attention_bias` is True; this engine reads False only."),
        ({"mlp_bias": True}, "`mlp_bias` is True; this engine reads False only."),
        (
            {"quantization_config": {"quant_method": "exl2"}},
            "holds EXL2 weights; --engine exl2 reads them, or auto, which chooses it.",
        ),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "`quantization_config.quant_method` is 'gptq'; this engine reads 'yue-native' only. Take the original "
            "model; `yue quantize` makes a smaller one of it.",
        ),
        (
            {"quantization_config": {"quant_method": "yue-native", "version": 2}},
            "`quantization_config.version` is 2, this yue reads 1; update yue, or quantize the original model again.",
        ),
        (
            {"quantization_config": {"quant_method": "yue-native", "version": 1, "format": "native-4bit"}},
            "`quantization_config.version` is 1, this yue reads 2; update yue, or quantize the original model again.",
        ),
        (
            {"quantization_config": {"quant_method": "yue-native", "version": 1, "format": ["native-4bit"]}},
            "`quantization_config` is {'quant_method': 'yue-native', 'version': 1, 'format': ['native-4bit']}; "
            "expected format native-8bit or native-4bit and, in 4 bits, group 128. Quantize the original model again.",
        ),
        (
            {"quantization_config": {"quant_method": "yue-native", "version": 1, "format": "native-3bit"}},
            "`quantization_config` is {'quant_method': 'yue-native', 'version': 1, 'format': 'native-3bit'}; expected "
            "format native-8bit or native-4bit and, in 4 bits, group 128. Quantize the original model again.",
        ),
        ({"hidden_size": None}, "`hidden_size` is None; expected a whole number above 0."),
        ({"vocab_size": "512"}, "`vocab_size` is '512'; expected a whole number above 0."),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` is 0; expected a whole number above 0."),
        ({"rms_norm_eps": "small"}, "`rms_norm_eps` is 'small'; expected a number above 0."),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key/value heads evenly."),
        ({"head_dim": 33}, "`head_dim` is 33; expected an even number."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_model_of_another_kind(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    assert message(with_config(tmp_path, **changes)) == f"{tmp_path}/config.json: {text}"


def test_no_weights(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "model.safetensors").unlink()
    assert message(tmp_path) == f"{tmp_path}: no model*.safetensors; only weights in safetensors files are read."


def test_a_missing_tensor(tmp_path: Path) -> None:
    tensors = random_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    write_checkpoint(tmp_path, CONFIG, tensors)
    assert message(tmp_path) == f"{tmp_path}: no tensor model.layers.1.mlp.up_proj.weight in its 1 file(s)."


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    with_config(tmp_path, num_key_value_heads=1)
    path, name = tmp_path / "model.safetensors", "model.layers.0.self_attn.k_proj.weight"
    assert message(tmp_path) == f"{path}: {name} is [128, 256]; expected [64, 256] from config.json."


def test_whole_numbers_instead_of_weights(tmp_path: Path) -> None:
    tensors = random_tensors() | {"model.norm.weight": torch.ones(256, dtype=torch.int8)}
    write_checkpoint(tmp_path, CONFIG, tensors)
    path = tmp_path / "model.safetensors"
    assert message(tmp_path) == (f"{path}: model.norm.weight holds torch.int8; expected float32, bfloat16 or float16.")


@pytest.mark.parametrize("shards", [1, 2])
def test_a_file_that_was_cut_short(tmp_path: Path, shards: int) -> None:
    write_checkpoint(tmp_path, shards=shards)
    path = sorted(tmp_path.glob("*.safetensors"))[-1]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 1000])
    assert message(tmp_path) == (
        f"{path}: cut short: expected {len(whole)} bytes, found {len(whole) - 1000}; fetch the model again."
    )


def test_a_git_lfs_stub(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    text = message(tmp_path)
    assert text.startswith(f"{path}: not a safetensors file (")
    assert text.endswith("), 43 bytes; fetch the model again.")


def test_a_file_that_the_index_names_but_is_not_there(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    path = tmp_path / "model-00002-of-00002.safetensors"
    path.unlink()
    assert message(tmp_path) == f"{path}: missing, though model.safetensors.index.json names it; fetch the model again."


def test_an_index_that_is_wrong(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    other = {name: file for file, name in zip(reversed(list(places.values())), places, strict=True)}
    index.write_text(json.dumps({"weight_map": other}))
    assert message(tmp_path).endswith(", where model.safetensors.index.json says it is.")
    index.write_text("{}")
    assert message(tmp_path) == f"{index}: not an index of safetensors files ('weight_map')."


def test_a_missing_tensor_in_a_file_of_names(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG, {"other": torch.ones(1)})
    save_file({"more": torch.ones(1)}, tmp_path / "model-2.safetensors")
    assert message(tmp_path) == f"{tmp_path}: no tensor model.embed_tokens.weight in its 2 file(s)."
