"""Presets, example texts, the toy tokenizer and the trained codec are found in a checkout and an installed package."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from xcodec_mini_infer.checkpoint import CODEC_FILE, INSTRUMENTAL_FILE, VOCAL_FILE
from yue_cli.resources import expanded, resource
from yue_cli.tokenizer import TOKENIZER_FILE
from yue_cli.vocab import VOCABULARY_FILE

ROOT = Path(__file__).parent.parent
FILES = [
    *(f"checkpoints/tiny/codec/{name}" for name in ("config.json", CODEC_FILE, VOCAL_FILE, INSTRUMENTAL_FILE)),
    *(
        f"checkpoints/tiny/{stage}/{name}"
        for stage in ("stage1", "stage2")
        for name in ("config.json", "model.safetensors", TOKENIZER_FILE, VOCABULARY_FILE)
    ),
    "configs/demo.yaml",
    "configs/original.yaml",
    "prompt_egs/lyrics.txt",
    "prompt_egs/genre.txt",
    f"toy/{TOKENIZER_FILE}",
    f"toy/{VOCABULARY_FILE}",
]


@pytest.mark.parametrize("name", FILES)
def test_a_checkout_has_its_data_files(name):
    found = resource(name)
    assert found.is_file()
    assert found.is_relative_to(ROOT)
    assert found.read_bytes()


def test_a_home_folder_is_put_in_where_there_is_one(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/song") == Path("/home/me/song")
    assert expanded("~no-such-user-here/song") == Path("~no-such-user-here/song")
    assert expanded("song~") == Path("song~")


@pytest.mark.slow
def test_a_wheel_brings_its_data_files_and_works_by_itself(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    [wheel] = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
        assert not [name for name in archive.namelist() if name.startswith("tests")]
    # The checkout must not be found: no current folder, no editable installation, the wheel's folder first.
    code = (
        "import sys; sys.path = [sys.argv[1]] + [path for path in sys.path if path.rstrip('/') != sys.argv[2]]; "
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]; "
        "from yue_cli.resources import resource; "
        "[print(resource(name)) for name in sys.argv[3:]]; "
        "from yue_cli.main import execute; sys.exit(execute(['presets']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(unpacked), str(ROOT), *FILES],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = run.stdout.splitlines()
    for name, line in zip(FILES, lines, strict=False):
        assert Path(line).is_file(), line
        assert Path(line) == unpacked / "yue_cli" / "data" / name
        assert Path(line).read_bytes() == resource(name).read_bytes()
    assert "original" in [line.split()[0] for line in lines[len(FILES) :]]
