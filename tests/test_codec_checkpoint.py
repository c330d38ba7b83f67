import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import xcodec_mini_infer
from tests import small_codec
from xcodec_mini_infer import CodecError, checkpoint
from xcodec_mini_infer.codec import CodecConfig
from xcodec_mini_infer.vocoder import VocoderConfig

MANIFEST = Path(xcodec_mini_infer.__file__).with_name("manifest.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_codec.write_checkpoint(tmp_path / "codec")


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def rewrite_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / checkpoint.CONFIG_FILE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(CodecError) as error:
        action()
    text = str(error.value)
    assert "\n" not in text
    return text


def test_needed_tensors_are_those_of_the_published_files() -> None:
    manifest = json.loads(MANIFEST.read_text())
    published = {tensor["name"]: tuple(tensor["shape"]) for tensor in manifest["codec_model"]}
    needed = checkpoint.codec_shapes(CodecConfig())
    assert needed.items() <= published.items()
    decoding = {tensor["name"] for tensor in manifest["codec_model"] if "decode" in tensor["used"]}
    spare = {f"quantizer.vq.layers.{i}._codebook.embed" for i in range(8, 12)}  # YuE uses 8 of 12 codebooks
    assert needed.keys() == decoding | spare
    needed = checkpoint.encoder_shapes(CodecConfig())
    assert needed.items() <= published.items()
    encoding = {tensor["name"] for tensor in manifest["codec_model"] if "encode" in tensor["used"]}
    assert needed.keys() == encoding - {f"quantizer.vq.layers.{i}._codebook.embed" for i in range(1, 12)}
    vocoder = {tensor["name"]: tuple(tensor["shape"]) for tensor in manifest["vocos_decoder"]}
    assert checkpoint.vocoder_shapes(VocoderConfig()) == vocoder


def test_a_folder_is_read_back_as_written(folder: Path) -> None:
    assert checkpoint.read_config(folder) == (small_codec.CODEC, small_codec.VOCODER)
    codec = checkpoint.load_codec(folder)
    written = small_codec.random_tensors()[checkpoint.CODEC_FILE]
    assert torch.equal(codec.quantizer.codebooks[7], written["quantizer.vq.layers.7._codebook.embed"])
    assert not any(parameter.requires_grad for parameter in codec.parameters())


def test_weight_norm_is_folded_per_entry_of_the_first_axis(folder: Path) -> None:
    written = small_codec.random_tensors()[checkpoint.CODEC_FILE]
    codec = checkpoint.load_codec(folder)
    folded = codec.decoder.blocks[1].upsample.weight
    length, direction = (written[f"decoder_2.model.2.block.1.weight_{part}"] for part in "gv")
    for i in range(len(direction)):
        torch.testing.assert_close(folded[i], length[i] * direction[i] / direction[i].square().sum().sqrt())


def test_the_position_convolution_has_a_length_for_each_tap(folder: Path) -> None:
    written = small_codec.random_tensors()[checkpoint.CODEC_FILE]
    folded = checkpoint.load_encoder(folder).hubert.position.weight
    length, direction = (written[f"semantic_model.encoder.pos_conv_embed.conv.weight_{part}"] for part in "gv")
    for tap in (0, 64, 127):
        there = direction[..., tap]
        torch.testing.assert_close(folded[..., tap], length[0, 0, tap] * there / there.square().sum().sqrt())


def test_both_spellings_of_weight_norm_mean_the_same(folder: Path) -> None:
    codes = small_codec.random_codes(1, 8, 4)
    before = checkpoint.load_codec(folder).decode(codes)

    def respell(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
                if name.endswith(old):
                    tensors[name.removesuffix(old) + f"parametrizations.weight.{new}"] = tensors.pop(name)

    rewrite(folder / checkpoint.CODEC_FILE, respell)
    assert torch.equal(checkpoint.load_codec(folder).decode(codes), before)


def test_tensors_that_decoding_does_not_need_are_skipped(folder: Path) -> None:
    rewrite(folder / checkpoint.CODEC_FILE, lambda tensors: tensors.update({"fc_post1.weight": torch.zeros(3)}))
    checkpoint.load_codec(folder)


def test_a_file_made_for_decoding_only_says_so(folder: Path) -> None:
    path = folder / checkpoint.CODEC_FILE
    rewrite(path, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("encoder.")])
    text = refusal(lambda: checkpoint.load_encoder(folder))
    assert text == (
        f"{path}: has no encoder, only what decoding needs; to encode audio, take or convert the whole codec."
    )
    checkpoint.load_codec(folder)


def test_a_missing_tensor_of_the_encoder_is_named(folder: Path) -> None:
    path = folder / checkpoint.CODEC_FILE
    rewrite(path, lambda tensors: tensors.pop("fc_prior.bias"))
    text = refusal(lambda: checkpoint.load_encoder(folder))
    assert text == f"{path}: `fc_prior.bias` is missing; expected shape [12]."


def test_half_precision_weights_are_computed_in_float32(folder: Path) -> None:
    rewrite(folder / checkpoint.VOCAL_FILE, lambda tensors: tensors.update({k: v.half() for k, v in tensors.items()}))
    vocoder = checkpoint.load_vocoder(folder, checkpoint.VOCAL_FILE)
    assert {tensor.dtype for tensor in vocoder.state_dict().values()} == {torch.float32}


def test_a_missing_tensor_is_named(folder: Path) -> None:
    path = folder / checkpoint.CODEC_FILE
    rewrite(path, lambda tensors: tensors.pop("decoder_2.model.0.weight_g"))
    text = refusal(lambda: checkpoint.load_codec(folder))
    assert text == f"{path}: `decoder_2.model.0.weight_g` is missing; expected shape [32, 1, 1]."


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    path = folder / checkpoint.INSTRUMENTAL_FILE
    rewrite(path, lambda tensors: tensors.update({"backbone.norm.weight": torch.ones(9)}))
    text = refusal(lambda: checkpoint.load_vocoder(folder, checkpoint.INSTRUMENTAL_FILE))
    assert text == f"{path}: `backbone.norm.weight` has shape [9]; expected [8]."


def test_a_missing_file_is_named(folder: Path) -> None:
    path = folder / checkpoint.CODEC_FILE
    path.unlink()
    assert refusal(lambda: checkpoint.load_codec(folder)) == f"{path}: no such file; expected the weights of Codec."


def test_a_damaged_file_is_named(folder: Path) -> None:
    path = folder / checkpoint.VOCAL_FILE
    path.write_bytes(path.read_bytes()[:100])
    text = refusal(lambda: checkpoint.load_vocoder(folder, checkpoint.VOCAL_FILE))
    assert text.startswith(f"{path}: not a readable safetensors file (")


def test_a_folder_without_config_is_no_codec(tmp_path: Path) -> None:
    text = refusal(lambda: checkpoint.read_config(tmp_path))
    assert text == f"{tmp_path / 'config.json'}: no such file; expected a codec folder."


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda config: config.pop("format"), 'expected `"format": "yue-codec"`.'),
        (lambda config: config.update(version=2), "expected version 1, found 2."),
        (lambda config: config.pop("vocoder"), "`vocoder` is missing."),
        (lambda config: config["codec"].pop("ratios"), "`codec.ratios` is missing."),
        (lambda config: config["vocoder"].pop("hop"), "`vocoder.hop` is missing."),
        (
            lambda config: config["vocoder"].update(hops=1),
            f"unknown key `vocoder.hops`; expected {', '.join(asdict(VocoderConfig()))}.",
        ),
        (
            lambda config: config["codec"].update(dimension="12"),
            "`codec.dimension` is '12'; expected a positive whole number.",
        ),
        (
            lambda config: config["codec"].update(ratios=320),
            "`codec.ratios` is 320; expected a list of positive whole numbers.",
        ),
        (lambda config: config["codec"].update(ratios=[8, 5]), "the product of `codec.ratios` must be 320."),
        (
            lambda config: config["codec"].update(decoder_channels=24),
            "`codec.decoder_channels` must be a multiple of 16.",
        ),
        (lambda config: config["codec"].pop("hubert_width"), "`codec.hubert_width` is missing."),
        (lambda config: config["codec"].update(hubert_width=24), "`codec.hubert_width` must be a multiple of 16."),
        (
            lambda config: config["codec"].update(hubert_heads=3),
            "`codec.hubert_width` must be a multiple of `codec.hubert_heads`.",
        ),
        (lambda config: config["vocoder"].update(hop=441), "`vocoder.hop` must be 882."),
        (lambda config: config["vocoder"].update(n_fft=1000), "`vocoder.n_fft` must be a multiple of 882."),
        (lambda config: config["vocoder"].update(embedding=13), "`vocoder.embedding` must be as `codec.dimension`."),
    ],
)
def test_a_wrong_config_says_what_is_wrong(folder: Path, change: Callable[[dict[str, Any]], object], text: str) -> None:
    rewrite_config(folder, change)
    assert refusal(lambda: checkpoint.load_codec(folder)) == f"{folder / checkpoint.CONFIG_FILE}: {text}"


def test_a_config_that_is_not_json_is_named(folder: Path) -> None:
    path = folder / checkpoint.CONFIG_FILE
    path.write_text("{")
    assert refusal(lambda: checkpoint.read_config(folder)).startswith(f"{path}: cannot be read (")
