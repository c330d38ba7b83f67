"""Tell how far each fast way of computing is from eager float32 with the same weights.

    python benchmarks/agreement.py [--shape stage1] [--model FOLDER] [--device cuda] [--mode auto] [--steps 200]

Prints JSON. Every way reads what float32 picked (errors and distributions are compared step by step), and then goes on
by itself with the most likely ids (until the first that differs). Without --model the weights are random: they show the
size of rounding errors and find mistakes, but a trained model has outliers that quantizing hurts more, and is surer of
its picks. All picks of stage 1 are guided.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yue_cli import machine
from yue_cli.engines.native.config import LlamaConfig
from yue_cli.engines.native.engine import NativeEngine
from yue_cli.engines.native.loader import load
from yue_cli.engines.native.model import Layer, Weights
from yue_cli.engines.native.quantized import CLASSES
from yue_cli.generation import Choice, fill_frames, sample_until
from yue_cli.models import EIGHT_BIT, FOUR_BIT
from yue_cli.sampling import Noise, Sampler, most_likely
from yue_cli.settings import Settings, resolve
from yue_cli.stages.stage1 import allowed_ids
from yue_cli.vocab import CODEBOOKS, Vocabulary

VOCABULARY = Vocabulary()
SPREAD = 4.0  # standard deviation of random logits
SHAPES = {
    "tiny": LlamaConfig(128, 256, 2, 4, 2, 32, 83_968, 4_096, 10_000.0, 1e-5, tied=False),
    "stage1": LlamaConfig(4_096, 11_008, 32, 32, 4, 128, 83_968, 16_384, 10_000.0, 1e-5, tied=False),
    "stage2": LlamaConfig(2_048, 5_504, 32, 16, 16, 128, 83_840, 8_192, 10_000.0, 1e-5, tied=False),
}


@dataclass(frozen=True)
class Way:
    """One way of computing, compared with eager float32."""

    weights: str  # plain, native-8bit or native-4bit
    cache: str  # auto, int8, int6 or int4
    dtype: torch.dtype = torch.bfloat16


WAYS = [
    Way("plain", "auto"),
    Way("plain", "int8"),
    Way("plain", "int6"),
    Way("plain", "int4"),
    Way(EIGHT_BIT, "auto"),
    Way(EIGHT_BIT, "int8"),
    Way(FOUR_BIT, "auto"),
    Way(FOUR_BIT, "int8"),
]


@dataclass(frozen=True)
class Seen:
    """What an engine gave: scores [rows, columns] at every step of one script, and its own greedy ids."""

    logits: list[Tensor]
    scores: list[Tensor]
    greedy: np.ndarray  # [rows, picks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--prompt", type=int, default=300, help="tokens")
    parser.add_argument("--steps", type=int, default=70, help="picks; of stage 2, seven make a frame")
    parser.add_argument("--rows", type=int, default=4, help="windows of stage 2")
    arguments = parser.parse_args()
    config = LlamaConfig.read(arguments.model) if arguments.model else SHAPES[arguments.shape]
    if arguments.layers and not arguments.model:
        config = replace(config, layers=arguments.layers)
    result = compare(
        config,
        torch.device(arguments.device),
        folder=arguments.model,
        is_stage2=arguments.shape == "stage2",
        mode=arguments.mode,
        prompt=arguments.prompt,
        steps=arguments.steps,
        rows=arguments.rows,
    )
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": machine.hardware_name(torch.device(arguments.device)),
        "versions": machine.versions(),
    }
    asked = {key: str(value) for key, value in vars(arguments).items()}
    print(json.dumps(facts | asked | {"ways": result}, indent=1))


@torch.inference_mode()
def compare(
    config: LlamaConfig,
    device: torch.device,
    *,
    folder: Path | None = None,
    is_stage2: bool = False,
    mode: str = "auto",
    prompt: int = 300,
    steps: int = 70,
    rows: int = 4,
    ways: Sequence[Way] = WAYS,
) -> list[dict[str, Any]]:
    """Compare every way with eager float32."""
    look = partial(_look_at_stage2, steps=steps, rows=rows) if is_stage2 else partial(_look_at_stage1, steps=steps)
    weights = load(folder, config, device=device, dtype=torch.float32) if folder else draw(config, device)
    length, rows = prompt + 2 * steps + 16, rows if is_stage2 else 2
    engine = NativeEngine(config, weights, rows=rows, length=length, mode="eager")
    expected = look(engine, prompt)
    engine.close()
    found = []
    for way in ways:
        chosen = _changed(weights, lambda matrix, way=way: _in_form(matrix, way), way.dtype)
        engine = NativeEngine(config, chosen, rows=rows, length=length, cache_format=way.cache, mode=mode)
        seen = look(engine, prompt, expected)
        found.append(
            {"weights": way.weights, "cache": way.cache, "dtype": str(way.dtype), "computed": engine.how}
            | differences(expected, seen)
        )
        engine.close()
        del engine, chosen
    return found


def differences(expected: Seen, found: Seen) -> dict[str, Any]:
    """Measure how far `found` is from `expected`."""
    errors, divergences, variations, same = [], [], [], []
    for wanted, logits, wanted_scores, scores in zip(
        expected.logits, found.logits, expected.scores, found.scores, strict=True
    ):
        errors.append(float((logits - wanted).norm() / wanted.norm()))
        first, second = wanted_scores.log_softmax(-1), scores.log_softmax(-1)
        kept = first > -torch.inf
        terms = torch.where(kept, first.exp() * (first - second), 0)
        divergences += terms.sum(-1).tolist()
        variations += ((first.exp() - second.exp()).abs().sum(-1) / 2).tolist()
        same += (wanted_scores.argmax(-1) == scores.argmax(-1)).tolist()
    flips = [int(row.argmin()) if not row.all() else len(row) for row in expected.greedy == found.greedy]
    return {
        "relative_error_of_logits": float(np.mean(errors)),
        "kl_divergence_nats": {"mean": float(np.mean(divergences)), "highest": float(np.max(divergences))},
        "total_variation": float(np.mean(variations)),  # part of the draws that would differ
        "same_most_likely_id": float(np.mean(same)),
        "picks_before_the_first_flip": flips,
        "picks": int(expected.greedy.shape[1]),
    }


def draw(config: LlamaConfig, device: torch.device) -> Weights:
    """Draw weights that bfloat16 holds exactly, as float32, so that rounding them is no part of what is measured."""
    generator = torch.Generator(device).manual_seed(0)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Tensor:
        numbers = torch.empty(rows, columns, dtype=torch.bfloat16, device=device)
        return numbers.normal_(0, scale * columns**-0.5, generator=generator).float()

    def norm() -> Tensor:
        return torch.ones(config.hidden, device=device)

    heads, shared = config.heads * config.head_size, config.key_value_heads * config.head_size
    layers = [
        Layer(
            attention_norm=norm(),
            qkv=matrix(heads + 2 * shared, config.hidden),
            output=matrix(config.hidden, heads),
            inner_norm=norm(),
            gate_up=matrix(2 * config.inner, config.hidden),
            down=matrix(config.hidden, config.inner),
        )
        for _ in range(config.layers)
    ]
    embedding = matrix(config.vocabulary_size, config.hidden, scale=0.5 * config.hidden**0.5)
    return Weights(embedding, layers, norm(), matrix(config.vocabulary_size, config.hidden, SPREAD))


def _in_form(matrix: Tensor, way: Way) -> Any:
    return matrix.to(way.dtype) if way.weights == "plain" else CLASSES[way.weights].quantize(matrix)


def _changed(weights: Weights, change: Callable[[Tensor], Any], dtype: torch.dtype) -> Weights:
    """Put every matrix into another form; embedding and norms stay numbers. The head has 8 bits at least."""
    head = CLASSES[EIGHT_BIT].quantize(weights.head) if not isinstance(change(weights.head[:128]), Tensor) else None
    layers = [
        Layer(
            attention_norm=layer.attention_norm.to(dtype),
            qkv=change(layer.qkv),
            output=change(layer.output),
            inner_norm=layer.inner_norm.to(dtype),
            gate_up=change(layer.gate_up),
            down=change(layer.down),
        )
        for layer in weights.layers
    ]
    return Weights(weights.embedding.to(dtype), layers, weights.norm.to(dtype), head or weights.head.to(dtype))


def _prompts(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCABULARY.codebook_start, (rows, length))


def _look_at_stage1(engine: NativeEngine, prompt: int, expected: Seen | None = None, *, steps: int) -> Seen:
    """Guide and penalize, but draw from all ids. expected: read what this one's logits pick."""
    window = _prompts(1, prompt)[0]
    settings = replace(resolve(Settings()).stage1, top_k=0, top_p=1.0)
    allowed = allowed_ids("yue", VOCABULARY, engine.vocabulary_size)
    sampler = Sampler(VOCABULARY, allowed, settings, guided=True, device=engine.device)
    sampler.begin([window], strengths=[1.5], noise=[Noise(0, 0)])
    rows = [window, window[-1:]]
    logits, scores = [engine.prefill(rows)], []
    for step in range(steps):
        sampler.prepare(step)
        scores.append(sampler.score(logits[-1]).clone())
        picked = sampler.pick(logits[-1] if expected is None else expected.logits[step])
        logits.append(engine.step(picked))
    sampler.begin([window], strengths=[1.5], noise=[None])
    advance = engine.fuse(sampler.pick, sampler.head)
    greedy = sample_until(engine, rows, sampler, advance, end=-1, limit=steps)[0][None]
    return Seen(logits[:-1], scores, greedy)


def _look_at_stage2(engine: NativeEngine, prompt: int, expected: Seen | None = None, *, steps: int, rows: int) -> Seen:
    """Pick the most likely code of each codebook in turn. expected: read what this one's logits pick."""
    frames = max(1, steps // (CODEBOOKS - 1))
    prompts = _prompts(rows, prompt)
    given = np.random.default_rng(2).integers(0, VOCABULARY.codebook_size, (rows, frames)) + VOCABULARY.codebook_start
    heads = [(VOCABULARY.codebook(index),) for index in range(1, CODEBOOKS)]
    logits = []
    firsts = torch.from_numpy(given).to(engine.device)
    latest = engine.prefill([*np.concatenate([prompts, given[:, :1]], axis=1)], heads[0])
    for step in range(frames * len(heads)):
        index = step % len(heads)
        logits.append(latest)
        read = most_likely(heads[index][0].start, latest if expected is None else expected.logits[step])
        if index + 1 == len(heads) and step // len(heads) + 1 < frames:
            frame = step // len(heads) + 1
            read = torch.cat([read, firsts[:, frame : frame + 1]], dim=1)
        latest = engine.step(read, heads[(index + 1) % len(heads)])
    choices = [Choice.of(engine, partial(most_likely, head[0].start), head) for head in heads]
    greedy = fill_frames(engine, prompts, given, choices)[:, :, 1:].reshape(rows, -1)
    return Seen(logits, logits, greedy)


if __name__ == "__main__":
    main()
