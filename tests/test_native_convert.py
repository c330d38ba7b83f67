"""From a checkpoint folder to quantized weights: what is written, that it is what stands for the original, refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_llama import CONFIG, Tensors, plain_logits, quantize, random_tensors, write_checkpoint
from yue_cli.engines import describe, open_engine, plan_conversion
from yue_cli.engines.native import convert
from yue_cli.engines.native.convert import Conversion
from yue_cli.errors import CheckpointError
from yue_cli.models import FORMATS

CPU = torch.device("cpu")
IDS = np.array([3, 1, 4, 1, 5])


def write_copy(original: Path, folder: Path, format: str) -> Path:
    folder.mkdir()
    conversion = Conversion(original, format)
    for name, size in conversion.files.items():
        told: list[int] = []
        conversion.write(name, folder / name, CPU, told.append)
        assert told == sorted(told)
        assert told[-1] == size
    for name, text in conversion.texts.items():
        (folder / name).write_text(text)
    return folder


def tensors_of(folder: Path) -> Tensors:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shards", [1, 3])
def test_every_matrix_is_quantized_and_the_rest_kept(tmp_path: Path, format: str, shards: int) -> None:
    written = write_copy(write_checkpoint(tmp_path / "original", shards=shards), tmp_path / "copy", format)
    expected, _ = quantize(random_tensors(), format)
    found = tensors_of(written)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("format", FORMATS)
def test_small_blocks_and_files_change_no_number(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = write_checkpoint(tmp_path / "original")
    whole = tensors_of(write_copy(original, tmp_path / "whole", format))
    monkeypatch.setattr(convert, "_BLOCK", 256 * 100)
    monkeypatch.setattr(convert, "SHARD_BYTES", 400_000)
    cut = write_copy(original, tmp_path / "cut", format)
    found = tensors_of(cut)
    assert set(found) == set(whole)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_files_are_no_larger_than_said_and_the_index_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "SHARD_BYTES", 300_000)
    folder = write_copy(write_checkpoint(tmp_path / "original"), tmp_path / "copy", "native-8bit")
    files = sorted(folder.glob("*.safetensors"))
    assert [path.name for path in files] == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, 7)]
    sizes = [sum(tensor.nbytes for tensor in load_file(path).values()) for path in files]
    assert sizes[0] == 512 * 256 * 4, "the embedding alone is larger than the limit"
    assert max(sizes[1:]) <= 300_000
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(sizes)}
    assert index["weight_map"] == {name: path.name for path in files for name in load_file(path)}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"head_dim": 32, "num_key_value_heads": 4}])
def test_a_copy_computes_with_what_its_values_stand_for(tmp_path: Path, format: str, changes: dict[str, Any]) -> None:
    config = {**CONFIG, **changes}
    tensors = random_tensors(config)
    folder = write_copy(write_checkpoint(tmp_path / "original", config, tensors), tmp_path / "copy", format)
    _, meant = quantize(tensors, format)
    engine = open_engine("native", folder, rows=1, length=16, device=CPU, dtype=torch.float32)
    logits = engine.prefill([IDS])[0].double()
    torch.testing.assert_close(logits, plain_logits(config, meant, IDS)[-1], atol=2e-4, rtol=0)
    facts = describe(folder, dtype=torch.float32)
    assert facts.parameter_bytes == sum(tensor.nbytes for tensor in tensors_of(folder).values())


def test_half_precision_is_kept_where_nothing_is_quantized(tmp_path: Path) -> None:
    halves = {name: tensor.bfloat16() for name, tensor in random_tensors().items()}
    folder = write_copy(write_checkpoint(tmp_path / "original", CONFIG, halves), tmp_path / "copy", "native-4bit")
    found = tensors_of(folder)
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert found[name].dtype == torch.bfloat16
        assert torch.equal(found[name], halves[name])
    expected, _ = quantize(halves, "native-4bit")
    name = "model.layers.1.mlp.down_proj.values"
    assert torch.equal(found[name], expected[name])


def refusal(folder: Path, format: str = "native-4bit") -> str:
    with pytest.raises(CheckpointError) as error:
        conversion = plan_conversion(folder, format)
        conversion.write(next(iter(conversion.files)), folder / "written", CPU, lambda done: None)
    return str(error.value)


def test_no_model(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: no config.json; expected a folder with a model's files."


def test_another_architecture(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, {**CONFIG, "model_type": "qwen2"}, random_tensors())
    assert refusal(folder) == f"{folder}/config.json: `model_type` is 'qwen2'; this engine reads 'llama' only."


def test_a_quantized_model(tmp_path: Path) -> None:
    folder = write_copy(write_checkpoint(tmp_path / "original"), tmp_path / "copy", "native-8bit")
    assert refusal(folder) == f"{folder}: is quantized already (native-8bit); expected an original model."


def test_a_model_of_another_quantizer(tmp_path: Path) -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": "gptq"}}
    folder = write_checkpoint(tmp_path, config, random_tensors())
    assert refusal(folder).startswith(f"{folder}/config.json: `quantization_config.quant_method` is 'gptq'; ")


def test_widths_that_no_group_fits(tmp_path: Path) -> None:
    config = {**CONFIG, "intermediate_size": 320}
    folder = write_checkpoint(tmp_path, config, random_tensors(config))
    assert refusal(folder) == (
        f"{folder}/model.safetensors: model.layers.0.mlp.down_proj: 320 columns cannot be cut into groups of 128, so "
        "it cannot be native-4bit; native-8bit takes any model."
    )
    assert plan_conversion(folder, "native-8bit").files


def test_a_missing_tensor(tmp_path: Path) -> None:
    tensors = random_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    folder = write_checkpoint(tmp_path, CONFIG, tensors)
    assert refusal(folder) == f"{folder}: no tensor model.layers.1.mlp.up_proj.weight in its 1 file(s)."


def test_a_tensor_of_another_shape_or_kind(tmp_path: Path) -> None:
    tensors = random_tensors() | {"model.norm.weight": torch.ones(7)}
    folder = write_checkpoint(tmp_path, CONFIG, tensors)
    assert refusal(folder) == (
        f"{folder}/model.safetensors: model.norm.weight is [7]; expected [256] from config.json."
    )
    save_file(random_tensors() | {"model.norm.weight": torch.ones(256).long()}, folder / "model.safetensors")
    assert refusal(folder) == f"{folder}/model.safetensors: model.norm.weight holds I64; expected F32, F16, BF16."


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    path = folder / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1000])
    assert refusal(folder) == f"{path}: cut short: expected {size} bytes, found {size - 1000}; fetch the model again."


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors["model.layers.0.self_attn.v_proj.weight"][3, 5] = torch.nan
    folder = write_checkpoint(tmp_path, CONFIG, tensors)
    assert refusal(folder) == (
        f"{folder}/model.safetensors: model.layers.0.self_attn.v_proj.weight holds values that are no finite numbers; "
        "fetch the model again."
    )
