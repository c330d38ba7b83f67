"""The program that sings with the presets for cards, tried on a small model and a CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_preset_for_a_small_card_sings_with_its_quantized_copies(tmp_path):
    command = [sys.executable, "-m", "benchmarks.cards", "--device", "cpu", "--tiny", "--tokens", "20"]
    command += ["--presets", "8gb", "--folder", str(tmp_path / "songs"), "--out", str(tmp_path / "out.json")]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "songs")  # the codec has its published size: 1.5 GB
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["copies"]["seconds"]) == ["stage1 native-4bit"]
    assert "failed" not in found["8gb"], done.stdout
    assert found["8gb"]["is_whole"]
    assert "execution.compute_capability = 8.6" in done.stdout
    assert "`8gb` | native-4bit, published |" in "\n".join(found["table"])
