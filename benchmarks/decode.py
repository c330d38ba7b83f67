"""How fast and in how much memory two tracks of codes become a song, at the published size, on two CPU cores.

    python -m benchmarks.decode [--seconds 20] [--lengths 10 60 180 300] [--repeats 3]

First the chunked decoder against the same networks run as YuE's infer.py runs them (`baselines/decoding.py`). Then one
process for each length, for time and for memory above the weights. Weights are random.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.baselines import decoding
from xcodec_mini_infer import FRAME_RATE, checkpoint
from xcodec_mini_infer.codec import CodecConfig
from xcodec_mini_infer.vocoder import VocoderConfig
from yue_cli.stages.decode import decode, open_codec

THREADS = 2
WARM_UP_FRAMES = 6 * FRAME_RATE  # more than a chunk: the first run of a length of arrays takes longer


def write_random_checkpoint(folder: Path) -> None:
    """Write weights that keep every layer's values near 1: the sine of large numbers takes longer."""
    generator = torch.Generator().manual_seed(0)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        if name == "head.istft.window":
            return torch.hann_window(*shape)
        if name.endswith("weight_g"):
            return torch.full(shape, 0.4 if name.endswith("block.3.weight_g") else 1.0)
        if name.endswith(("alpha", "norm.weight")):
            return torch.ones(shape)
        scale = float(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 0.1
        return scale * torch.randn(shape, generator=generator)

    codec, vocoder = CodecConfig(), VocoderConfig()
    shapes = {
        checkpoint.CODEC_FILE: checkpoint.codec_shapes(codec),
        checkpoint.VOCAL_FILE: checkpoint.vocoder_shapes(vocoder),
        checkpoint.INSTRUMENTAL_FILE: checkpoint.vocoder_shapes(vocoder),
    }
    tensors = {file: {name: draw(name, shape) for name, shape in names.items()} for file, names in shapes.items()}
    checkpoint.write(folder, codec, vocoder, tensors)


def random_tracks(frames: int) -> tuple[np.ndarray, np.ndarray]:
    vocal, instrumental = np.random.default_rng(0).integers(0, 1024, (2, 8, frames), dtype=np.int16)
    return vocal, instrumental


def seconds_taken(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(folder: Path, seconds: int, repeats: int) -> None:
    """Print the best of several runs of both, taken in turn so that both meet the same machine."""
    ours, reference = open_codec(folder), open_codec(folder)
    decoding.unfold(reference.codec.decoder)
    tracks = random_tracks(seconds * FRAME_RATE)
    fast, slow = [], []
    for _ in range(repeats):
        fast.append(seconds_taken(lambda: decode(ours, *tracks, "scale")) / seconds)
        slow.append(seconds_taken(lambda: decoding.decode(reference, *tracks)) / seconds)
    print(f"{seconds} s of music, two tracks, best of {repeats}:")
    print(f"  in chunks      {min(fast):.3f} s per second of music")
    print(f"  in one piece   {min(slow):.3f} s per second of music; chunks take {min(fast) / min(slow):.2f} of it")


def measure(folder: Path, seconds: int) -> dict[str, float]:
    """Decode once and tell time, and the peak of memory above that of the loaded weights."""
    torch.set_num_threads(THREADS)
    decoders = open_codec(folder)
    for module in (decoders.codec, decoders.vocal, decoders.instrumental):
        for tensor in module.state_dict().values():
            tensor.sum()  # bring every page in
    Path("/proc/self/clear_refs").write_text("5")  # begin a new peak
    before = memory_mb("VmRSS")
    decode(decoders, *random_tracks(WARM_UP_FRAMES), "scale")
    tracks = random_tracks(seconds * FRAME_RATE)
    taken = seconds_taken(lambda: decode(decoders, *tracks, "scale"))
    return {"time": taken / seconds, "memory": memory_mb("VmHWM") - before}


def memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(field))


def measure_lengths(folder: Path, lengths: list[int]) -> None:
    print("length   s per second   MB above the weights   of them full-length 44.1 kHz arrays")
    for seconds in lengths:
        command = [sys.executable, "-m", "benchmarks.decode", "--folder", str(folder), "--measure", str(seconds)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        arrays = f"{3 * 4 * 44_100 * seconds / 1e6:.0f}"
        print(f"{seconds:4d} s   {result['time']:12.3f}   {result['memory']:20.0f}   {arrays:>14} (3 arrays)")


def machine() -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    cores = len(os.sched_getaffinity(0))
    name = names[0] if names else platform.processor()
    return f"{name}, {cores} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=20, help="seconds of music in the comparison")
    parser.add_argument("--lengths", type=int, nargs="*", default=[10, 60, 180, 300], help="seconds of music")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.folder, arguments.measure)))
        return
    torch.set_num_threads(THREADS)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random_checkpoint(folder)
        compare(folder, arguments.seconds, arguments.repeats)
        measure_lengths(folder, arguments.lengths)


if __name__ == "__main__":
    main()
