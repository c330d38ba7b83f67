"""Making EXL2 weights of a published checkpoint with exllamav2's own converter, which runs in a process of its own."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from yue_cli.atomic import storage_errors, write_bytes
from yue_cli.engines.exl2 import extension, format
from yue_cli.engines.exl2.converter import JOB_FILE, ROWS_FILE, STEPS
from yue_cli.engines.native.config import LlamaConfig
from yue_cli.errors import CheckpointError, EngineError
from yue_cli.events import Emit, Finished, Progress, ignore

TOPIC = "quantize"
LENGTH = 2048  # ids of a row; more takes more memory than it is worth, says exllamav2
MOST_ROWS, MEASURED_ROWS = (
    100,
    16,
)  # exllamav2's own: rows that weights are fitted to, and that layers are measured with
HEAD_BITS = 6  # unless something else is asked for
_SHARD_MEGABYTES = 8192
_SAID = re.compile(r"\[STATUS\](.*)\[/STATUS\]")
_STAGES = {  # that take long, with what is counted
    "Measuring": ("measuring layers", "modules"),
    "Optimizing": ("choosing bits", "tries"),
    "Quantizing": ("quantizing layers", "modules"),
}
_TRIES = 240  # searches for the best mixtures of bits, about 20 s on any model
_REMEMBERED_LINES = 30


def convert(
    source: Path,
    target: Path,
    work: Path,
    rows: np.ndarray,
    *,
    bits: float,
    head_bits: int = HEAD_BITS,
    emit: Emit = ignore,
) -> None:
    """Write the EXL2 weights and config.json of `source` into `target`; go on with what is in `work`.

    rows: int64 [n, LENGTH], token streams that the weights are fitted to. work: what an interrupted conversion leaves;
    of another source, rows or settings it is begun anew. It is removed at the end.
    Raises EngineError with what exllamav2 said, StorageError for a full disk.
    """
    assert rows.ndim == 2 and len(rows), "there is nothing to fit the weights to"
    extension.load(emit)  # it may have to be built first
    config = LlamaConfig.read(source)
    job = {
        "in_dir": str(source.resolve()),
        "out_dir": str(work.resolve()),
        "compile_full": str(target.resolve()),
        "cal_dataset": "YuE token streams",  # a name for config.json
        "rows_sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
        "bits": bits,
        "head_bits": head_bits,
        "dataset_rows": len(rows),
        "measurement_rows": min(len(rows), MEASURED_ROWS),
        "length": rows.shape[1],
        "measurement_length": rows.shape[1],
        "shard_size": _SHARD_MEGABYTES,
        "rope_scale": None,
        "rope_alpha": None,
        "output_measurement": None,
        "status_output": True,
    }
    _prepare(work, job, rows)
    _run(work, source, 2 * config.layers + 3, emit)
    for leftover in target.glob("*.index.json"):  # of the source, whose files it names
        leftover.unlink()
    shutil.rmtree(work)


def disk_bytes(source: Path, *, bits: float, head_bits: int, rows: int) -> int:
    """Count about the bytes of disk that a conversion takes while it runs: states of all rows, weights twice.

    Raises CheckpointError for a model that cannot be converted.
    """
    config = LlamaConfig.read(source, format.METHOD)
    if config.quantization is not None or format.is_exl2(source):
        raise CheckpointError(f"{source}: is quantized already; expected an original model.")
    layers = config.layers * sum(out * into for out, into in config.matrices.values())
    table = config.vocabulary_size * config.hidden
    weights = round((layers * bits + table * head_bits) / 8)
    states = 2 * rows * LENGTH * config.hidden
    return 2 * states + 2 * weights + 2 * table


def _prepare(work: Path, job: Mapping[str, Any], rows: np.ndarray) -> None:
    """Write the job, unless the same one is there already."""
    path = work / JOB_FILE
    with storage_errors(work):
        if _is_begun(path, job):
            return
        shutil.rmtree(work, ignore_errors=True)
        (work / "out_tensor").mkdir(parents=True)
        save_file({"input_ids": np.ascontiguousarray(rows)}, work / ROWS_FILE)
        write_bytes(path, json.dumps({**job, "progress": STEPS[0]}).encode())


def _is_begun(path: Path, job: Mapping[str, Any]) -> bool:
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        return bool({key: begun[key] for key in job} == dict(job) and begun["progress"] in STEPS)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _run(work: Path, source: Path, modules: int, emit: Emit) -> None:
    """Run the converter and tell how far it is. Raises EngineError."""
    command = [sys.executable, "-u", "-m", "yue_cli.engines.exl2.converter", str(work)]
    # In a session of its own, so that Ctrl-C ends it from here and not by a question on standard input.
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=_REMEMBERED_LINES)
    told = _Told(modules, emit)
    try:
        assert child.stdout is not None
        for line in child.stdout:
            if status := _SAID.search(line):
                told.hear(json.loads(status[1]))
            elif line.strip():
                last.append(line.strip())
        code = child.wait()
    finally:
        child.kill()
        child.wait()
    if code:
        raise EngineError(
            f"exllamav2 could not convert {source} ({_reason(last)}). What was done is kept in {work}; the same "
            "command goes on."
        )


def _reason(lines: deque[str]) -> str:
    """Pick what a failed converter said last about its failure: its own mark, or else the last line."""
    marked = [line.lstrip("# ").rstrip(".") for line in lines if line.startswith("##")]
    return marked[-1] if marked else (lines[-1].rstrip(".") if lines else "without a word")


class _Told:
    """Turns the converter's reports into events."""

    def __init__(self, modules: int, emit: Emit) -> None:
        self._totals, self._emit = {"modules": modules, "tries": _TRIES}, emit
        self._stage, self._began, self._done = "", 0.0, 0
        self._first: int | None = None  # what was done when this stage was first heard of

    def hear(self, status: Mapping[str, Any]) -> None:
        """Take a report, of which every stage's last may be missing."""
        stage = status["stage"]
        if stage != self._stage:
            self._finish()
            self._stage, self._began = stage, time.perf_counter()
        if stage not in _STAGES:
            return
        label, unit = _STAGES[stage]
        total = self._totals[unit]
        self._done = round(status["completion"] * total)
        if self._first is None:
            self._first = self._done
        if self._done < total:
            self._emit(Progress(TOPIC, label, self._done, total, unit))
        else:
            self._finish()

    def _finish(self) -> None:
        if self._stage in _STAGES and self._first is not None:
            label, unit = _STAGES[self._stage]
            seconds = time.perf_counter() - self._began
            self._emit(Finished(TOPIC, label, self._done - self._first, unit, seconds))
        self._first = None
