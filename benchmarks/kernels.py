"""Time the kernels of a step on a GPU at the published shapes, with other tiles than those of the table.

    python benchmarks/kernels.py products [--kinds plain native-8bit native-4bit] [--rows 2 20] [--all]
    python benchmarks/kernels.py attention
    python benchmarks/kernels.py step [--stage stage1] [--context 4000] [--modes eager graphs kernels]

Every figure is the mean time of one call, played from a CUDA graph that goes through several layers' weights or caches,
so that none is read from the GPU's own cache. Prints one JSON object a line: what,
microseconds, TB/s of what must be read.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.agreement import SHAPES
from yue_cli.engines.native import attention, fused, products, tiles
from yue_cli.engines.native.cache import make
from yue_cli.engines.native.config import LlamaConfig
from yue_cli.engines.native.engine import NativeEngine
from yue_cli.engines.native.formats import Quantization
from yue_cli.engines.native.invented import load
from yue_cli.engines.native.model import Llama, Weights
from yue_cli.engines.native.quantized import CLASSES
from yue_cli.models import EIGHT_BIT, FOUR_BIT

CUDA = torch.device("cuda")
COPIES = 8  # layers that a graph goes through
BF16 = torch.bfloat16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["products", "attention", "step"])
    parser.add_argument("--kinds", nargs="+", default=["plain", EIGHT_BIT, FOUR_BIT])
    parser.add_argument("--rows", nargs="+", type=int, default=[2, 20, 40])
    parser.add_argument("--all", action="store_true", help="try all tiles, not the table's alone")
    parser.add_argument("--stage", choices=["stage1", "stage2"], default="stage1")
    parser.add_argument("--context", type=int, default=4000)
    parser.add_argument("--modes", nargs="+", default=["eager", "graphs", "kernels"])
    parser.add_argument("--cache", default="auto")
    parser.add_argument("--weights", default="plain")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--profile", action="store_true", help="tell the time by kernel")
    arguments = parser.parse_args()
    with torch.inference_mode():
        {"products": time_products, "attention": time_attention, "step": time_step}[arguments.what](arguments)


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


# Products


def shapes(config: LlamaConfig) -> dict[str, tuple[int, int, bool]]:
    """Name the products of a layer: rows of the weight, columns, gated."""
    heads, shared = config.heads * config.head_size, config.key_value_heads * config.head_size
    return {
        "qkv": (heads + 2 * shared, config.hidden, False),
        "output": (config.hidden, heads, False),
        "gate_up": (2 * config.inner, config.hidden, True),
        "down": (config.hidden, config.inner, False),
    }


def candidates(kind: str) -> list[tiles.Tile]:
    if kind == "plain":
        sizes = itertools.product((16, 32, 64), (128, 256, 512), (4, 8), (3, 5))
        return [tiles.Tile(*size) for size in sizes if (size[0] + 32) * size[1] * 2 * size[3] <= 200_000]
    return [
        tiles.Tile(out, 128, warps, stages)
        for out, warps, stages in itertools.product((16, 32, 64, 128), (4, 8), (4, 7))
    ]


def time_products(arguments: argparse.Namespace) -> None:
    for stage, rows in (("stage1", 2), ("stage2", 20), ("stage2", 40), ("stage1", 32)):
        if rows in arguments.rows:
            for kind, (name, shape) in itertools.product(arguments.kinds, shapes(SHAPES[stage]).items()):
                time_product({"product": name, "stage": stage, "rows": rows, "kind": kind}, *shape, arguments.all)


def time_product(facts: dict[str, Any], outs: int, inner: int, gated: bool, tries_all: bool) -> None:
    kind, rows = facts["kind"], facts["rows"]
    weights = [torch.randn(outs, inner, device=CUDA, dtype=BF16) * inner**-0.5 for _ in range(COPIES)]
    matrices: list[Any] = weights if kind == "plain" else [CLASSES[kind].quantize(weight) for weight in weights]
    x, norm = torch.randn(rows, inner, device=CUDA, dtype=BF16), torch.ones(inner, device=CUDA, dtype=BF16)
    extra: dict[str, Any] = {"gated": gated}
    if facts["product"] in ("output", "down"):
        extra["add_to"] = torch.zeros(rows, outs, device=CUDA, dtype=BF16)
    else:
        extra |= {"norm": norm, "epsilon": 1e-5}
    read = sum(matrix.nbytes for matrix in matrices) / COPIES
    columns = outs // 2 if gated else outs
    chosen = tiles.find(type(matrices[0]), columns, inner, rows, gated)
    assert chosen is not None, f"{facts}: the table has no tile"
    plain = graph_us(lambda: [torch.nn.functional.linear(x, weight) for weight in weights]) / COPIES
    tell(**facts, by="cuBLAS, bfloat16", us=round(plain, 2), tb_s=round(weights[0].nbytes / plain / 1e6, 2))
    found, find = [], tiles.find
    for number, tile in enumerate([chosen, *(candidates(kind) if tries_all else [])]):
        if columns % tile.out or inner % tile.inner:
            continue
        tiles.find = lambda *_, tile=tile: tile  # type: ignore[assignment, misc]
        try:
            us = graph_us(lambda: [products.project(x, matrix, **extra) for matrix in matrices]) / COPIES
            found.append((us, number, tile))
        except Exception as error:  # too much shared memory for this GPU, or no such instruction
            tell(**facts, by=str(tile), error=str(error)[:100])
    tiles.find = find
    for us, number, tile in [found[0], *sorted(found)[:3]]:
        by = f"table: {tile}" if number == 0 else str(tile)
        tell(**facts, by=by, us=round(us, 2), tb_s=round(read / us / 1e6, 2))


# Attention


def time_attention(arguments: argparse.Namespace) -> None:
    cases = [
        ("stage1", 16_384, [4_000, 1_500], 1),
        ("stage1", 16_384, [16_000, 3_000], 1),
        ("stage1", 8_192, [4_000] * 16 + [1_500] * 16, 1),
        ("stage2", 2_703, [1_503] * 20, 1),
        ("stage2", 2_703, [2_700] * 20, 1),
        ("stage2", 2_703, [2_700] * 20, 2),
    ]
    for case, form in itertools.product(cases, ("auto", "int8")):
        time_one_attention(*case, form, arguments.all)


def time_one_attention(stage: str, length: int, filled: list[int], count: int, form: str, tries_all: bool) -> None:
    config, rows = replace(SHAPES[stage], layers=COPIES), len(filled)
    like = torch.zeros(1, device=CUDA, dtype=BF16)
    caches = make(form, config, rows=rows, length=length, like=like)
    for cache in caches:
        cache.keys.random_(0, 255) if form == "int8" else cache.keys.normal_()
    model = Llama(config, Weights(like.expand(1, config.hidden), [], like, like), caches, length=length)
    step = fused.FusedStep(model, length=length)
    columns = (config.heads + 2 * config.key_value_heads) * config.head_size
    qkv = torch.randn(rows * count, columns, device=CUDA, dtype=BF16)
    there = torch.tensor(filled, device=CUDA) - count
    read = sum(filled) * sum(cache.nbytes for cache in caches) / COPIES / (rows * length)
    facts = {"attention": stage, "rows": rows, "filled": filled[0], "queries": count, "cache": form}
    table = (step._chunk, tiles.BLOCK_KEYS, tiles.ATTEND_WARPS, tiles.ATTEND_STAGES)
    others = itertools.product((128, 256, 512), (32, 64, 128), (4, 8), (2, 3)) if tries_all else []
    found = []
    for cut in [table, *others]:
        step._chunk, tiles.BLOCK_KEYS, tiles.ATTEND_WARPS, tiles.ATTEND_STAGES = cut
        try:
            us = graph_us(lambda: [step._attend(qkv, cache, there, count) for cache in caches]) / COPIES
            found.append((us, cut))
        except Exception as error:
            tell(**facts, by=cut, error=str(error)[:100])
    step._chunk, tiles.BLOCK_KEYS, tiles.ATTEND_WARPS, tiles.ATTEND_STAGES = table
    for us, cut in [found[0], *sorted(found)[:3]]:
        tell(**facts, by="rotate, attend, combine", cut=cut, us=round(us, 2), tb_s=round(read / us / 1e6, 2))
    if form == "auto":
        q = qkv.view(rows, count, -1, config.head_size)[:, :, : config.heads]
        used = (there + count).int()
        us = graph_us(lambda: [attention.flash(q, *cache.read(slice(rows), length), used) for cache in caches]) / COPIES
        tell(**facts, by="FlashAttention-2", us=round(us, 2), tb_s=round(read / us / 1e6, 2))


# Whole steps


def time_step(arguments: argparse.Namespace) -> None:
    is_first = arguments.stage == "stage1"
    config = replace(SHAPES[arguments.stage], layers=arguments.layers)
    if arguments.weights != "plain":
        config = replace(config, quantization=Quantization(arguments.weights))
    rows = 2 if is_first else 20
    head = None if is_first else (range(46_358, 47_382),)
    for mode in arguments.modes:
        weights = load(config, device=CUDA, dtype=BF16)
        length = 16_384 if is_first else 2_703
        engine = NativeEngine(config, weights, rows=rows, length=length, cache_format=arguments.cache, mode=mode)
        engine.prefill([[1]] * rows)
        context = [arguments.context, min(arguments.context, 1_500)] if is_first else [arguments.context] * rows
        engine._filled = list(context)  # zeros take as long to look at as anything else
        engine._filled_there[:rows] = torch.tensor(context, device=CUDA)
        advance = engine.fuse(lambda logits: logits.argmax(-1, keepdim=True), head)
        ids = torch.ones(rows, 1, dtype=torch.int64, device=CUDA)
        for _ in range(4):
            ids = advance(ids)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(50):
            ids = advance(ids)
        end.record()
        torch.cuda.synchronize()
        facts = {"step": arguments.stage, "rows": rows, "context": context[0], "weights": arguments.weights}
        facts |= {"cache": arguments.cache, "mode": mode, "how": engine.how, "cost": engine.cost}
        tell(**facts, us=round(start.elapsed_time(end) * 1000 / 50, 1))
        if arguments.profile:
            activities = [torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=activities) as profile:
                for _ in range(5):
                    ids = advance(ids)
                torch.cuda.synchronize()
            print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=60))
        engine.close()
        del engine, weights
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
