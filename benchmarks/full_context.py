"""Memory of every stage with its context filled to the last id, beside what `yue plan` computes for it.

    python -m benchmarks.full_context --out full_context.json [--parts stage1/published …] [--limit 240] [--device cuda]

The models have the published sizes; their weights are made up on the device. Stage 1: both rows of guidance, filled to
16,384 ids, the last of them sung. Stage 2: twenty windows of 300 frames, all filled. Decode: a song of 16,384 tokens.
Each part has a process of its own, and what the driver says that it holds is watched; PyTorch's allocator is told
beside it.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.folder import stage2_seconds
from benchmarks.parts import Figures, run
from benchmarks.watch import Watch
from yue_cli import budget, engines
from yue_cli.engines.base import Engine
from yue_cli.generation import sample_until
from yue_cli.machine import choose_dtype
from yue_cli.models import EIGHT_BIT, FOUR_BIT, SIZES
from yue_cli.sampling import Noise, Sampler
from yue_cli.settings import Settings, resolve
from yue_cli.stages import decode
from yue_cli.stages.stage1 import allowed_ids
from yue_cli.stages.stage2 import cache_length
from yue_cli.vocab import CODEBOOKS, WINDOW_FRAMES, Vocabulary

CONTEXT, SUNG = 16_384, 385  # ids of a row of stage 1, and how many of them are sung; the last one is not read again
WINDOWS = 20
PUBLISHED = "published"
FORMS = {"stage1": (PUBLISHED, EIGHT_BIT, FOUR_BIT), "stage2": (PUBLISHED, EIGHT_BIT)}
CACHES = ("auto", "int8", "int6", "int4")


def main() -> None:
    parts = known_parts()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("full_context.json"))
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--limit", type=float, default=240.0, help="seconds, after which no part begins")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--context", type=int, default=CONTEXT, help="ids of a row of stage 1, and tokens of a song")
    parser.add_argument("--frames", type=int, default=WINDOW_FRAMES, help="of the windows")
    arguments = parser.parse_args()
    chosen = {name: partial(parts[name], arguments) for name in arguments.parts}
    report = run(chosen, arguments.out, arguments.limit, ["torch", "yue_cli.workbench"])
    print("", *table(report), sep="\n", flush=True)


def known_parts() -> dict[str, Callable[[argparse.Namespace], Figures]]:
    """List the parts: stage, weights, cache."""
    found: dict[str, Callable[[argparse.Namespace], Figures]] = {}
    for stage, forms in FORMS.items():
        for form in forms:
            for cache in CACHES:
                found[f"{stage}/{form}/{cache}"] = partial(fill, stage, form, cache)
    return found | {"decode": fill_song}


def fill(stage: str, form: str, cache: str, arguments: argparse.Namespace) -> Figures:
    """Fill a language model's context."""
    device = torch.device(arguments.device)
    dtype = choose_dtype("auto", device)
    rows, length = (2, arguments.context) if stage == "stage1" else (WINDOWS, cache_length(WINDOW_FRAMES))
    with tempfile.TemporaryDirectory() as name, Watch(device) as watch:
        folder = Path(name)
        sizes = SIZES[stage] | {"num_hidden_layers": arguments.layers}
        engines.write_sizes(folder, sizes, None if form == PUBLISHED else form)
        facts = engines.describe(folder, dtype=dtype, cache=cache)
        began = time.perf_counter()
        engine = engines.open_engine("auto", folder, rows=rows, length=length, device=device, dtype=dtype, cache=cache)
        opened = time.perf_counter() - began
        if stage == "stage1":
            seconds = fill_rows(engine)
        else:
            seconds = stage2_seconds(engine, rows, arguments.frames)
        found: Figures = {"open_s": round(opened, 2), "seconds": round(seconds, 3), "engine": engine.memory}
        found |= {"how": engine.how, "cost": engine.cost}
        engine.close()
    held = facts.cache_bytes_per_token * rows * length
    planned = facts.parameter_bytes + held + budget.work_bytes(facts, length, device)
    found |= {"rows": rows, "length": length, "weights": facts.parameter_bytes, "cache": held, "planned": planned}
    return found | watch.figures()


def fill_rows(engine: Engine) -> float:
    """Read both rows of guidance but for their ends, and sing these. Returns the seconds it took."""
    vocabulary = Vocabulary()
    settings = resolve(Settings()).stage1
    allowed = allowed_ids("yue", vocabulary, engine.vocabulary_size)
    sampler = Sampler(vocabulary, allowed, settings, guided=True, device=engine.device)
    advance = engine.fuse(sampler.pick, sampler.head)
    sung = min(SUNG, engine.length // 2)
    coarse = vocabulary.codebook(0)
    prompt = np.random.default_rng(0).integers(coarse.start, coarse.stop, engine.length - sung + 1)
    sampler.begin([prompt], strengths=[settings.guidance_first], noise=[Noise(0, 0)])
    began = time.perf_counter()
    # No id ends it: -1 is never picked.
    sample_until(engine, [prompt, prompt], sampler, advance, end=-1, limit=sung)
    return time.perf_counter() - began


def fill_song(arguments: argparse.Namespace) -> Figures:
    """Decode a song as long as stage 1 may see at once."""
    device = torch.device(arguments.device)
    with Watch(device) as watch:
        decoders = decode.make_codec(device)
        books = min(CODEBOOKS, decoders.codec.config.codebooks)
        frames = arguments.context // 2
        codes = np.random.default_rng(0).integers(
            0, decoders.codec.config.codebook_size, (2, books, frames), dtype=np.int16
        )
        began = time.perf_counter()
        decode.decode(decoders, codes[0], codes[1], "scale")
        seconds = time.perf_counter() - began
    return {"frames": frames, "seconds": round(seconds, 3)} | watch.figures()


def table(report: Figures) -> list[str]:
    """Lay out what was found, in GB."""
    rows = ["| stage, weights, cache | planned | peak of the process | of it outside PyTorch | allocator's peak | |"]
    rows.append("|---|---|---|---|---|---|")
    for name in known_parts():
        found = report.get(name, {})
        sizes = [found.get(key) for key in ("planned", "peak", "most_outside", "peak_reserved")]
        cells = ["" if size is None else f"{size / 1e9:.2f}" for size in sizes]
        rows.append(f"| {name.replace('/', ', ')} | {' | '.join(cells)} | {found.get('failed', '')} |")
    return rows


if __name__ == "__main__":
    main()
