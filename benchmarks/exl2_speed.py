"""Engine exl2 beside YuE-exllamav2's loops, in float16 and at the published sizes, on one GPU and in one run.

    pip install -e '.[bench]' exllamav2
    python -m benchmarks.exl2_speed --out exl2_speed.json [--parts ours/stage1-fp16 …] [--limit 300]

Both float16 sides have random weights that are not packed; packed ones, 4.25 bits a weight in stage 1 and 8 in stage 2,
are ours alone (`targets.py` has the baseline's of stage 1). Stage 1: milliseconds a token with guidance after prompts
of some lengths, with room for 16,384 ids. Stage 2: milliseconds a frame of twenty windows, their prompts included.
Each part has a process of its own, and all its figures are in the file as soon as it ends. The baseline's loops are in
`baselines/exl2.py`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import random_exl2, targets
from benchmarks.folder import stage1_seconds, stage2_seconds
from benchmarks.parts import Figures, run
from benchmarks.targets import CONTEXTS, WINDOWS
from yue_cli.engines import describe, open_engine, write_sizes
from yue_cli.stages.stage2 import cache_length
from yue_cli.vocab import WINDOW_FRAMES

LENGTH = 16_384  # ids that the cache of stage 1 has room for, as in the baseline
TOKENS = 100  # that are timed at each context
TARGETS = {"stage1": (9.5, 1.5), "stage2": (36.0, 2.0)}  # milliseconds on an H200, and times as fast as the baseline
UNITS = {"stage1": "ms a token", "stage2": "ms a frame"}


def main() -> None:
    parts = known_parts()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("exl2_speed.json"))
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--limit", type=float, default=300.0, help="seconds, after which no part begins")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"), help="for models; best in main memory")
    arguments = parser.parse_args()
    chosen = {name: partial(parts[name], arguments.layers, arguments.scratch) for name in arguments.parts}
    report = run(chosen, arguments.out, arguments.limit, ["torch", "yue_cli.workbench"])
    print("", *table(report), sep="\n", flush=True)


def known_parts() -> dict[str, Callable[[int, Path], Figures]]:
    """List the parts, the most important first: each takes the number of layers and a folder for models."""
    return {
        "ours/stage1-fp16": partial(ours, "stage1", False),
        "baseline/stage1": partial(baseline, "stage1"),
        "ours/stage2-fp16": partial(ours, "stage2", False),
        "baseline/stage2": partial(baseline, "stage2"),
        "ours/stage1-packed": partial(ours, "stage1", True),
        "ours/stage2-packed": partial(ours, "stage2", True),
    }


def baseline(stage: str, layers: int, scratch: Path) -> Figures:
    """Time YuE-exllamav2's loop."""
    tempfile.tempdir = str(scratch)  # it writes its model where temporary files go
    found = {"stage1": targets.exl2_stage1, "stage2": targets.exl2_stage2}[stage]("cuda", layers)
    if stage == "stage2":
        return {"ms": 1000 * found["seconds"] / WINDOW_FRAMES}
    return {"ms": {context: 1000 * token_s for context, token_s in targets.points_of(found)}}


def ours(stage: str, is_packed: bool, layers: int, scratch: Path) -> Figures:
    """Time engine exl2 with the loops that make songs."""
    device, dtype = torch.device("cuda"), torch.float16
    rows, length = (2, LENGTH) if stage == "stage1" else (WINDOWS, cache_length(WINDOW_FRAMES))
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        written = write(folder, stage, is_packed, layers)
        facts = describe(folder, dtype=dtype, engine="exl2")
        began = time.perf_counter()
        engine = open_engine("exl2", folder, rows=rows, length=length, device=device, dtype=dtype)
        opened = time.perf_counter() - began
    found: Figures = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "how": engine.how}
    found |= {"written_s": round(written, 1), "open_s": round(opened, 1), "weights": facts.parameter_bytes}
    if stage == "stage1":
        found["ms"] = {context: 1000 * stage1_seconds(engine, context, TOKENS) / TOKENS for context in CONTEXTS}
    else:
        found["ms"] = 1000 * stage2_seconds(engine, rows, WINDOW_FRAMES) / WINDOW_FRAMES
    return found | {"memory": engine.memory, "peak_allocated": torch.cuda.max_memory_allocated(), "cost": engine.cost}


def write(folder: Path, stage: str, is_packed: bool, layers: int) -> float:
    """Write a model, of which only packed weights are really there. Returns the seconds it took."""
    began = time.perf_counter()
    if is_packed:
        random_exl2.write_stage(folder, stage, layers, "cuda")
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        write_sizes(folder, random_exl2.sizes(stage, layers))
    return time.perf_counter() - began


def table(report: Figures) -> list[str]:
    """Lay out what was found beside the targets. Empty cells were not measured."""
    rows = [
        "| | YuE-exllamav2, fp16 | ours, fp16 | times as fast | target | ours, packed | |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage, (target, times) in TARGETS.items():
        sides = [
            report.get(name, {}).get("ms")
            for name in (f"baseline/{stage}", f"ours/{stage}-fp16", f"ours/{stage}-packed")
        ]
        bits = f"{UNITS[stage]}; packed: {random_exl2.PACKED[stage][0]:g} bits"
        for context in CONTEXTS if stage == "stage1" else (None,):
            found = [side if context is None or side is None else side[context] for side in sides]
            ratio = found[0] / found[1] if found[0] and found[1] else None
            title = f"{stage} after {context}" if context else f"{stage}, {WINDOWS} windows"
            cells = [title, *map(cell, (*found[:2], ratio)), f"{target:g}, {times:g} times", cell(found[2]), bits]
            rows.append(f"| {' | '.join(cells)} |")
    return rows + [f"{name}: {report[name]['failed']}" for name in known_parts() if "failed" in report.get(name, {})]


def cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
