"""Sizes and recipes: `cpu` for an hour or two on one core, `gpu` for a large card.

Codec and both vocoders must fit into 10 MB of float16: they travel in the wheel.
"""

from dataclasses import dataclass

from training.loop import Run
from xcodec_mini_infer.codec import CodecConfig
from xcodec_mini_infer.vocoder import VocoderConfig


@dataclass(frozen=True, kw_only=True)
class CropRun(Run):
    """How a model learns from crops of songs: `batch` of them a step."""

    frames: int  # of a crop, 50 a second


@dataclass(frozen=True)
class Preset:
    """The sizes of all networks and the run of each; the steps are taken in this order."""

    codec: CodecConfig
    vocoder: VocoderConfig
    semantic: CropRun
    autoencoder: CropRun
    unquantised_steps: int  # of the autoencoder's: codebooks start where its embeddings have settled
    decoder: CropRun
    vocal: CropRun
    instrumental: CropRun


_CPU_VOCODER = CropRun(steps=2_000, batch=4, frames=40, learning_rate=2e-3, warm_up=50)
_GPU_VOCODER = CropRun(steps=5_000, batch=32, frames=50, learning_rate=1e-3, warm_up=100)
PRESETS = {
    "cpu": Preset(
        codec=CodecConfig(
            codebooks=8,
            dimension=64,
            decoder_dimension=64,
            decoder_channels=192,
            encoder_dimension=64,
            encoder_channels=8,
            hubert_channels=64,
            hubert_width=96,
            hubert_layers=4,
            hubert_heads=2,
            hubert_intermediate=384,
        ),
        vocoder=VocoderConfig(embedding=64, dimension=128, intermediate=384, layers=4),
        semantic=CropRun(steps=900, batch=3, frames=400, learning_rate=1e-3),
        autoencoder=CropRun(steps=3_600, batch=6, frames=25, learning_rate=1e-3, warm_up=100),
        unquantised_steps=400,
        decoder=CropRun(steps=1_500, batch=8, frames=25, learning_rate=4e-4),
        vocal=_CPU_VOCODER,
        instrumental=_CPU_VOCODER,
    ),
    "gpu": Preset(
        codec=CodecConfig(
            codebooks=8,
            dimension=64,
            decoder_dimension=64,
            decoder_channels=256,
            encoder_dimension=64,
            encoder_channels=12,
            hubert_channels=64,
            hubert_width=96,
            hubert_layers=4,
            hubert_heads=2,
            hubert_intermediate=384,
        ),
        vocoder=VocoderConfig(embedding=64, dimension=128, intermediate=384, layers=4),
        semantic=CropRun(steps=3_000, batch=20, frames=500, learning_rate=1e-3),
        autoencoder=CropRun(steps=10_000, batch=64, frames=50, learning_rate=6e-4),
        unquantised_steps=800,
        decoder=CropRun(steps=3_000, batch=64, frames=50, learning_rate=3e-4),
        vocal=_GPU_VOCODER,
        instrumental=_GPU_VOCODER,
    ),
}
