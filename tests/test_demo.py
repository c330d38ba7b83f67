"""The song of `yue demo`, as anybody makes it first: trained models, through the code that runs the published ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import done
from yue_cli import tiny
from yue_cli.audio_files import read_audio
from yue_cli.vocab import Vocabulary

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "song"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YUE_HOME", str(folder.parent / "home"))
        assert done("demo", folder, "--seed", 1).out == f"{folder}/audio/mix.wav\n"
    return folder


def test_both_sections_end_by_themselves_at_a_bar(song: Path) -> None:
    manifest = json.loads((song / "stage1/manifest.json").read_text())
    assert manifest["truncated"] == []
    assert manifest["model"]["about"] == tiny.ABOUT
    vocabulary = Vocabulary.read(Path(next((song.parent / "home").glob("tiny-*"))) / "stage1")
    for path in sorted((song / "stage1/segments").glob("*.npy")):
        ids = np.load(path)
        assert ids[-1] == vocabulary.end_of_audio
        assert len(ids) // 2 % 64 == 0, "four bars are 64 sixteenths of whole frames"


def test_a_voice_sings_and_a_band_plays(song: Path) -> None:
    """Figures, not samples: another processor may choose another id."""
    levels = {}
    for name in ("vocal", "instrumental", "mix"):
        samples, rate = read_audio(song / f"audio/{name}.wav")
        levels[name] = np.sqrt(np.square(samples.reshape(-1, rate // 50)).mean(1))  # of every frame
    assert 10 < len(levels["mix"]) / 50 < 50
    is_sung = levels["vocal"] > 1e-3
    assert 0.3 < is_sung.mean() < 0.9, "a voice rests between its lines"
    assert (levels["instrumental"] > 1e-3).mean() > 0.9, "a band plays on"
    assert levels["vocal"][is_sung].mean() > 0.02
