"""Where the time of one step goes on a GPU, and what the bytes need that each kernel must read.

    python -m benchmarks.step_profile --out profile.json [--only stage1/plain/auto …]

Models have the published sizes and made-up weights. Steps are played from the graphs that songs play, the choice of
the next id included (that of stage 2 is in "the rest"), while PyTorch's profiler keeps when each kernel began and
ended. Kernels overlap: each begins before the one before has ended. So a kernel's time is what passes from the end of
the one before to its own, and all of them add up to a step. Bytes are over the bandwidth that `benchmarks/targets.py`
measures, in the same process.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType

from benchmarks import targets
from benchmarks.folder import WARM_UP, filler, singer
from yue_cli import machine
from yue_cli.engines import open_engine, write_sizes
from yue_cli.engines.native.engine import NativeEngine
from yue_cli.models import SIZES
from yue_cli.stages.stage2 import cache_length
from yue_cli.vocab import CODEBOOKS, WINDOW_FRAMES, Vocabulary

CONTEXT = 4000  # tokens of stage 1 before those that are looked at
ROWS, FILLED = 20, WINDOW_FRAMES // 2  # of stage 2: windows, and frames before those that are looked at
WATCHED = 32  # tokens or frames behind a warm-up
WAYS = [  # stage, weights, keys and values
    ("stage1", "plain", "auto"),
    ("stage1", "native-8bit", "auto"),
    ("stage1", "native-4bit", "auto"),
    ("stage2", "plain", "auto"),
    ("stage2", "plain", "int8"),
]
LAYER = ("queries, keys, values", "attention", "output", "gate and up", "down")
CHOICE = ("sum_exponentials", "choose")  # kernels
COPIES = ("Mem",)  # what the profiler calls copies and fills begins so


@dataclass(frozen=True)
class Seen:
    """A kernel that ran. Times in microseconds."""

    name: str
    start: float
    end: float


def main() -> None:
    known = {"/".join(way): way for way in WAYS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("profile.json"))
    parser.add_argument("--only", nargs="+", choices=known, default=list(known))
    parser.add_argument("--layers", type=int, default=0, help="fewer than the published models have")
    asked = parser.parse_args()
    device = torch.device("cuda")
    read = targets.bandwidth("cuda", 0)["read"]
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "hardware": machine.hardware_name(device),
        "versions": machine.versions(),
        "bandwidth": read,
    }
    for name in asked.only:
        report[name] = time_parts(*known[name], asked.layers, read)
        print(*table({name: report[name]}), sep="\n", flush=True)
        asked.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def time_parts(stage: str, form: str, cache: str, layers: int, bandwidth: float) -> dict[str, Any]:
    """Time the parts of a step, as it is and by its bytes alone; microseconds."""
    is_first = stage == "stage1"
    count = layers or SIZES[stage]["num_hidden_layers"]
    sizes = SIZES[stage] | {"num_hidden_layers": count}
    rows, length = (2, CONTEXT + WARM_UP + WATCHED) if is_first else (ROWS, cache_length(WINDOW_FRAMES))
    each = 1 if is_first else CODEBOOKS - 1  # steps
    with tempfile.TemporaryDirectory() as folder:
        write_sizes(Path(folder), sizes, None if form == "plain" else form)
        engine = open_engine(
            "native",
            Path(folder),
            rows=rows,
            length=length,
            device=torch.device("cuda"),
            dtype=torch.bfloat16,
            cache=cache,
        )
    assert isinstance(engine, NativeEngine)
    work = singer(engine, CONTEXT) if is_first else filler(engine, ROWS, FILLED)
    work(WARM_UP)  # kernels are compiled, and steps recorded
    found = parts_of_steps(watch(partial(work, WARM_UP + WATCHED)), count, WATCHED * each)
    needed = {name: bytes_ / bandwidth * 1e6 for name, bytes_ in bytes_read(engine, is_first).items()}
    engine.close()
    torch.cuda.empty_cache()
    step = sum(us * (count if name in LAYER else 1) for name, us in found.items())
    return {"us": found, "bytes_us": needed, "step_us": step}


def watch(work: Callable[[], object]) -> list[Seen]:
    """Keep what runs on the GPU during some work, in the order in which it ended."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        work()
        torch.cuda.synchronize()
    seen = [
        Seen(event.name, event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == DeviceType.CUDA and not event.name.startswith(COPIES)
    ]
    return sorted(seen, key=lambda kernel: kernel.end)


def parts_of_steps(kernels: Sequence[Seen], layers: int, steps: int) -> dict[str, float]:
    """Compute the mean microseconds of each part in the last `steps` steps: those of a layer, and the others.

    A step is told by its attention, one a layer; the product before it makes its queries, and those behind it are a
    layer's other three. Raises ValueError for kernels that are no such steps.
    """
    taken = [after.end - before.end for before, after in pairwise(kernels)]
    places = [place for place, kernel in enumerate(kernels) if kernel.name == "attend"]
    if len(places) < layers * (steps + 1):
        raise ValueError(f"{len(places)} kernels of attention; expected {layers} in each of more than {steps} steps.")
    first, last = places[-layers * (steps + 1)], places[-layers]  # steps from attention to attention
    sums: dict[str, float] = {}
    for place, name in named(kernels, first, last, layers):
        sums[name] = sums.get(name, 0.0) + taken[place - 1]
    return {name: total / steps / (layers if name in LAYER else 1) for name, total in sums.items()}


def named(kernels: Sequence[Seen], first: int, last: int, layers: int) -> Iterator[tuple[int, str]]:
    """Tell the part of every kernel behind `first`, the attention of a first layer, up to `last`, another one."""
    attended, products = 0, 0
    for place in range(first + 1, last + 1):
        name = kernels[place].name
        is_over = attended % layers == layers - 1  # the last layer's products, and the head's, come now
        if name == "attend":
            if products != (5 if is_over else 4):
                raise ValueError(f"{products} products before the attention of layer {(attended + 1) % layers}.")
            attended, products = attended + 1, 0
            yield place, "attention"
        elif name == "product":
            names = ("output", "gate and up", "down", *(["head"] if is_over else []), "queries, keys, values")
            if products == len(names):
                raise ValueError(f"more than {products} products behind the attention of layer {attended % layers}.")
            yield place, names[products]
            products += 1
        else:
            yield place, "choice" if name in CHOICE else "the rest"


def bytes_read(engine: NativeEngine, is_first: bool) -> dict[str, float]:
    """Count the bytes that each part must read at the places that are timed: weights, keys and values."""
    model, vocabulary = engine._opened(), Vocabulary()
    layer = model.weights.layers[0]
    rows = vocabulary.codebook_size if not is_first else len(model.weights.head)
    before = WARM_UP + WATCHED / 2  # tokens or frames
    if is_first:
        places = CONTEXT + before + 1 + before  # of the song, and of its row without a prompt
    else:
        places = ROWS * (WINDOW_FRAMES + 3 + CODEBOOKS * (FILLED + before))
    kept = model.caches[0].nbytes / (engine.rows * engine.length)
    return {
        "queries, keys, values": layer.qkv.nbytes,
        "attention": kept * places,
        "output": layer.output.nbytes,
        "gate and up": layer.gate_up.nbytes,
        "down": layer.down.nbytes,
        "head": model.weights.head.nbytes * rows / len(model.weights.head),
    }


def table(report: dict[str, Any]) -> list[str]:
    """Lay out microseconds of each part, with those of the bytes alone in brackets."""
    names = (*LAYER, "head", "choice", "the rest")
    rows = [f"| a layer's | {' | '.join(names)} | a step |", "|---" * (len(names) + 2) + "|"]
    for name, found in report.items():
        cells = [cell(found["us"].get(part), found["bytes_us"].get(part)) for part in names]
        rows.append(f"| {name} | {' | '.join(cells)} | {found['step_us']:.0f} |")
    return rows


def cell(us: float | None, needed: float | None) -> str:
    return "" if us is None else f"{us:.1f}" + (f" ({needed:.1f})" if needed else "")


if __name__ == "__main__":
    main()
