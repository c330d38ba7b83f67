"""The decoding half of the codec against golden vectors of YuE's reference inference, at the published size."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conformance.closeness import close, record, salt_beside
from tests.conformance.codec_weights import Arrays, check_weights, codec_weights, to_tensors, vocoder_weights
from tests.conformance.folders import files
from xcodec_mini_infer import SAMPLE_RATE, VOCODER_SAMPLE_RATE, checkpoint
from xcodec_mini_infer.codec import Codec, CodecConfig
from xcodec_mini_infer.resample import resample
from xcodec_mini_infer.vocoder import Vocoder, VocoderConfig
from yue_cli.mixing import LIMIT, BandFilter, limit, replace_low
from yue_cli.stages import decode

# Largest difference over the peak of the expected array. An independent float32 rewrite lands at 4e-6, 6e-7, 2e-7.
WAVE, VOCODER_WAVE, EMBEDDING, INTERMEDIATE, POST = 2e-5, 1e-5, 1e-6, 1e-5, 5e-6


@functools.cache
def arrays(salt: str) -> dict[str, Arrays]:
    return {
        checkpoint.CODEC_FILE: codec_weights(salt, checkpoint.codec_shapes(CodecConfig())),
        checkpoint.VOCAL_FILE: vocoder_weights(salt, "vocal", VocoderConfig()),
        checkpoint.INSTRUMENTAL_FILE: vocoder_weights(salt, "inst", VocoderConfig()),
    }


@functools.cache
def studio(salt: str, device: torch.device) -> tuple[Codec, Vocoder, Vocoder]:
    """Make a checkpoint folder of the published size, once for a device, and load it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors = {file: to_tensors(content) for file, content in arrays(salt).items()}
        checkpoint.write(folder, CodecConfig(), VocoderConfig(), tensors)
        return (
            checkpoint.load_codec(folder, device),
            checkpoint.load_vocoder(folder, checkpoint.VOCAL_FILE, device),
            checkpoint.load_vocoder(folder, checkpoint.INSTRUMENTAL_FILE, device),
        )


@pytest.mark.parametrize("path", files("codec", "weights_check.json"))
def test_weights_follow_the_rule(path: Path) -> None:
    checks = json.loads(path.read_text())
    ours = {"codec_model": checkpoint.CODEC_FILE, "vocal": checkpoint.VOCAL_FILE, "inst": checkpoint.INSTRUMENTAL_FILE}
    checked = 0
    for group, file in ours.items():
        checked += check_weights(arrays(checks["salt"])[file], checks[group])
    assert checked >= 20


@pytest.mark.parametrize("path", files("codec", "decode_*.npz"))
def test_codes_become_16_khz(path: Path, device: torch.device) -> None:
    golden = np.load(path)
    codec, _, _ = studio(salt_beside(path), device)
    layers = {"fc_post2": codec.to_decoder, "model0_every16th": codec.decoder.first}
    layers |= {f"model{i}_every16th": block for i, block in enumerate(codec.decoder.blocks, start=1)}
    layers["model5_every16th"] = codec.decoder.snake
    seen = record(layers)
    codes = torch.from_numpy(golden["codes"]).transpose(0, 1)
    embedding = codec.embed(codes)
    wave = codec.decode_embedding(embedding)
    for name in golden.files:
        if name == "embed":
            close(embedding, golden[name], EMBEDDING, name)
        elif name == "fc_post2":
            close(seen[name].transpose(1, 2), golden[name], INTERMEDIATE, name)
        elif name.startswith("model"):
            close(seen[name][:, ::16], golden[name], INTERMEDIATE, name)
    close(wave, golden["wave"][:, 0], WAVE, "wave")
    close(codec.decode(codes, chunk_frames=40), golden["wave"][:, 0], WAVE, "wave in chunks")


@pytest.mark.parametrize("path", files("codec", "vocos_*.npz"))
def test_codes_become_44_khz(path: Path, device: torch.device) -> None:
    golden = np.load(path)
    codec, vocal, instrumental = studio(salt_beside(path), device)
    vocoder = vocal if str(golden["decoder"]) == "vocal" else instrumental
    seen = record(
        {
            "norm": vocoder.norm,
            "block0": vocoder.blocks[0],
            "block7": vocoder.blocks[7],
            "final": vocoder.final_norm,
            "head": vocoder.head.out,
        }
    )
    wave = vocoder.decode(codec.embed(torch.from_numpy(golden["codes"]).transpose(0, 1)))
    for name in seen.keys() & set(golden.files):
        close(seen[name], golden[name], INTERMEDIATE, name)
    close(wave, golden["wave"], VOCODER_WAVE, "wave")


@pytest.mark.parametrize("path", files("codec", "resample_*.npz"))
def test_sample_rates_change(path: Path, device: torch.device) -> None:
    golden = np.load(path)
    rate, new_rate = (int(value) for value in golden["rates"])
    samples = torch.from_numpy(golden["x"]).to(device)
    close(resample(samples, rate, new_rate), golden["y"], POST, "y")
    close(resample(samples.mean(0, keepdim=True), rate, new_rate), golden["mono"], POST, "mono")


@pytest.mark.parametrize("path", files("codec", "post_*.npz"))
def test_two_bands_become_one_mix(path: Path, device: torch.device) -> None:
    golden = np.load(path)
    close(torch.from_numpy(replace_low(golden["a"], golden["b"], device=device)), golden["out"], POST, "out")
    if "a44" in golden.files:
        high = torch.from_numpy(golden["b"]).to(device)
        resampled = resample(torch.from_numpy(golden["a"]).to(device), SAMPLE_RATE, VOCODER_SAMPLE_RATE)
        close(resampled, golden["a44"], POST, "a44")
        bands = {
            "a_low": BandFilter("low", 1, device)(resampled),
            "b_low": BandFilter("low", 1, device)(high),
            "b_high": BandFilter("high", 1, device)(high),
        }
        for name, band in bands.items():
            close(band, golden[name], POST, name)
        levels = torch.stack([bands[name].double().square().mean().sqrt() for name in ("a_low", "b_low")])
        close(levels, golden["rms"], POST, "rms")


@pytest.mark.parametrize("path", files("codec", "song_*.npz"))
def test_two_tracks_become_a_song(path: Path, device: torch.device) -> None:
    golden = np.load(path)
    how = "scale" if golden["rescale"] else "clip"
    decoders = decode.Decoders(*studio(salt_beside(path), device))
    stems = decode.decode(decoders, golden["codes_v"], golden["codes_i"], how)
    for name, found in (("stem_v", stems.vocal), ("stem_i", stems.instrumental), ("final", stems.mix)):
        close(torch.from_numpy(found), golden[name], VOCODER_WAVE, name)

    raw = []
    recons = []
    for name, vocoder in (("v", decoders.vocal), ("i", decoders.instrumental)):
        codes = torch.from_numpy(golden[f"codes_{name}"])[None]
        raw.append(vocoder.decode(decoders.codec.embed(codes)).cpu().numpy())
        recons.append(decoders.codec.decode(codes).clamp(-LIMIT, LIMIT))
        close(recons[-1], golden[f"recons_{name}"], WAVE, f"recons_{name}")
    close(recons[0] + recons[1], golden["recons_mix"], WAVE, "recons_mix")
    mix = raw[0] + raw[1]
    limit(mix, how)
    close(torch.from_numpy(mix), golden["vocoder_mix"], VOCODER_WAVE, "vocoder_mix")
