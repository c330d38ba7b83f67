"""The figures of a codec: floors are what they are called, and a folder is measured through the product."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests import small_codec
from training.codec import evaluate
from training.corpus.dataset import CorpusSong
from xcodec_mini_infer import checkpoint
from yue_cli.stages.decode import open_codec


def test_mu_law_of_four_bits_leaves_silence_and_seven_levels_on_either_side():
    wave = torch.linspace(-1, 1, 10_001)[None]
    copy = evaluate.mu_law(wave)
    found = copy.unique()
    expected = torch.tensor([(256 ** (level / 7) - 1) / 255 for level in range(8)])
    torch.testing.assert_close(found, torch.cat([-expected[1:].flip(0), expected]))
    assert copy[0, 5000] == 0


def test_perplexity_counts_equally_frequent_codes():
    assert evaluate._use(np.array([7, 7, 3, 3, 900, 900])) == {"used": 3, "perplexity": 3.0}
    assert evaluate._use(np.zeros(9, int)) == {"used": 1, "perplexity": 1.0}


@pytest.fixture
def song(tmp_path) -> CorpusSong:
    time = np.arange(44_100) / 44_100
    for track, pitch in (("vocal", 440), ("instrumental", 110)):
        soundfile.write(tmp_path / f"{track}.flac", 0.3 * np.sin(2 * np.pi * pitch * time), 44_100)
    (tmp_path / "score.json").write_text(json.dumps({"frames": 50}))
    return CorpusSong(tmp_path)


def test_a_codec_folder_is_measured_beside_its_floors(song, tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("codec")
    small_codec.write_checkpoint(folder)
    encoder = checkpoint.load_encoder(folder)
    codec = open_codec(folder)
    figures = evaluate.measure(codec, encoder, [song])
    evaluate._draw(folder / "copy.png", codec, encoder, song)
    assert (folder / "copy.png").read_bytes().startswith(b"\x89PNG")
    assert figures["songs"] == 1
    for track in ("vocal", "instrumental"):
        assert figures[f"{track} 16 kHz, 4-bit µ-law"]["si_sdr"] > 10
        assert figures[f"{track} 16 kHz, silence"]["si_sdr"] < -50
        # A steady tone is its own mean spectrum, but for its two ends.
        assert figures[f"{track} 16 kHz, mean spectrum"]["mel"] < 0.3 < figures[f"{track} 16 kHz, silence"]["mel"]
        assert figures[f"{track} codebooks"][0]["used"] >= 1
    assert np.isfinite(figures["mix 44.1 kHz"]["mel"])
