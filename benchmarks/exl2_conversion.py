"""`yue quantize --format exl2` on a model of the published width and few layers: interrupted, gone on with, sung with.

    pip install exllamav2
    python -m benchmarks.exl2_conversion --folder /dev/shm/exl2 --out exl2_conversion.json [--layers 1] [--limit 150]

The model is stage 1 with random weights, so its quality tells what rounding does, not how a song suffers. It sings the
songs that it is fitted to. The first run gets a Ctrl-C as soon as it rounds layers; the second one must go on there.
Then the copy sings a few tokens, twice with one seed. What was found is in the file after every step.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.full_song import last_lines
from benchmarks.random_checkpoint import SHARDS, Weights, language_model_files
from yue_cli import copies
from yue_cli.engines.exl2.converter import JOB_FILE, STEPS
from yue_cli.models import SIZES
from yue_cli.resources import resource
from yue_cli.tokenizer import TOKENIZER_FILE

BITS, HEAD_BITS = 4.25, 6
POLL_S = 0.05
SUNG = 200  # tokens, with the copy
INTERRUPTED = 130  # exit code

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the model and its copy; best in main memory")
    parser.add_argument("--out", type=Path, default=Path("exl2_conversion.json"))
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--step", choices=STEPS, default="quantize", help="of the converter, in which Ctrl-C comes")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds for all of it")
    arguments = parser.parse_args()
    trial = Trial(arguments.folder, arguments.out, arguments.limit)
    shutil.rmtree(arguments.folder, ignore_errors=True)
    steps: dict[str, Callable[[], Figures]] = {
        "model": lambda: trial.write_model(arguments.layers),
        "interrupted": lambda: trial.interrupt(arguments.step),
        "finished": trial.finish,
        "sung": trial.sing,
    }
    for name, step in steps.items():
        if not trial.take(name, step):
            sys.exit(1)


class Trial:
    """The folder of model, copy and songs, and what was found so far."""

    def __init__(self, folder: Path, out: Path, limit_s: float) -> None:
        self.folder, self.out, self.until = folder, out, time.monotonic() + limit_s
        self.model, self.copy = folder / "model", folder / "copy"
        self.job = folder / f".{self.copy.name}.unfinished" / "work" / JOB_FILE
        self.found: Figures = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "command": " ".join(sys.argv)}

    def take(self, name: str, step: Callable[[], Figures]) -> bool:
        """Do one step and write down what it found, or why not. Returns whether it went well."""
        print(f"\n{name}", flush=True)
        began = time.monotonic()
        try:
            self.found[name] = step()
        except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            self.found[name] = {"failed": f"{type(error).__name__}: {error}"}
        self.found[name]["seconds"] = round(time.monotonic() - began, 1)
        print(f"  {json.dumps(self.found[name])}", flush=True)
        self.out.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        return "failed" not in self.found[name]

    def write_model(self, layers: int) -> Figures:
        config = SIZES["stage1"] | {"num_hidden_layers": layers}
        for job in language_model_files(self.model, config, Weights(0), SHARDS["stage1"]):
            job()
        shutil.copyfile(resource(f"toy/{TOKENIZER_FILE}"), self.model / TOKENIZER_FILE)
        return {"layers": layers, "bytes": sum(path.stat().st_size for path in self.model.iterdir())}

    def interrupt(self, step: str) -> Figures:
        """Quantize until the converter is at `step`, then press Ctrl-C."""
        with subprocess.Popen(self._quantize(), env=self._environment, stderr=subprocess.PIPE, text=True) as process:
            began = time.monotonic()
            while process.poll() is None and self._progress() != step and time.monotonic() < self.until:
                time.sleep(POLL_S)
            at = round(time.monotonic() - began, 1)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=30)
        print(told, flush=True)
        assert process.returncode == INTERRUPTED, f"code {process.returncode}: {last_lines(told)}"
        assert self._progress() == step, f"the converter was at {self._progress()}, not at {step}"
        return {"at_s": at, "step": step, "told": told.splitlines()}

    def finish(self) -> Figures:
        """Go on with the same command, to the end."""
        answer, told = self._run(self._quantize())
        again = [line for line in told.splitlines() if "measuring layers" in line or "choosing bits" in line]
        assert not again, f"it did again what was done: {again}"
        record = copies.read_record(self.copy)
        files = {path.name: path.stat().st_size for path in self.copy.iterdir()}
        return {"answer": json.loads(answer), "record": record, "files": files, "told": told.splitlines()}

    def sing(self) -> Figures:
        """Sing with the copy, twice."""
        lengths = [f"--set=stage1.{bound}_new_tokens={SUNG}" for bound in ("min", "max")]
        texts = [f"--{kind}={resource(f'prompt_egs/{kind}.txt')}" for kind in ("genre", "lyrics")]
        words = ["--segments=1", "--seed=1", "-v", *texts, *lengths, f"--set=stage1.model={self.copy}", "--device=cuda"]
        sung = []
        for name in ("first", "second"):
            project = self.folder / name
            _, told = self._run([sys.executable, "-m", "yue_cli", "stage1", str(project), *words])
            sung.append(np.load(project / "stage1" / "segments" / "001.npy"))
        manifest = json.loads((project / "stage1" / "manifest.json").read_text())
        same = int((sung[0] == sung[1]).cumprod().sum())
        facts = {"tokens": len(sung[0]), "same_from_the_start": same, "engine": manifest["engine"]}
        return facts | {"told": told.splitlines()}

    def _quantize(self) -> list[str]:
        words = ["--format=exl2", f"--bpw={BITS}", f"--head-bits={HEAD_BITS}", "--stage=stage1", "--json"]
        return [sys.executable, "-m", "yue_cli", "quantize", str(self.model), *words, f"--output={self.copy}"]

    def _run(self, command: list[str]) -> tuple[str, str]:
        """Run a command that must succeed; returns what it answered and what it told."""
        left = max(1.0, self.until - time.monotonic())
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=left)
        print(done.stderr, flush=True)
        assert done.returncode == 0, f"code {done.returncode}: {last_lines(done.stdout + done.stderr)}"
        return done.stdout, done.stderr

    def _progress(self) -> str | None:
        """Tell at which step the converter is; None before it begins."""
        try:
            progress = json.loads(self.job.read_text(encoding="utf-8"))["progress"]
            return str(progress)
        except (OSError, ValueError, KeyError):
            return None

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "YUE_HOME": str(self.folder / "home"), "HF_HUB_OFFLINE": "1", "COLUMNS": "300"}


if __name__ == "__main__":
    main()
