"""Draw what `benchmarks.targets` found: milliseconds a token by context, and seconds for a song by its length.

    pip install -e '.[plot]'
    python -m benchmarks.plots benchmarks/results/h200-targets.json docs/speed.png

A song's seconds are computed as `yue plan` computes them: stage 1 from the times at some contexts, with the context
forgotten in part when it is full; stage 2 and decoding grow with the length. Loading is left out.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.targets import points_of
from yue_cli import timings
from yue_cli.prompt import window_limit
from yue_cli.settings import Settings, resolve
from yue_cli.vocab import FRAME_RATE

WAYS = {  # label: parts of stage 1, of stage 2 and of decoding
    "the original": ("original/stage1", "original/stage2", "original/decode"),
    "YuE-exllamav2": ("exl2/stage1", "exl2/stage2", "original/decode"),
    "bfloat16": ("ours/stage1-bf16", "ours/stage2-bf16", "ours/decode"),
    "8 bits, keys and values too in stage 2": ("ours/stage1-8bit", "ours/stage2-int8-cache", "ours/decode"),
    "4 bits, keys and values in 8 in stage 2": ("ours/stage1-4bit", "ours/stage2-int8-cache", "ours/decode"),
}
LENGTHS = [30 * count for count in range(1, 11)]  # seconds of music
MEASURED_S = 60.0  # of music, by the parts of stage 2


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    report = json.loads(source.read_text(encoding="utf-8"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for label, (first, *others) in WAYS.items():
        token_s = points_of(report[first])
        left.plot(*zip(*[(context, 1000 * each) for context, each in token_s], strict=True), marker="o", label=label)
        rest_s = sum(report[part]["seconds"] for part in others) / MEASURED_S
        songs = [(length, singing_s(token_s, length) + rest_s * length) for length in LENGTHS]
        right.plot(*zip(*songs, strict=True), marker=".", label=label)
    right.plot(LENGTHS, LENGTHS, "--", color="gray", label="as long as the music")
    left.set(xlabel="tokens before", ylabel="stage 1, ms a token", yscale="log")
    right.set(xlabel="music, s", ylabel="computed, s", yscale="log")
    for axes in (left, right):
        axes.grid(True, which="both", alpha=0.3)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    figure.suptitle(f"{report['bandwidth']['device']}, random weights of the published sizes")
    figure.savefig(target, dpi=90)


def singing_s(token_s: list[tuple[int, float]], music_s: float) -> float:
    """Compute the seconds of stage 1 for a song."""
    settings = resolve(Settings()).stage1
    limit = window_limit(settings.context, settings.max_new_tokens)
    return timings.singing_s(token_s, timings.segment_starts(round(music_s * 2 * FRAME_RATE), limit))


if __name__ == "__main__":
    main()
