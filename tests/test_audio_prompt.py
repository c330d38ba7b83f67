"""What is asked about reference audio: flags over what was asked before, `song.yaml`, seconds that are there."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from yue_cli.audio_prompt import AudioPrompt, check_files, check_length, combine, read
from yue_cli.errors import ArtifactError, AudioError, SettingsError

FLAGS = "--audio FILE, or --vocal FILE and --instrumental FILE"
DUAL = AudioPrompt(vocal="/v.wav", instrumental="/i.wav", start=2.0, crop=True)


def refusal(kind: type[Exception], action) -> str:
    with pytest.raises(kind) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_one_track_counts_as_the_vocal():
    assert AudioPrompt(audio="/a.mp3").sources == {"vocal": Path("/a.mp3")}
    assert DUAL.sources == {"vocal": Path("/v.wav"), "instrumental": Path("/i.wav")}
    assert AudioPrompt().sources == {}


def test_without_an_end_thirty_seconds_are_used():
    assert (AudioPrompt().end_s, AudioPrompt(start=12.5).end_s, AudioPrompt(end=7).end_s) == (30.0, 42.5, 7)
    assert AudioPrompt(start=0.5).excerpt == "0.5–30.5 s"


def test_what_was_not_asked_for_is_not_written_down():
    assert AudioPrompt().asked() == {}
    assert DUAL.asked() == {"vocal": "/v.wav", "instrumental": "/i.wav", "start": 2.0, "crop": True}
    assert read(DUAL.asked(), Path("song.yaml")) == DUAL
    assert read(None, Path("song.yaml")) is None


def test_no_flags_leave_what_was_asked_before():
    assert combine(DUAL, {}) is DUAL
    assert combine(DUAL, {"audio": None, "start": None}) is DUAL
    assert combine(None, {}) is None


def test_other_seconds_of_the_same_files():
    assert combine(DUAL, {"end": 9.0}) == AudioPrompt(vocal="/v.wav", instrumental="/i.wav", start=2, end=9, crop=True)


def test_other_files_begin_a_new_prompt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert combine(DUAL, {"audio": "song.mp3"}) == AudioPrompt(audio=str(tmp_path / "song.mp3"))


@pytest.mark.parametrize(
    ("before", "flags", "text"),
    [
        (
            None,
            {"vocal": "v.wav"},
            "--vocal is one of two tracks: give --vocal and --instrumental, or one track with --audio. audio-separator "
            "splits a mix into the two.",
        ),
        (
            DUAL,
            {"instrumental": "i.wav"},
            "--instrumental is one of two tracks: give --vocal and --instrumental, or one track with --audio. "
            "audio-separator splits a mix into the two.",
        ),
        (
            None,
            {"audio": "a.wav", "vocal": "v.wav"},
            "--audio is one track alone; give it, or --vocal and --instrumental, not both.",
        ),
        (None, {"start": 3.0}, f"--start is about reference audio, and there is none: give {FLAGS}."),
        (AudioPrompt(), {"crop": True}, f"--crop needs the sound: give {FLAGS}."),
        (DUAL, {"start": -1.0}, "the reference starts at -1 s; expected 0 or more."),
        (DUAL, {"start": float("nan")}, "the reference starts at nan s; expected 0 or more."),
        (
            DUAL,
            {"start": 8.0, "end": 8.5},
            "the reference is used from 8 s to 8.5 s; expected an end at least 1 s after the start.",
        ),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(before, flags, text):
    assert refusal(SettingsError, lambda: combine(before, flags)) == text


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ("song.mp3", "`reference` is 'song.mp3'; expected `audio: FILE` and the like."),
        ({"file": "a"}, "unknown key `reference.file`; known: start, end, crop, audio, vocal, instrumental."),
        ({"start": "2"}, "`reference.start` is '2'; expected seconds."),
        ({"start": True}, "`reference.start` is True; expected seconds."),
        ({"crop": 1}, "`reference.crop` is 1; expected true or false."),
        ({"audio": 7}, "`reference.audio` is 7; expected a file."),
        ({"end": 0.5}, "the reference is used from 0 s to 0.5 s; expected an end at least 1 s after the start."),
    ],
)
def test_a_song_file_with_another_reference_is_named(tree, text):
    assert refusal(ArtifactError, lambda: read(tree, Path("song.yaml"))) == f"song.yaml: {text}"


@pytest.mark.parametrize(
    ("start", "end", "wanted"), [(0, 41, "0 s to 41 s"), (40, None, "40 s to 70 s"), (39, None, "39 s to 69 s")]
)
def test_seconds_past_the_end_are_refused(start, end, wanted):
    text = refusal(AudioError, lambda: check_length(AudioPrompt(start=start, end=end), "a.wav", 39.6))
    assert text == (
        f"a.wav: has 39.60 s of sound, and {wanted} are wanted; expected an excerpt of at least 1 s within it. Change "
        "--start and --end."
    )


def test_the_end_is_told_as_players_do():
    check_length(AudioPrompt(end=40), "a.wav", 39.6)
    check_length(AudioPrompt(start=38.5), "a.wav", 39.6)
    check_length(AudioPrompt(), "a.wav", 1.0)


def test_files_are_measured_by_their_headers(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000 * 3), 16_000)
    prompt = AudioPrompt(audio=str(tmp_path / "a.wav"))
    check_files(prompt)
    text = refusal(AudioError, lambda: check_files(AudioPrompt(audio=prompt.audio, start=2.5)))
    assert text.startswith(f"{tmp_path / 'a.wav'}: has 3.00 s of sound, and 2.5 s to 32.5 s are wanted;")
