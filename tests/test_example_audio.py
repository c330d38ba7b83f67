"""The example tracks are what their script makes: of one length, in tune, within bounds."""

import numpy as np
import pytest

from tests import example_audio
from yue_cli.audio_files import read_audio
from yue_cli.resources import resource


@pytest.mark.parametrize("name", ["vocal", "instrumental"])
def test_the_tracks_are_those_of_the_script(name: str) -> None:
    path = resource(f"prompt_egs/{name}.ogg")
    assert path.stat().st_size < 150_000
    found, rate = read_audio(path)
    made = getattr(example_audio, name)()[0]
    assert (rate, len(found)) == (44_100, len(made))
    assert np.corrcoef(found, made)[0, 1] > 0.98
    assert 0.3 < np.abs(found).max() < 0.8


def test_the_voice_is_in_tune_and_in_time() -> None:
    found, rate = read_audio(resource("prompt_egs/vocal.ogg"))
    start = 0.0
    for note, beats, _ in example_audio.MELODY:
        middle = int((start + 0.45 * beats * example_audio.BEAT_S) * rate)
        spectrum = np.abs(np.fft.rfft(found[middle : middle + 4096] * np.hanning(4096), 65_536))
        hertz = np.arange(len(spectrum)) * rate / 65_536
        wanted = example_audio.frequency_hz(note)
        near = np.abs(12 * np.log2(np.maximum(hertz, 1) / wanted)) < 1
        strongest = hertz[near][spectrum[near].argmax()]
        assert abs(12 * np.log2(strongest / wanted)) < 0.35, "more than the vibrato"
        start += beats * example_audio.BEAT_S
