"""`yue quantize --format exl2`: what the converter gets, and what is made of its work. A stand-in converts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.random_exl2 import write_model
from tests.command_line import done, refused, yue
from tests.exl2_stand_in import ExtensionStandIn
from tests.test_exl2_engine import here  # noqa: F401
from yue_cli import calibration, quantize_exl2
from yue_cli.engines.exl2 import conversion
from yue_cli.errors import ArtifactError
from yue_cli.replay import Row

BITS = ("--format", "exl2", "--bpw", "5")


class Converter:
    """Rounds weights in place of exllamav2's converter, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.is_interrupted = False

    def __call__(self, source: Path, target: Path, work: Path, rows: np.ndarray, **more: Any) -> None:
        work.mkdir(exist_ok=True)
        self.asked.append({"source": source, "rows": rows, "bits": more["bits"], "head_bits": more["head_bits"]})
        if self.is_interrupted:
            raise KeyboardInterrupt
        config, weights = json.loads((source / "config.json").read_text()), load_file(source / "model.safetensors")
        write_model(target, config, more["bits"], more["head_bits"], generator=torch.Generator(), weights=weights)
        shutil.rmtree(work)


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch, here: ExtensionStandIn) -> Converter:  # noqa: F811
    stand_in = Converter()
    monkeypatch.setattr(conversion, "convert", stand_in)
    monkeypatch.setattr(conversion, "LENGTH", 32)
    monkeypatch.setattr("yue_cli.machine.device_name", lambda device: "a GPU")
    monkeypatch.setattr("yue_cli.quantize_exl2.machine.choose_device", lambda name: torch.device("cpu"))
    return stand_in


@pytest.fixture
def toy(song: Path, home: Path) -> Path:
    (folder,) = home.glob("toy-*/stage1")
    return folder


def test_a_copy_is_fitted_to_songs_and_measured_on_them(song: Path, toy: Path, converter: Converter) -> None:
    outcome = done("quantize", toy, song, *BITS, "--head-bits", "8", "-o", "copy", "--stage", "stage1", "--json")
    (asked,) = converter.asked
    assert (asked["source"], asked["bits"], asked["head_bits"]) == (toy, 5, 8)
    assert asked["rows"].shape[1] == 32
    assert outcome.answer["made"] is True
    (quality,) = outcome.answer["quality"]
    assert 0 < quality["kl"] < 1
    record = json.loads(Path("copy/quantized.json").read_text())
    assert record["settings"]["songs"] == "song"
    assert (record["settings"]["bits"], record["settings"]["rows"]) == (5, len(asked["rows"]))
    assert sorted(path.name for path in Path("copy").glob("*.safetensors")) == sorted(record["files"])
    assert "quantized by `yue` for its exl2 engine" in Path("copy/README.md").read_text()
    assert Path("copy/tokenizer.model").exists()
    assert [path.name for path in Path().iterdir() if "unfinished" in path.name] == []

    assert (
        "is there already: kept"
        in done("quantize", toy, song, *BITS, "--head-bits", "8", "-o", "copy", "--stage", "stage1").err
    )
    assert len(converter.asked) == 1


def test_few_rows_are_warned_of(song: Path, toy: Path, converter: Converter) -> None:
    outcome = done("quantize", toy, song, *BITS, "-o", "copy", "--stage", "stage2")
    count = len(converter.asked[0]["rows"])
    assert f"{count} rows of 32 tokens are few to fit weights to; give more songs" in outcome.err
    assert converter.asked[0]["head_bits"] == 6


def test_an_interrupted_conversion_is_kept(song: Path, toy: Path, converter: Converter) -> None:
    converter.is_interrupted = True
    outcome = yue("quantize", toy, song, *BITS, "-o", "copy", "--stage", "stage1")
    assert outcome.code == 130
    work = Path(".copy.unfinished/work").absolute()
    assert f"what was done is kept in {work}. The same command goes on." in outcome.err
    assert work.is_dir()
    converter.is_interrupted = False
    done("quantize", toy, song, *BITS, "-o", "copy", "--stage", "stage1")
    assert not work.exists()


def test_another_format_takes_over_where_one_was_interrupted(song: Path, toy: Path, converter: Converter) -> None:
    begun = Path(".copy.unfinished")
    exl2 = ("quantize", toy, song, *BITS, "-o", "copy", "--stage", "stage1")
    converter.is_interrupted = True
    assert yue(*exl2).code == 130
    done("quantize", toy, "--format", "native-4bit", "-o", "copy")
    assert {path.name for path in Path("copy").glob("*.safetensors")} == {"model.safetensors"}
    assert not Path("copy/work").exists()

    Path("copy").rename(begun)
    (begun / "progress.json").write_text("{}")
    converter.is_interrupted = False
    done(*exl2)
    assert all(path.name.startswith("output") for path in Path("copy").glob("*.safetensors"))
    assert not Path("copy/progress.json").exists()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the toy sing little."""
    monkeypatch.setattr(calibration, "SONGS", {"stage1": 2, "stage2": 1})
    monkeypatch.setattr(calibration, "SETTINGS", {"stage1.min_new_tokens": 60, "stage1.max_new_tokens": 60})
    monkeypatch.setattr("yue_cli.models.choose_stage1", lambda language, has_reference: "toy")


def sung(stage: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(Path(".copy.songs").glob(f"*/{stage}/manifest.json"))]


def test_without_songs_the_model_sings_some(place: Path, toy: Path, converter: Converter, short: None) -> None:
    command = ("quantize", toy, *BITS, "-o", "copy", "--stage", "stage1", "--json")
    outcome = done(*command)
    assert f"no songs are named: {toy} sings the example texts, 2 times" in outcome.err
    assert len(converter.asked[0]["rows"]) >= 4
    record = json.loads(Path("copy/quantized.json").read_text())
    assert record["settings"]["songs"] == "2 of the example texts, sung by the original"
    assert record["quality"] == outcome.answer["quality"]
    assert record["quality"][0]["tokens"] == 4 * 60
    assert not Path(".copy.songs").exists()

    again = done(*command)  # nothing is sung to find out that all is there
    assert (again.answer["made"], again.answer["quality"]) == (False, record["quality"])
    assert "sings the example texts" not in again.err


def test_what_was_sung_is_kept_until_the_copy_is_finished(
    place: Path, toy: Path, converter: Converter, short: None
) -> None:
    converter.is_interrupted = True
    command = ("quantize", toy, *BITS, "-o", "copy", "--stage", "stage1")
    assert yue(*command).code == 130
    first, second = before = sung("stage1")
    assert first["model"]["name"] == second["model"]["name"] == str(toy)
    assert (first["seed"], second["seed"]) == (1, 2)
    converter.is_interrupted = False
    done(*command)
    assert len(before) == 2
    assert np.array_equal(converter.asked[0]["rows"], converter.asked[1]["rows"])
    assert not Path(".copy.songs").exists()


def test_a_stage_2_model_fills_in_what_the_usual_stage_1_sang(
    place: Path, home: Path, toy: Path, converter: Converter, short: None
) -> None:
    original = toy.parent / "stage2"
    outcome = done("quantize", original, *BITS, "-o", "copy", "--stage", "stage2", "--json")
    assert outcome.answer["quality"][0]["stage"] == "stage2"
    assert converter.asked[0]["source"] == original


def test_songs_that_cannot_be_sung_are_told_of(
    place: Path, toy: Path, converter: Converter, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yue_cli.models.choose_stage1", lambda language, has_reference: "en-cot")
    message = refused("quantize", toy.parent / "stage2", *BITS, "-o", "copy", "--stage", "stage2", "--offline")
    assert message.startswith("en-cot is not on this machine, and offline nothing is fetched")


def test_a_native_copy_is_measured_on_songs_of_the_original(place: Path, toy: Path, short: None) -> None:
    command = ("quantize", toy, "--format", "native-8bit", "-o", "copy", "--stage", "stage1", "--json")
    assert done(*command).answer["quality"] == []
    assert "sings the example texts" not in done(*command).err
    (quality,) = done(*command, "--sing").answer["quality"]
    assert 0 < quality["kl"] < 0.1
    assert done(*command, "--sing").answer["quality"] == [quality]


def test_a_folder_and_a_stage_are_needed(song: Path, toy: Path, converter: Converter) -> None:
    assert refused("quantize", toy, song, *BITS, "--stage", "stage1") == (
        "--format exl2: say with -o FOLDER where the copy is to lie."
    )
    assert refused("quantize", toy, *BITS, "-o", "copy") == (
        f"of which stage {toy} is is not clear: give --stage stage1 or stage2."
    )


def test_what_cannot_be_converted_is_refused_before_anything_is_sung(
    place: Path, toy: Path, converter: Converter, short: None
) -> None:
    copied = Path(shutil.copytree(toy, "other")).resolve()
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    command = ("quantize", copied, *BITS, "-o", "copy", "--stage", "stage1")
    assert refused(*command) == f"{copied}/config.json: `model_type` is 'qwen2'; this engine reads 'llama' only."
    (copied / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "exl2"}}))
    assert refused(*command) == f"{copied}: is quantized already; expected an original model."
    assert not Path(".copy.songs").exists()


def test_room_on_the_disk_is_looked_at_first(
    song: Path, toy: Path, converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yue_cli.hub.free_bytes", lambda path: 1000)
    message = refused("quantize", toy, song, *BITS, "-o", "copy", "--stage", "stage1")
    assert message.startswith(f"no space left on {Path.cwd()}: needed 0.0 GB while it is made, free 0.0 GB. Free some")
    assert refused("quantize", toy, *BITS, "-o", "copy", "--stage", "stage1").startswith("no space left on")
    assert converter.asked == []
    assert not Path(".copy.songs").exists()


def row(count: int, start: int) -> Row:
    return Row(np.arange(count), start, np.zeros(count - 1 - start, np.int64), ())


def test_pieces_begin_a_little_before_what_was_sung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "LENGTH", 8)
    found = quantize_exl2.cut([row(20, start=1), row(40, start=20)])
    assert found[:, 0].tolist() == [0, 8, 17, 25]
    assert found[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert found.dtype == np.int64


def test_no_more_rows_than_help_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "LENGTH", 1)
    monkeypatch.setattr(conversion, "MOST_ROWS", 3)
    assert quantize_exl2.cut([row(9, start=0)]).ravel().tolist() == [1, 5, 8]


def test_songs_that_are_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError) as error:
        quantize_exl2.cut([row(9, start=0)])
    assert str(error.value) == (
        "the songs to calibrate on are too short: expected rows of 2048 tokens, the longest has 9. Name longer songs."
    )
