"""Search the tiles of the native engine's kernels on a GPU: what `yue_cli/engines/native/tiles.py` should say.

    python -m benchmarks.tile_search [products] [attention] [--kinds plain native-8bit] [--rows 2 20] [--step]

Many processes compile, and one times, one candidate after the other: compiling takes most of the time. Prints one JSON
object a line: the table's choice, the best candidates, and with the best one what the chain of launches and fetching
ahead are worth. --step then times whole steps with the table and with the best that were found. While later cases are
compiled, their candidates are launched once each, beside what is timed: look at a close race twice.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.kernel_cases import (
    BF16,
    CUDA,
    KINDS,
    Attention,
    Prepared,
    Product,
    attention_cases,
    facts,
    product_cases,
)
from benchmarks.kernels import COPIES, graph_us, tell, time_step
from yue_cli.engines.native import chain, fused, gluon_modules, tiles
from yue_cli.engines.native.formats import GROUP
from yue_cli.engines.native.quantized import CLASSES
from yue_cli.models import FOUR_BIT
from yue_cli.settings import CACHES

Case = Product | Attention
PARTS = 3  # processes that compile the candidates of one case
TIMES = 8  # that a graph is played for each
SPLITS = (1, 2, 4)  # programs that share the columns of x
SHARED_BYTES = 200_000  # shared memory of one program, at most
TOGETHER = (1, 2, 3, 4, 6)  # programs of a product on a multiprocessor, where its columns are spread evenly
LEAST_PROGRAMS = 30  # of a product: fewer leave most of a GPU idle
MOST_BYTES = 65_536  # of a weight, in one program's hands at once
AHEAD = (128, 512, 1024, 4096)  # bytes of a row
STEPS = {"stage1": 4000, "stage2": 1500}  # ids that are there
TOLD = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["products", "attention"], help="products, attention or both")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--rows", nargs="+", type=int, default=[2, 20, 40])
    parser.add_argument("--caches", nargs="+", choices=["auto", *CACHES], default=["auto", *CACHES])
    parser.add_argument("--processes", type=int, default=14)
    parser.add_argument("--limit", type=float, default=240.0, help="seconds, after which no case begins")
    parser.add_argument("--step", action="store_true", help="time whole steps with the best, too")
    asked = parser.parse_args()
    cases: list[Case] = []
    if "products" in asked.what:
        cases += product_cases(asked.kinds, asked.rows)
    if "attention" in asked.what:
        cases += [case for case in attention_cases() if case.cache in asked.caches]
    best = search(cases, asked.processes, asked.limit)
    if asked.step:
        for (stage, context), kind, cache in itertools.product(STEPS.items(), asked.kinds, asked.caches):
            for found in ({}, best):
                tell(tiles="the best found" if found else "the table's")
                with torch.inference_mode(), taken(found, cache):
                    time_step(stage, kind, cache, "kernels", context)


def search(cases: Sequence[Case], processes: int, limit_s: float) -> dict[Case, Any]:
    """Find the best tile or cut of each case; those that the time was too short for are left out."""
    began, best = time.perf_counter(), {}
    pool = ProcessPoolExecutor(processes, get_context("spawn"))
    known = {case: candidates(case) for case in cases}
    compiling: dict[Case, list[Future[None]]] = {
        case: [pool.submit(compile_all, case, tried[part::PARTS]) for part in range(PARTS)]
        for case, tried in known.items()
    }
    for case, parts in compiling.items():
        if time.perf_counter() - began > limit_s:
            tell(**facts(case), by="nothing: the time was over")
            continue
        for part in parts:
            part.result()
        with torch.inference_mode():
            best[case] = best_of(case, known[case])
    pool.shutdown(cancel_futures=True)
    tell(searched=len(best), seconds=round(time.perf_counter() - began))
    return best


def compile_all(case: Case, tried: Sequence[Any]) -> None:
    """Compile candidates, into Triton's cache on disk, by launching each once. Runs in a process of its own."""
    with torch.inference_mode():
        prepared = case.prepare(1)
        for candidate in tried:
            with suppress(Exception):  # which the process that times tells
                prepared.launch(candidate)
    torch.cuda.synchronize()


def best_of(case: Case, tried: Sequence[Any]) -> Any:
    """Time every candidate of a case and tell the fastest."""
    prepared = case.prepare(COPIES)
    found = []
    for candidate in [prepared.table, *(each for each in tried if each != prepared.table)]:
        try:
            found.append((time_us(partial(prepared.launch, candidate)), candidate))
        except Exception as error:  # too much shared memory for this GPU, or no such instruction
            tell(**facts(case), by=str(candidate), error=str(error)[:100])

    def tell_time(us: float, by: str) -> None:
        tell(**facts(case), by=by, us=round(us, 2), tb_s=round(prepared.read_bytes / us / 1e6, 2))

    if prepared.by_library is not None:
        tell_time(time_us(prepared.by_library), prepared.library)
    for us, candidate in found:
        if candidate == prepared.table:
            tell_time(us, f"table: {candidate}")
    found.sort(key=lambda pair: pair[0])
    for us, candidate in found[:TOLD]:
        tell_time(us, str(candidate))
    tell_time(found[-1][0], f"the slowest of {len(found)}")
    for how, us in variants(prepared, found[0][1]).items():
        tell_time(us, f"{found[0][1]}, {how}")
    return found[0][1]


def time_us(calls: Callable[[], object]) -> float:
    return graph_us(calls, TIMES) / COPIES


def variants(prepared: Prepared, candidate: Any) -> dict[str, float]:
    """Time a candidate without the chain, and with other amounts fetched ahead where weights are."""
    launch, found = partial(prepared.launch, candidate), {}
    with patch.object(chain, "link", lambda *_: {"CHAINED": False}):
        found["launched apart"] = time_us(launch)
    for size in AHEAD if isinstance(candidate, tiles.Tile) else ():
        found[f"{size} bytes ahead"] = time_us(partial(prepared.launch, replace(candidate, ahead=size)))
    return found


def candidates(case: Case) -> list[Any]:
    """List what may be tried: what divides the matrix and fits into shared memory."""
    if isinstance(case, Attention):
        cuts = itertools.product((2, 4, 8, 16, 32), (64, 128), (2, 4, 8), (2, 3), (None, 96, 128))
        least = 16 if case.cache == "auto" else 32  # keys of a warp, that tensor cores take
        found: list[Any] = [tiles.Cut(*cut) for cut in cuts if cut[1] // cut[2] >= least]
        if case.groups == tiles.GROUPED and case.cache == "auto" and gluon_modules.find("grouped_kernels") is not None:
            grouped = itertools.product((8, 16, 32), (64, 128), (4, 8), (1, 2, 3))
            found += [tiles.GroupedCut(*cut) for cut in grouped if cut[1] // cut[2] >= least]
        return found
    outs, inner, gated = case.shape
    wide = 2 if gated else 1
    if case.kind == FOUR_BIT and case.rows <= tiles.FEW_ROWS and gluon_modules.find("few_kernels") is not None:
        few = itertools.product((4, 8, 16, 32), (2, 4, 8, 16), (1, 2, 3, 4, 6, 8), (False, True))
        return [
            tiles.FewRows(out, warps, stages, is_late)
            for out, warps, stages, is_late in few
            if 8 <= out * wide <= 32 and outs % out == 0 and (stages - 1) * warps < inner // GROUP
        ]
    if case.kind == "plain":
        sizes = itertools.product((16, 32, 64, 128), (64, 128, 256, 512), (4, 8), (3, 4, 5, 6, 7))
        rows, bits = tiles.padded(case.rows, tiles.LEAST_ROWS[16]), 16
    else:
        sizes = itertools.product((16, 32, 64), (2 * GROUP, 4 * GROUP, 8 * GROUP), (2, 4, 8), (2, 3, 4))
        rows, bits = tiles.padded(case.rows, tiles.LEAST_ROWS[8]), 4 if case.kind == FOUR_BIT else 8
        inner = 8 * GROUP  # the kernel sees to what is left over
    splits = SPLITS if case.kind == "plain" and not gated else SPLITS[:1]
    multiprocessors = chain.multiprocessors(CUDA) or outs
    spread = [-(-outs // (count * multiprocessors)) for count in TOGETHER]  # columns, so that all have as many
    return [
        tiles.Tile(out, depth, warps, stages, split=split, columns=columns)
        for out, depth, warps, stages in sizes
        for split in splits
        for columns in (0, *(taken for taken in spread if split == 1 and out // 2 < taken < out))
        if (columns or outs % out == 0)
        and inner % depth == 0
        and outs // (columns or out) * split >= LEAST_PROGRAMS
        and out * depth * bits // 8 <= MOST_BYTES
        and (out * wide * bits // 8 + rows * BF16.itemsize) * depth * stages <= SHARED_BYTES
    ]


def taken(best: dict[Case, Any], cache: str) -> ExitStack:
    """Let the engine take what was found, where something was, until the context ends."""
    find, cut = tiles.find, fused.find_cut
    products: dict[tuple[Any, ...], Any] = {}
    cuts: dict[int, tiles.Cut | tiles.GroupedCut] = {}
    for case, found in best.items():
        if isinstance(case, Product):
            kind = torch.Tensor if case.kind == "plain" else CLASSES[case.kind]
            products.setdefault((kind, *case.shape[:2], case.rows, case.shape[2]), found)
        elif case.cache == cache:
            cuts.setdefault(case.groups, found)
    stack = ExitStack()
    stack.enter_context(patch.object(tiles, "find", lambda *asked: products.get(asked[:5]) or find(*asked)))
    stack.enter_context(patch.object(fused, "find_cut", lambda *asked: cuts.get(asked[2]) or cut(*asked)))
    return stack


if __name__ == "__main__":
    main()
