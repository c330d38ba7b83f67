"""Two tracks of codes made into a song as YuE's programs make it: each network runs once over a whole track.

Weight norm is computed at every call, Snake in passes of its own, and codes are looked up twice; stems, their mix and
the exchange of its low band are made on the CPU. Those programs also write files in between; this does not.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xcodec_mini_infer.acoustic import Snake
from xcodec_mini_infer.codec import Codec
from yue_cli import mixing
from yue_cli.stages.decode import Decoders, Stems


class SeparateSnake(nn.Module):
    """Snake as the reference writes it: one pass over memory for each operation."""

    def __init__(self, alpha: Tensor) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).pow(2)


def unfold(decoder: nn.Module) -> None:
    """Give a decoder back its weight norm and its unfused Snakes."""
    for name, module in decoder.named_children():
        if isinstance(module, Snake):
            setattr(decoder, name, SeparateSnake(module.alpha))
        elif isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            nn.utils.parametrizations.weight_norm(module, dim=0)
        else:
            unfold(module)


@torch.inference_mode()
def decode(decoders: Decoders, vocal: np.ndarray, instrumental: np.ndarray) -> Stems:
    """Decode whole tracks, integers [K, T], one network after the other; stems and mix are what `stages.decode` gives.

    `decoders` must have been unfolded.
    """
    codec = decoders.codec
    tracks = [torch.from_numpy(track)[None].to(decoders.device) for track in (vocal, instrumental)]
    first, second = (_decode_low(codec, track).clamp(-mixing.LIMIT, mixing.LIMIT).cpu() for track in tracks)
    stems = [
        vocoder.decode(codec.embed(track)).cpu().numpy()
        for vocoder, track in zip((decoders.vocal, decoders.instrumental), tracks, strict=True)
    ]
    mix = stems[0] + stems[1]
    for samples in (mix, *stems):
        mixing.limit(samples, "scale")
    return Stems(mixing.replace_low((first + second).numpy(), mix), *stems)


def _decode_low(codec: Codec, codes: Tensor) -> Tensor:
    """Run the 16 kHz decoder layer by layer over a whole track."""
    decoder: Any = codec.decoder
    x = decoder.first(codec.to_decoder(codec.embed(codes).transpose(1, 2)).transpose(1, 2))
    for block in decoder.blocks:
        x = block.upsample(block.snake(x))
        for unit in block.residuals:
            x = x + unit.pointwise(unit.second_snake(unit.dilated(unit.snake(x))))
    wave: Tensor = decoder.last(decoder.snake(x))[:, 0]
    return wave
