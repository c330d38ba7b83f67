"""exllamav2's converter over rows of ids, as a program of its own: `python -m yue_cli.engines.exl2.converter FOLDER`.

FOLDER holds `job.json` and the rows; `conversion.py` writes both and listens. The steps are those of exllamav2's
`conversion/convert_exl2.py`, which itself needs a tokenizer that YuE's models do not have: measure what each layer
loses in each mixture of bits, choose the mixtures that fit, quantize, write. exllamav2 prints, and ends the process
where it fails; that is why it has one. What is done is kept in `job.json`, so it goes on where it stood.
"""

import json
import sys
from pathlib import Path
from typing import Any

from yue_cli.atomic import write_bytes

JOB_FILE, ROWS_FILE = "job.json", "rows.safetensors"
STEPS = ("embed to measure", "measure", "choose", "embed", "quantize", "write", "done")
_BACK = {"measure": "embed to measure", "quantize": "embed"}  # from a step that was cut off while it saved
_MEASURED_OUTPUT = 16  # rows of logits that are computed while layers are measured: none are wanted


def main(folder: Path) -> None:
    """Go on with the job in a folder until it is done."""
    from exllamav2 import ExLlamaV2, ExLlamaV2Config
    from exllamav2.conversion.compile import compile_model
    from exllamav2.conversion.measure import embeddings, measure_quant
    from exllamav2.conversion.optimize import optimize
    from exllamav2.conversion.quantize import quant

    path = folder / JOB_FILE
    job: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config = ExLlamaV2Config()
    config.model_dir = job["in_dir"]
    config.prepare()
    config.arch_compat_overrides()

    def save() -> None:
        write_bytes(path, json.dumps(job).encode())

    def model(outputs: int | None = None) -> Any:
        config.max_output_len = outputs
        opened = ExLlamaV2(config)
        opened.load(lazy=True)
        return opened

    def embed() -> None:
        measured = job["progress"] == STEPS[0]
        use_rows(folder, job, job["measurement_rows"] if measured else job["dataset_rows"])
        embeddings(job, save, model())

    def write() -> None:
        for other in Path(job["compile_full"]).glob("output*.safetensors"):  # of a run that was cut off here
            other.unlink()
        compile_model(job, save, model())

    work = {
        "embed to measure": embed,
        "measure": lambda: measure_quant(job, save, model(_MEASURED_OUTPUT), 0),
        "choose": lambda: optimize(job, save, model()),
        "embed": embed,
        "quantize": lambda: quant(job, save, model()),
        "write": write,
    }
    recover(job)
    while job["progress"] != "done":
        work[job["progress"]]()
        job["progress"] = STEPS[STEPS.index(job["progress"]) + 1]
        save()


def use_rows(folder: Path, job: dict[str, Any], count: int) -> None:
    """Lay the first rows where exllamav2 looks for its calibration data."""
    from safetensors.numpy import load_file, save_file

    target = folder / "cal_data.safetensors"
    ids = load_file(folder / ROWS_FILE)["input_ids"]
    save_file({"input_ids": ids[:count]}, target)
    job["cal_filename"] = str(target)


def recover(job: dict[str, Any]) -> None:
    """Begin a step anew that was cut off while exllamav2 replaced its states."""
    if job.pop("invalid", False):
        job["progress"] = _BACK.get(job["progress"], job["progress"])
    if job["progress"] == "embed to measure":
        job.pop("last_module_idx", None)
        job.pop("measurement", None)
    if job["progress"] == "embed":
        job.pop("q_last_module_idx", None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
