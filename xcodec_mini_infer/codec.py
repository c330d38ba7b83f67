"""The codec: codes to embeddings, embeddings to a 16 kHz waveform."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xcodec_mini_infer.acoustic import Decoder
from xcodec_mini_infer.context import chunks
from xcodec_mini_infer.precision import full_precision
from xcodec_mini_infer.quantizer import Quantizer

CHUNK_FRAMES = 200  # fewer spend more time on context, more take more memory


@dataclass(frozen=True)
class CodecConfig:
    """Sizes of the codec; the defaults are those of the published model."""

    codebooks: int = 12
    codebook_size: int = 1024
    dimension: int = 1024  # of a frame's embedding
    decoder_dimension: int = 256  # of a frame at the decoder's entry
    decoder_channels: int = 1024  # before the first upsampling; each halves them
    ratios: tuple[int, ...] = (8, 5, 4, 2)  # upsampling factors, and the encoder's downsampling factors
    encoder_dimension: int = 256  # of a frame at the acoustic encoder's end
    encoder_channels: int = 64  # at the sample rate; each downsampling doubles them
    hubert_channels: int = 512  # of the convolutions over the waveform
    hubert_width: int = 768
    hubert_layers: int = 12
    hubert_heads: int = 12
    hubert_intermediate: int = 3072


class Codec(nn.Module):
    """The decoding half of YuE's X-Codec. Weights come from `checkpoint`."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer = Quantizer(config.codebooks, config.codebook_size, config.dimension)
        self.to_decoder = nn.Linear(config.dimension, config.decoder_dimension)
        self.decoder = Decoder(config.decoder_dimension, config.decoder_channels, config.ratios)

    @property
    def context(self) -> int:
        """Frames on either side that a decoded frame depends on."""
        return self.decoder.context

    @torch.inference_mode()
    def embed(self, codes: Tensor) -> Tensor:
        """Turn codes into embeddings, which both this decoder and the vocoders read.

        codes: integers [B, K, T], 50 frames per second, K at most `codebooks`, on any device.
        Returns float32 [B, dimension, T]. Raises CodecError if T is 0 or a code is out of range.
        """
        embedding: Tensor = self.quantizer(codes)
        return embedding

    @torch.inference_mode()
    def decode_embedding(self, embedding: Tensor, left: int = 0, right: int = 0) -> Tensor:
        """Turn embeddings [B, dimension, T] into a waveform, float32 [B, 320 * (T - left - right)], about [-1, 1].

        left, right: frames of context at the two ends, `context` each, 0 at a true end of the song.
        """
        with full_precision():
            latents = self.to_decoder(embedding.transpose(1, 2)).transpose(1, 2)
            wave: Tensor = self.decoder(latents, left, right)
        return wave

    def decode(self, codes: Tensor, chunk_frames: int = CHUNK_FRAMES) -> Tensor:
        """Turn codes into a 16 kHz waveform, chunk by chunk.

        codes: integers [B, K, T]. Returns float32 [B, 320 * T], mono, about [-1, 1].
        Raises CodecError if T is 0 or a code is out of range.
        """
        self.quantizer.check(codes)
        return torch.cat(
            [
                self.decode_embedding(self.embed(codes[..., chunk.run]), chunk.left, chunk.right)
                for chunk in chunks(codes.shape[-1], chunk_frames, self.context)
            ],
            dim=-1,
        )
