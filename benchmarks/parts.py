"""Parts of a benchmark, each in a process of its own: one that fails or hangs costs the others nothing."""

import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

PART_LIMIT_S = 120.0  # for one part

Figures = dict[str, Any]
Part = Callable[[], Figures]


def run(
    parts: Mapping[str, Part],
    out: Path,
    limit_s: float,
    preload: Sequence[str],
    gpus: Sequence[str | None] = (None,),
    before: Figures | None = None,
    part_limit_s: float = PART_LIMIT_S,
) -> Figures:
    """Run parts and return the figures of all by name; all are in `out` as soon as one ends.

    limit_s: seconds, after which no part begins. preload: modules that are imported once, for all. gpus: each takes the
    next part as soon as it is free, and is the only one that this part sees; None: what all see. before: figures that
    come first, as of parts that have run already. part_limit_s: seconds, after which a part is given up.
    """
    # One process loads the libraries, and every part's process begins as a copy of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    report: Figures = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "command": " ".join(sys.argv)}
    report |= before or {}
    began, waiting, lock = time.perf_counter(), deque(parts.items()), threading.Lock()

    def take_parts(gpu: str | None) -> None:
        while True:
            with lock:
                if not waiting:
                    return
                name, part = waiting.popleft()
            spent = time.perf_counter() - began
            if spent > limit_s:
                found: Figures = {"failed": "not begun: the time was over"}
            else:
                print(f"\n{name} ({spent:.0f} s)", flush=True)
                found = _run_apart(context, part, gpu, part_limit_s)
                found["took_s"] = round(time.perf_counter() - began - spent, 1)
            with lock:
                report[name] = found | ({} if gpu is None else {"gpu": gpu})
                print(f"  {name}: {json.dumps(found)[:2000]}", flush=True)
                out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    if len(gpus) == 1:
        take_parts(gpus[0])
        return report
    with ThreadPoolExecutor(len(gpus)) as pool:
        try:
            list(pool.map(take_parts, gpus))
        except BaseException:  # such as Ctrl-C, which ends the parts at work
            waiting.clear()
            raise
    return report


def _run_apart(context: ForkServerContext, part: Part, gpu: str | None, limit_s: float) -> Figures:
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, part, gpu))
    process.start()
    there.close()
    try:
        if not here.poll(limit_s):
            return {"failed": f"not done after {limit_s:.0f} s"}
        found: Figures = here.recv()
        return found
    except EOFError:
        process.join()
        return {"failed": f"its process ended with code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _answer(there: Connection, part: Part, gpu: str | None) -> None:
    """Do one part and send its figures, or why there are none."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        there.send(part())
    except Exception as error:  # whatever it is, it goes into the report
        traceback.print_exc()
        there.send({"failed": f"{type(error).__name__}: {error}"})
