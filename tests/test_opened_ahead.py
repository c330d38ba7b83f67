"""Decoders are opened while stage 2 works, where there is room for both: a song is the same, and waits less."""

import numpy as np
import pytest
import soundfile

from tests.command_line import GENRE, SEED, SHORT, done
from yue_cli import making
from yue_cli.stages import decode

pytestmark = pytest.mark.usefixtures("place")

RUN = ["run", "again", *SHORT, "--lyrics", "lyrics.txt", "--genre", GENRE, "--seed", SEED, "-v"]
AHEAD = "decode   toy on cpu while stage 2 was made\n"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Room for both, and what is done with decoders, in order."""
    calls: list[str] = []

    def noted(name: str):
        original = getattr(decode, name)

        def call(*arguments, **options):
            calls.append(name)
            return original(*arguments, **options)

        return call

    monkeypatch.setattr(making, "_has_room", lambda bench: True)
    for name in ("open_codec", "rehearse"):
        monkeypatch.setattr(decode, name, noted(name))
    return calls


def test_a_song_takes_what_was_opened_and_is_the_same(opened, finished_song, place):
    assert AHEAD in done(*RUN).err
    assert opened == ["open_codec", "rehearse"]
    for name in ("mix", "vocal", "instrumental"):
        made, expected = (
            soundfile.read(folder / f"audio/{name}.wav")[0] for folder in (place / "again", finished_song)
        )
        assert np.array_equal(made, expected)


def test_without_room_it_is_opened_when_it_is_needed(opened, monkeypatch, place):
    monkeypatch.setattr(making, "_has_room", lambda bench: False)
    assert AHEAD not in done(*RUN).err
    assert opened == ["open_codec"]


def test_what_fails_there_is_done_again(opened, monkeypatch, place):
    def fail(decoders: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(decode, "rehearse", fail)
    assert AHEAD not in done(*RUN).err
    assert opened == ["open_codec", "open_codec"]


def test_nothing_is_opened_for_a_stage_alone(opened, song):
    done("stage2", "song", "--force")
    assert opened == []


def test_several_songs_share_it(opened, place):
    told = done("run", "again", "--takes", 2, *RUN[2:]).err
    assert told.count(AHEAD) == 1
    assert opened == ["open_codec", "rehearse"]
