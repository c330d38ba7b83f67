"""A codec of the published architecture and a few channels, with random weights: for tests that need no checkpoint."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xcodec_mini_infer import checkpoint
from xcodec_mini_infer.codec import Codec, CodecConfig
from xcodec_mini_infer.vocoder import Vocoder, VocoderConfig

CODEC = CodecConfig(
    codebooks=8,
    codebook_size=16,
    dimension=12,
    decoder_dimension=6,
    decoder_channels=32,
    encoder_dimension=5,
    encoder_channels=2,
    hubert_channels=6,
    hubert_width=16,
    hubert_layers=2,
    hubert_heads=2,
    hubert_intermediate=24,
)
VOCODER = VocoderConfig(embedding=12, dimension=8, intermediate=16, layers=8)


def random_tensors(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Draw the tensors of each file."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        checkpoint.CODEC_FILE: checkpoint.codec_shapes(CODEC),
        checkpoint.VOCAL_FILE: checkpoint.vocoder_shapes(VOCODER),
        checkpoint.INSTRUMENTAL_FILE: checkpoint.vocoder_shapes(VOCODER),
    }
    drawn = {
        file: {name: _draw(name, shape, generator) for name, shape in names.items()} for file, names in shapes.items()
    }
    codec = drawn[checkpoint.CODEC_FILE]
    for name, shape in checkpoint.encoder_shapes(CODEC).items():
        if name not in codec:
            codec[name] = _draw(name, shape, generator)
    return drawn


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw values that keep the sound near full scale, beyond ±0.99 now and then."""
    if name == "head.istft.window":
        return torch.hann_window(*shape)
    values = torch.randn(shape, generator=generator)
    if name.endswith(("block.3.weight_g", "model.6.weight_g")):
        return 0.3 * (1 + 0.2 * values)  # the last convolution of a residual unit and of all
    if name.endswith(("alpha", "norm.weight", "weight_g")):
        return 1 + 0.2 * values
    if name.endswith("gamma"):
        return 0.1 * values
    if name == "head.out.bias":
        magnitudes = torch.arange(len(values)) < len(values) // 2
        return values + 2.5 * magnitudes
    return values * (0.1 if name.endswith("bias") else float(np.prod(shape[1:])) ** -0.5)


def write_checkpoint(folder: Path, seed: int = 0) -> Path:
    checkpoint.write(folder, CODEC, VOCODER, random_tensors(seed))
    return folder


def load(folder: Path) -> tuple[Codec, Vocoder, Vocoder]:
    """Write a checkpoint and load it."""
    write_checkpoint(folder)
    return (
        checkpoint.load_codec(folder),
        checkpoint.load_vocoder(folder, checkpoint.VOCAL_FILE),
        checkpoint.load_vocoder(folder, checkpoint.INSTRUMENTAL_FILE),
    )


def random_codes(*shape: int, seed: int = 0) -> Tensor:
    """Draw codes of the small codebooks."""
    return torch.randint(0, CODEC.codebook_size, shape, generator=torch.Generator().manual_seed(seed))
