"""Tokens per second of both stages with a random model of about 100 M parameters in its layers.

    python benchmarks/tokens.py [--device cuda] [--dtype bfloat16]

The vocabularies are those of the published checkpoints. Random weights take the same time as trained ones; what is
sung is noise. Every number is the best of a few, after a warm-up.
"""

import argparse
import platform
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from yue_cli.engines.native.config import LlamaConfig
from yue_cli.engines.native.engine import NativeEngine
from yue_cli.engines.native.model import Layer, Weights
from yue_cli.generation import Choice, fill_frames, sample_until
from yue_cli.machine import choose_device, choose_dtype
from yue_cli.sampling import Noise, most_likely
from yue_cli.settings import Settings, resolve
from yue_cli.stages.stage1 import allowed_ids, make_sampler
from yue_cli.vocab import CODEBOOKS, WINDOW_FRAMES, Vocabulary

HIDDEN, LAYERS, HEADS, INNER = 768, 12, 12, 2048
STAGE1_VOCABULARY, STAGE2_VOCABULARY = 83968, 83840
PROMPT = 600  # ids before the first segment of a usual song
TOKENS, FRAMES = 60, 8
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    dtype = choose_dtype(arguments.dtype, device)
    print(f"{machine(device)} · torch {torch.__version__} · {torch.get_num_threads()} threads · {dtype}")
    print(f"LLaMA: hidden {HIDDEN}, {LAYERS} layers, {HEADS} heads, feed-forward {INNER}")
    print()
    print("| what | songs | rows | prompt | tokens/s |\n| --- | --- | --- | --- | --- |")
    # Stage 1 shares keys and values between groups of heads, stage 2 does not.
    weights = random_weights(config_of(STAGE1_VOCABULARY, HEADS // 3), device, dtype)
    for guided, songs in ((True, 1), (True, 2), (True, 4), (True, 8), (False, 1), (False, 8)):
        rows = (2 if guided else 1) * songs
        engine = NativeEngine(*weights, rows=rows, length=PROMPT + TOKENS)
        name = "with guidance" if guided else "without guidance"
        speed = stage1_speed(engine, guided, songs)
        print(f"| stage 1 {name} | {songs} | {rows} | {PROMPT} | {speed:.1f} |", flush=True)
    weights = random_weights(config_of(STAGE2_VOCABULARY, HEADS), device, dtype)
    for rows in (1, 4, 20):
        engine = NativeEngine(*weights, rows=rows, length=WINDOW_FRAMES + 3 + CODEBOOKS * FRAMES)
        print(f"| stage 2 | | {rows} | {WINDOW_FRAMES + 3} | {stage2_speed(engine, rows):.1f} |", flush=True)


def stage1_speed(engine: NativeEngine, guided: bool, songs: int) -> float:
    """Sample after prompts of several lengths; tokens a second of all songs after the first, which waits for those."""
    vocabulary = Vocabulary()
    settings = resolve(Settings()).stage1
    allowed = allowed_ids("yue", vocabulary, engine.vocabulary_size)
    sampler = make_sampler(engine, vocabulary, allowed, settings, guided=guided, songs=songs)
    advance = engine.fuse(sampler.pick, sampler.head)
    prompts = [np.random.default_rng(song).integers(0, 32000, PROMPT - song) for song in range(songs)]
    times = {}
    for limit in (1, TOKENS):
        taken = []
        for _ in range(REPEATS):
            sampler.begin(prompts, strengths=[1.5] * songs, noise=[Noise(song, 0) for song in range(songs)])
            began = time.perf_counter()
            rows = [*prompts, *[prompt[-1:] for prompt in prompts]][: songs * (2 if guided else 1)]
            waited_for = range(songs)
            sample_until(engine, rows, sampler, advance, end=vocabulary.end_of_audio, limit=limit, songs=waited_for)
            taken.append(time.perf_counter() - began)
        times[limit] = min(taken)
    return songs * (TOKENS - 1) / (times[TOKENS] - times[1])


def stage2_speed(engine: NativeEngine, rows: int) -> float:
    """Fill the first frames of whole windows; picked tokens a second over all rows."""
    vocabulary = Vocabulary()
    choices = []
    for index in range(1, CODEBOOKS):
        ids = vocabulary.codebook(index)
        choices.append(Choice.of(engine, partial(most_likely, ids.start), (ids,)))
    codes = np.random.default_rng(0).integers(0, vocabulary.codebook_size, (rows, WINDOW_FRAMES))
    given = codes + vocabulary.codebook_start
    prompts = np.pad(given, ((0, 0), (2, 1)), constant_values=vocabulary.start_of_audio)
    times = {}
    for frames in (1, FRAMES):
        taken = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            fill_frames(engine, prompts, given[:, :frames], choices)
            taken.append(time.perf_counter() - began)
        times[frames] = min(taken)
    return rows * (CODEBOOKS - 1) * (FRAMES - 1) / (times[FRAMES] - times[1])


def config_of(vocabulary_size: int, key_value_heads: int) -> LlamaConfig:
    return LlamaConfig(
        hidden=HIDDEN,
        inner=INNER,
        layers=LAYERS,
        heads=HEADS,
        key_value_heads=key_value_heads,
        head_size=HIDDEN // HEADS,
        vocabulary_size=vocabulary_size,
        max_length=8192,
        rope_theta=10000.0,
        norm_epsilon=1e-5,
        tied=False,
    )


def random_weights(config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> tuple[LlamaConfig, Weights]:
    generator = torch.Generator(device).manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator, device=device, dtype=dtype) * columns**-0.5

    def layer() -> Layer:
        queries = config.heads * config.head_size
        joined = queries + 2 * config.key_value_heads * config.head_size
        return Layer(
            attention_norm=torch.ones(config.hidden, device=device, dtype=dtype),
            qkv=matrix(joined, config.hidden),
            output=matrix(config.hidden, queries),
            inner_norm=torch.ones(config.hidden, device=device, dtype=dtype),
            gate_up=matrix(2 * config.inner, config.hidden),
            down=matrix(config.hidden, config.inner),
        )

    return config, Weights(
        embedding=matrix(config.vocabulary_size, config.hidden),
        layers=[layer() for _ in range(config.layers)],
        norm=torch.ones(config.hidden, device=device, dtype=dtype),
        head=matrix(config.vocabulary_size, config.hidden),
    )


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
