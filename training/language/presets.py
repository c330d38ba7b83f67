"""Sizes and recipes: `gpu` for ten minutes a model on a large card (not tried yet), `cpu` to see that it works."""

from dataclasses import dataclass

from training.language.model import Size
from training.loop import Run

BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Preset:
    singer: Size
    singing: Run
    filler: Size
    filling: Run


# A window of stage 2 is 3 + 9 * 300 ids; a song of two minutes is 12,000, of which stage 1 sees what fits.
PRESETS = {
    "gpu": Preset(
        singer=Size(hidden=256, inner=704, layers=8, heads=4, key_value_heads=2, length=4096),
        singing=Run(steps=6_000, batch=24, learning_rate=1.5e-3, decay=0.45, betas=BETAS, weight_decay=0.1),
        filler=Size(hidden=192, inner=512, layers=4, heads=3, key_value_heads=3, length=2816),
        filling=Run(steps=4_000, batch=64, learning_rate=2e-3, decay=0.45, betas=BETAS, weight_decay=0.1),
    ),
    "cpu": Preset(
        singer=Size(hidden=128, inner=384, layers=4, heads=2, key_value_heads=1, length=4096),
        singing=Run(steps=1_000, batch=2, learning_rate=2e-3, decay=0.45, betas=BETAS, weight_decay=0.1),
        filler=Size(hidden=128, inner=384, layers=3, heads=2, key_value_heads=2, length=2816),
        filling=Run(steps=1_000, batch=2, learning_rate=2e-3, decay=0.45, betas=BETAS, weight_decay=0.1),
    ),
}
