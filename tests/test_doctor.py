"""Every trouble of a machine is named with its fix, from facts alone; and this machine can be looked at."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.command_line import done
from yue_cli.doctor import Driver, Facts, Finding, Place, find_stubs, gather, judge, read_driver
from yue_cli.machine import Gpu
from yue_cli.models import CATALOGUE
from yue_cli.weights import Library

GB = 10**9
CARD = Gpu("NVIDIA RTX 4090", free=24 * GB, total=25 * GB, capability=(8, 9))
DRIVER = Driver("570.86", "12.8", ("NVIDIA RTX 4090",))
HEALTHY = Facts(
    python="3.11.7",
    system="Linux",
    versions={"yue": "0.1.0", "torch": "2.13.0"},
    cuda_build="12.6",
    cuda_kinds=["sm_80", "sm_90", "compute_90"],
    gpus=[CARD],
    cuda_error="",
    visible_devices=None,
    driver=DRIVER,
    memory_free=32 * GB,
    cores=8,
    engines={"native": None},
    sndfile="1.2.2",
    formats={"wav": True, "flac": True, "ogg": True, "mp3": True},
    models=dict.fromkeys(CATALOGUE, "here"),
    download_bytes=0,
    places={
        "home": Place(Path("/cache/yue"), 0, 100 * GB, True),
        "hub cache": Place(Path("/cache/hub"), 0, 100 * GB, True),
    },
    stubs=[],
)


def another(name: str, **changes) -> dict[str, Place]:
    return dict(HEALTHY.places) | {name: replace(HEALTHY.places[name], **changes)}


def card(**changes) -> dict:
    return {"gpus": [replace(CARD, **changes)]}


def test_nothing_is_wrong_with_a_healthy_machine():
    assert judge(HEALTHY) == []


NO_GPU = {"gpus": []}
TROUBLES = {
    "torch for the CPU, a card there": (
        NO_GPU | {"cuda_build": None},
        "PyTorch 2.13.0 was built for the CPU alone, but there is a NVIDIA RTX 4090: install a build for CUDA 12.8 or "
        "lower, as https://pytorch.org/get-started/locally/ says.",
    ),
    "driver too old": (
        NO_GPU | {"driver": replace(DRIVER, version="470.1", cuda="11.4")},
        "driver 470.1 serves CUDA up to 11.4, PyTorch 2.13.0 was built for CUDA 12.6: update the driver, or install a "
        "build of PyTorch for CUDA 11.",
    ),
    "hidden": (
        NO_GPU | {"visible_devices": ""},
        "CUDA_VISIBLE_DEVICES is ``, which hides the GPU: unset it.",
    ),
    "hidden by a wrong number": (
        NO_GPU | {"visible_devices": "2,0", "driver": replace(DRIVER, gpus=("A", "B"))},
        "CUDA_VISIBLE_DEVICES is `2,0`, which hides all 2 GPUs: unset it.",
    ),
    "CUDA build, no GPU seen": (
        NO_GPU | {"visible_devices": "0", "cuda_error": "CUDA unknown error"},
        "PyTorch 2.13.0 was built for CUDA 12.6 and sees no GPU (CUDA unknown error), though nvidia-smi lists "
        "NVIDIA RTX 4090: restart the machine; in a container, start it with access to the GPU.",
    ),
    "driver and library differ": (
        NO_GPU | {"driver": Driver(error="Failed to initialize NVML: Driver/library version mismatch")},
        "nvidia-smi fails (Failed to initialize NVML: Driver/library version mismatch): after an update of the driver, "
        "restart the machine first.",
    ),
    "driver without a card": (
        NO_GPU | {"driver": Driver("570.86", "12.8")},
        "the NVIDIA driver lists no GPU: is the card in its place and powered?",
    ),
    "card too old for this build": (
        card(capability=(6, 1)),
        "cuda:0 (NVIDIA RTX 4090) has compute capability 6.1, for which this PyTorch was not built (it has sm_80, "
        "sm_90, compute_90): install another build of PyTorch, or use --device cpu.",
    ),
    "home cannot be written": (
        {"places": another("home", is_writable=False)},
        "/cache/yue (home) cannot be written: make it writable, or choose another by YUE_HOME.",
    ),
    "disk full": (
        {"places": another("hub cache", free=GB // 2)},
        "/cache/hub (hub cache) has 0.5 GB free: free some space.",
    ),
    "no room for the models": (
        {"places": another("hub cache", free=10 * GB), "download_bytes": 17 * GB},
        "/cache/hub (hub cache) has 10.0 GB free, and 17.0 GB of models are to be downloaded: free some space, or "
        "choose another folder by HF_HOME.",
    ),
    "stub": (
        {"stubs": [Path("/models/ckpt.pth")]},
        "/models/ckpt.pth is a stub of git-lfs, not the model: fetch the file itself, which needs no git-lfs.",
    ),
    "no engine": ({"engines": {"native": "broken"}}, "no engine can be used here: install the package anew."),
}
NOTES = {
    "no card at all": (
        NO_GPU | {"driver": None},
        "no NVIDIA GPU was found: all works on the CPU, but published models are slow there.",
    ),
    "no bfloat16": (
        card(capability=(7, 5)) | {"cuda_kinds": ["sm_75"]},
        "cuda:0 (NVIDIA RTX 4090) has compute capability 7.5 and computes no bfloat16, or slowly: float16 "
        "is used instead.",
    ),
    "card in use": (
        card(free=3 * GB),
        "cuda:0 (NVIDIA RTX 4090) has 3.0 of 25.0 GB free: another program holds the rest; nvidia-smi lists it.",
    ),
    "half a model": (
        {"models": {"s2": "partly here"}},
        "s2 is only partly here: `yue models pull s2` goes on.",
    ),
    "no mp3": (
        {"formats": {"wav": True, "flac": True, "ogg": False, "mp3": False}},
        "libsndfile 1.2.2 cannot write ogg, mp3: use --format with wav, flac.",
    ),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_a_trouble_is_named_with_its_fix(name):
    changes, text = TROUBLES[name]
    assert judge(replace(HEALTHY, **changes)) == [Finding(True, text)]


@pytest.mark.parametrize("name", NOTES)
def test_a_note_is_no_trouble(name):
    changes, text = NOTES[name]
    assert judge(replace(HEALTHY, **changes)) == [Finding(False, text)]


def test_troubles_come_before_notes():
    changes = NOTES["card in use"][0] | TROUBLES["stub"][0] | NOTES["no mp3"][0]
    assert [finding.is_trouble for finding in judge(replace(HEALTHY, **changes))] == [True, False, False]


@pytest.mark.parametrize(
    "changes",
    [
        {"places": another("hub cache", free=10 * GB)},  # nothing to download
        card(capability=(12, 0)) | {"cuda_kinds": ["sm_80", "compute_90"]},  # compiled on first use
        card() | {"cuda_kinds": ["gfx1100"]},  # another maker's: nothing is known
        card() | {"cuda_build": None, "driver": None},
    ],
)
def test_what_works_is_not_complained_of(changes):
    assert judge(replace(HEALTHY, **changes)) == []


def test_minor_versions_of_cuda_do_not_matter():
    changes = NO_GPU | {"driver": replace(DRIVER, cuda="12.2"), "cuda_build": "12.9"}
    [finding] = judge(replace(HEALTHY, **changes))
    assert "sees no GPU" in finding.text


# Looking


def test_the_answers_of_nvidia_smi_are_read():
    listed = "NVIDIA RTX A6000, Ada, 570.86.15\nNVIDIA H200, 570.86.15\n"
    shown = "| NVIDIA-SMI 570.86.15   Driver Version: 570.86.15   CUDA Version: 12.8     |\n"
    assert read_driver(listed, shown) == Driver("570.86.15", "12.8", ("NVIDIA RTX A6000, Ada", "NVIDIA H200"))
    assert read_driver("", "") == Driver()


def fake_smi(folder: Path, monkeypatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            'if [ $# -gt 0 ]; then echo "H200, 570.1"; else echo "CUDA Version: 12.8 |"; fi',
            Driver("570.1", "12.8", ("H200",)),
        ),
        ("echo; echo No devices were found; exit 6", Driver(error="No devices were found")),
        ("exit 9", Driver(error="without a word")),
    ],
)
def test_the_driver_is_asked(tmp_path, home, monkeypatch, script, expected):
    fake_smi(tmp_path, monkeypatch, script)
    assert gather(Library(home, {}), None).driver == expected


def test_without_nvidia_smi_there_is_no_driver(tmp_path, home, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gather(Library(home, {}), None).driver is None


def test_stubs_are_found_among_other_small_files(tmp_path):
    stub = tmp_path / "models" / "stage1" / "model.safetensors"
    stub.parent.mkdir(parents=True)
    stub.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12449226752\n")
    (stub.parent / "config.json").write_text("{}")
    (stub.parent / "empty").touch()
    assert find_stubs(tmp_path) == [stub]
    assert find_stubs(tmp_path / "nowhere") == []


def test_this_machine_is_told_row_by_row(place):
    outcome = done("doctor")
    assert outcome.err == ""
    topics = [line[:10].strip() for line in outcome.out.splitlines()]
    for topic in ("python", "packages", "cpu", "cuda", "gpu", "engine", "sound", "models", "home", "hub cache"):
        assert topic in topics
    assert "engine     native · available" in outcome.out


def test_this_machine_is_one_object_for_programs(place, home):
    answer = done("doctor", "--json").answer
    assert answer["places"]["home"]["path"] == str(home)
    assert answer["engines"]["native"] is None
    assert answer["versions"]["torch"]
    assert answer["models"].keys() == CATALOGUE.keys()
    assert all(finding.keys() == {"is_trouble", "text"} for finding in answer["findings"])
