"""The presets for cards, each singing a whole song of the published sizes in no more memory than its card has.

    python -m benchmarks.cards --folder /dev/shm/full --out cards.json [--presets 24gb 16gb 12gb 8gb 6gb] [--limit 500]

Models with random weights (17 GB) and their copies in fewer bits (13 GB) are written into the folder, where they are
not there; `full_song` writes the same. Every song is two segments of 30 s, from lyrics to mix.wav, made by `yue run`
under a hard cap (`capped.py`): all that its process holds of the GPU stays below the card's size, in GB of 10^9 bytes.
Presets up to 12 GB run as on a card of compute capability 8.6. Times are those of the GPU in use. Every song's figures
are in the file as soon as it ends. `--device cpu --tiny --tokens 40` tries the program itself.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import soundfile

from benchmarks.capped import STAGES
from benchmarks.full_song import LOADED, TOKENS_A_SECOND, Bench, last_lines
from yue_cli import presets
from yue_cli.models import EIGHT_BIT, FOUR_BIT
from yue_cli.resources import resource
from yue_cli.settings import combine
from yue_cli.tokenizer import TOKENIZER_FILE

COPIES = (("stage1", EIGHT_BIT), ("stage1", FOUR_BIT), ("stage2", EIGHT_BIT))
AMPERE, AMPERE_UP_TO_GB = 8.6, 12  # what smaller cards pretend to be
SONG_LIMIT_S = 240.0
TINY_GB = 1000  # of memory, on a CPU

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for models and songs; best in main memory")
    parser.add_argument("--out", type=Path, default=Path("cards.json"))
    parser.add_argument("--presets", nargs="+", choices=presets.CARDS, default=presets.CARDS)
    parser.add_argument("--limit", type=float, default=500.0, help="seconds, after which no song begins")
    parser.add_argument("--tokenizer", type=Path, default=resource(f"toy/{TOKENIZER_FILE}"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=3000, help="of each of the two segments")
    parser.add_argument("--tiny", action="store_true", help="a small model instead of the published sizes")
    arguments = parser.parse_args()
    began = time.perf_counter()
    bench = Bench(arguments.folder, arguments.device, arguments.out)
    bench.write_models(arguments.tokenizer, arguments.tiny)
    bench.take("copies", lambda: make_copies(bench, wanted_copies(arguments.presets)))
    for name in arguments.presets:
        if time.perf_counter() - began > arguments.limit:
            bench.figures[name] = {"failed": "not begun: the time was over"}
            continue
        bench.take(name, partial(sing, bench, name, arguments.tokens))
    bench.figures["table"] = table(bench.figures)
    bench.write()
    print("", *bench.figures["table"], sep="\n", flush=True)


def wanted_copies(names: list[str]) -> list[tuple[str, str]]:
    """Name the copies that presets use: stage and format."""
    used = {pair for name in names for pair in forms(name).items()}
    return [pair for pair in COPIES if pair in used]


def forms(name: str) -> dict[str, str]:
    """Tell in which form a preset takes the weights of each stage."""
    execution = combine([presets.find(name).layer()])[0].execution
    return {"stage1": execution.stage1_weights, "stage2": execution.stage2_weights}


def copy_folder(bench: Bench, stage: str, form: str) -> Path:
    return bench.folder / (form if stage == "stage1" else f"{stage}-{form}")


def make_copies(bench: Bench, wanted: list[tuple[str, str]]) -> Figures:
    """Quantize the models that are not there in these forms, all at the same time."""

    def make(pair: tuple[str, str]) -> tuple[str, float]:
        stage, form = pair
        began, folder = time.perf_counter(), copy_folder(bench, stage, form)
        if not folder.is_dir():
            bench.run(bench.command("quantize", bench.models / stage, "--format", form, "-o", folder, "-q"))
        return f"{stage} {form}", round(time.perf_counter() - began, 1)

    with ThreadPoolExecutor() as pool:
        return {"seconds": dict(pool.map(make, wanted))}


def sing(bench: Bench, name: str, tokens: int) -> Figures:
    """Sing with one preset, in as much memory as its name says."""
    project, out = bench.folder / f"song-{name}", bench.folder / f"{name}.json"
    for left in (project, out):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    size = float(name.removesuffix("gb"))
    words = [f"--preset={name}"]
    for stage, form in forms(name).items():
        if form != "published":
            words.append(f"--set={stage}.model={copy_folder(bench, stage, form)}")
    if size <= AMPERE_UP_TO_GB:
        words.append(f"--set=execution.compute_capability={AMPERE}")
    _, _, _, *command = bench.sing(project.name, tokens, *words)  # without `python -m yue_cli`
    cap = size if bench.device != "cpu" else TINY_GB
    capped = ["benchmarks.capped", out, cap, f"--project={project}", f"--device={bench.device}", "--", *command]
    done = subprocess.run(
        [sys.executable, "-m", *map(str, capped)],
        env=bench.environment,
        capture_output=True,
        text=True,
        timeout=SONG_LIMIT_S,
    )
    told = done.stderr.splitlines()
    print(*(f"  {line}" for line in told), sep="\n", flush=True)
    found: Figures = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    if done.returncode:
        return {"failed": f"code {done.returncode}: {last_lines(done.stderr)}", **found}
    music_s, expected_s = soundfile.info(project / "audio" / "mix.wav").duration, 2 * tokens / TOKENS_A_SECOND
    manifests = {stage: json.loads((project / stage / "manifest.json").read_text()) for stage in STAGES}
    loading = [LOADED.match(line) for line in told]
    return {
        "weights": forms(name),
        "music_s": music_s,
        "is_whole": abs(music_s - expected_s) < 0.001,
        "stages_took_s": {stage: made["seconds"] for stage, made in manifests.items()},
        "loading_s": {match[1]: float(match[2]) for match in loading if match},
        "rows": manifests["stage2"]["engine"]["rows"],
        "fits": found["is_complete"] and found["peak"] <= found["cap"] if "cap" in found else None,
        **found,
    }


def table(figures: Figures) -> list[str]:
    """Lay out what was found; sizes in GB."""
    rows = ["| preset | weights of stage 1, 2 | stage 1, 2, decode | whole song | peak in each | allocator's | |"]
    rows.append("|---|---|---|---|---|---|---|")
    for name in presets.CARDS:
        found = figures.get(name, {"failed": "not run"})
        if "failed" in found:
            rows.append(f"| `{name}` | | | | | | {found['failed'][:200]} |")
            continue
        peaks = [found.get("peaks", {}).get(stage, {}) for stage in STAGES]
        cells = [
            f"`{name}`",
            ", ".join(found["weights"].values()),
            ", ".join(f"{found['stages_took_s'][stage]:.1f}" for stage in STAGES) + " s",
            f"{found['seconds']:.1f} s",
            ", ".join(f"{peak['held'] / 1e9:.2f}" for peak in peaks if peak),
            ", ".join(f"{peak['reserved'] / 1e9:.2f}" for peak in peaks if peak),
            f"{found['music_s']:g} s of music",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()
