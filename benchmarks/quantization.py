"""How far quantized copies are from a random model of realistic scale: which part costs how much.

    python benchmarks/quantization.py [--layers 8] [--hidden 1024] [--device cuda]

Random weights tell what rounding does to logits as they pass many layers. They do not tell how a song suffers: trained
weights have outliers, and trained distributions have a shape. `yue eval` measures those on real models and songs.
"""

import argparse

import torch
from torch import Tensor

from yue_cli.comparison import Comparison, compare
from yue_cli.engines.native.config import LlamaConfig
from yue_cli.engines.native.engine import NativeEngine
from yue_cli.engines.native.model import Layer, Weights
from yue_cli.engines.native.quantized import CLASSES, Matrix

SPREAD = 2.5  # standard deviation of the logits: a perplexity of some hundreds, as a trained model's in stage 1
IDS = 1024


def main() -> None:
    asked = argparse.ArgumentParser(description="compare quantized copies of a random model with it")
    asked.add_argument("--layers", type=int, default=8)
    asked.add_argument("--hidden", type=int, default=1024)
    asked.add_argument("--vocabulary", type=int, default=8192)
    asked.add_argument("--tails", type=float, default=0, help="degrees of freedom of Student's t; 0: normal weights")
    asked.add_argument("--device", default="cpu")
    options = asked.parse_args()
    device, size = torch.device(options.device), 64
    config = LlamaConfig(
        hidden=options.hidden,
        inner=options.hidden * 11 // 4 // 128 * 128,
        layers=options.layers,
        heads=options.hidden // size,
        key_value_heads=options.hidden // size // 4,
        head_size=size,
        vocabulary_size=options.vocabulary,
        max_length=IDS,
        rope_theta=10_000.0,
        norm_epsilon=1e-5,
        tied=False,
    )
    original = random_weights(config, device, options.tails)
    print("| layers | head | KL | same first choice |\n|---|---|---|---|")
    for layers, head in ((None, "native-8bit"), (None, "native-4bit"), *((form, None) for form in CLASSES)):
        tell(config, original, layers, head)
    for form in CLASSES:
        tell(config, original, form, "native-8bit")


def random_weights(config: LlamaConfig, device: torch.device, tails: float) -> Weights:
    generator = torch.Generator(device).manual_seed(0)

    def draw(rows: int, columns: int, scale: float = 1.0) -> Tensor:
        normal = torch.randn(rows, columns, generator=generator, device=device)
        if tails:
            squares = torch.zeros(rows, columns, device=device)
            for _ in range(int(tails)):
                squares += torch.randn(rows, columns, generator=generator, device=device).square()
            normal /= (squares / tails).sqrt() * (tails / (tails - 2)) ** 0.5
        return normal * (scale / columns**0.5)

    hidden, queries = config.hidden, config.heads * config.head_size
    shared = 2 * config.key_value_heads * config.head_size
    ones = torch.ones(hidden, device=device)
    layers = [
        Layer(
            ones, draw(queries + shared, hidden), draw(hidden, queries), ones,
            draw(2 * config.inner, hidden), draw(hidden, config.inner),
        )
        for _ in range(config.layers)
    ]  # fmt: skip
    embedding = draw(config.vocabulary_size, hidden) * hidden**0.5
    return Weights(embedding, layers, norm=ones, head=draw(config.vocabulary_size, hidden, SPREAD))


def tell(config: LlamaConfig, original: Weights, layers: str | None, head: str | None) -> None:
    def copy(weight: Matrix, form: str | None) -> Matrix:
        return weight if form is None or not isinstance(weight, Tensor) else CLASSES[form].quantize(weight)

    weights = Weights(
        original.embedding,
        [
            Layer(**{name: copy(value, layers) if "norm" not in name else value for name, value in vars(layer).items()})
            for layer in original.layers
        ],
        norm=original.norm,
        head=copy(original.head, head),
    )
    row = torch.randint(config.vocabulary_size, (IDS,), generator=torch.Generator().manual_seed(1)).numpy()
    pairs = zip(
        *(NativeEngine(config, each, rows=1, length=IDS).follow(row, 0) for each in (weights, original)), strict=True
    )
    total = Comparison()
    for ours, theirs in pairs:
        chosen = theirs.softmax(-1).multinomial(1)[:, 0]
        total += compare(ours, theirs, chosen, (range(config.vocabulary_size),))
    print(f"| {layers or 'as they are'} | {head or 'as it is'} | {total.kl:.1e} | {100 * total.agreement:.1f} % |")


if __name__ == "__main__":
    main()
