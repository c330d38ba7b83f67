"""Sizes and recipes: `gpu` for ten minutes a model on a large card, `cpu` to see that it works."""

from dataclasses import dataclass
from typing import Any

from training.language.model import Size
from training.loop import Run

_CPU: Any = {"decay": 0.45, "betas": (0.9, 0.95), "weight_decay": 0.1}
_GPU = _CPU | {"report_steps": 500}


@dataclass(frozen=True)
class Preset:
    singer: Size
    singing: Run
    filler: Size
    filling: Run


# A window of stage 2 is 3 + 9 * 300 ids; a song of two minutes is 12,000, of which stage 1 sees what fits.
# A batch is so many ids. Every width on the GPU is a multiple of 128, which 4-bit formats ask for.
PRESETS = {
    "gpu": Preset(
        singer=Size(hidden=256, inner=768, layers=8, heads=4, key_value_heads=2, length=4096, dropout=0.1),
        singing=Run(steps=40_000, batch=65_536, learning_rate=1.5e-3, **_GPU),
        filler=Size(hidden=256, inner=384, layers=4, heads=4, key_value_heads=2, length=2816),
        filling=Run(steps=40_000, batch=86_496, learning_rate=2e-3, **_GPU),
    ),
    "cpu": Preset(
        singer=Size(hidden=128, inner=384, layers=4, heads=2, key_value_heads=1, length=4096),
        singing=Run(steps=1_000, batch=6_144, learning_rate=2e-3, **_CPU),
        filler=Size(hidden=128, inner=384, layers=3, heads=2, key_value_heads=2, length=2816),
        filling=Run(steps=1_000, batch=5_406, learning_rate=2e-3, **_CPU),
    ),
}
