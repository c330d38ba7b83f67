"""Every figure that the native engine is to reach, beside both baselines, in one run.

    pip install -e '.[bench]' exllamav2
    python -m benchmarks.full_song --folder FOLDER --steps song fast --format native-4bit
    python -m benchmarks.targets --out targets.json --folder FOLDER [--parts ours/decode …] [--limit 200] [--gpus 0 1]

The first of these commands writes models for whole songs, and compiles their kernels; without --folder none are sung.
All models have the published sizes and random weights. Each part runs in a process of its own, which cannot harm the
others, and all its figures are in the file as soon as it ends; when --limit seconds are over, no more parts begin.
With several GPUs each part still has one, and the next part goes to whichever is free. Whole songs come last, through
the command line, one at a time on the first GPU while nothing else is at work, whatever --limit says.
Targets were set for an H200, whose memory was read at 4.49 TB/s; "here" is what the same share of this card's
bandwidth would give. Of the baselines, whole songs and 16 songs are computed from what their stages take.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import random_exl2
from benchmarks.parts import Figures, run
from yue_cli import bench, machine, models, timings
from yue_cli.events import Event, Note
from yue_cli.settings import Layer, combine, resolve
from yue_cli.vocab import CODEBOOKS, FRAME_RATE, WINDOW_FRAMES
from yue_cli.weights import Library

H200_READ = 4.49e12  # bytes a second, as `bandwidth` reads
CONTEXTS = (1000, 4000, 7000)
BASELINE_TOKENS, BASELINE_FRAMES = 16, 10  # that are timed at each context
WINDOWS, SONGS = 20, 16
SONG_S, LONG_SONG_S = 60.0, 300.0
SONG_TOKENS = round(SONG_S * 2 * FRAME_RATE)
SONG_FORMAT = models.FOUR_BIT  # of stage 1's weights in the fastest song
SONG_LIMIT_S = 300.0  # for a whole song, which gives itself up before that

# name, what it is, target on an H200, unit; of times, the least is best.
TARGETS = [
    ("stage1_bf16_ms", "stage 1, bf16, mean of 60 s", 3.5, "ms a token"),
    ("stage1_8bit_ms", "stage 1, 8 bits, mean of 60 s", 2.3, "ms a token"),
    ("stage1_4bit_ms", "stage 1, 4 bits, mean of 60 s", 1.8, "ms a token"),
    ("stage2_bf16_s", "stage 2, bf16, 20 windows", 7.5, "s"),
    ("stage2_int8_cache_s", "stage 2, int8 cache, 20 windows", 5.5, "s"),
    ("decode_s", "decode, 60 s, both tracks, warm", 0.4, "s"),
    ("whole_bf16_s", "whole song of 60 s, bf16, loading apart", 30.0, "s"),
    ("whole_fast_s", "… stage 1 in 4 bits, stage 2's cache in 8", 20.0, "s"),
    ("songs16_bf16", "16 songs, bf16", 6.0, "s of music a s"),
    ("songs16_8bit", "16 songs, 8 bits, int8 cache", 10.0, "s of music a s"),
    ("first_token_s", "start of the process to first token", 12.0, "s"),
    ("long_song_ratio", "300 s of music over 60 s", 5.5, "times"),
]
UNSCALED = ("decode_s", "whole_bf16_s", "whole_fast_s", "first_token_s", "long_song_ratio")  # not only memory's pace


def main() -> None:
    parts, songs = known_parts(), known_songs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("targets.json"))
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--limit", type=float, default=200.0, help="seconds, after which no part begins")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gpus", nargs="+", default=[None], help="by number, that share the parts")
    parser.add_argument("--layers", type=int, default=32, help="of the baselines")
    parser.add_argument("--folder", type=Path, help="of models for whole songs")
    arguments = parser.parse_args()
    chosen = {name: partial(parts[name], arguments.device, arguments.layers) for name in arguments.parts}
    versions = machine.versions() | ({"triton": version("triton")} if find_spec("triton") else {})
    preload = ["torch", "yue_cli.bench", "yue_cli.workbench"]
    report = run(chosen, arguments.out, arguments.limit, preload, arguments.gpus, {"versions": versions})
    if arguments.folder is not None:
        chosen = {name: partial(song, arguments.device, arguments.folder) for name, song in songs.items()}
        report = run(chosen, arguments.out, math.inf, preload, arguments.gpus[:1], report, SONG_LIMIT_S)
    print("", *table(report), sep="\n", flush=True)
    arguments.out.write_text(json.dumps(report | {"table": table(report)}, indent=1) + "\n", encoding="utf-8")


def known_parts() -> dict[str, Callable[[str, int], Figures]]:
    """List the parts, the most important first: each takes the device and the baselines' layers."""
    quantized = {"execution.stage1_weights": "native-8bit", "execution.stage1_cache": "int8"}
    quantized |= {"execution.stage2_cache": "int8"}
    return {
        "bandwidth": bandwidth,
        "ours/stage1-bf16": partial(ours, "stage1", {}),
        "ours/stage2-bf16": partial(ours, "stage2", {}),
        "ours/stage1-8bit": partial(ours, "stage1", {"execution.stage1_weights": "native-8bit"}),
        "ours/stage2-int8-cache": partial(ours, "stage2", {"execution.stage2_cache": "int8"}),
        "ours/stage2-int6-cache": partial(ours, "stage2", {"execution.stage2_cache": "int6"}),
        "ours/stage2-int4-cache": partial(ours, "stage2", {"execution.stage2_cache": "int4"}),
        "ours/stage1-4bit": partial(ours, "stage1", {"execution.stage1_weights": "native-4bit"}),
        "ours/decode": partial(ours, "decode", {}),
        "original/stage1": original_stage1,
        "original/stage2": original_stage2,
        "original/decode": original_decode,
        "ours/stage1-long": partial(ours, "stage1", {}, music_s=LONG_SONG_S),
        "songs/stage1-bf16": partial(ours, "stage1", {}, songs=SONGS),
        "songs/stage2-bf16": partial(ours, "stage2", {}, songs=SONGS),
        "songs/stage1-8bit": partial(ours, "stage1", quantized, songs=SONGS),
        "songs/stage2-8bit": partial(ours, "stage2", quantized, songs=SONGS),
        "exl2/stage1": exl2_stage1,
        "exl2/stage2": exl2_stage2,
        "exl2/stage1-4bit": partial(exl2_stage1, is_packed=True),
    }


def known_songs() -> dict[str, Callable[[str, Path], Figures]]:
    """List the whole songs: each takes the device and the folder of models."""
    return {"whole/bf16": partial(whole_song, False), "whole/fast": partial(whole_song, True)}


def bandwidth(device: str, layers: int) -> Figures:
    """Measure how fast this card's memory is read and copied, in bytes a second; a copy counts both ways."""
    import torch

    numbers = torch.ones(2**30 if device != "cpu" else 2**24, dtype=torch.float32, device=device)
    copy = torch.empty_like(numbers)

    def best(work: Callable[[], object]) -> float:
        from benchmarks.baselines.original import seconds_taken

        return min(seconds_taken(work, numbers.device) for _ in range(10))

    best(numbers.sum)
    read, copied = numbers.nbytes / best(numbers.sum), 2 * numbers.nbytes / best(lambda: copy.copy_(numbers))
    name = torch.cuda.get_device_name(device) if device != "cpu" else "CPU"
    return {"device": name, "read": read, "copy": copied, "torch": torch.__version__}


def ours(
    stage: str,
    values: Mapping[str, Any],
    device: str,
    layers: int,
    *,
    songs: int = 1,
    music_s: float = SONG_S,
) -> Figures:
    """Time one stage as `yue bench` does."""
    settings, _ = combine([Layer("targets", {**values, "execution.device": device})])

    def tell(event: Event) -> None:
        if isinstance(event, Note):
            print(f"  {event.text}", flush=True)

    report = bench.measure(
        resolve(settings),
        Library(Path(), {}),
        stages=[stage],
        songs=songs,
        music_s=music_s,
        synthetic=True,
        emit=tell,
    )
    found: Figures = asdict(report)[stage]
    return found


def original_stage1(device: str, layers: int) -> Figures:
    import torch

    from benchmarks.baselines import original

    model = original_model("stage1", device, layers)
    original.sing(model, original.random_codes((1, 16), torch.device(device)), 8)
    return time_contexts(partial(original.seconds_a_token, model))


def time_contexts(seconds_a_token: Callable[[int, int], float]) -> Figures:
    """Time a baseline's tokens. seconds_a_token: takes the context and the number of tokens."""
    times = {context: seconds_a_token(context, BASELINE_TOKENS) for context in CONTEXTS}
    return {"points": [{"context": context, "token_s": token_s} for context, token_s in times.items()]}


def original_stage2(device: str, layers: int) -> Figures:
    from benchmarks.baselines import original

    model = original_model("stage2", device, layers)
    original.seconds_a_frame(model, original.BATCH, 0)
    times = [original.seconds_a_frame(model, WINDOWS, filled) for filled in original.PLACES]
    return {"frame_s": times, "seconds": WINDOW_FRAMES * sum(times) / len(times)}


def original_decode(device: str, layers: int) -> Figures:
    import numpy as np
    import torch

    from benchmarks.baselines import decoding
    from benchmarks.baselines.original import seconds_taken
    from yue_cli.stages.decode import make_codec

    decoders = make_codec(device)
    decoding.unfold(decoders.codec.decoder)
    tracks = np.random.default_rng(0).integers(0, 1024, (2, CODEBOOKS, round(SONG_S * FRAME_RATE)), dtype=np.int16)
    times = [seconds_taken(lambda: decoding.decode(decoders, *tracks), torch.device(device)) for _ in range(2)]
    return {"first_s": times[0], "seconds": times[1]}


def original_model(stage: str, device: str, layers: int) -> Any:
    import torch

    from benchmarks.baselines import original
    from yue_cli.models import SIZES

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return original.build(SIZES[stage] | {"num_hidden_layers": layers}, torch.device(device), dtype)


def exl2_stage1(device: str, layers: int, is_packed: bool = False) -> Figures:
    """Time stage 1 of YuE-exllamav2; is_packed: with EXL2 weights instead of float16."""
    from benchmarks.baselines import exl2

    exl2.lend_flash_attention()
    if not is_packed:
        model = exl2.make("stage1", layers)
    else:
        with tempfile.TemporaryDirectory() as name:
            random_exl2.write_stage(Path(name), "stage1", layers, device)
            model = exl2.load(name, no_sdpa=True)
    return time_contexts(partial(exl2.seconds_a_token, model))


def exl2_stage2(device: str, layers: int) -> Figures:
    from benchmarks.baselines import exl2

    exl2.lend_flash_attention()
    return {"seconds": exl2.seconds_a_window(exl2.make("stage2", layers), WINDOWS, BASELINE_FRAMES)}


def whole_song(is_fast: bool, device: str, folder: Path) -> Figures:
    """Sing from lyrics to mix.wav through the command line."""
    from benchmarks import full_song

    songs, tokens = full_song.Bench(folder, device, Path()), SONG_TOKENS // 2  # of each of two segments
    if is_fast:
        assert (folder / SONG_FORMAT).is_dir(), f"{folder} has no {SONG_FORMAT}: full_song makes it"
        found = full_song.time_fast_song(songs, tokens, SONG_FORMAT)
    else:
        found = full_song.time_song(songs, "song", tokens)
    return found | {"models_bytes": songs.models_bytes()}


def table(report: Figures) -> list[str]:
    """Lay out what was found beside targets and baselines. Empty cells were not measured."""
    scale = H200_READ / report["bandwidth"]["read"] if "read" in report.get("bandwidth", {}) else None
    found, original, exl2 = (summary(report, side) for side in ("ours", "original", "exl2"))
    rows = ["| | original | YuE-exllamav2 | ours | target | here | |", "|---|---|---|---|---|---|---|"]
    for name, title, target, unit in TARGETS:
        if scale is None or name in UNSCALED:
            here = target
        else:
            here = target / scale if name.startswith("songs") else target * scale
        cells = [title, *(cell(side.get(name)) for side in (original, exl2, found)), cell(target), cell(here), unit]
        rows.append(f"| {' | '.join(cells)} |")
    for context in CONTEXTS:
        name = f"stage1_{context}_ms"
        sides = [cell(side.get(name)) for side in (original, exl2, found)]
        rows.append(f"| stage 1, bf16, after {context} tokens | {' | '.join(sides)} | | | ms a token |")
    return rows


def summary(report: Figures, side: str) -> Figures:
    """Compute one side's figures from what its parts found."""
    return summary_of_ours(report) if side == "ours" else summary_of_others(report, side)


def summary_of_ours(report: Figures) -> Figures:
    parts, songs = parts_of(report, "ours"), parts_of(report, "songs")
    found = by_context(parts.get("stage1-bf16"))
    for form in ("bf16", "8bit", "4bit"):
        if part := parts.get(f"stage1-{form}"):
            found[f"stage1_{form}_ms"] = mean_token_ms(points_of(part))
    for form in ("bf16", "int8_cache"):
        if part := parts.get(f"stage2-{form.replace('_', '-')}"):
            found[f"stage2_{form}_s"] = part["window_s"]
    for name, part in parts_of(report, "whole").items():
        found[f"whole_{name}_s"] = part["wall_less_loading_s"]
        if name == "bf16":
            found["first_token_s"] = part["first_tokens_s"]
    if "decode" not in parts:
        return found
    found["decode_s"] = decode_s = parts["decode"]["seconds"]
    if {"stage1-bf16", "stage1-long", "stage2-bf16"} <= parts.keys():
        rest_s = parts["stage2-bf16"]["seconds"] + decode_s  # which grow with the length
        long_s = parts["stage1-long"]["seconds"] + rest_s * LONG_SONG_S / SONG_S
        found["long_song_ratio"] = long_s / (parts["stage1-bf16"]["seconds"] + rest_s)
    for form in ("bf16", "8bit"):
        stages = [f"{stage}-{form}" for stage in ("stage1", "stage2")]
        if songs.keys() >= set(stages):
            seconds = sum(songs[stage]["seconds"] for stage in stages) + SONGS * decode_s
            found[f"songs16_{form}"] = SONGS * SONG_S / seconds
    return found


def summary_of_others(report: Figures, side: str) -> Figures:
    parts = parts_of(report, side)
    found = by_context(parts.get("stage1"))
    for name, form in (("stage1", "bf16"), ("stage1-4bit", "4bit")):
        if part := parts.get(name):
            found[f"stage1_{form}_ms"] = mean_token_ms(points_of(part))
    for stage, name in (("stage2", "stage2_bf16_s"), ("decode", "decode_s")):
        if part := parts.get(stage):
            found[name] = part["seconds"]
    decoded = parts_of(report, "original").get("decode")  # the same programs for both
    if decoded and {"stage1_bf16_ms", "stage2_bf16_s"} <= found.keys():
        stage1_s = found["stage1_bf16_ms"] / 1000 * SONG_TOKENS
        found["whole_bf16_s"] = stage1_s + found["stage2_bf16_s"] + decoded["seconds"]
        found["songs16_bf16"] = SONG_S / found["whole_bf16_s"]  # one after the other
    return found


def parts_of(report: Figures, kind: str) -> Figures:
    """Find the parts of a kind that did not fail, by the rest of their names."""
    found = {name.partition("/")[2]: part for name, part in report.items() if name.startswith(f"{kind}/")}
    return {name: part for name, part in found.items() if "failed" not in part}


def by_context(part: Figures | None) -> Figures:
    return {f"stage1_{context}_ms": 1000 * token_s for context, token_s in points_of(part)} if part else {}


def points_of(part: Figures) -> list[tuple[int, float]]:
    """List contexts and seconds a token after them."""
    return [(point["context"], point["token_s"]) for point in part["points"]]


def mean_token_ms(token_s: list[tuple[int, float]]) -> float:
    """Compute the mean of a song of 60 s from a few contexts."""
    starts = timings.segment_starts(SONG_TOKENS, SONG_TOKENS * 2)
    return 1000 * timings.singing_s(token_s, starts) / SONG_TOKENS


def cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main()
