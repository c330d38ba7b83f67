"""A `yue` command on a card that is smaller than the one in use: `python -m benchmarks.capped OUT.json GB -- run …`.

All that the process holds of the GPU, by the driver's count, is kept below so many GB (of 10^9 bytes); yue is told by
`execution.memory_limit` what such a card would have free. OUT.json gets the peaks, by stage for a song.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.watch import Watch
from yue_cli.main import execute

STAGES = ("stage1", "stage2", "audio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("gigabytes", type=float)
    parser.add_argument("--project", type=Path, help="the folder of the song, to tell its stages apart")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("words", nargs="+", help="the command, after --")
    arguments = parser.parse_args()
    sys.exit(run(arguments.out, arguments.gigabytes, arguments.words, arguments.project, arguments.device))


def run(out: Path, gigabytes: float, words: Sequence[str], project: Path | None, device: str) -> int:
    """Run the command and return its exit code."""

    def stage() -> str:
        if project is None:
            return "all"
        return next((each for each in STAGES if not (project / each / "manifest.json").exists()), STAGES[-1])

    with Watch(torch.device(device), round(gigabytes * 1e9), stage) as watch:
        limit = gigabytes - watch.outside / 1e9
        began = time.perf_counter()
        code = execute([*words, f"--set=execution.memory_limit={limit:.3f}"])
        figures = {"seconds": round(time.perf_counter() - began, 2), "memory_limit_gb": round(limit, 3)}
    out.write_text(json.dumps(figures | watch.figures(), indent=1) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    main()
