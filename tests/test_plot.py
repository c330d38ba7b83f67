"""The picture of a song: its measures against sines, its axes, where sections come from, and what is refused."""

import io
import subprocess
import sys

import numpy as np
import pytest

from tests.command_line import done, refused, yue
from tests.library import tokens
from yue_cli import plot
from yue_cli.artifacts import TRACKS, Manifest, describe_files, write_tokens
from yue_cli.audio_files import SAMPLE_RATE, write_audio
from yue_cli.project import Project, SegmentRecord
from yue_cli.song import Song, write_song

SECONDS = 0.4
PNG = b"\x89PNG\r\n\x1a\n"

pytestmark = pytest.mark.usefixtures("place")


def sine(hertz: float, seconds: float = SECONDS, rate: int = SAMPLE_RATE) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


def picture(**changes) -> plot.Picture:
    facts = {
        "title": "song",
        "remarks": "0:00",
        "sections": [plot.Span("verse", 0, 0.3), plot.Span("chorus", 0.3, 0.4)],
        "stems": {"vocal": sine(440), "instrumental": 0.1 * sine(110)},
        "rate": SAMPLE_RATE,
    }
    return plot.Picture(**facts | changes)


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return imread(io.BytesIO(png))


@pytest.fixture
def song(place) -> Project:
    """A song of two sections, 0.16 and 0.24 s, with stems that can be told apart."""
    project = Project(place / "song")
    project.create()
    write_song(project.root, Song(seed=7, genre="slow folk"))
    write_tokens(project.begin("stage1"), tokens("stage1", frames=20))
    for number, (name, frames) in enumerate([("verse", 8), ("chorus", 12)], start=1):
        project.save_segment(SegmentRecord(number, np.arange(2 * frames + 1), "key", name, seed=7, truncated=False))
    folder = project.begin("audio")
    for name, samples in (("mix", sine(330)), ("vocal", sine(440)), ("instrumental", sine(110))):
        write_audio(folder / f"{name}.wav", samples[None], {})
    files = describe_files(folder, [f"{name}.wav" for name in ("mix", *TRACKS)])
    project.finish("audio", Manifest("audio", {}, {}, files, music_s=SECONDS, seconds=1.0))
    return project


# What is measured


def test_the_level_of_a_sine_is_its_peak_and_its_mean_power():
    peak, mean = plot.level_db(0.5 * sine(441), columns=4)
    assert peak == pytest.approx([-6.02] * 4, abs=0.05)
    assert mean == pytest.approx([-9.03] * 4, abs=0.05)


def test_silence_and_waveforms_shorter_than_the_columns_have_a_level():
    peak, mean = plot.level_db(np.zeros(3, np.float32), columns=10)
    assert (len(peak), len(mean)) == (3, 3)
    assert (peak < -100).all()


@pytest.mark.parametrize("hertz", [110, 1000, 9000])
def test_a_sine_stands_in_its_own_band_near_its_level(hertz):
    bands = 120
    shown = plot.spectrogram_db(0.1 * sine(hertz), SAMPLE_RATE, columns=8, bands=bands)
    assert shown.shape == (bands, 8)
    loudest = int(shown[:, 4].argmax())
    edges = plot.band_edges_hz(SAMPLE_RATE, bands)
    resolution = SAMPLE_RATE / 2048
    assert edges[loudest] - resolution <= hertz <= edges[loudest + 1] + resolution
    assert shown[loudest, 4] == pytest.approx(-20, abs=3)
    far = (edges[:-1] > 2 * hertz) | (edges[1:] < hertz / 2)
    assert (shown[far, 4] < -50).all()


def test_a_spectrogram_keeps_the_time_of_a_sound():
    samples = np.concatenate([np.zeros(SAMPLE_RATE, np.float32), sine(440, 1)])
    shown = plot.spectrogram_db(samples, SAMPLE_RATE, columns=20, bands=60).max(axis=0)
    assert (shown[:9] < -60).all()
    assert (shown[11:] > -3).all()


def test_the_highest_band_ends_where_the_sample_rate_does():
    assert plot.band_edges_hz(8000, 10)[-1] == pytest.approx(4000)
    assert np.isfinite(plot.spectrogram_db(sine(440, 0.01, 8000), 8000, columns=5, bands=30)).all()


# The time axis


@pytest.mark.parametrize(
    ("seconds", "step"), [(0.4, 0.05), (4, 0.5), (30, 5), (60, 5), (124, 15), (240, 30), (3000, 300), (9e9, 1200)]
)
def test_marks_stand_apart_by_round_times(seconds, step):
    assert plot.tick_step(seconds) == step


@pytest.mark.parametrize(
    ("seconds", "step", "words"),
    [(0, 15, "0:00"), (75, 15, "1:15"), (59.99, 15, "1:00"), (0.5, 0.1, "0:00.5"), (61.25, 0.05, "1:01.25")],
)
def test_times_are_minutes_and_seconds(seconds, step, words):
    assert plot.time_words(seconds, step) == words


# The picture


def test_a_picture_is_a_png_of_both_stems():
    drawn = pixels(plot.draw(picture()))
    assert drawn.shape[:2] == (960, 1560)
    white = (drawn[..., :3] > 0.99).all(axis=-1)
    quiet = pixels(plot.draw(picture(stems={"vocal": sine(440), "instrumental": np.zeros_like(sine(1))})))
    changed = (np.abs(drawn - quiet)[..., :3] > 0.02).any(axis=-1)
    assert not white.all()
    assert changed[530:, 130:].any()
    assert not changed[:500].any(), "the vocal's half is the same"


def test_odd_titles_names_and_many_sections_are_drawn():
    sections = [plot.Span("a very long name of a section $x^", n / 100, (n + 1) / 100) for n in range(40)]
    assert plot.draw(picture(title="$夜 {x}", sections=sections)).startswith(PNG)
    assert plot.draw(picture(sections=[], stems={name: np.zeros(5, np.float32) for name in TRACKS})).startswith(PNG)


def test_sections_last_as_long_as_their_tokens(song):
    found = plot.read_picture(song, ["slow folk"])
    assert (found.title, found.remarks, found.seconds) == ("song", "0:00 · slow folk", pytest.approx(SECONDS))
    assert [(span.name, round(span.start, 2), round(span.stop, 2)) for span in found.sections] == [
        ("verse", 0, 0.16),
        ("chorus", 0.16, 0.4),
    ]
    assert np.abs(found.stems["vocal"] - sine(440)).max() < 1e-3


def test_sections_of_other_tokens_than_the_sound_are_left_out(song):
    song.save_segment(SegmentRecord(3, np.arange(9), "key", "outro", seed=7, truncated=False))
    assert plot.read_picture(song).sections == []


# yue status --plot


def test_the_answer_is_the_picture(song, place):
    outcome = done("status", "song", "--plot", "song.png")
    assert (outcome.out, outcome.err) == ("song.png\n", "")
    assert (place / "song.png").read_bytes().startswith(PNG)
    answer = done("status", "song", "--plot", "again.png", "--json").answer
    assert (answer["plot"], answer["seed"]) == ("again.png", 7)


def test_without_matplotlib_one_line_says_how_to_get_it(song, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    text = refused("status", "song", "--plot", "song.png")
    assert text == "a picture needs matplotlib, which is not installed: pip install 'yue-cli[plot]'."
    assert not (place / "song.png").exists()
    assert yue("status", "song").code == 0


def test_a_song_without_sound_and_other_formats_are_refused(song, place):
    text = refused("status", "song", "--plot", "song.jpg")
    assert text == "--plot song.jpg: only PNG pictures are drawn; name a file that ends in .png."
    (song.folder("audio") / "manifest.json").unlink()
    text = refused("status", "song", "--plot", "song.png")
    assert text == "song: there is no sound to draw yet; `yue decode song` makes it."
    assert not (place / "song.png").exists()


def test_a_removed_stem_is_told(song):
    (song.folder("audio") / "vocal.wav").unlink()
    text = refused("status", "song", "--plot", "song.png")
    assert text == "song/audio/vocal.wav: cannot be read (No such file or directory)."


def test_status_alone_loads_no_matplotlib(song):
    """It is read only when a picture is wanted."""
    code = (
        "import sys; from yue_cli.main import execute; execute(['status', 'song']); "
        "sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
