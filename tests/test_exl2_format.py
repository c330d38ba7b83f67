"""EXL2 folders: told from others, weighed, and refused in one line where something is wrong with them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.random_exl2 import write_model
from tests.exl2_stand_in import ExtensionStandIn
from tests.tiny_llama import CONFIG, write_checkpoint, write_quantized
from yue_cli import engines
from yue_cli.engines import describe, open_engine
from yue_cli.engines.exl2 import claims, extension, format
from yue_cli.errors import CheckpointError, EngineError

Change = Callable[[dict[str, Tensor]], object]
CPU = torch.device("cpu")
LAYER_FILE = "output-00002-of-00003.safetensors"
QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", CONFIG, 4.25, 6, generator=torch.Generator().manual_seed(0))
    return tmp_path / "model"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "reason", lambda: None)
    monkeypatch.setattr(extension, "load", lambda emit: ExtensionStandIn())
    monkeypatch.setattr(extension, "DEVICE", "cpu")


def change(folder: Path, do: Change) -> Path:
    path = folder / LAYER_FILE
    tensors = load_file(path)
    do(tensors)
    save_file(tensors, path)
    return path


def message(folder: Path, engine: str = "exl2") -> str:
    with pytest.raises((CheckpointError, EngineError)) as error:
        open_engine(engine, folder, rows=1, length=8, device=CPU, dtype=torch.float32)
    return str(error.value)


def test_a_folder_of_exl2_weights_is_known_by_their_names(folder: Path, tmp_path: Path) -> None:
    assert claims(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]  # as exllamav2 wrote it before it had that block
    (folder / "config.json").write_text(json.dumps(config))
    assert claims(folder)
    assert describe(folder, dtype=torch.float32).engine == "exl2"


def test_a_folder_is_known_by_its_config_before_its_weights_are_here(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "exl2"}}')
    assert claims(tmp_path)


def test_other_folders_are_not_claimed(tmp_path: Path) -> None:
    assert not claims(tmp_path / "nowhere")
    assert not claims(write_checkpoint(tmp_path / "published"))
    assert not claims(write_quantized(tmp_path / "native", "native-4bit")[0])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("[]")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    assert not claims(tmp_path / "broken")


def test_a_published_folder_is_read_too(here: None, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    facts = describe(folder, dtype=torch.bfloat16, engine="exl2")
    assert (facts.engine, facts.dtype, facts.deterministic) == ("exl2", None, True)
    assert facts.parameter_bytes == describe(folder, dtype=torch.bfloat16).parameter_bytes
    engine = open_engine("exl2", folder, rows=1, length=8, device=CPU, dtype=torch.float32)
    ids = torch.tensor([3, 4]).numpy()
    native = open_engine("native", folder, rows=1, length=8, device=CPU, dtype=torch.float32)
    assert torch.equal(engine.prefill([ids]), native.prefill([ids]))


def test_an_index_of_the_original_model_is_no_concern(here: None, folder: Path) -> None:
    index = {"weight_map": {f"{QUERY}.weight": "model-00001-of-00003.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    open_engine("auto", folder, rows=1, length=8, device=CPU, dtype=torch.float32)


def test_a_head_of_numbers_is_read(here: None, folder: Path) -> None:
    path = folder / "output-00001-of-00003.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("lm_head")}
    before = describe(folder, dtype=torch.float32).parameter_bytes
    save_file(tensors | {"lm_head.weight": torch.randn(512, 256).half()}, path)
    assert describe(folder, dtype=torch.float32).parameter_bytes > before
    engine = open_engine("auto", folder, rows=1, length=8, device=CPU, dtype=torch.float32)
    assert engine.prefill([torch.tensor([3]).numpy()]).shape == (1, 512)


def test_a_weight_costs_the_bits_that_were_asked_for(folder: Path) -> None:
    facts = describe(folder, dtype=torch.float32)
    layers = 2 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 384)
    head = 512 * 256
    rest = 2 * (512 * 256 + 5 * 256)  # embedding and norms, two bytes each
    orders = 8 * (2 * (6 * 256 + 384) + 256)  # of the inputs of every matrix
    assert facts.parameter_bytes - rest - orders == pytest.approx((4.25 * layers + 6 * head) / 8, rel=0.02)


def test_absent_exllamav2(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "reason", lambda: "the package exllamav2 is not installed")
    cannot = "cannot be used here: the package exllamav2 is not installed."
    assert message(folder) == f"engine exl2 {cannot}"
    assert message(folder, "auto") == f"{folder} holds weights for engine exl2, which {cannot}"
    assert engines.available()["exl2"] == "the package exllamav2 is not installed"


def test_no_gpu_for_exl2_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "reason", lambda: None)
    assert message(folder) == f"{folder} holds EXL2 weights, which need a CUDA GPU; the device is cpu."


def test_the_native_engine_names_the_one_that_reads_them(folder: Path) -> None:
    expected = f"{folder}/config.json: holds EXL2 weights; --engine exl2 reads them, or auto, which chooses it."
    assert message(folder, "native") == expected


def test_neither_exl2_nor_published(here: None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file({f"{QUERY}.qweight": torch.zeros(32, 256, dtype=torch.int32)}, tmp_path / "model.safetensors")
    assert message(tmp_path) == (
        f"{tmp_path}: neither EXL2 nor Hugging Face weights: 1 file(s) with no tensor {QUERY}.q_weight or "
        f"{QUERY}.weight; --engine auto knows what else can be read."
    )


def test_another_architecture(here: None, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "qwen2"}))
    assert message(folder) == f"{path}: `model_type` is 'qwen2'; this engine reads 'llama' only."


def test_exl2_by_its_config_alone(here: None, folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert message(folder) == f"{folder}: no tensor {QUERY}.q_weight, though it is an EXL2 model; fetch it again."


@pytest.mark.parametrize(
    ("do", "text"),
    [
        (
            lambda tensors: tensors.pop(f"{QUERY}.q_scale"),
            f"{{folder}}: no tensor {QUERY}.q_scale, though it is an EXL2 model; fetch it again.",
        ),
        (
            lambda tensors: tensors.update({f"{QUERY}.q_invperm": torch.arange(128, dtype=torch.int32)}),
            f"{{path}}: {QUERY}.q_invperm is I32 [128]; expected I32 [256] for 256 outputs and 256 inputs by "
            "config.json.",
        ),
        (
            lambda tensors: tensors.update({f"{QUERY}.q_weight": tensors[f"{QUERY}.q_weight"][:, :128].contiguous()}),
            f"{{path}}: {QUERY}.q_weight is I32 [34, 128]; expected I32 [34, 256] for 256 outputs and 256 inputs by "
            "config.json.",
        ),
        (
            lambda tensors: tensors.update({f"{QUERY}.q_scale_max": tensors[f"{QUERY}.q_scale_max"].float()}),
            f"{{path}}: {QUERY}.q_scale_max is F32 [3]; expected F16 [3] for 256 outputs and 256 inputs by "
            "config.json.",
        ),
        (
            lambda tensors: tensors[f"{QUERY}.q_groups"].__setitem__(0, 7),
            f"{{path}}: {QUERY}.q_groups tells of groups of [4, 7] bits; fetch it again.",
        ),
        (
            lambda tensors: tensors[f"{QUERY}.q_groups"].__setitem__(slice(0, 6, 2), torch.tensor([4, 4, 5]).short()),
            f"{{path}}: {QUERY}.q_groups tells of groups that are not in the order of their bits; fetch it again.",
        ),
        (
            lambda tensors: tensors[f"{QUERY}.q_groups"].__setitem__(3, 11),
            f"{{path}}: {QUERY}.q_groups tells of a group of 11 packed rows in 5 bits; fetch it again.",
        ),
        (
            lambda tensors: tensors[f"{QUERY}.q_groups"].__setitem__(slice(0, 6, 2), torch.tensor([5, 2, 2]).short()),
            f"{{path}}: {QUERY}.q_groups tells of groups of 448 rows in all for 256 inputs; fetch it again.",
        ),
        (
            lambda tensors: tensors[f"{QUERY}.q_invperm"].__setitem__(0, 300),
            f"{{path}}: {QUERY}.q_invperm is no order of 256 inputs; fetch it again.",
        ),
    ],
    ids=["missing", "inputs", "outputs", "dtype", "bits", "order", "odd", "sum", "permutation"],
)
def test_a_damaged_matrix_is_one_line(here: None, folder: Path, do: Change, text: str) -> None:
    path = change(folder, do)
    assert message(folder) == text.format(folder=folder, path=path)


def test_a_file_that_was_cut_short(here: None, folder: Path) -> None:
    path = folder / LAYER_FILE
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - 100])
    assert message(folder) == (f"{path}: cut short: expected {size} bytes, found {size - 100}; fetch the model again.")


def test_a_file_that_is_no_safetensors_file(here: None, folder: Path) -> None:
    (folder / LAYER_FILE).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=rf"{LAYER_FILE}: not a safetensors file \(no header\); fetch the model"):
        format.read_entries(folder)
