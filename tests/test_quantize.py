"""`yue quantize`: where a copy lies, what an interruption leaves, and the one line that each refusal gets."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors.torch import save_file

from tests.command_line import SHORT, done, refused, yue
from tests.folders import contents
from tests.tiny_llama import CONFIG, random_tensors, write_checkpoint
from yue_cli import hub, quantize, toy
from yue_cli.engines.native import convert
from yue_cli.hub import sha256
from yue_cli.models import CATALOGUE

LONG_AGO = 10**18


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path / "original")
    (folder / "tokenizer.model").write_bytes(b"pieces")
    (folder / "vocabulary.json").write_bytes(b"ids")
    (folder / "unknown.txt").write_bytes(b"not a model's")
    return folder


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the tiny model into several files."""
    monkeypatch.setattr(convert, "SHARD_BYTES", 200_000)


def in_cache(tmp_path: Path, name: str, folder: Path) -> None:
    """Put a folder into the hub's cache as a model with a short name."""
    model = CATALOGUE[name]
    place = tmp_path / "cache" / f"models--{model.repository.replace('/', '--')}" / "snapshots" / model.revision
    place.parent.mkdir(parents=True)
    place.symlink_to(folder)


def interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def test_a_copy_holds_all_that_it_needs(original: Path) -> None:
    outcome = done("quantize", original, "--format", "native-4bit", "-o", "copy")
    folder = Path("copy").resolve()
    assert outcome.out == f"{folder}\n"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "vocabulary.json",
        "quantized.json",
        "README.md",
    }
    record = json.loads((folder / "quantized.json").read_text())
    assert (record["repository"], record["revision"], record["format"]) == ("original", None, "native-4bit")
    assert record["sources"]["model.safetensors"]["sha256"] == sha256(original / "model.safetensors")
    assert record["files"]["model.safetensors"]["sha256"] == sha256(folder / "model.safetensors")
    card = (folder / "README.md").read_text()
    assert f"`{sha256(original / 'model.safetensors')}`" in card
    assert f"`{sha256(folder / 'model.safetensors')}`" in card
    assert "| group | 128 |" in card
    assert "Not measured." in card
    assert not list(Path().glob(".copy*"))


def test_a_song_is_sung_with_a_copy_and_says_so(tmp_path: Path) -> None:
    made = toy.make(tmp_path / "home")
    done("quantize", made / "stage1", "--format", "native-4bit", "-o", "s1")
    done("quantize", made / "stage2", "--format", "native-8bit", "-o", "s2")
    (tmp_path / "home" / made.name).rename(tmp_path / "away")  # the copies do without the originals
    models = ["--set", "stage1.model=./s1", "--set", "stage2.model=./s2"]
    Path("lyrics.txt").write_text("[verse]\nOne light\n")
    texts = ["--genre", "slow folk", "--lyrics", "lyrics.txt", "--seed", "7", "--segments", "1"]
    done("stage1", "song", *texts, *SHORT, *models)
    done("stage2", "song")
    manifest = json.loads(Path("song/stage1/manifest.json").read_text())
    assert manifest["model"] == {"name": str(tmp_path / "s1"), "revision": None, "format": "native-4bit"}
    assert json.loads(Path("song/stage2/manifest.json").read_text())["model"]["format"] == "native-8bit"
    assert "native-4bit" in done("status", "song").out


def test_a_model_of_the_hub_goes_to_yue_s_home_under_its_name(tmp_path: Path) -> None:
    made = toy.make(tmp_path / "toys")
    in_cache(tmp_path, "en-cot", made / "stage1")
    answer = done("quantize", "en-cot", "--format", "native-8bit", "--json").answer
    assert answer["name"] == "en-cot@native-8bit"
    assert Path(answer["path"]).parent == tmp_path / "home" / "quantized"
    assert done("models", "path", "en-cot@native-8bit").out == f"{answer['path']}\n"
    assert "right" in done("models", "verify", "en-cot@native-8bit").out
    card = (Path(answer["path"]) / "README.md").read_text()
    assert f"at `{CATALOGUE['en-cot'].revision}`" in card
    assert "license: apache-2.0" in card
    Path("lyrics.txt").write_text("[verse]\nOne light\n")
    texts = ["--genre", "slow folk", "--lyrics", "lyrics.txt", "--seed", "7"]
    done("stage1", "song", *texts, *SHORT, "--set", "stage1.model=en-cot@native-8bit")
    model = json.loads(Path("song/stage1/manifest.json").read_text())["model"]
    assert model == {
        "name": "en-cot@native-8bit",
        "revision": CATALOGUE["en-cot"].revision,
        "format": "native-8bit",
    }
    assert done("models", "rm", "en-cot@native-8bit").code == 0
    assert not Path(answer["path"]).exists()


def test_what_is_there_is_kept(original: Path) -> None:
    done("quantize", original, "--format", "native-8bit", "-o", "copy")
    os.utime("copy/model.safetensors", ns=(LONG_AGO, LONG_AGO))
    outcome = done("quantize", original, "--format", "native-8bit", "-o", "copy", "--json")
    assert outcome.answer["made"] is False
    assert "is there already: kept" in outcome.err
    assert Path("copy/model.safetensors").stat().st_mtime_ns == LONG_AGO


def test_an_empty_folder_may_be_filled(original: Path) -> None:
    Path("copy").mkdir()
    done("quantize", original, "--format", "native-8bit", "-o", "copy")
    assert Path("copy/quantized.json").exists()


@pytest.mark.usefixtures("small_files")
def test_an_interrupted_run_goes_on(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["quantize", original, "--format", "native-4bit", "-o"]
    done(*command, "undisturbed")
    write, begun = convert.Conversion.write, []

    def interrupted(conversion, name, target, device, told):
        begun.append(name)
        if len(begun) == 3:
            target.write_bytes(b"half a file")
            raise KeyboardInterrupt
        write(conversion, name, target, device, told)

    monkeypatch.setattr(convert.Conversion, "write", interrupted)
    outcome = yue(*command, "copy")
    count = len(weights(Path("undisturbed")))
    assert count >= 4
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.splitlines()[-1] == (f"interrupted: 2 of {count} files are kept. The same command goes on.")
    assert not Path("copy").exists()
    outcome = done(*command, "copy")
    assert f"2 of {count} files are there: going on" in outcome.err
    assert begun == [*list(weights(Path("copy")))[:3], *list(weights(Path("copy")))[2:]]
    assert weights(Path("copy")) == weights(Path("undisturbed"))
    assert not list(Path().glob(".copy*"))


@pytest.mark.usefixtures("small_files")
def test_a_kept_file_that_was_damaged_is_written_again(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["quantize", original, "--format", "native-4bit", "-o"]
    done(*command, "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(quantize, "write_record", interrupt)
        assert yue(*command, "copy").code == 130
    first = sorted(Path(".copy.unfinished").glob("*.safetensors"))[0]
    first.write_bytes(b"x" * first.stat().st_size)
    done(*command, "copy")
    assert weights(Path("copy")) == weights(Path("undisturbed"))


@pytest.mark.usefixtures("small_files")
def test_what_was_begun_from_other_weights_is_begun_anew(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(quantize, "write_record", interrupt)
        assert yue("quantize", original, "--format", "native-4bit", "-o", "copy").code == 130
    save_file(random_tensors(seed=5), original / "model.safetensors")
    done("quantize", original, "--format", "native-4bit", "-o", "copy")
    done("quantize", original, "--format", "native-4bit", "-o", "undisturbed")
    assert weights(Path("copy")) == weights(Path("undisturbed"))


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from yue_cli.engines.native import convert
    from yue_cli.main import execute

    convert.SHARD_BYTES = 400_000
    limit, *arguments = sys.argv[1:]
    seen = 0

    def watch(event, details):
        global seen
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and not isinstance(details[0], int):
            if "copy" in os.fsdecode(details[0]):
                seen += 1
                if seen == int(limit):
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.exit(execute(arguments))
    """
)


@pytest.mark.slow
@pytest.mark.parametrize("operation", [3, 8, 14, 25, 35])
def test_a_killed_run_leaves_nothing_that_is_taken_for_whole(original: Path, operation: int) -> None:
    command = ["quantize", str(original), "--format", "native-8bit", "-o", "copy"]

    def run(limit: int) -> int:
        return subprocess.run([sys.executable, "-c", KILLED, str(limit), *command], check=False).returncode

    assert run(operation) == -signal.SIGKILL
    assert not Path("copy").exists() or Path("copy/quantized.json").exists()
    assert run(10**9) == 0
    done(*command[:-1], "undisturbed", "--json")
    assert b"".join(weights(Path("copy")).values()) != b""
    assert set(contents(Path("copy"))) - {"model.safetensors.index.json"} >= {"config.json", "quantized.json"}
    record = json.loads(Path("copy/quantized.json").read_text())
    assert {name: facts["sha256"] for name, facts in record["files"].items()} == {
        path.name: sha256(path) for path in Path("copy").glob("*.safetensors")
    }
    assert not list(Path().glob(".copy*"))


@pytest.mark.slow
def test_a_model_much_larger_than_memory_would_do(tmp_path: Path) -> None:
    """270 MB of weights are quantized with far less: a process that only loads PyTorch is the measure."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "vocab_size": 32768}
    config = {**CONFIG, **sizes, "num_attention_heads": 16, "num_key_value_heads": 16}
    folder = tmp_path / "large"
    write_checkpoint(folder, config, {name: t.bfloat16() for name, t in random_tensors(config).items()})
    assert (folder / "model.safetensors").stat().st_size > 250 * 10**6

    def peak(*arguments: str) -> int:
        code = (
            "import sys, torch; from yue_cli import quantize; from yue_cli.main import execute\n"
            "code = execute(sys.argv[1:])\n"
            # Not ru_maxrss: that begins with what this process has.
            "told = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]\n"
            "print(told, file=sys.stderr); sys.exit(code)"
        )
        ran = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
        return int(ran.stderr.splitlines()[-1]) * 1024

    idle = peak("--version")
    for format in ("native-4bit", "native-8bit"):
        used = peak("quantize", str(folder), "--format", format, "-o", str(tmp_path / format), "--device", "cpu")
        assert used - idle < 130 * 10**6, f"{format}: {(used - idle) / 1e6:.0f} MB"


# What is refused


def test_a_format_that_is_not_known() -> None:
    assert refused("quantize", "en-cot", "--format", "gguf") == (
        "--format gguf: expected one of native-8bit, native-4bit, exl2."
    )


def test_settings_of_another_format() -> None:
    assert refused("quantize", "en-cot", "--format", "native-4bit", "--bpw", "4") == (
        "--bpw and --head-bits are for --format exl2; native-4bit has its own."
    )


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "--bpw is missing: expected bits a weight from 2 to 8, such as 4.25."),
        (["--bpw", "1.5"], "--bpw 1.5: expected bits a weight from 2 to 8, such as 4.25."),
        (["--bpw", "8.5"], "--bpw 8.5: expected bits a weight from 2 to 8, such as 4.25."),
        (["--bpw", "nan"], "--bpw nan: expected bits a weight from 2 to 8, such as 4.25."),
        (["--bpw", "4", "--head-bits", "7"], "--head-bits 7: expected one of 2, 3, 4, 5, 6, 8."),
    ],
)
def test_settings_of_exl2_that_mean_nothing(flags: list[str], text: str) -> None:
    assert refused("quantize", "en-cot", "--format", "exl2", *flags) == text


def test_exl2_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yue_cli.engines.exl2.extension.reason", lambda: "it needs a CUDA GPU")
    assert refused("quantize", "en-cot", "--format", "exl2", "--bpw", "4.25", "--head-bits", "6") == (
        "--format exl2 cannot be made here: it needs a CUDA GPU. native-4bit needs no GPU and no other package."
    )


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refused("quantize", "./empty", "--format", "native-4bit", "-o", "copy") == (
        f"{tmp_path}/empty: no config.json; expected a folder with a model's files."
    )


def test_a_folder_that_holds_several(tmp_path: Path) -> None:
    made = toy.make(tmp_path)
    assert refused("quantize", made, "--format", "native-4bit", "-o", "copy") == (
        f"{made}: holds several models; name one of them: {made / 'stage1'}."
    )


def test_a_name_that_is_none() -> None:
    assert refused("quantize", "no model", "--format", "native-4bit") == (
        "no model: there is no such folder; expected a folder with config.json and model.safetensors, en-cot, en-icl, "
        "zh-cot, zh-icl, jp-kr-cot, jp-kr-icl, s2, or a hub id OWNER/NAME."
    )


def test_a_copy_and_a_codec() -> None:
    assert refused("quantize", "en-cot@native-4bit", "--format", "native-8bit") == (
        "en-cot@native-4bit is quantized already; expected an original model, such as en-cot."
    )
    assert refused("quantize", "codec", "--format", "native-8bit") == (
        "codec is a codec; stage-1 and stage-2 models are quantized."
    )


def test_songs_without_a_stage(original: Path) -> None:
    assert refused("quantize", original, "song", "--format", "native-4bit", "-o", "copy") == (
        f"of which stage {original} is is not clear: give --stage stage1 or stage2."
    )
    assert refused("quantize", original, "--format", "native-4bit", "-o", "copy", "--stage", "codec") == (
        "--stage codec: expected stage1 or stage2."
    )
    assert not Path("copy").exists()


def test_a_quantized_folder(original: Path) -> None:
    done("quantize", original, "--format", "native-8bit", "-o", "copy")
    assert refused("quantize", "./copy", "--format", "native-4bit", "-o", "other") == (
        f"{Path('copy').resolve()}: is quantized already (native-8bit); expected an original model."
    )


def test_a_model_that_is_not_here() -> None:
    assert refused("quantize", "en-cot", "--format", "native-4bit", "--offline").startswith(
        "en-cot is not on this machine, and offline nothing is fetched: `yue models pull en-cot`"
    )


def test_a_folder_of_the_user_s_own_needs_a_place(original: Path) -> None:
    assert refused("quantize", original, "--format", "native-4bit") == (
        f"{original} is a folder: say with -o FOLDER where its copy is to lie."
    )


def test_something_else_is_in_the_way(original: Path) -> None:
    Path("song").mkdir()
    Path("song/lyrics.txt").write_text("mine")
    place = Path("song").resolve()
    assert refused("quantize", original, "--format", "native-4bit", "-o", "song") == (
        f"{place}: exists and is no quantized model; remove it, or name another folder with -o."
    )
    assert contents(Path("song")) == {"lyrics.txt": b"mine"}
    assert refused("quantize", original, "--format", "native-4bit", "-o", "song/lyrics.txt") == (
        f"{place}/lyrics.txt: exists and is a file; remove it, or name another folder with -o."
    )
    done("quantize", original, "--format", "native-8bit", "-o", "copy")
    before = contents(Path("copy"))
    assert refused("quantize", original, "--format", "native-4bit", "-o", "copy") == (
        f"{Path('copy').resolve()}: exists and holds native-8bit of original, of other weights or settings; remove it, "
        "or name another folder with -o."
    )
    assert contents(Path("copy")) == before


def test_too_little_disk_is_known_before_it_starts(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "free_bytes", lambda folder: 10**6)
    before = set(Path().iterdir())
    line = refused("quantize", original, "--format", "native-8bit", "-o", "copy")
    needed = sum(convert.Conversion(original, "native-8bit").files.values()) + 10**6
    assert line == (
        f"no space left on {Path().resolve()}: needed {needed / 1e6:.1f} MB, free 1.0 MB. Free some space, or name a "
        "folder on another disk with -o."
    )
    assert {path for path in Path().iterdir() if path.name == "copy"} <= before


def test_a_disk_that_fills_up_keeps_what_is_finished(
    original: Path, small_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, begun = convert.Conversion.write, []

    def full(conversion, name, target, device, told):
        begun.append(name)
        if len(begun) == 2:
            raise OSError(28, "No space left on device")
        write(conversion, name, target, device, told)

    monkeypatch.setattr(convert.Conversion, "write", full)
    line = refused("quantize", original, "--format", "native-8bit", "-o", "copy")
    assert line.startswith(f"no space left for {Path().resolve()}/.copy.unfinished/{begun[1]} (")
    done("quantize", original, "--format", "native-8bit", "-o", "copy")
    assert begun.count(begun[0]) == 1


def test_two_at_once(original: Path) -> None:
    Path(".copy.unfinished").mkdir()
    with FileLock(".copy.unfinished/.lock"):
        assert refused("quantize", original, "--format", "native-8bit", "-o", "copy") == (
            f"{Path('copy').resolve()}: another yue is making it; wait for that one."
        )
