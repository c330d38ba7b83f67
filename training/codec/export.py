"""Runs to a checkpoint folder of the product, in float16; and the songs' codes, as that checkpoint makes them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from training.codec.songs import Songs
from xcodec_mini_infer import checkpoint
from xcodec_mini_infer.codec import Codec, CodecConfig
from xcodec_mini_infer.encoder import Encoder
from xcodec_mini_infer.vocoder import Vocoder, VocoderConfig

CHUNK_FRAMES = 1_000
STORED = torch.float16  # the loader makes float32 of it


def write_checkpoint(
    folder: Path,
    codec: CodecConfig,
    vocoder: VocoderConfig,
    modules: Mapping[str, tuple[Codec | Encoder | Vocoder, ...]],
) -> None:
    """Write a codec folder; modules: those of each file. Rounding happens here, before anything is encoded."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: _rounded(parts) for name, parts in modules.items()}
    checkpoint.write(folder, codec, vocoder, files)


def encode_songs(encoder: Encoder, songs: Songs) -> Tensor:
    """Encode whole songs with all codebooks of the encoder: int16 [2, K, frames], vocal and instrumental."""
    tracks = []
    for track in range(2):
        codes = [
            encoder.encode(songs.song(index, track), CHUNK_FRAMES)[0].to(torch.int16).cpu()
            for index in range(songs.count)
        ]
        tracks.append(torch.cat(codes, dim=-1))
    return torch.stack(tracks)


def _rounded(parts: tuple[Codec | Encoder | Vocoder, ...]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for part in parts:
        for name, values in checkpoint.published(part).items():
            tensors[name] = values.detach().cpu().to(STORED).contiguous()
    return tensors
