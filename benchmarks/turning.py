"""What it brings to turn keys and values by a Hadamard matrix before they are rounded to 6 or 4 bits.

    python -m benchmarks.turning [SONG ...] [--model tiny]

Made-up keys, of which some channels are larger than the rest: signal to quantization noise in dB. Finished songs: how
far a model with each cache is from itself, as `yue eval` tells it.
"""

import argparse
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from yue_cli.commands.measuring import describe, measure
from yue_cli.commands.request import home
from yue_cli.engines.native import cache
from yue_cli.engines.native.packing import turn
from yue_cli.events import ignore
from yue_cli.weights import Library
from yue_cli.workbench import MAKERS

SIZE, KEYS = 128, 4096
OUTLIERS = ((0, 1), (2, 5), (2, 15), (6, 15))  # channels, and how many times as large as the rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("songs", nargs="*", type=Path)
    parser.add_argument("--model", default="tiny")
    asked = parser.parse_args()
    print("| channels that are larger | 8 bits, plain | 6 bits, plain | turned | 4 bits, plain | turned |")
    print("|---|---|---|---|---|---|")
    for channels, times in OUTLIERS:
        print(f"| {channels}, {times} times | {' | '.join(f'{db:.1f}' for db in made_up(channels, times))} |")
    library = Library(home(), MAKERS, ignore)
    for stage in ("stage1", "stage2") if asked.songs else ():
        for form in ("int8", "int6", "int4"):
            told = measure(library, stage, asked.model, asked.model, asked.songs, None, "cpu", ignore, form)
            print(f"{form:<15}{describe(told)}", flush=True)
            if form != "int8":
                with patch.object(cache, "turn", lambda numbers: numbers.float()):
                    told = measure(library, stage, asked.model, asked.model, asked.songs, None, "cpu", ignore, form)
                print(f"{form + ', plain':<15}{describe(told)}", flush=True)


def made_up(channels: int, times: float) -> list[float]:
    """Round normal keys with larger channels in each way: dB."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(KEYS, SIZE, generator=generator)
    keys[:, torch.randperm(SIZE, generator=generator)[:channels]] *= times
    found = [_db(keys, 8, False)]
    for bits in (6, 4):
        found += [_db(keys, bits, False), _db(keys, bits, True)]
    return found


def _db(keys: Tensor, bits: int, turned: bool) -> float:
    given = turn(keys) if turned else keys
    error = cache.from_bytes(*cache.to_bytes(given, bits)) - given
    return float(10 * torch.log10(given.square().sum() / error.square().sum()))


if __name__ == "__main__":
    main()
