"""The weights behind the codec's golden vectors: filled by a rule, so that none need to be shipped.

Every tensor is drawn from its own name: Philox keyed by the name's CRC-32, made uniform, scaled by kind.
"""

import zlib
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch

from xcodec_mini_infer import checkpoint
from xcodec_mini_infer.vocoder import VocoderConfig

Arrays = dict[str, np.ndarray]


def codec_weights(salt: str, shapes: checkpoint.Shapes) -> Arrays:
    """Fill tensors of the codec, by published name."""
    weights = {name: _codec_tensor(salt, name, shape) for name, shape in shapes.items() if not name.endswith("_g")}
    for name in shapes:
        if name.endswith("_g"):
            axes = tuple(axis for axis, size in enumerate(shapes[name]) if size == 1)
            weights[name] = _length(salt, name, weights[name[:-1] + "v"], axes)
    return weights


def vocoder_weights(salt: str, group: str, config: VocoderConfig) -> Arrays:
    """Fill one vocoder; group is "vocal" or "inst"."""
    return {
        name: _vocoder_tensor(f"{salt}/{group}/{name}", name, shape, config)
        for name, shape in checkpoint.vocoder_shapes(config).items()
    }


def check_weights(weights: Arrays, checks: Mapping[str, Mapping[str, Any]]) -> int:
    """Compare those of the tensors that have a check, and count them."""
    found = weights.keys() & checks.keys()
    for name in found:
        value, check = weights[name].astype(np.float64), checks[name]
        np.testing.assert_allclose(value.ravel()[: len(check["first"])], check["first"], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(value.sum(), check["sum"], rtol=1e-5, atol=1e-3, err_msg=name)
        np.testing.assert_allclose(np.square(value).sum(), check["sumsq"], rtol=1e-6, err_msg=name)
    return len(found)


def to_tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def _unit(tag: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw float32 values of mean 0 and variance 1, uniform."""
    raw = np.random.Philox(key=zlib.crc32(tag.encode())).random_raw(prod(shape))
    uniform = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return ((uniform * 2 - 1) * np.float32(np.sqrt(3))).reshape(shape)


def _codec_tensor(salt: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    z = _unit(f"{salt}/codec/{name}", shape)
    fan = prod(shape[1:])
    if name.endswith("_codebook.embed"):
        return z * np.float32(0.8 ** int(name.split(".")[3]))
    if name.endswith("alpha"):
        return 1 + np.float32(0.3) * z
    if name.endswith("bias"):
        return np.float32(0.05) * z
    if "layer_norm" in name:
        return 1 + np.float32(0.1) * z
    parts = name.split(".")
    upsampling = parts[:2] == ["decoder_2", "model"] and parts[3:] == ["block", "1", "weight_v"]
    return z / np.float32(np.sqrt(2 * shape[0] if upsampling else fan))


def _length(salt: str, name: str, direction: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    norm = np.sqrt(np.sum(np.square(direction, dtype=np.float64), axis=axes, keepdims=True))
    z = _unit(f"{salt}/codec/{name}", norm.shape)
    parts = name.split(".")
    gain = 1.0
    if name == "decoder_2.model.6.weight_g":
        gain = 0.045
    elif len(parts) == 8 and parts[3] == "block" and parts[5:] == ["block", "3", "weight_g"]:
        gain = 0.4  # the last convolution of a residual unit
    return (norm * gain * (1 + 0.1 * z.astype(np.float64))).astype(np.float32)


def _vocoder_tensor(tag: str, name: str, shape: tuple[int, ...], config: VocoderConfig) -> np.ndarray:
    if name == "head.istft.window":
        return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.n_fft) / config.n_fft)).astype(np.float32)
    z = _unit(tag, shape)
    if name == "head.out.weight":
        return z * np.float32(0.8) / np.float32(np.sqrt(shape[1]))
    if name == "head.out.bias":
        bias = np.float32(0.5) * z
        bias[: shape[0] // 2] += np.float32(2.2)
        return bias
    if name.endswith("gamma"):
        return np.float32(0.125) * (1 + np.float32(0.3) * z)
    if name.endswith("bias"):
        return np.float32(0.05) * z
    if "norm" in name:
        return 1 + np.float32(0.1) * z
    return z / np.float32(np.sqrt(prod(shape[1:])))
