"""Whole songs at the published sizes through the real command: times, memory, length, and going on after a kill.

    python -m benchmarks.full_song --folder /dev/shm/full --out full_song.json --tokenizer tokenizer.model

Writes models as published with random weights (17 GB) into the folder, if it has none, then runs `yue`:

- `song`: two segments of 30 s, from lyrics to mix.wav. What is told is seen from outside: the files, the lines on a
  terminal, the memory that the driver says is in use.
- `resume`: a short song that follows a voice and a band, once undisturbed and once killed in its second segment and
  run again; all tokens must be equal. Both run at the same time, so their times mean nothing.
- `decode`: the same song decoded on a CPU, beside the GPU's sound.
- `fast`, where it is asked for: as `song`, with a quantized copy of stage 1 and keys and values in 8 bits.

Every step's figures are in the file as soon as it ends; a step that fails is told, and the next one runs.
`--device cpu --tiny --tokens 40` tries the program itself in a minute.
"""

import argparse
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks import random_checkpoint
from yue_cli import machine
from yue_cli.models import SIZES
from yue_cli.resources import resource
from yue_cli.tokenizer import TOKENIZER_FILE
from yue_cli.weights import Library

STEPS = ("song", "resume", "decode", "fast")
SHORT_TOKENS = 300  # of a segment, where a song is made to look at something else than its speed
TOKENS_A_SECOND = 100
POLL_S = 0.05
TIMEOUT_S = 240.0  # for one command
STAGES = ("stage1", "stage2", "audio")
LOADED = re.compile(r"^(stage 1|stage 2|decode) .* on \S+ in ([\d.]+) s")
FIRST_TOKENS = "s of music"  # of the moving line, which is drawn when the first tokens are known
LINE = re.compile(r"[a-z0-9 ]{8} \S")  # one that stays: a topic and what is told of it
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
TINY = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for models and songs; best in main memory")
    parser.add_argument("--out", type=Path, default=Path("full_song.json"))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS[:3])
    parser.add_argument("--tokenizer", type=Path, default=resource(f"toy/{TOKENIZER_FILE}"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=3000, help="of each of the two segments")
    parser.add_argument("--tiny", action="store_true", help="a small model instead of the published sizes")
    parser.add_argument("--format", default="native-8bit", help="of the weights of `fast`")
    arguments = parser.parse_args()
    bench = Bench(arguments.folder, arguments.device, arguments.out)
    bench.write_models(arguments.tokenizer, arguments.tiny)
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "song": lambda: time_song(bench, "song", arguments.tokens),
        "resume": lambda: compare_resumed(bench, min(arguments.tokens, SHORT_TOKENS)),
        "decode": lambda: compare_decoded(bench),
        "fast": lambda: time_fast_song(bench, arguments.tokens, arguments.format),
    }
    for step in arguments.steps:
        bench.take(step, steps[step])


class Bench:
    """The folder of models and songs, and the figures so far."""

    def __init__(self, folder: Path, device: str, out: Path) -> None:
        self.folder, self.device, self.out = folder, device, out
        self.models, self.home = folder / "models", folder / "home"
        self.figures: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": machine.hardware_name(torch.device(device)),
            "versions": machine.versions(),
            "command": " ".join(sys.argv),
        }

    def write_models(self, tokenizer: Path, tiny: bool) -> None:
        """Write the models; and the first once more, by links, under the name of one that follows a reference."""
        if not self.models.is_dir():
            began = time.perf_counter()
            sizes = {stage: found | (TINY if tiny else {}) for stage, found in SIZES.items()}
            unfinished = self.models.with_name("unfinished")
            random_checkpoint.write(unfinished, sizes, random_checkpoint.Weights(0, self.device), tokenizer)
            follower = unfinished / "YuE-s1-7B-anneal-en-icl"
            follower.mkdir()
            for path in (unfinished / "stage1").iterdir():
                (follower / path.name).symlink_to(Path("../stage1") / path.name)
            unfinished.rename(self.models)
            Library(self.home, {}).locate(str(self.models), "codec")  # which is converted once, as after a download
            self.figures["models_written_s"] = round(time.perf_counter() - began, 1)
        self.figures["models_bytes"] = self.models_bytes()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        self.write()

    def models_bytes(self) -> int:
        """Add up the files of the three models, without quantized copies."""
        return sum(path.stat().st_size for path in self.models.glob("[sc]*/**/*.*"))

    def take(self, step: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do one step, print its figures and write all of them down."""
        print(f"\n{step}", flush=True)
        began = time.perf_counter()
        try:
            found = work()
        except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            found = {"failed": str(error)}
        self.figures[step] = found | {"step_s": round(time.perf_counter() - began, 1)}
        for name, value in self.figures[step].items():
            print(f"  {name:<24} {value}", flush=True)
        self.write()

    def write(self) -> None:
        self.out.write_text(json.dumps(self.figures, indent=1) + "\n", encoding="utf-8")

    def command(self, *words: object) -> list[str]:
        models = {"stage1.model": self.models, "stage2.model": self.models, "decode.codec": self.models}
        settings = [f"--set={key}={value}" for key, value in models.items()] if words[0] == "run" else []
        return [sys.executable, "-m", "yue_cli", *map(str, words), *settings, f"--device={self.device}"]

    def sing(self, name: str, tokens: int, *words: object) -> list[str]:
        """Tell the command for a song of two segments that are as long as they may be."""
        lengths = [f"--set=stage1.{bound}_new_tokens={tokens}" for bound in ("min", "max")]
        texts = [f"--{kind}={resource(f'prompt_egs/{kind}.txt')}" for kind in ("genre", "lyrics")]
        command = self.command("run", self.folder / name, "--segments=2", "--seed=7", "-v", *texts, *lengths)
        return [*command, *map(str, words)]

    @property
    def environment(self) -> dict[str, str]:
        # A wide terminal, so that no line is broken.
        more = {"YUE_HOME": str(self.home), "HF_HUB_OFFLINE": "1", "COLUMNS": "300", "TERM": "xterm"}
        return {**os.environ, **more}

    def run(self, command: list[str]) -> None:
        """Run a command that must succeed."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, last_lines(done.stderr)


@dataclass
class Watched:
    """A command on a terminal, and what is seen of it while it runs. Times count from its start."""

    project: Path
    device: torch.device
    lines: list[tuple[float, str]] = field(default_factory=list)  # what it printed, and when
    ended: dict[str, float] = field(default_factory=dict)  # when each stage was complete
    peaks: dict[str, int] = field(default_factory=dict)  # bytes of the GPU in use, by stage
    wall_s: float = 0.0

    def run(self, command: list[str], environment: Mapping[str, str]) -> None:
        """Run it to its end. Raises AssertionError where it fails."""
        free_before = machine.measure_free_bytes(self.device)
        terminal, side = pty.openpty()
        began = time.perf_counter()
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=side) as process:
            os.close(side)
            reader = threading.Thread(target=self._read, args=(terminal, began))
            waiter = threading.Thread(target=self._wait, args=(process, began))
            reader.start()
            waiter.start()
            while waiter.is_alive():
                now = time.perf_counter() - began
                stage = self._stage(now)
                if self.device.type == "cuda":
                    used = free_before - machine.measure_free_bytes(self.device)
                    self.peaks[stage] = max(used, self.peaks.get(stage, 0))
                if now > TIMEOUT_S:
                    process.kill()
                waiter.join(POLL_S)
            reader.join()
        self._stage(self.wall_s)
        os.close(terminal)
        assert process.returncode == 0, last_lines("\n".join(line for _, line in self.lines))

    def _wait(self, process: subprocess.Popen[bytes], began: float) -> None:
        """Take the time at which it ends, whatever else is looked at meanwhile."""
        process.wait()
        self.wall_s = time.perf_counter() - began

    def _stage(self, now: float) -> str:
        """Name the stage that is being made: the first without a manifest, which is written last."""
        for stage in STAGES:
            if stage not in self.ended:
                if not (self.project / stage / "manifest.json").exists():
                    return stage
                self.ended[stage] = now
        return STAGES[-1]

    def _read(self, terminal: int, began: float) -> None:
        """Keep every line, those that are drawn over too; print those that stay."""
        rest = ""
        while True:
            try:
                part = os.read(terminal, 4096).decode(errors="replace")
            except OSError:  # the command has closed its side
                return
            *lines, rest = re.split(r"[\r\n]+", CONTROL.sub("\n", rest + part))
            now = time.perf_counter() - began
            for line in (line.strip() for line in lines):
                self.lines += [(now, line)] if line else []
                if LINE.match(line):
                    print(f"  {now:6.1f} {line}", flush=True)

    def first_tokens_s(self) -> float | None:
        return next((round(at, 2) for at, line in self.lines if FIRST_TOKENS in line), None)

    def loading_s(self) -> dict[str, float]:
        """Read how long each stage's model took to load."""
        found = [LOADED.match(line) for _, line in self.lines]
        return {match[1]: float(match[2]) for match in found if match}


def time_song(bench: Bench, name: str, tokens: int, *more: object) -> dict[str, Any]:
    """Sing two segments of so many tokens. more: words for `yue run`."""
    project = bench.folder / name
    shutil.rmtree(project, ignore_errors=True)
    watched = Watched(project, torch.device(bench.device))
    command = bench.sing(name, tokens, *more)
    watched.run(command, bench.environment)
    loading = watched.loading_s()
    music_s = soundfile.info(project / "audio" / "mix.wav").duration
    expected_s = 2 * tokens / TOKENS_A_SECOND
    assert abs(music_s - expected_s) < 0.001, f"mix.wav holds {music_s} s; expected {expected_s}"
    manifests = [json.loads((project / stage / "manifest.json").read_text()) for stage in STAGES]
    return {
        "music_s": music_s,
        "wall_s": round(watched.wall_s, 2),
        "loading_s": loading,
        "wall_less_loading_s": round(watched.wall_s - sum(loading.values()), 2),
        "first_tokens_s": watched.first_tokens_s(),
        "stages_ended_s": {stage: round(at, 2) for stage, at in watched.ended.items()},
        "stages_took_s": {made["stage"]: made["seconds"] for made in manifests},
        "gpu_peak_gb": {stage: round(peak / 1e9, 2) for stage, peak in watched.peaks.items()},
        "lines": [f"{at:.2f} {line}" for at, line in watched.lines if LINE.match(line)],
    }


def time_fast_song(bench: Bench, tokens: int, format: str) -> dict[str, Any]:
    """Sing with fewer bits, of the weights of stage 1 and of stage 2's keys and values."""
    copy, began = bench.folder / format, time.perf_counter()
    if not copy.is_dir():
        bench.run(bench.command("quantize", bench.models / "stage1", "--format", format, "-o", copy, "-q"))
    quantized_s = round(time.perf_counter() - began, 1)
    words = [f"--set=stage1.model={copy}", "--set=execution.stage2_cache=int8"]
    return {"format": format, "quantized_s": quantized_s} | time_song(bench, "fast", tokens, *words)


def compare_resumed(bench: Bench, tokens: int) -> dict[str, Any]:
    """Make a song with a reference undisturbed, and again with a kill in its second segment."""
    sounds = [f"--{track}={resource(f'prompt_egs/{track}.ogg')}" for track in ("vocal", "instrumental")]
    more = (*sounds, f"--set=stage1.model={bench.models / 'YuE-s1-7B-anneal-en-icl'}", "-q")
    for name in ("undisturbed", "killed"):
        shutil.rmtree(bench.folder / name, ignore_errors=True)
    threads = []
    failures: list[str] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failures.append(str(error))

    undisturbed = bench.sing("undisturbed", tokens, *more)
    disturbed = bench.sing("killed", tokens, *more)

    def kill_and_resume() -> None:
        kill_in_second_segment(bench, disturbed)
        bench.run(disturbed)

    for work in (lambda: bench.run(undisturbed), kill_and_resume):
        threads.append(threading.Thread(target=guarded, args=(work,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    files = [f"{stage}/{track}.npy" for stage in ("reference", *STAGES[:2]) for track in ("vocal", "instrumental")]
    files += [f"stage1/segments/{number:03d}.npy" for number in (1, 2)]
    contents = [[(bench.folder / name / file).read_bytes() for file in files] for name in ("undisturbed", "killed")]
    different = [file for file, one, other in zip(files, *contents, strict=True) if one != other]
    return {"tokens_a_segment": tokens, "files": len(files), "different": different}


def kill_in_second_segment(bench: Bench, command: list[str]) -> None:
    """Run a command and kill it as soon as its first segment is on disk."""
    segments = bench.folder / "killed" / "stage1" / "segments"
    with subprocess.Popen(command, env=bench.environment, stderr=subprocess.PIPE, text=True) as process:
        began = time.perf_counter()
        while process.poll() is None and not (segments / "001.json").exists():
            assert time.perf_counter() - began < TIMEOUT_S, "its first segment takes too long"
            time.sleep(POLL_S / 10)
        process.send_signal(signal.SIGKILL)
        _, told = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"it ended before it was killed: {last_lines(told)}"
    assert not (segments / "002.json").exists(), "it was killed too late"


def compare_decoded(bench: Bench) -> dict[str, Any]:
    """Decode the undisturbed song's tokens once more on a CPU."""
    project = bench.folder / "undisturbed"
    there = sounds_of(project)
    bench.run([*bench.command("decode", project, "--force", "-q")[:-1], "--device=cpu"])
    here = sounds_of(project)
    return {
        name: {
            "largest_difference": float(np.abs(there[name] - here[name]).max()),
            "largest_sample": float(np.abs(here[name]).max()),
        }
        for name in here
    }


def sounds_of(project: Path) -> dict[str, np.ndarray]:
    names = ("mix", "vocal", "instrumental")
    return {name: soundfile.read(project / "audio" / f"{name}.wav", dtype="float64")[0] for name in names}


def last_lines(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-8:])


if __name__ == "__main__":
    main()
