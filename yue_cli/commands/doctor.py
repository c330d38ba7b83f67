"""`yue doctor`: what this machine offers, what is wrong with it, and how to mend it."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from yue_cli.commands import console, options
from yue_cli.commands.request import home
from yue_cli.weights import Library


def doctor(json: options.Json = False) -> None:
    """Look at Python, PyTorch, GPUs, engines, sound formats and disk, and name the fix for what is wrong."""
    from yue_cli import doctor as surgery  # loads torch

    facts = surgery.gather(Library(home(), {}), os.environ.get("CUDA_VISIBLE_DEVICES"))
    findings = surgery.judge(facts)
    if json:
        console.answer_json(_plain(asdict(facts)) | {"findings": [asdict(finding) for finding in findings]})
        return
    for topic, text in _rows(facts):
        console.answer(f"{topic:<10} {text}")
    for finding in findings:
        console.answer(f"{'trouble' if finding.is_trouble else 'note':<10} {finding.text}")
    if not any(finding.is_trouble for finding in findings):
        console.answer(f"{'result':<10} no trouble found")


def _rows(facts: Any) -> list[tuple[str, str]]:
    size = console.gigabytes
    rows = [
        ("python", f"{facts.python} · {facts.system}"),
        ("packages", " · ".join(f"{name} {version}" for name, version in facts.versions.items())),
        ("cpu", f"{console.counted(facts.cores, 'core')} · {size(facts.memory_free)} of memory free"),
    ]
    built = f"PyTorch built for CUDA {facts.cuda_build}" if facts.cuda_build else "PyTorch built for the CPU alone"
    driver = facts.driver
    if driver is None:
        rows.append(("cuda", f"{built} · no NVIDIA driver"))
    elif driver.error:
        rows.append(("cuda", f"{built} · nvidia-smi fails"))
    else:
        rows.append(("cuda", f"{built} · driver {driver.version}, CUDA up to {driver.cuda}"))
    for index, gpu in enumerate(facts.gpus):
        capability = ".".join(map(str, gpu.capability))
        free = f"{size(gpu.free)} of {size(gpu.total)} free"
        rows.append(("gpu", f"cuda:{index} · {gpu.name} · {free} · compute capability {capability}"))
    if not facts.gpus:
        rows.append(("gpu", "none"))
    rows += [("engine", f"{name} · {why or 'available'}") for name, why in facts.engines.items()]
    formats = " ".join(name for name, there in facts.formats.items() if there)
    rows.append(("sound", f"{formats} · libsndfile {facts.sndfile}"))
    here = [
        name if state == "here" else f"{name} (in part)" for name, state in facts.models.items() if state != "absent"
    ]
    held = f"{' '.join(here)} · hashed when they were fetched, again by `yue models verify`"
    rows.append(("models", held if here else "none of those with short names; `yue models list` shows them"))
    for name, place in facts.places.items():
        rows.append((name, f"{place.path} · {size(place.used)} used · {size(place.free)} free"))
    return rows


def _plain(value: Any) -> Any:
    """Turn paths into text for JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
