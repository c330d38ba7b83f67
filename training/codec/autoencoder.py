"""The codec learns: encoder, codebooks and 16 kHz decoder together, on short crops, beside a frozen semantic branch.

Codebook 0 must tell what is played and sung, since stage 1 sees nothing else: linear heads read the score from it.
"""

import numpy as np
import torch
from torch import Tensor, autocast, bfloat16, inference_mode, nn
from torch.nn import functional

from training.codec.labels import Heads, Label
from training.codec.losses import MelDistance, si_sdr, waveform_distance
from training.codec.presets import Preset
from training.codec.quantiser import LearningQuantizer
from training.codec.semantic import WHOLE
from training.codec.songs import Crops, Sampler, Songs
from training.loop import Student
from xcodec_mini_infer import SAMPLE_RATE
from xcodec_mini_infer.acoustic import AcousticEncoder, Decoder, ResidualUnit, Snake
from xcodec_mini_infer.codec import Codec
from xcodec_mini_infer.encoder import Encoder
from xcodec_mini_infer.quantizer import Quantizer
from xcodec_mini_infer.semantic import Hubert

SHARES = (0.45, 0.45, 0.1)  # vocal, instrumental, mix
# How many codebooks a crop is decoded from, and how often: the first alone must do, all must do best.
DEPTHS, DEPTH_CHANCES = (1, 2, 4, 8), (0.3, 0.1, 0.2, 0.4)
WAVEFORM_WEIGHT, COMMIT_WEIGHT, PROBE_WEIGHT = 50.0, 0.5, 0.5
KMEANS_BATCHES = 60
_INPUT_GAIN = 10.0  # music is about a tenth of full scale
EXAMINED = 48  # crops


class Autoencoder(Student):
    """Encoder and Codec of the product, the averages of its codebooks, and heads that read codebook 0.

    features: float16 [3, frames, width] of each set of songs, HuBERT's of whole songs: it must see whole songs, as it
    will in use, so they are computed once and cropped with the sound.
    """

    def __init__(
        self,
        preset: Preset,
        hubert: Hubert,
        songs: Songs,
        held_out: Songs,
        features: Tensor,
        held_out_features: Tensor,
        labels: tuple[Label, ...],
        seed: int,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(preset.codec, codebooks=0)
        self.encoder.hubert = hubert.requires_grad_(False)
        self.codec = Codec(preset.codec)
        prepare(self)
        self.quantizer = LearningQuantizer(self.codec.quantizer)
        self.heads = Heads(preset.codec.dimension, labels)
        self.distance = MelDistance(SAMPLE_RATE)
        self._preset, self._run, self._seed, self._bf16 = preset, preset.autoencoder, seed, bf16
        self._songs, self._held_out = songs, held_out
        self._features, self._held_out_features = features, held_out_features
        self._sampler = Sampler(songs.bounds, songs.sounding())
        self._examiner = Sampler(held_out.bounds, held_out.sounding())

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        draw = np.random.default_rng([self._seed, 3, step])
        if step == self._preset.unquantised_steps:
            self._place_codebooks(draw)
        crops = self._sampler.draw(draw, self._run.batch, self._run.frames, SHARES)
        wave = self._songs.wave(crops)
        exact = self._embed(self._songs, self._features, crops)  # [B, T, D]
        # Read from what is exact, too, so that the codebooks are placed among sounds that mean different things.
        meaning, right = self._probe(self._songs, crops, exact)
        figures = {f"exact_{name}": value for name, value in right.items()}
        extra = PROBE_WEIGHT * meaning
        latents = exact
        if step >= self._preset.unquantised_steps:
            depths = torch.from_numpy(draw.choice(len(DEPTHS), len(wave), p=DEPTH_CHANCES))
            codes, sums = self.quantizer(exact.flatten(0, 1))
            restarted = self.quantizer.learn(exact.detach().flatten(0, 1), codes, draw)
            sums = sums.unflatten(1, exact.shape[:2])  # [K, B, T, D]
            commit = (exact - sums).square().mean()
            wanted = (torch.tensor(DEPTHS)[depths] - 1).to(wave.device, non_blocking=True)
            latents = _straight(exact, sums[wanted, torch.arange(len(wave), device=wave.device)])
            probe, right = self._probe(self._songs, crops, _straight(exact, sums[0]))
            extra = extra + COMMIT_WEIGHT * commit + PROBE_WEIGHT * probe
            figures |= {"commit": commit, "restarted": restarted} | right
        decoded = self._decode(latents)
        mel, samples = self.distance(decoded, wave), waveform_distance(decoded, wave)
        figures |= {"mel": mel, "samples": samples}
        return mel + WAVEFORM_WEIGHT * samples + extra, figures

    @inference_mode()
    def examine(self) -> dict[str, float]:
        draw = np.random.default_rng([self._seed, 4])
        figures = {}
        for track, name in enumerate(("vocal", "instrumental")):
            shares = np.eye(3)[track].tolist()
            crops = self._examiner.draw(draw, EXAMINED, 2 * self._run.frames, shares)
            wave = self._held_out.wave(crops)
            exact = self._embed(self._held_out, self._held_out_features, crops)
            codes, sums = self.quantizer(exact.flatten(0, 1))
            depths = {f"_{depth}": sums[depth - 1].unflatten(0, exact.shape[:2]) for depth in (1, 4, 8)}
            for depth, latents in ({"_exact": exact} | depths).items():
                decoded = self._decode(latents)
                figures[f"{name}_mel{depth}"] = self.distance(decoded, wave).item()
                figures[f"{name}_si_sdr{depth}"] = si_sdr(decoded, wave).median().item()
            figures[f"{name}_codes"] = float(len(codes[0].unique()))
            right = self._probe(self._held_out, crops, depths["_1"])[1]
            figures |= {f"{name}_{label}": float(value) for label, value in right.items()}
        return figures

    def _embed(self, songs: Songs, features: Tensor, crops: Crops) -> Tensor:
        """Embed crops as float32 [B, T, D]."""
        wave = songs.wave(crops)
        positions = crops.positions(device=features.device)
        seen = features[crops.tracks.to(features.device, non_blocking=True)[:, None], positions].float()
        with autocast(wave.device.type, bfloat16, enabled=self._bf16):
            embedding = self.encoder.join(wave, seen, WHOLE)
        return embedding.float().transpose(1, 2)

    def _decode(self, latents: Tensor) -> Tensor:
        """Decode float32 [B, T, D] to [B, 320 T]."""
        with autocast(latents.device.type, bfloat16, enabled=self._bf16):
            wave: Tensor = self.codec.decoder(self.codec.to_decoder(latents).transpose(1, 2))
        return wave.float()

    def _probe(self, songs: Songs, crops: Crops, coarse: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        positions = crops.positions(device=coarse.device)
        truth = {name: values[positions] for name, values in songs.labels.items()}
        loss: Tensor
        # Normed, or the labels would be read the better the larger all embeddings grow, and sound would drown in them.
        loss, right = self.heads(functional.layer_norm(coarse, coarse.shape[-1:]), truth, crops.tracks)
        return loss, right

    @torch.no_grad()
    def _place_codebooks(self, draw: np.random.Generator) -> None:
        """Start the codebooks from what the encoder says of many crops."""
        vectors = []
        for _ in range(KMEANS_BATCHES):
            crops = self._sampler.draw(draw, self._run.batch, 2 * self._run.frames, SHARES)
            vectors.append(self._embed(self._songs, self._features, crops).flatten(0, 1))
        self.quantizer.initialise(torch.cat(vectors), draw, self._run.batch * self._run.frames)


def prepare(module: nn.Module) -> None:
    """Start fresh modules, which the product fills from a checkpoint, so that sound passes at its level at once.

    Left alone, every transposed convolution would turn it down to a third, and biases alone would hum at the strides.
    """
    for part in module.modules():
        if isinstance(part, Snake):
            nn.init.ones_(part.alpha)
        elif isinstance(part, AcousticEncoder | Decoder):
            for inner in part.modules():
                if isinstance(inner, nn.Conv1d | nn.ConvTranspose1d):
                    _keep_level(inner)
        elif isinstance(part, Quantizer):
            for book in part.codebooks:
                nn.init.zeros_(book)
    for part in module.modules():
        if isinstance(part, ResidualUnit):
            nn.init.zeros_(part.pointwise.weight)  # at first it adds nothing
        elif isinstance(part, AcousticEncoder):
            nn.init.normal_(part.first.weight, std=_INPUT_GAIN * part.first.weight[0].numel() ** -0.5)
        elif isinstance(part, Decoder):
            nn.init.normal_(part.last.weight, std=part.last.weight[0].numel() ** -0.5 / _INPUT_GAIN)


def _keep_level(part: nn.Conv1d | nn.ConvTranspose1d) -> None:
    """Draw weights whose results are as loud as their input."""
    terms = part.weight[0].numel()  # of each result
    if isinstance(part, nn.ConvTranspose1d):
        terms = part.in_channels * part.kernel_size[0] // part.stride[0]
    nn.init.normal_(part.weight, std=terms**-0.5)
    if part.bias is not None:
        nn.init.zeros_(part.bias)


def _straight(exact: Tensor, quantised: Tensor) -> Tensor:
    """Take the quantised values, and hand their gradient on to the exact ones."""
    return exact + (quantised - exact).detach()
