"""The semantic branch learns first: HuBERT's shape, taught by the score's labels on pieces of several seconds.

HuBERT itself was taught by clusters of its own features, since nobody had labels; we have them.
"""

import numpy as np
from torch import Tensor, autocast, bfloat16, inference_mode

from training.codec.labels import Heads, Label
from training.codec.presets import CropRun
from training.codec.songs import Crops, Sampler, Songs
from training.loop import Student
from xcodec_mini_infer.codec import CodecConfig
from xcodec_mini_infer.semantic import Hubert

SHARES = (0.4, 0.4, 0.2)  # vocal, instrumental, mix
WHOLE = 1_000_000  # frames: never in chunks
EXAMINED = 12  # pieces


class SemanticStudent(Student):
    """HuBERT and one linear head for each label, on the mean of all hidden states: what the codec reads."""

    def __init__(
        self,
        config: CodecConfig,
        run: CropRun,
        songs: Songs,
        held_out: Songs,
        labels: tuple[Label, ...],
        seed: int,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.hubert = make_hubert(config)
        self.heads = Heads(config.hubert_width, labels)
        self._run, self._songs, self._held_out, self._seed, self._bf16 = run, songs, held_out, seed, bf16
        self._sampler = Sampler(songs.bounds, songs.sounding())
        self._examiner = Sampler(held_out.bounds, held_out.sounding())

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        crops = self._sampler.draw(
            np.random.default_rng([self._seed, 1, step]), self._run.batch, self._run.frames, SHARES
        )
        return self._judge(self._songs, crops)

    @inference_mode()
    def examine(self) -> dict[str, float]:
        draw = np.random.default_rng([self._seed, 2])
        figures = self._judge(self._held_out, self._examiner.draw(draw, EXAMINED, self._run.frames, SHARES))[1]
        return {name: float(value) for name, value in figures.items()}

    def _judge(self, songs: Songs, crops: Crops) -> tuple[Tensor, dict[str, Tensor]]:
        wave = songs.wave(crops)
        with autocast(wave.device.type, bfloat16, enabled=self._bf16):
            features = self.hubert(wave, WHOLE)
        positions = crops.positions(device=wave.device)
        truth = {name: values[positions] for name, values in songs.labels.items()}
        return self.heads(features.float(), truth, crops.tracks)


def make_hubert(config: CodecConfig) -> Hubert:
    """Make a HuBERT with fresh weights."""
    return Hubert(
        config.hubert_channels,
        config.hubert_width,
        config.hubert_layers,
        config.hubert_heads,
        config.hubert_intermediate,
    )
