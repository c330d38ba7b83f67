"""What may keep yue from working on this machine: facts are gathered once, then judged by pure functions.

A judgement names the trouble and its fix; none of them needs the machine that it is about.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from yue_cli import audio_files, engines, hub, inventory, machine, models
from yue_cli.machine import Gpu
from yue_cli.weights import Library

_SONG_BYTES = 10**9  # room for songs and what is replaced
_PACKAGES = ("safetensors", "sentencepiece", "soundfile", "huggingface_hub", "matplotlib")
_CHOICES = {"home": "YUE_HOME", "hub cache": "HF_HOME"}


@dataclass(frozen=True)
class Driver:
    """What nvidia-smi tells. `error`: that it is there and fails, in its own words."""

    version: str = ""
    cuda: str = ""  # the newest CUDA that it serves, such as 12.8
    gpus: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Place:
    """A folder that yue writes large things into; sizes in bytes."""

    path: Path
    used: int
    free: int
    is_writable: bool


@dataclass(frozen=True)
class Facts:
    """What was found on a machine."""

    python: str
    system: str
    versions: Mapping[str, str]  # of packages; those that are missing are not in it
    cuda_build: str | None  # the CUDA that PyTorch was built for
    cuda_kinds: Sequence[str]  # the GPUs that it was built for: sm_80, …
    gpus: Sequence[Gpu]
    cuda_error: str  # what PyTorch says when it sees no GPU
    visible_devices: str | None  # CUDA_VISIBLE_DEVICES
    driver: Driver | None  # None: there is no nvidia-smi
    memory_free: int
    cores: int
    engines: Mapping[str, str | None]  # name → why it cannot be used
    sndfile: str
    formats: Mapping[str, bool]
    models: Mapping[str, str]  # short name → here, partly here or absent
    download_bytes: int  # of the default models that are not here
    places: Mapping[str, Place]  # home, hub cache
    stubs: Sequence[Path]


@dataclass(frozen=True)
class Finding:
    """Something to know. Trouble stops work or slows it badly; a note does not."""

    is_trouble: bool
    text: str


def gather(library: Library, visible_devices: str | None) -> Facts:
    """Look at this machine and the models on it."""
    build, kinds = machine.cuda_build()
    gpus, cuda_error = machine.gpus()
    sndfile, formats = audio_files.writable_formats()
    versions = machine.versions()
    python = versions.pop("python")
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    states = {name: inventory.state(library, model).word for name, model in models.CATALOGUE.items()}
    absent = [name for name in models.DEFAULTS.values() if states[name] != "here"]
    places = {"home": library.home, "hub cache": library.hub.cache}
    return Facts(
        python=python,
        system=platform.platform(),
        versions=versions,
        cuda_build=build,
        cuda_kinds=kinds,
        gpus=gpus,
        cuda_error=cuda_error,
        visible_devices=visible_devices,
        driver=_ask_driver(),
        memory_free=machine.free_bytes(machine.choose_device("cpu")),
        cores=os.cpu_count() or 1,
        engines=engines.available(),
        sndfile=sndfile,
        formats=formats,
        models=states,
        download_bytes=sum(models.CATALOGUE[name].bytes for name in absent),
        places={name: _look_at(path) for name, path in places.items()},
        stubs=[stub for path in places.values() for stub in find_stubs(path)],
    )


def judge(facts: Facts) -> list[Finding]:
    """Name what is wrong and what to do about it, troubles first."""
    found = [*_judge_gpu(facts), *_judge_disk(facts), *_judge_rest(facts)]
    return sorted(found, key=lambda finding: not finding.is_trouble)


def find_stubs(folder: Path) -> list[Path]:
    """List files that git-lfs left in place of a model's."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and os.access(path, os.R_OK))
    return [path for path in files if hub.is_stub(path)]


def read_driver(listed: str, shown: str) -> Driver:
    """Read nvidia-smi's answers: name and driver a line, and the newest CUDA in its heading."""
    rows = [line.rsplit(",", 1) for line in listed.splitlines() if "," in line]
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", shown)
    return Driver(
        version=rows[0][1].strip() if rows else "",
        cuda=cuda[1] if cuda else "",
        gpus=tuple(name.strip() for name, _ in rows),
    )


def _judge_gpu(facts: Facts) -> Iterator[Finding]:
    torch, driver = f"PyTorch {facts.versions.get('torch', '')}", facts.driver
    if facts.gpus:
        yield from _judge_cards(facts)
    elif driver is None:
        yield Finding(False, "no NVIDIA GPU was found: all works on the CPU, but published models are slow there.")
    elif driver.error:
        yield Finding(
            True, f"nvidia-smi fails ({driver.error}): after an update of the driver, restart the machine first."
        )
    elif not driver.gpus:
        yield Finding(True, "the NVIDIA driver lists no GPU: is the card in its place and powered?")
    elif facts.cuda_build is None:
        newest = f" for CUDA {driver.cuda} or lower" if driver.cuda else " for CUDA"
        yield Finding(
            True,
            f"{torch} was built for the CPU alone, but there is a {driver.gpus[0]}: install a build{newest}, as "
            "https://pytorch.org/get-started/locally/ says.",
        )
    elif driver.cuda and _major(driver.cuda) < _major(facts.cuda_build):
        yield Finding(
            True,
            f"driver {driver.version} serves CUDA up to {driver.cuda}, {torch} was built for CUDA "
            f"{facts.cuda_build}: update the driver, or install a build of PyTorch for CUDA {_major(driver.cuda)}.",
        )
    elif facts.visible_devices is not None and _hides_all(facts.visible_devices, len(driver.gpus)):
        count = "the GPU" if len(driver.gpus) == 1 else f"all {len(driver.gpus)} GPUs"
        yield Finding(True, f"CUDA_VISIBLE_DEVICES is `{facts.visible_devices}`, which hides {count}: unset it.")
    else:
        said = f" ({facts.cuda_error})" if facts.cuda_error else ""
        yield Finding(
            True,
            f"{torch} was built for CUDA {facts.cuda_build} and sees no GPU{said}, though nvidia-smi lists "
            f"{driver.gpus[0]}: restart the machine; in a container, start it with access to the GPU.",
        )


def _judge_cards(facts: Facts) -> Iterator[Finding]:
    for index, gpu in enumerate(facts.gpus):
        name, capability = f"cuda:{index} ({gpu.name})", ".".join(map(str, gpu.capability))
        if facts.cuda_kinds and not _is_served(gpu.capability, facts.cuda_kinds):
            yield Finding(
                True,
                f"{name} has compute capability {capability}, for which this PyTorch was not built (it has "
                f"{', '.join(facts.cuda_kinds)}): install another build of PyTorch, or use --device cpu.",
            )
        elif gpu.capability[0] < machine.BFLOAT16_CAPABILITY:
            yield Finding(
                False,
                f"{name} has compute capability {capability} and computes no bfloat16, or slowly: float16 "
                "is used instead.",
            )
        if gpu.free < gpu.total // 2:
            yield Finding(
                False,
                f"{name} has {gpu.free / 1e9:.1f} of {gpu.total / 1e9:.1f} GB free: another program holds the rest; "
                "nvidia-smi lists it.",
            )


def _judge_disk(facts: Facts) -> Iterator[Finding]:
    for name, place in facts.places.items():
        where = f"{place.path} ({name})"
        if not place.is_writable:
            yield Finding(True, f"{where} cannot be written: make it writable, or choose another by {_CHOICES[name]}.")
        elif place.free < _SONG_BYTES:
            yield Finding(True, f"{where} has {place.free / 1e9:.1f} GB free: free some space.")
        elif name == "hub cache" and place.free < facts.download_bytes:
            yield Finding(
                True,
                f"{where} has {place.free / 1e9:.1f} GB free, and {facts.download_bytes / 1e9:.1f} GB of models are to "
                f"be downloaded: free some space, or choose another folder by {_CHOICES[name]}.",
            )
    for name, state in facts.models.items():
        if state == "partly here":
            yield Finding(False, f"{name} is only partly here: `yue models pull {name}` goes on.")
    for stub in facts.stubs:
        yield Finding(
            True, f"{stub} is a stub of git-lfs, not the model: fetch the file itself, which needs no git-lfs."
        )


def _judge_rest(facts: Facts) -> Iterator[Finding]:
    if all(facts.engines.values()):
        yield Finding(True, "no engine can be used here: install the package anew.")
    lacking = [name for name, there in facts.formats.items() if not there]
    if lacking:
        others = ", ".join(name for name, there in facts.formats.items() if there)
        yield Finding(
            False, f"libsndfile {facts.sndfile} cannot write {', '.join(lacking)}: use --format with {others}."
        )


def _is_served(capability: tuple[int, int], kinds: Sequence[str]) -> bool:
    """Tell whether compiled kernels run: those of the same major capability up to its own, or `compute_` code."""
    for kind in kinds:
        name, _, digits = kind.partition("_")
        number = re.match(r"\d+", digits)
        if number is None:
            return True  # a name of a later PyTorch: nothing is known, nothing is said
        built = divmod(int(number[0]), 10)
        if built <= capability and (name == "compute" or built[0] == capability[0]):
            return True
    return False


def _hides_all(visible: str, count: int) -> bool:
    """Tell whether CUDA_VISIBLE_DEVICES names no GPU that there is; what follows a wrong number counts for nothing."""
    first = visible.split(",")[0].strip()
    return not first or first == "-1" or (first.isdigit() and int(first) >= count)


def _major(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def _ask_driver() -> Driver | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20)
        shown = subprocess.run([program], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Driver(error=str(error))
    if listed.returncode:
        words = (listed.stdout + listed.stderr).split("\n")
        return Driver(error=next((line.strip() for line in words if line.strip()), "without a word"))
    return read_driver(listed.stdout, shown.stdout)


def _look_at(path: Path) -> Place:
    there = path
    while not there.exists():
        there = there.parent
    used = sum(file.lstat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    return Place(path, used, hub.free_bytes(path), os.access(there, os.W_OK))
