"""Parts of a benchmark, each in a process of its own: one that fails or hangs costs the others nothing."""

import json
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

PART_LIMIT_S = 120.0  # for one part

Figures = dict[str, Any]
Part = Callable[[], Figures]


def run(parts: Mapping[str, Part], out: Path, limit_s: float, preload: Sequence[str]) -> Figures:
    """Run parts one after the other and return the figures of all by name; all are in `out` as soon as one ends.

    limit_s: seconds, after which no part begins. preload: modules that are imported once, for all.
    """
    # One process loads the libraries, and every part's process begins as a copy of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    report: Figures = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "command": " ".join(sys.argv)}
    began = time.perf_counter()
    for name, part in parts.items():
        spent = time.perf_counter() - began
        if spent > limit_s:
            report[name] = {"failed": "not begun: the time was over"}
            continue
        print(f"\n{name} ({spent:.0f} s)", flush=True)
        report[name] = _run_apart(context, part)
        report[name]["took_s"] = round(time.perf_counter() - began - spent, 1)
        print(f"  {json.dumps(report[name])[:2000]}", flush=True)
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _run_apart(context: ForkServerContext, part: Part) -> Figures:
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, part))
    process.start()
    there.close()
    try:
        if not here.poll(PART_LIMIT_S):
            return {"failed": f"not done after {PART_LIMIT_S:.0f} s"}
        found: Figures = here.recv()
        return found
    except EOFError:
        process.join()
        return {"failed": f"its process ended with code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _answer(there: Connection, part: Part) -> None:
    """Do one part and send its figures, or why there are none."""
    try:
        there.send(part())
    except Exception as error:  # whatever it is, it goes into the report
        traceback.print_exc()
        there.send({"failed": f"{type(error).__name__}: {error}"})
