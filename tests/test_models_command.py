"""From nothing to a song with models of a hub: what is fetched, converted, sung with, checked and deleted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file

from tests import tiny_llama
from tests.command_line import done, refused, yue
from tests.hub_stand_in import Repository, StandIn, serve
from xcodec_mini_infer import checkpoint, convert
from yue_cli import toy, weights
from yue_cli.hub import Hub
from yue_cli.models import CATALOGUE, CODEC_FILES
from yue_cli.resources import resource

SHORT = ["--set", "stage1.min_new_tokens=8", "--set", "stage1.max_new_tokens=8", "--genre", "slow folk", "--seed", "7"]
SHORT += ["--device", "cpu"]
CHINESE = "[verse]\n星光落在窗前\n"


def language_model(folder: Path, vocabulary_size: int, shards: int) -> dict[str, bytes]:
    """Write a small LLaMA with the published vocabulary and file names."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = tiny_llama.CONFIG | sizes | {"num_key_value_heads": 1, "vocab_size": vocabulary_size}
    tensors = {name: tensor.bfloat16() for name, tensor in tiny_llama.random_tensors(config).items()}
    tiny_llama.write_checkpoint(folder, config, tensors, shards)
    (folder / "generation_config.json").write_text("{}")
    (folder / "README.md").write_text("not needed")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> dict[str, Repository]:
    folder = tmp_path_factory.mktemp("repositories")
    first = language_model(folder / "stage1", 83968, shards=3)
    first["tokenizer.model"] = resource("toy/tokenizer.model").read_bytes()
    second = language_model(folder / "stage2", 83840, shards=1)
    made = toy.make(folder) / "codec"
    tensors = {file: load_file(made / file) for file in (checkpoint.CODEC_FILE, checkpoint.VOCAL_FILE)}
    tensors[checkpoint.INSTRUMENTAL_FILE] = load_file(made / checkpoint.INSTRUMENTAL_FILE)
    contents = {
        "codec": {"codec_model": tensors[checkpoint.CODEC_FILE], "mfd": {"weight": torch.zeros(9)}},
        "vocal": tensors[checkpoint.VOCAL_FILE],
        "instrumental": tensors[checkpoint.INSTRUMENTAL_FILE],
    }
    codec = {"final_ckpt/config.yaml": b"generator: {}"}
    for part, file in CODEC_FILES.items():
        torch.save(contents[part], folder / "file.pth")
        codec[file] = (folder / "file.pth").read_bytes()
    return {
        CATALOGUE["en-cot"].repository: Repository(first, commit=CATALOGUE["en-cot"].revision),
        CATALOGUE["zh-cot"].repository: Repository(first),
        CATALOGUE["s2"].repository: Repository(second, commit=CATALOGUE["s2"].revision),
        CATALOGUE["codec"].repository: Repository(codec, commit=CATALOGUE["codec"].revision),
    }


@pytest.fixture
def stand_in(repositories, tmp_path, monkeypatch):
    """Serve the repositories to commands of this process, with empty caches."""
    codec_sizes, vocoder_sizes = checkpoint.read_config(resource(toy.CODEC))
    shapes = checkpoint.codec_shapes(codec_sizes)
    layout = convert.Layout(shapes, {}, checkpoint.vocoder_shapes(vocoder_sizes), codec_sizes, vocoder_sizes)
    monkeypatch.setattr(convert, "published_layout", lambda: layout)
    codec = CATALOGUE["codec"]
    small = type(codec)(codec.name, codec.repository, codec.revision, {}, codec.part, codec.bytes)
    monkeypatch.setitem(CATALOGUE, "codec", small)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("YUE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("lyrics.txt").write_text("[verse]\nOne light\n")
    Path("chinese.txt").write_text(CHINESE)
    with serve(repositories) as served:
        monkeypatch.setattr(weights, "Hub", lambda offline: Hub(tmp_path / "hub", served.endpoint, offline))
        yield served


def manifest(song: str, stage: str) -> dict:
    return json.loads(Path(song, stage, "manifest.json").read_text())


def test_one_command_makes_a_song_from_nothing(stand_in: StandIn):
    outcome = done("run", "song", "--lyrics", "lyrics.txt", *SHORT)
    assert outcome.out == "song/audio/mix.wav\n"
    lines = outcome.err.splitlines()
    said = next(line for line in lines if line.startswith("models "))
    assert said.startswith("models   en-cot 0.0 GB, s2 0.0 GB, codec 0.0 GB: 0.1 GB to download · "), said
    assert "codec    converting ckpt_00360000.pth, once" in lines
    assert lines.index(said) < next(i for i, line in enumerate(lines) if line.startswith("stage 1"))
    for stage, name in (("stage1", "en-cot"), ("stage2", "s2"), ("audio", "codec")):
        assert manifest("song", stage)["model"] == {"name": name, "revision": CATALOGUE[name].revision}
    assert not any("README" in line or "config.yaml" in line for line in stand_in.asked)

    stand_in.asked.clear()
    again = done("run", "again", "--lyrics", "lyrics.txt", "--offline", *SHORT)
    assert not [line for line in again.err.splitlines() if line.startswith(("models", "download", "codec"))]
    assert stand_in.asked == []
    assert Path("again/stage2/vocal.npy").read_bytes() == Path("song/stage2/vocal.npy").read_bytes()
    assert done("status", "song").out.count(" current ") == 3


def test_offline_the_command_that_fetches_is_told(stand_in):
    text = refused("run", "song", "--lyrics", "lyrics.txt", "--offline", *SHORT)
    assert text == (
        "en-cot, s2 and codec are not on this machine, and offline nothing is fetched: `yue models pull en-cot s2 "
        "codec`, with a network, fetches them. `yue demo` tries the tool without a model."
    )
    assert stand_in.asked == []


def test_the_language_chooses_the_model(stand_in):
    done("stage1", "song", "--lyrics", "chinese.txt", "--language", "zh", *SHORT)
    assert manifest("song", "stage1")["model"] == {"name": "zh-cot", "revision": "c" * 40}
    outcome = done("stage1", "song")
    assert "is current: kept" in outcome.err
    assert "trained to sing" not in outcome.err


def test_lyrics_of_another_language_are_a_warning(stand_in):
    outcome = yue("run", "song", "--lyrics", "chinese.txt", "--offline", *SHORT)
    assert (
        "warning  the lyrics look Chinese, en-cot was trained to sing English; --language zh takes zh-cot"
        in outcome.err
    )


def test_a_wrong_language_is_refused(stand_in):
    text = refused("run", "song", "--lyrics", "lyrics.txt", "--language", "english", *SHORT)
    assert text == "--language english: expected one of en, zh, jp-kr."
    text = refused("stage1", "song", "--lyrics", "lyrics.txt", "--language", "en", "--model", "zh-cot", *SHORT)
    assert text == "--language chooses the stage-1 model, which is named already; give one of both."
    assert not Path("song").exists()


def test_a_hub_id_stays_one_in_the_song(stand_in):
    repository = CATALOGUE["zh-cot"].repository
    done("stage1", "song", "--lyrics", "lyrics.txt", "--model", f"{repository}@main", *SHORT)
    assert manifest("song", "stage1")["model"]["name"] == f"{repository}@main"
    text = refused("stage1", "song", "--model", "owner/nothing")
    assert text.startswith("owner/nothing: there is no such model on http://127.0.0.1:")


def test_models_are_listed_pulled_verified_and_removed(stand_in, tmp_path):
    assert done("models", "list").out.splitlines()[0] == (
        "en-cot    stage-1 model  absent        12.4 GB   m-a-p/YuE-s1-7B-anneal-en-cot 454c20e"
    )
    assert refused("models", "path", "s2") == "s2 is not on this machine: `yue models pull s2` fetches it."
    assert refused("models", "verify") == (
        "no model of the hub is on this machine; `yue models pull NAME` fetches one."
    )
    folder = tmp_path / "hub" / "models--m-a-p--YuE-s2-1B-general" / "snapshots" / CATALOGUE["s2"].revision
    assert done("models", "pull", "s2", "codec").out.splitlines()[0] == str(folder)
    assert done("models", "path", "s2").out == f"{folder}\n"
    assert done("models", "path", "codec", "--json").answer["path"].startswith(str(tmp_path / "home" / "codec"))
    assert done("models", "verify").out.splitlines() == [
        "s2        1 large files are right, of 2 small ones no hash is known",
        "codec     3 large files are right, of 0 small ones no hash is known",
    ]
    rows = {row["name"]: row for row in done("models", "list", "--json").answer["models"]}
    assert {name: rows[name]["state"] for name in ("en-cot", "s2", "codec")} == {
        "en-cot": "absent",
        "s2": "here",
        "codec": "here",
    }
    assert rows["s2"]["revision"] == CATALOGUE["s2"].revision
    states = done("models", "verify", "s2", "--json").answer["models"][0]["files"]
    assert [file["state"] for file in states] == ["unknown", "unknown", "right"]
    assert done("models", "rm", "codec").out.startswith("codec: 0.0 GB freed")
    assert done("models", "rm", "s2", "--json").answer["freed_bytes"] > 10**7
    assert not folder.exists()
    assert done("models", "pull", "s2", "--json", "-q").answer == {"models": [{"name": "s2", "path": str(folder)}]}


def command_line(stand_in: StandIn, tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a command in a process of its own, steered by the hub's variables."""
    environment = os.environ | {
        "HF_ENDPOINT": stand_in.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "YUE_HOME": str(tmp_path / "home"),
    }
    command = [sys.executable, "-m", "yue_cli", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_variables_of_the_hub_are_followed_and_a_kill_is_survived(repositories, tmp_path):
    with serve(repositories) as stand_in:
        process = command_line(stand_in, tmp_path, "models", "pull", "s2")
        stand_in.halfway = process.kill
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert not list(tmp_path.rglob("model.safetensors"))
        process = command_line(stand_in, tmp_path, "models", "pull", "s2")
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    repository = CATALOGUE["s2"]
    folder = tmp_path / "hf/hub/models--m-a-p--YuE-s2-1B-general/snapshots" / repository.revision
    assert out == f"{folder}\n"
    assert [line.split()[0] for line in err.splitlines()] == ["models", "download"]
    published = repositories[repository.repository].files["model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == published
