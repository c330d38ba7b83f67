"""The encoder: a 16 kHz waveform to codes. Apart from the codec, so that decoding need not load it."""

from collections.abc import Callable
from itertools import count
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional

from xcodec_mini_infer import FRAME_SAMPLES, CodecError
from xcodec_mini_infer.acoustic import AcousticEncoder
from xcodec_mini_infer.codec import CodecConfig
from xcodec_mini_infer.context import Step, unwatched
from xcodec_mini_infer.precision import full_precision
from xcodec_mini_infer.quantizer import Quantizer
from xcodec_mini_infer.semantic import Hubert, SemanticEncoder

CHUNK_FRAMES = 200  # of the two convolutional fronts; the rest needs little memory
Watch = Callable[[float], None]
MIN_SAMPLES = 312  # what the published encoder needs to find one frame


class Encoder(nn.Module):
    """The encoding half of YuE's X-Codec and its first codebooks. Weights come from `checkpoint`."""

    def __init__(self, config: CodecConfig, codebooks: int = 1) -> None:
        super().__init__()
        self.config = config
        self.acoustic = AcousticEncoder(config.encoder_dimension, config.encoder_channels, config.ratios)
        self.hubert = Hubert(
            config.hubert_channels,
            config.hubert_width,
            config.hubert_layers,
            config.hubert_heads,
            config.hubert_intermediate,
        )
        self.semantic = SemanticEncoder(config.hubert_width)
        self.fuse = nn.Linear(config.encoder_dimension + config.hubert_width, config.dimension)
        self.quantizer = Quantizer(codebooks, config.codebook_size, config.dimension)

    def encode(self, wave: Tensor, chunk_frames: int = CHUNK_FRAMES, watch: Watch | None = None) -> Tensor:
        """Turn a waveform into codes.

        wave: float32 [B, S], mono, 16 kHz, about [-1, 1], on any device.
        Returns int64 [B, codebooks, T], 50 frames per second, T = (S + 240) // 320. Every code depends on the whole
        waveform. Raises CodecError if it is shorter than a frame or not finite.
        """
        return self.quantizer.encode(self.embed(wave, chunk_frames, watch))

    @torch.inference_mode()
    def embed(self, wave: Tensor, chunk_frames: int = CHUNK_FRAMES, watch: Watch | None = None) -> Tensor:
        """Turn a waveform into what the codebooks approximate, float32 [B, dimension, T]. Raises CodecError.

        watch: told how much of the work is done, from 0 to 1.
        """
        if wave.ndim != 2 or wave.shape[-1] < MIN_SAMPLES:
            raise CodecError(
                f"the waveform has shape {list(wave.shape)}; expected [B, S] with at least {MIN_SAMPLES} samples."
            )
        if not wave.isfinite().all():
            raise CodecError("the waveform has samples that are not finite.")
        wave = wave.to(self.fuse.weight)
        steps = len(self.hubert.layers) + ceil(self.hubert.frames(wave.shape[-1]) / chunk_frames)
        done = count(1)

        def step() -> None:
            if watch is not None:
                watch(next(done) / steps)

        with full_precision():
            features = self.hubert(wave, chunk_frames, step)
            return self.join(self._fitted(wave), features, chunk_frames, step)

    def join(self, wave: Tensor, features: Tensor, chunk_frames: int, step: Step = unwatched) -> Tensor:
        """Fuse a waveform [B, S] with HuBERT's features of it, [B, T, width]: float32 [B, dimension, T]."""
        semantic = self.semantic(features.transpose(1, 2))  # [B, width, T]
        acoustic = self.acoustic(wave, chunk_frames, step)  # [B, dimension, T]
        fused: Tensor = self.fuse(torch.cat([acoustic, semantic], dim=1).transpose(1, 2))
        return fused.transpose(1, 2)

    def _fitted(self, wave: Tensor) -> Tensor:
        """Add half a frame of silence at either end where the two branches would count frames differently.

        The published encoder runs its acoustic branch first to find that out; the length alone decides.
        """
        samples = wave.shape[-1]
        if self.acoustic.frames(samples) == self.hubert.frames(samples):
            return wave
        return functional.pad(wave, (FRAME_SAMPLES // 2, FRAME_SAMPLES // 2))
