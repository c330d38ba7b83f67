"""The published files become a codec folder: checked, stripped of what inference never reads, whole or not at all."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import small_codec
from xcodec_mini_infer import CodecError, checkpoint, convert
from xcodec_mini_infer.codec import CodecConfig
from xcodec_mini_infer.vocoder import VocoderConfig

ENCODING = {"encoder.block.0.weight_v": (4, 1, 7), "fc_prior.weight": (3, 3)}  # stand for the encoder's
LAYOUT = convert.Layout(
    decoding=checkpoint.codec_shapes(small_codec.CODEC),
    encoding=ENCODING,
    vocoder=checkpoint.vocoder_shapes(small_codec.VOCODER),
    codec_config=small_codec.CODEC,
    vocoder_config=small_codec.VOCODER,
)
UNUSED = {"fc_post1.weight": (3, 3), "decoder_semantic.conv1.conv.weight": (2, 2, 3), "semantic_model.masked": (3,)}
UNUSED |= {"quantizer.vq.layers.0._codebook.inited": (1,), "quantizer.vq.layers.0._codebook.embed_avg": (16, 12)}


def decoding_state() -> dict[str, Tensor]:
    tensors = small_codec.random_tensors()[checkpoint.CODEC_FILE]
    return {name: tensors[name] for name in LAYOUT.decoding}


def codec_state() -> dict[str, Tensor]:
    return {**decoding_state(), **{name: torch.randn(shape) for name, shape in (ENCODING | UNUSED).items()}}


class OmegaConf:
    """Stands for the configuration that is pickled beside the tensors."""

    def __init__(self) -> None:
        self.content = {"generator": {"name": "SoundStream"}}


class Sources:
    """The three published files in a folder, at a small size."""

    def __init__(self, folder: Path) -> None:
        tensors = small_codec.random_tensors()
        self.codec, self.vocal, self.instrumental = (folder / f"{name}.pth" for name in ("ckpt", "d131", "d151"))
        self.save(codec_state())
        torch.save(OrderedDict(tensors[checkpoint.VOCAL_FILE]), self.vocal)
        torch.save(OrderedDict(tensors[checkpoint.INSTRUMENTAL_FILE]), self.instrumental)

    def save(self, state: Mapping[str, Tensor]) -> None:
        beside = {"optimizer_g": {"state": {0: torch.zeros(99)}}, "mfd": {"weight": torch.zeros(9)}, "steps": 360000}
        torch.save({"codec_model": OrderedDict(state), **beside, "config": OmegaConf()}, self.codec)

    def change(self, change: Callable[[dict[str, Tensor]], object]) -> None:
        state = codec_state()
        change(state)
        self.save(state)

    def convert(self, folder: Path, **options) -> None:
        convert.convert(self.codec, self.vocal, self.instrumental, folder, LAYOUT, **options)


@pytest.fixture
def sources(tmp_path) -> Sources:
    (tmp_path / "sources").mkdir()
    return Sources(tmp_path / "sources")


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(CodecError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_folder_is_one_that_the_codec_loads(sources, tmp_path):
    sources.convert(tmp_path / "codec")
    small_codec.write_checkpoint(tmp_path / "direct")
    codes = small_codec.random_codes(1, 8, 5)
    for load in (
        checkpoint.load_codec,
        lambda folder: checkpoint.load_vocoder(folder, checkpoint.VOCAL_FILE),
        lambda folder: checkpoint.load_vocoder(folder, checkpoint.INSTRUMENTAL_FILE),
    ):
        found, expected = load(tmp_path / "codec").state_dict(), load(tmp_path / "direct").state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert checkpoint.load_codec(tmp_path / "codec").decode(codes).shape == (1, 5 * 320)
    assert checkpoint.read_config(tmp_path / "codec") == (small_codec.CODEC, small_codec.VOCODER)


def test_the_encoder_is_kept_and_what_inference_never_reads_is_not(sources, tmp_path):
    sources.convert(tmp_path / "codec")
    found = load_file(tmp_path / "codec" / checkpoint.CODEC_FILE)
    assert found.keys() == LAYOUT.decoding.keys() | ENCODING.keys()
    with (tmp_path / "codec" / checkpoint.CODEC_FILE).open("rb") as file:
        assert int.from_bytes(file.read(8), "little") % 8 == 0


def test_what_is_written_is_told_up_to_the_last_byte(sources, tmp_path):
    heard: list[tuple[int, int]] = []
    sources.convert(tmp_path / "codec", heard=lambda done, total: heard.append((done, total)))
    written = [load_file(path).values() for path in (tmp_path / "codec").glob("*.safetensors")]
    total = sum(tensor.nbytes for tensors in written for tensor in tensors)
    assert heard[-1] == (total, total)
    assert [done for done, _ in heard] == sorted({done for done, _ in heard})
    assert {of for _, of in heard} == {total}


def test_the_sources_are_remembered(sources, tmp_path):
    sources.convert(tmp_path / "codec")
    facts = json.loads((tmp_path / "codec" / convert.SOURCE_FILE).read_text())
    assert facts["vocal"] == {
        "file": "d131.pth",
        "bytes": sources.vocal.stat().st_size,
        "sha256": hashlib.sha256(sources.vocal.read_bytes()).hexdigest(),
    }
    assert list(facts) == ["codec", "vocal", "instrumental"]


def respell(state: dict[str, Tensor]) -> dict[str, Tensor]:
    later = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    return {
        name.replace(name.rpartition(".")[2], later.get(name.rpartition(".")[2], name.rpartition(".")[2])): tensor
        for name, tensor in state.items()
    }


def prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"codec_model.{name}": tensor for name, tensor in state.items()}


def rename_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("decoder_2.", "decoder."): tensor for name, tensor in state.items()}


COPIES = {
    "weight norm spelled as later": respell,
    "the key in front": prefix,
    "decoder_2 renamed": rename_decoder,
    "all of it": lambda state: prefix(respell(rename_decoder(state))),
}


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_copies_with_other_names_are_the_same_codec(sources, tmp_path, name, kind):
    sources.convert(tmp_path / "published")
    state = COPIES[name](torch.load(sources.codec, weights_only=False)["codec_model"])
    sources.codec = sources.codec.with_suffix(f".{kind}")
    if kind == "pth":
        torch.save(state, sources.codec)
    else:
        save_file(state, sources.codec)
    sources.convert(tmp_path / "copy")
    expected, found = (load_file(tmp_path / copy / checkpoint.CODEC_FILE) for copy in ("published", "copy"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_vocoders_may_be_safetensors_and_weights_may_be_halves(sources, tmp_path):
    tensors = small_codec.random_tensors()[checkpoint.VOCAL_FILE]
    sources.vocal = sources.vocal.with_suffix(".safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, sources.vocal)
    sources.convert(tmp_path / "codec")
    vocoder = checkpoint.load_vocoder(tmp_path / "codec", checkpoint.VOCAL_FILE)
    assert torch.equal(vocoder.head.out.bias, tensors["head.out.bias"].bfloat16().float())


def test_a_copy_for_decoding_alone_is_taken(sources, tmp_path):
    sources.save(decoding_state())
    sources.convert(tmp_path / "codec")
    assert load_file(tmp_path / "codec" / checkpoint.CODEC_FILE).keys() == LAYOUT.decoding.keys()


WRONG = {
    "a missing name": (
        lambda state: state.pop("decoder_2.model.0.weight_g"),
        "`decoder_2.model.0.weight_g` is missing; expected shape [32, 1, 1].",
    ),
    "half an encoder": (
        lambda state: state.pop("fc_prior.weight"),
        "`fc_prior.weight` is missing; expected shape [3, 3].",
    ),
    "a wrong shape": (
        lambda state: state.update({"fc_post2.bias": torch.zeros(7)}),
        "`fc_post2.bias` has shape [7]; expected [6].",
    ),
    "whole numbers": (
        lambda state: state.update({"fc_post2.bias": torch.zeros(6, dtype=torch.int64)}),
        "`fc_post2.bias` holds torch.int64; expected floating point numbers.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_are_not_as_published_are_refused(sources, tmp_path, name):
    change, text = WRONG[name]
    sources.change(change)
    assert refusal(lambda: sources.convert(tmp_path / "codec")) == f"{sources.codec}: {text}"
    assert [path.name for path in tmp_path.iterdir()] == ["sources"]


def test_another_file_of_tensors_is_refused(sources, tmp_path):
    sources.codec = sources.vocal
    text = refusal(lambda: sources.convert(tmp_path / "codec"))
    assert text == f"{sources.vocal}: none of its tensors is the codec's; is it another file?"


def test_a_pickle_without_the_codec_is_refused(sources, tmp_path):
    torch.save({"codec": {"a": torch.ones(1)}, "epoch": 3}, sources.codec)
    text = refusal(lambda: sources.convert(tmp_path / "codec"))
    assert text == f"{sources.codec}: holds no tensors, neither under `codec_model` nor by name; found codec, epoch."
    torch.save([torch.ones(1)], sources.codec)
    assert refusal(lambda: sources.convert(tmp_path / "codec")).endswith("by name; found no keys.")


def test_a_damaged_safetensors_file_is_refused(sources, tmp_path):
    sources.vocal = sources.vocal.with_suffix(".safetensors")
    assert refusal(lambda: sources.convert(tmp_path / "codec")) == f"{sources.vocal}: no such file."
    sources.vocal.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    text = refusal(lambda: sources.convert(tmp_path / "codec"))
    assert text.startswith(f"{sources.vocal}: not a readable safetensors file (")


def test_room_on_the_disk_is_looked_at_first(sources, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5 * 10**5)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    text = refusal(lambda: sources.convert(tmp_path / "codec"))
    assert text == (
        f"no space left for {tmp_path / 'codec'}: needed 1 MB, free 0 MB. Free some space and run the same command "
        "again."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["sources"]


def test_a_conversion_replaces_the_one_before(sources, tmp_path):
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "old").write_bytes(b"")
    sources.convert(tmp_path / "codec")
    assert sorted(path.name for path in (tmp_path / "codec").iterdir()) == [
        "codec.safetensors",
        "config.json",
        "instrumental.safetensors",
        "source.json",
        "vocal.safetensors",
    ]


def test_a_killed_conversion_leaves_no_folder_and_the_next_one_cleans_up(sources, tmp_path):
    script = """
        import os, signal, sys
        from pathlib import Path
        from tests.test_convert import LAYOUT
        from xcodec_mini_infer import convert
        codec, vocal, instrumental, folder = map(Path, sys.argv[1:])
        def digest(path):
            os.kill(os.getpid(), signal.SIGKILL)
        convert.convert(codec, vocal, instrumental, folder, LAYOUT, digest)
    """
    paths = [sources.codec, sources.vocal, sources.instrumental, tmp_path / "codec"]
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, paths)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".codec-")]
    assert len(left) == 1
    assert not (tmp_path / "codec").exists()
    sources.convert(tmp_path / "codec")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codec", "sources"]


def test_the_published_layout_is_that_of_the_manifest():
    layout = convert.published_layout()
    manifest = json.loads(Path(convert.__file__).with_name("manifest.json").read_text())
    all_tensors = {tensor["name"]: tuple(tensor["shape"]) for tensor in manifest["codec_model"]}
    kept = layout.decoding | layout.encoding
    assert kept.items() <= all_tensors.items()
    left_out = {name.split(".")[0] for name in all_tensors.keys() - kept.keys()}
    assert left_out == {"decoder_semantic", "fc_post1", "quantizer", "semantic_model"}
    assert sum("semantic_model" in name for name in kept) == 210


@pytest.mark.slow
def test_files_of_the_published_size_are_converted_with_little_memory(tmp_path):
    layout = convert.published_layout()
    manifest = json.loads(Path(convert.__file__).with_name("manifest.json").read_text())
    state = OrderedDict(
        (tensor["name"], torch.full((1,), 0.01).expand(tensor["shape"])) for tensor in manifest["codec_model"]
    )
    paths = [tmp_path / "ckpt_00360000.pth", tmp_path / "decoder_131000.pth", tmp_path / "decoder_151000.pth"]
    torch.save({"codec_model": state, "config": OmegaConf()}, paths[0])
    vocoder = {name: torch.full((1,), 0.01).expand(shape) for name, shape in layout.vocoder.items()}
    for path in paths[1:]:
        torch.save(vocoder, path)
    script = """
        import re, sys
        from pathlib import Path
        from xcodec_mini_infer import checkpoint, convert
        def peak():
            return int(re.search("VmHWM:[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1])
        before = peak()
        convert.convert(*map(Path, sys.argv[1:]))
        print(peak() - before if Path("/proc").exists() else 0)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, paths), str(tmp_path / "codec")]
    kilobytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert kilobytes < 150_000
    size = (tmp_path / "codec" / checkpoint.CODEC_FILE).stat().st_size
    assert 0.55e9 < size < 0.8e9
    codec = checkpoint.load_codec(tmp_path / "codec")
    assert codec.config == CodecConfig()
    assert checkpoint.read_config(tmp_path / "codec")[1] == VocoderConfig()
    checkpoint.load_vocoder(tmp_path / "codec", checkpoint.VOCAL_FILE)
