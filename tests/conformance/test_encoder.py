"""The encoder against golden vectors of YuE's reference inference, at the published size: 123 million values.

Slow, the committed cases too: the weights alone take seconds to draw.
"""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conformance.closeness import close, record, salt_beside
from tests.conformance.codec_weights import Arrays, check_weights, codec_weights, to_tensors
from tests.conformance.folders import files
from xcodec_mini_infer import checkpoint
from xcodec_mini_infer.codec import CodecConfig
from xcodec_mini_infer.encoder import Encoder
from xcodec_mini_infer.vocoder import VocoderConfig

pytestmark = pytest.mark.slow

INTERMEDIATE = 1e-5  # largest difference over the peak of the expected array
ALL = CodecConfig().codebooks
CERTAIN_MARGIN = 2e-3  # of squared distances around 1,000; below, float32 rounding may choose another entry


@functools.cache
def arrays(salt: str) -> Arrays:
    return codec_weights(salt, checkpoint.encoder_shapes(CodecConfig(), ALL))


@functools.cache
def encoder(salt: str, device: torch.device) -> Encoder:
    """Make a codec folder of the published size, once for a device, and load its encoder."""
    with tempfile.TemporaryDirectory() as name:
        tensors = {checkpoint.CODEC_FILE: to_tensors(arrays(salt))}
        for file in (checkpoint.VOCAL_FILE, checkpoint.INSTRUMENTAL_FILE):
            tensors[file] = {}
        checkpoint.write(Path(name), CodecConfig(), VocoderConfig(), tensors)
        return checkpoint.load_encoder(Path(name), device, codebooks=ALL)


@pytest.mark.parametrize("path", files("codec", "weights_check.json"))
def test_weights_follow_the_rule(path: Path) -> None:
    checks = json.loads(path.read_text())
    assert check_weights(arrays(checks["salt"]), checks["codec_model"]) >= 9


@pytest.mark.parametrize("path", files("codec", "encode_*.npz"))
def test_sound_becomes_codes(path: Path, device: torch.device) -> None:
    golden = np.load(path)
    whole = encoder(salt_beside(path), device)
    wave = torch.from_numpy(golden["wav"][:, 0])
    hubert = whole.hubert
    seen = record(
        {
            "hubert_conv": hubert.features,
            "hubert_h0": hubert.norm,
            "hubert_h12": hubert.layers[-1],
            "hubert_mean": hubert,
            "semantic": whole.semantic,
            "acoustic": whole.acoustic,
            "prior": whole.fuse,
        }
    )
    codes = whole.encode(wave, chunk_frames=1000)
    seen["prior"] = seen["prior"].transpose(1, 2)
    for name in seen.keys() & set(golden.files):
        close(seen[name], golden[name], INTERMEDIATE, name)
    same_codes(codes, golden)
    same_codes(whole.encode(wave, chunk_frames=30), golden)


def same_codes(codes: torch.Tensor, golden: np.lib.npyio.NpzFile) -> None:
    """Expect every code of [B, 12, T] to be the same."""
    found, expected = codes.transpose(0, 1).cpu().numpy(), golden["codes_all"]
    assert golden["margin"].min() >= CERTAIN_MARGIN
    assert np.array_equal(found, expected), f"first mismatch at {np.argwhere(found != expected)[0]}"
    assert np.array_equal(found[:1], golden["codes_bw0_5"])


@pytest.mark.parametrize("path", files("codec", "encode_*.npz"))
def test_the_length_alone_tells_whether_the_acoustic_branch_needs_silence_around(path: Path) -> None:
    golden = np.load(path)
    whole = encoder(salt_beside(path), torch.device("cpu"))
    samples = golden["wav"].shape[-1]
    differ = whole.acoustic.frames(samples) != whole.hubert.frames(samples)
    assert differ == bool(golden["fallback"]) == (samples % 320 in range(80, 312))
