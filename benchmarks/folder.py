"""Speed of a checkpoint folder of any format, such as one that `random_checkpoint.py` or `random_exl2.py` wrote.

    python benchmarks/folder.py FOLDER --stage stage1 [--context 1000] [--tokens 200]
    python benchmarks/folder.py FOLDER --stage stage2 [--rows 20] [--frames 300]

Stage 1: milliseconds a token with guidance, two rows, from `--context` on. Stage 2: milliseconds a frame of `--rows`
windows. The first song's worth is a warm-up; loading and memory are told too. What is sung is noise.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from yue_cli.engines import describe, open_engine
from yue_cli.engines.base import Engine
from yue_cli.generation import Choice, fill_frames, sample_until
from yue_cli.machine import choose_device, choose_dtype
from yue_cli.sampling import Noise, most_likely
from yue_cli.settings import Settings, resolve
from yue_cli.stages.stage1 import allowed_ids, make_sampler
from yue_cli.stages.stage2 import cache_length
from yue_cli.stopwatch import Watch
from yue_cli.vocab import CODEBOOKS, WINDOW_FRAMES, Vocabulary

WARM_UP = 40  # tokens or frames: kernels are chosen, compiled and recorded
LEAST_TOKENS = 16  # a GPU tells of some at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", choices=("stage1", "stage2"), required=True)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--cache", default="auto")
    parser.add_argument("--context", type=int, default=1000, help="tokens before the first that is timed")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--frames", type=int, default=WINDOW_FRAMES)
    arguments = parser.parse_args()
    if arguments.tokens < LEAST_TOKENS:
        parser.error(f"--tokens {arguments.tokens}: too few to be timed; take {LEAST_TOKENS} or more")
    device = choose_device(arguments.device)
    dtype = choose_dtype(arguments.dtype, device)
    first = arguments.stage == "stage1"
    rows = 2 if first else arguments.rows
    length = arguments.context + max(WARM_UP, arguments.tokens) if first else cache_length(WINDOW_FRAMES)
    began = time.perf_counter()
    engine = open_engine(
        arguments.engine,
        arguments.folder,
        rows=rows,
        length=length,
        device=device,
        dtype=dtype,
        mode=arguments.mode,
        cache=arguments.cache,
        emit=lambda event: print(event, flush=True),
    )
    loaded = time.perf_counter() - began
    facts = describe(arguments.folder, dtype=dtype, engine=arguments.engine)
    how = f"engine {facts.engine}, {facts.dtype or str(dtype).removeprefix('torch.')}"
    print(f"{arguments.folder.name}: {how} · loaded in {loaded:.1f} s · {engine.memory / 1e9:.2f} GB · {engine.how}")
    if first:
        taken = stage1_seconds(engine, arguments.context, arguments.tokens) / arguments.tokens
        print(f"stage 1, 2 rows, from {arguments.context} tokens on: {1000 * taken:.2f} ms a token")
    else:
        taken = stage2_seconds(engine, arguments.rows, arguments.frames) / arguments.frames
        print(f"stage 2, {arguments.rows} rows: {1000 * taken:.2f} ms a frame")
    if device.type == "cuda":
        print(f"peak of PyTorch's allocator: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")


def stage1_seconds(engine: Engine, context: int, tokens: int) -> float:
    """Sample after a prompt; seconds that so many tokens take, without the prompt."""
    sing = singer(engine, context)
    sing(WARM_UP)
    return min(sing(tokens).unit_s for _ in range(3)) * tokens


def singer(engine: Engine, context: int) -> Callable[[int], Watch]:
    """Make a function that samples so many tokens of stage 1 after a prompt, and gives the watch that saw it."""
    vocabulary = Vocabulary()
    allowed = allowed_ids("yue", vocabulary, engine.vocabulary_size)
    settings = resolve(Settings()).stage1
    sampler = make_sampler(engine, vocabulary, allowed, settings, guided=True)
    advance = engine.fuse(sampler.pick, sampler.head)
    prompt = np.random.default_rng(0).integers(0, 32000, context)

    def sing(tokens: int) -> Watch:
        sampler.begin([prompt], strengths=[1.5], noise=[Noise(0, 0)])
        watch = Watch()
        # No id ends it: -1 is never picked.
        sample_until(engine, [prompt, prompt[-1:]], sampler, advance, end=-1, limit=tokens, heard=watch.hear)
        return watch

    return sing


def stage2_seconds(engine: Engine, rows: int, frames: int) -> float:
    """Fill the first frames of whole windows; seconds taken by all of them, prompt included."""
    fill = filler(engine, rows)
    fill(WARM_UP)
    return fill(frames)


def filler(engine: Engine, rows: int, filled: int = 0) -> Callable[[int], float]:
    """Make a function that fills so many frames of windows, and gives the seconds taken; `filled` come before them."""
    vocabulary = Vocabulary()
    ranges = [vocabulary.codebook(index) for index in range(1, CODEBOOKS)]
    choices = [Choice.of(engine, partial(most_likely, ids.start), (ids,)) for ids in ranges]
    random = np.random.default_rng(0)
    given = random.integers(0, vocabulary.codebook_size, (rows, WINDOW_FRAMES)) + vocabulary.codebook_start
    prompts = np.pad(given, ((0, 0), (2, 1)), constant_values=vocabulary.start_of_audio)
    known = random.choice(given.flat, (rows, filled * CODEBOOKS))
    prompts = np.concatenate([prompts, known], axis=1)

    def fill(frames: int) -> float:
        synchronize(engine)
        began = time.perf_counter()
        fill_frames(engine, prompts, given[:, filled : filled + frames], choices)
        return time.perf_counter() - began

    return fill


def synchronize(engine: Engine) -> None:
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)


if __name__ == "__main__":
    main()
