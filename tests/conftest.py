import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# Set before numpy and torch are imported. Tests compute small things: threads that wait for each other on a busy
# machine cost far more time than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Set before huggingface_hub is imported: no test asks a real hub, or finds models that the user has.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "yue-no-models")  # never made

from tests.command_line import GENRE, LYRICS, SEED, SHORT, done

# A busy machine is no fault of what is tested.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_collection_finish() -> None:
    """Keep what is loaded by now out of every later collection of garbage: a run ends with two, on all of torch."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """One home for all tests, in which the toy is made once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def enough_memory(monkeypatch) -> None:
    """More than any published model needs, whatever the machine that runs the tests has."""
    monkeypatch.setattr("yue_cli.machine.measure_free_bytes", lambda device: 64 * 10**9)


@pytest.fixture
def place(home, tmp_path, monkeypatch) -> Path:
    """Work in an empty folder but for lyrics, with the toy at hand."""
    monkeypatch.setenv("YUE_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    Path("lyrics.txt").write_text(LYRICS)
    return tmp_path


@pytest.fixture(scope="session")
def finished_song(home, tmp_path_factory) -> Path:
    """A whole song, sung once."""
    folder = tmp_path_factory.mktemp("songs")
    (folder / "lyrics.txt").write_text(LYRICS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YUE_HOME", str(home))
        done("run", folder / "song", *SHORT, "--lyrics", folder / "lyrics.txt", "--genre", GENRE, "--seed", SEED)
    return folder / "song"


@pytest.fixture
def song(finished_song, place) -> Path:
    """A whole song of one's own."""
    return Path(shutil.copytree(finished_song, place / "song"))
