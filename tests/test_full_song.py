"""The program that times whole songs on GPUs, tried on a small model and a CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_small_song_is_timed_and_goes_on_after_a_kill(tmp_path):
    command = [sys.executable, "-m", "benchmarks.full_song", "--device", "cpu", "--tiny", "--tokens", "40"]
    command += ["--steps", "song", "resume", "--folder", str(tmp_path / "songs"), "--out", str(tmp_path / "out.json")]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "songs")  # the codec has its published size: 1.5 GB
    found = json.loads((tmp_path / "out.json").read_text())
    assert "failed" not in found["song"] | found["resume"], done.stdout
    assert found["song"]["music_s"] == pytest.approx(0.8)
    assert found["song"]["loading_s"].keys() == {"stage 1", "stage 2", "decode"}
    assert found["resume"]["different"] == []
