"""Codes to sound, with codes that no longer change: the last touch of the 16 kHz decoder, and both vocoders.

A crop is decoded with the frames around it, as the product decodes a chunk, or now and then as if it were a whole song.
Without the latter a vocoder learns frames that only their neighbours make quiet, and a song starts and ends in a click,
which is a sample or two: the first and last frame of such crops have a loss of their own.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, autocast, bfloat16, inference_mode, nn

from training.codec.losses import MelDistance, edge_distance, si_sdr, waveform_distance
from training.codec.presets import CropRun
from training.codec.songs import Crops, Sampler, Songs
from training.loop import Student
from xcodec_mini_infer import SAMPLE_RATE, VOCODER_SAMPLE_RATE
from xcodec_mini_infer.codec import Codec
from xcodec_mini_infer.vocoder import Vocoder
from yue_cli.mixing import CROSSOVER_HZ

DEPTHS, DEPTH_CHANCES = (1, 2, 4, 8), (0.1, 0.1, 0.2, 0.6)  # codebooks a crop is decoded from, and how often
WAVEFORM_WEIGHT = 50.0
TOP_HZ, TOP_FACTOR = 4_000, 2.0  # the mix takes its top band from the vocoder
LEVEL_WEIGHT = 0.5
EXAMINED = 32  # crops
WHOLE_CHANCE = 0.25  # how often the crops of a step stand alone
EDGE_WEIGHT = 50.0  # of the first and the last frame of crops that do: a click is a few samples, which no mean minds
_LOG_MAGNITUDE = 3.5  # of a vocoder's bins before it has learned: about the level of music


class Renderer(Student):
    """One network from embeddings to sound, and what it is compared with.

    codes: int16 [2, K, frames] of the songs, and of the held-out songs. shares: how often each track is drawn.
    """

    def __init__(
        self,
        codec: Codec,
        run: CropRun,
        songs: Songs,
        held_out: Songs,
        codes: Tensor,
        held_out_codes: Tensor,
        shares: Sequence[float],
        seed: int,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.embedder = [codec]  # in a list: frozen, and no part of the state
        self._run, self._songs, self._held_out, self._seed, self._bf16 = run, songs, held_out, seed, bf16
        self._codes, self._held_out_codes = codes, held_out_codes
        self._shares = shares
        self._sampler = Sampler(songs.bounds, songs.sounding())
        self._examiner = Sampler(held_out.bounds, held_out.sounding())
        self.context = 0

    def render(self, embedding: Tensor, context: int) -> Tensor:
        """Turn embeddings [B, D, T + 2 * context] into sound [B, unit * T]."""
        raise NotImplementedError

    def compare(self, wave: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of sound [B, N], and figures."""
        raise NotImplementedError

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        draw = np.random.default_rng([self._seed, 5, step])
        crops = self._draw(self._sampler, draw, self._run.batch)
        depths = torch.from_numpy(draw.choice(DEPTHS, self._run.batch, p=DEPTH_CHANCES))
        alone = draw.random() < WHOLE_CHANCE
        wave, target = self._rendered(self._codes, crops, depths, alone), self._songs.wave(crops)
        loss, figures = self.compare(wave, target)
        if alone:
            loss = loss + EDGE_WEIGHT * edge_distance(wave, target, wave.shape[-1] // crops.frames)
        return loss, figures

    @inference_mode()
    def examine(self) -> dict[str, float]:
        draw = np.random.default_rng([self._seed, 6])
        crops = self._draw(self._examiner, draw, EXAMINED)
        wave = self._held_out.wave(crops)
        figures: dict[str, float] = {}
        for depth in (1, 4, 8):
            rendered = self._rendered(self._held_out_codes, crops, torch.full((EXAMINED,), depth))
            compared = self.compare(rendered, wave)[1] | {"si_sdr": si_sdr(rendered, wave).median()}
            figures |= {f"{name}_{depth}": float(value) for name, value in compared.items()}
        alone = self._rendered(self._held_out_codes, crops, torch.full((EXAMINED,), 8), alone=True)
        figures["peak_alone"] = float(alone.abs().max())
        return figures

    def _draw(self, sampler: Sampler, draw: np.random.Generator, batch: int) -> Crops:
        """Draw crops that have all their context within their song."""
        wide = sampler.draw(draw, batch, self._run.frames + 2 * self.context, self._shares)
        return Crops(wide.tracks, wide.starts + self.context, self._run.frames)

    def _rendered(self, codes: Tensor, crops: Crops, depths: Tensor, alone: bool = False) -> Tensor:
        context = 0 if alone else self.context
        wide = Crops(crops.tracks, crops.starts - context, crops.frames + 2 * context)
        positions = wide.positions(device=codes.device)
        # [B, T, K]: the index of the track, then all codebooks, then the frames
        found = codes[crops.tracks.to(codes.device, non_blocking=True)[:, None], :, positions].long()
        with torch.no_grad():
            books = torch.stack(list(self.embedder[0].quantizer.codebooks))  # [K, size, D]
            entries = books[torch.arange(len(books), device=books.device), found]  # [B, T, K, D]
            used = (torch.arange(len(books))[None] < depths[:, None]).to(books.device, non_blocking=True)
            embedding = (entries * used.to(entries)[:, None, :, None]).sum(2).transpose(1, 2)
        with autocast(embedding.device.type, bfloat16, enabled=self._bf16):
            wave = self.render(embedding, context)
        return wave.float()


class DecoderRenderer(Renderer):
    """The 16 kHz decoder of a codec whose codes are fixed."""

    def __init__(self, codec: Codec, *args: object, **keywords: object) -> None:
        super().__init__(codec, *args, **keywords)  # type: ignore[arg-type]
        self.to_decoder, self.decoder = codec.to_decoder.requires_grad_(True), codec.decoder.requires_grad_(True)
        self.distance = MelDistance(SAMPLE_RATE)
        self.context = codec.context

    def render(self, embedding: Tensor, context: int) -> Tensor:
        latents = self.to_decoder(embedding.transpose(1, 2)).transpose(1, 2)
        wave: Tensor = self.decoder(latents, context, context)
        return wave

    def compare(self, wave: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        mel, samples = self.distance(wave, target), waveform_distance(wave, target)
        return mel + WAVEFORM_WEIGHT * samples, {"mel": mel, "samples": samples}


class VocoderRenderer(Renderer):
    """A vocoder: what counts is the top band, and the level below it, by which the mix sets its low band."""

    def __init__(self, vocoder: Vocoder, codec: Codec, *args: object, **keywords: object) -> None:
        super().__init__(codec, *args, **keywords)  # type: ignore[arg-type]
        self.vocoder = vocoder
        self.distance = MelDistance(VOCODER_SAMPLE_RATE, ((512, 40), (2048, 160)), TOP_HZ, TOP_FACTOR)
        self.context = vocoder.context

    def render(self, embedding: Tensor, context: int) -> Tensor:
        wave: Tensor = self.vocoder(embedding, context, context)
        return wave

    def compare(self, wave: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        mel, samples = self.distance(wave, target), waveform_distance(wave, target)
        level = (_low_level(wave) - _low_level(target)).abs().mean()
        loss = mel + WAVEFORM_WEIGHT * samples + LEVEL_WEIGHT * level
        return loss, {"mel": mel, "samples": samples, "level": level}


def prepare_vocoder(vocoder: Vocoder) -> Vocoder:
    """Give a fresh vocoder what its constructor leaves open: weights come from a checkpoint there."""
    for name, parameter in vocoder.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 1 / len(vocoder.blocks))
    nn.init.normal_(vocoder.head.out.weight, std=0.01)
    nn.init.zeros_(vocoder.head.out.bias)
    with torch.no_grad():
        vocoder.head.out.bias[: len(vocoder.head.out.bias) // 2] = _LOG_MAGNITUDE
    vocoder.head.window.copy_(torch.hann_window(len(vocoder.head.window)))
    return vocoder


def _low_level(wave: Tensor) -> Tensor:
    """Measure the level of float32 [B, N] below the crossover: natural logarithm of its root mean square, [B]."""
    spectrum = torch.fft.rfft(wave, norm="ortho")
    stop = round(spectrum.shape[-1] * CROSSOVER_HZ / (VOCODER_SAMPLE_RATE / 2))
    power = torch.view_as_real(spectrum[:, :stop]).square().sum((-1, -2)) / wave.shape[-1]
    return 0.5 * (power + 1e-8).log()
