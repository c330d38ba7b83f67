"""Converting to EXL2: what exllamav2's converter is given, and what is told and kept. A stand-in converts."""

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.tiny_llama import CONFIG, write_checkpoint
from yue_cli.engines.exl2 import conversion, converter, extension
from yue_cli.engines.exl2.conversion import convert
from yue_cli.errors import EngineError
from yue_cli.events import Event, Finished, Progress

ROWS = np.arange(20 * 8).reshape(20, 8)

# The functions that the real converter has, by the names and arguments of exllamav2 0.3.2. Each writes down its call.
PACKAGE = {
    "__init__": """
        class ExLlamaV2Config:
            max_output_len = None
            def prepare(self): assert self.model_dir
            def arch_compat_overrides(self): pass
        class ExLlamaV2:
            def __init__(self, config): self.config = config
            def load(self, lazy): assert lazy
    """,
    "conversion/__init__": "",
    "conversion/said": """
        import json, pathlib
        def note(job, *what):
            with open(pathlib.Path(job["out_dir"]).parent / "calls", "a") as file: file.write(json.dumps(what) + "\\n")
        def status(stage, completion):
            print("[STATUS]" + json.dumps({"stage": stage, "completion": completion}) + "[/STATUS]")
    """,
    "conversion/measure": """
        from exllamav2.conversion.said import note, status
        from safetensors.numpy import load_file
        def embeddings(job, save_fn, model):
            note(job, "embed", list(load_file(job["cal_filename"])["input_ids"].shape), job.get("q_last_module_idx"))
        def measure_quant(job, save_fn, model, hidden_state_offload_layers):
            note(job, "measure", model.config.max_output_len, job.get("last_module_idx"))
            status("Measuring", 0.5)
            job["last_module_idx"] = 3
            job["measurement"] = {"of": "layers"}
            save_fn()
            status("Measuring", 1.0)
            return "completed"
    """,
    "conversion/optimize": """
        from exllamav2.conversion.said import note, status
        def optimize(job, save_fn, model):
            note(job, "choose", job["bits"], job["measurement"])
            status("Optimizing", 0.0042)
            status("Optimizing", 0.9)  # the last that it may say
            job["strategy"] = {"layer": 1}
    """,
    "conversion/quantize": """
        import os, pathlib
        from exllamav2.conversion.said import note, status
        def quant(job, save_fn, model):
            note(job, "quantize", job["head_bits"], job.get("q_last_module_idx"))
            status("Quantizing", 0.2857)
            trouble = pathlib.Path(job["out_dir"]).parent / "trouble"
            if trouble.exists():
                job["q_last_module_idx"] = 2
                if trouble.read_text() == "while saving":
                    job["invalid"] = True
                save_fn()
                trouble.unlink()
                print(" ## Quantization error (2)")
                print(" -- Layer: model.layers.1")
                os._exit(1)
            status("Quantizing", 1.0)
    """,
    "conversion/compile": """
        import pathlib
        from exllamav2.conversion.said import note
        def compile_model(job, save_fn, model):
            note(job, "write")
            target = pathlib.Path(job["compile_full"])
            (target / "output.safetensors").write_text("weights")
            (target / "model.safetensors.index.json").write_text("of the source")
    """,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, where a stand-in for exllamav2 can be imported by a new process."""
    for name, code in PACKAGE.items():
        path = tmp_path / "site" / "exllamav2" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code))
    root = Path(__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{root}")
    monkeypatch.setattr(extension, "load", lambda emit: None)
    write_checkpoint(tmp_path / "model")
    (tmp_path / "made").mkdir()
    return tmp_path


def converted(place: Path, bits: float = 4.25, rows: np.ndarray = ROWS) -> list[Event]:
    events: list[Event] = []
    convert(place / "model", place / "made", place / "work", rows, bits=bits, emit=events.append)
    return events


def calls(place: Path) -> list[list]:
    return [json.loads(line) for line in (place / "calls").read_text().splitlines()]


def test_every_step_is_taken_with_the_rows_that_were_given(place: Path) -> None:
    events = converted(place)
    assert calls(place) == [
        ["embed", [16, 8], None],
        ["measure", 16, None],
        ["choose", 4.25, {"of": "layers"}],
        ["embed", [20, 8], None],
        ["quantize", 6, None],
        ["write"],
    ]
    assert [path.name for path in (place / "made").iterdir()] == ["output.safetensors"]
    assert not (place / "work").exists()
    modules = 2 * CONFIG["num_hidden_layers"] + 3
    measured, chosen, quantized = [event for event in events if isinstance(event, Finished)]
    assert (measured.topic, measured.label, measured.done) == ("quantize", "measuring layers", modules - 4)
    assert (chosen.label, chosen.done, chosen.unit) == ("choosing bits", 215, "tries")
    assert (quantized.label, quantized.unit) == ("quantizing layers", "modules")
    assert Progress("quantize", "quantizing layers", 2, modules, "modules") in events


def test_a_failed_conversion_says_why_and_goes_on_where_it_stood(place: Path) -> None:
    (place / "trouble").write_text("in a layer")
    with pytest.raises(EngineError) as error:
        converted(place)
    assert str(error.value) == (
        f"exllamav2 could not convert {place}/model (Quantization error (2)). What was done is kept in {place}/work; "
        "the same command goes on."
    )
    (place / "calls").unlink()
    converted(place)
    assert calls(place) == [["quantize", 6, 2], ["write"]]


def test_states_that_were_cut_off_while_they_were_saved_are_made_anew(place: Path) -> None:
    (place / "trouble").write_text("while saving")
    with pytest.raises(EngineError):
        converted(place)
    (place / "calls").unlink()
    converted(place)
    assert calls(place) == [["embed", [20, 8], None], ["quantize", 6, None], ["write"]]


def test_other_settings_or_rows_begin_anew(place: Path) -> None:
    (place / "trouble").write_text("in a layer")
    with pytest.raises(EngineError):
        converted(place)
    (place / "calls").unlink()
    converted(place, bits=5.0, rows=ROWS[:9])
    assert [call[0] for call in calls(place)] == ["embed", "measure", "choose", "embed", "quantize", "write"]
    assert calls(place)[0][1] == [9, 8]


def test_the_rows_that_were_begun_with_are_known_by_their_ids(place: Path) -> None:
    (place / "trouble").write_text("in a layer")
    with pytest.raises(EngineError):
        converted(place)
    (place / "calls").unlink()
    converted(place, rows=ROWS + 1)
    assert calls(place)[0][0] == "embed"


def test_files_of_a_run_that_was_cut_off_while_it_wrote_are_not_taken_for_its_own(place: Path) -> None:
    (place / "made" / "output-00001-of-00002.safetensors").write_text("of more bits")
    converted(place)
    assert [path.name for path in (place / "made").iterdir()] == ["output.safetensors"]


def test_a_cut_off_measurement_begins_anew() -> None:
    job = {"progress": "measure", "invalid": True, "last_module_idx": 5, "measurement": {}}
    converter.recover(job)
    assert job == {"progress": "embed to measure"}
    job = {"progress": "measure", "last_module_idx": 5}
    converter.recover(job)
    assert job == {"progress": "measure", "last_module_idx": 5}


def test_a_converter_that_says_nothing_is_told_of(place: Path) -> None:
    (place / "site" / "exllamav2" / "conversion" / "compile.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(EngineError, match=r"could not convert .*/model \(without a word\)"):
        converted(place)


def test_the_disk_that_it_takes_is_known(place: Path) -> None:
    layers, table = 2 * (256 * 768 + 3 * 256 * 384), 512 * 256
    weights = round((layers * 4 + table * 6) / 8)
    assert conversion.disk_bytes(place / "model", bits=4, head_bits=6, rows=10) == (
        2 * 2 * 10 * 2048 * 256 + 2 * weights + 2 * table
    )


def test_rows_are_kept_as_they_were_given(place: Path) -> None:
    (place / "trouble").write_text("in a layer")
    with pytest.raises(EngineError):
        converted(place)
    assert np.array_equal(load_file(place / "work" / converter.ROWS_FILE)["input_ids"], ROWS)
