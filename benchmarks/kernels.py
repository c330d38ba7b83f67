"""Time the kernels of a step on a GPU at the published shapes.

    python -m benchmarks.kernels products [--kinds plain native-8bit native-4bit] [--rows 2 20]
    python -m benchmarks.kernels attention
    python -m benchmarks.kernels step [--stage stage1] [--context 4000] [--count 1] [--modes eager graphs kernels]

Every figure is the mean time of one call, played from a CUDA graph that goes through several layers' weights or caches,
so that none is read from the GPU's own cache. Prints one JSON object a line: what, by which tile of the table or which
library, microseconds, TB/s of what must be read. `benchmarks/tile_search.py` tries other tiles, and
`benchmarks/step_profile.py` tells where the time of a whole step goes.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.agreement import SHAPES
from benchmarks.kernel_cases import BF16, CUDA, KINDS, Attention, Product, attention_cases, facts, fill, product_cases
from yue_cli.engines.native.engine import NativeEngine
from yue_cli.engines.native.formats import Quantization
from yue_cli.engines.native.invented import load

COPIES = 8  # layers that a graph goes through
PROMPT = 304  # ids: a window's in stage 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["products", "attention", "step"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--rows", nargs="+", type=int, default=[2, 20, 40])
    parser.add_argument("--stage", choices=["stage1", "stage2"], default="stage1")
    parser.add_argument("--context", type=int, default=4000)
    parser.add_argument("--count", type=int, choices=[1, 2], default=1, help="ids that a step reads in each row")
    parser.add_argument("--modes", nargs="+", default=["eager", "graphs", "kernels"])
    parser.add_argument("--cache", default="auto")
    parser.add_argument("--weights", choices=KINDS, default="plain")
    parser.add_argument("--layers", type=int, default=32)
    asked = parser.parse_args()
    with torch.inference_mode():
        if asked.what == "step":
            for mode in asked.modes:
                how = asked.stage, asked.weights, asked.cache, mode
                time_step(*how, asked.context, asked.count, asked.layers)
            return
        cases = product_cases(asked.kinds, asked.rows) if asked.what == "products" else attention_cases()
        for case in cases:
            time_case(case)


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def graph_us(calls: Callable[[], object], times: int = 20) -> float:
    """Time what `calls` launches, recorded, in microseconds."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        calls()
    graph.replay()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1000 / times


def time_case(case: Product | Attention) -> None:
    """Time the table's choice, and PyTorch's own."""
    prepared = case.prepare(COPIES)
    ways = {f"table: {prepared.table}": lambda: prepared.launch(None)}
    if prepared.by_library is not None:
        ways[prepared.library] = prepared.by_library
    for by, calls in ways.items():
        us = graph_us(calls) / COPIES
        tell(**facts(case), by=by, us=round(us, 2), tb_s=round(prepared.read_bytes / us / 1e6, 2))


def time_step(
    stage: str,
    kind: str,
    cache: str,
    mode: str,
    context: int,
    count: int = 1,
    layers: int = 32,
) -> None:
    """Time whole steps behind so many ids, the pick included, and how long prompts of all rows take to be read."""
    is_first = stage == "stage1"
    config = replace(SHAPES[stage], layers=layers)
    if kind != "plain":
        config = replace(config, quantization=Quantization(kind))
    rows, length = (2, 16_384) if is_first else (20, 2_703)
    head = None if is_first else (range(46_358, 47_382),)
    weights = load(config, device=CUDA, dtype=BF16)
    engine = NativeEngine(config, weights, rows=rows, length=length, cache_format=cache, mode=mode)
    read_s = min(seconds_to_read(engine, rows) for _ in range(3))
    filled = [context, min(context, 1_500)] if is_first else [context] * rows
    engine._filled = list(filled)
    for kept in engine._opened().caches:
        fill(kept)
    engine._filled_there[:rows] = torch.tensor(filled, device=CUDA)
    advance = engine.fuse(lambda logits: logits.argmax(-1, keepdim=True), head)
    ids = torch.ones(rows, count, dtype=torch.int64, device=CUDA)
    for _ in range(4):
        ids = advance(ids).expand(rows, count)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(50):
        ids = advance(ids).expand(rows, count)
    end.record()
    torch.cuda.synchronize()
    known = {"step": stage, "rows": rows, "context": context, "weights": kind, "cache": cache, "mode": mode}
    us = round(start.elapsed_time(end) * 1000 / 50, 1)
    tell(**known, count=count, how=engine.how, cost=engine.cost, us=us, prompts_ms=round(1000 * read_s, 1))
    engine.close()
    torch.cuda.empty_cache()


def seconds_to_read(engine: NativeEngine, rows: int) -> float:
    """Time how long prompts of a window's length take to be read in all rows."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    engine.prefill([np.ones(PROMPT, dtype=np.int64)] * rows)
    torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
