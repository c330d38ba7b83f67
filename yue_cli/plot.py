"""A picture of a song: its sections over time, and level and spectrogram of both stems.

The only module that knows matplotlib, which is an extra: it is imported when a picture is drawn.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from yue_cli.artifacts import TRACKS, Manifest
from yue_cli.audio_files import read_audio
from yue_cli.errors import ArtifactError, PlotError
from yue_cli.project import Project
from yue_cli.vocab import FRAME_RATE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSTALL = "pip install 'yue-cli[plot]'"

_COLUMNS, _BANDS = 1600, 240  # of a spectrogram
_WINDOW = 2048  # samples of one look at the spectrum: 46 ms at 44.1 kHz
_LOWEST_HZ, _HIGHEST_HZ = 50.0, 16_000.0
_QUIETEST_DB = -60.0
_RANGE_DB = 66.0  # from the loudest that a spectrogram shows to white

_INK, _FAINT, _GRID = "#2b2f36", "#7b828c", "#d9dce1"
_HUES = {  # light, middle, dark
    "vocal": ("#cfe0e6", "#3f7f93", "#123743"),
    "instrumental": ("#ecdfcb", "#b0803c", "#4a300c"),
}
_SECTION_HUES = {
    "verse": "#e3e8ee",
    "chorus": "#cdd8e4",
    "bridge": "#e0dccf",
    "intro": "#f0f1f3",
    "outro": "#f0f1f3",
}
_TICK_STEPS_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
_MOST_TICKS = 12


@dataclass(frozen=True)
class Span:
    """One section and when it is sung, in seconds."""

    name: str
    start: float
    stop: float


@dataclass(frozen=True, eq=False)
class Picture:
    """What is drawn. stems: float32 [N] by track, all of one length and rate."""

    title: str
    remarks: str
    sections: Sequence[Span]
    stems: Mapping[str, np.ndarray]
    rate: int

    @property
    def seconds(self) -> float:
        return max(len(samples) for samples in self.stems.values()) / self.rate


def read_picture(project: Project, remarks: Sequence[str] = ()) -> Picture:
    """Gather what a song's folder holds. Raises ArtifactError where it has no sound yet, AudioError."""
    manifest = Manifest.read(project.folder("audio"))
    if manifest is None:
        raise ArtifactError(f"{project.root}: there is no sound to draw yet; `yue decode {project.root}` makes it.")
    stems, rates = {}, set()
    for track in TRACKS:
        [name] = [name for name in manifest.files if name.startswith(f"{track}.")]
        stems[track], rate = read_audio(project.folder("audio") / name)
        rates.add(rate)
    sections, start = [], 0.0
    for record in project.segments():
        stop = start + (len(record.ids) - 1) // 2 / FRAME_RATE  # without the closing end-of-audio
        sections.append(Span(record.section, start, stop))
        start = stop
    if abs(start - manifest.music_s) > 1 / FRAME_RATE:
        sections = []  # the sound was made from other tokens than these
    length = int(manifest.music_s // 60), round(manifest.music_s % 60)
    words = [f"{length[0]}:{length[1]:02d}", *remarks]
    return Picture(project.root.resolve().name, " · ".join(words), sections, stems, max(rates))


def draw(picture: Picture) -> bytes:
    """Draw a picture as PNG. Raises PlotError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError(f"a picture needs matplotlib, which is not installed: {INSTALL}.") from error
    figure = Figure(figsize=(13, 8), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    _draw_song(figure, picture)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that no font here has are drawn as boxes
        figure.savefig(content, format="png")
    return content.getvalue()


def level_db(samples: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Measure a waveform in `columns` equal pieces. Returns peak and mean level in dB of full scale, [columns]."""
    columns = max(1, min(columns, len(samples)))
    starts = np.linspace(0, len(samples), columns, endpoint=False).astype(int)
    counts = np.diff([*starts, len(samples)])
    peak = np.maximum.reduceat(np.abs(samples), starts)
    mean = np.sqrt(np.add.reduceat(samples.astype(np.float64) ** 2, starts) / counts)
    return _decibels(peak), _decibels(mean)


def spectrogram_db(samples: np.ndarray, rate: int, columns: int, bands: int) -> np.ndarray:
    """Measure power over time in bands of equal width on a scale of octaves. A sine of full scale is near 0 dB.

    Returns float64 [bands, columns], low bands first; a short waveform has fewer columns.
    """
    window = np.hanning(_WINDOW)
    padded = np.pad(samples, (_WINDOW // 2, _WINDOW // 2 + _WINDOW))
    hop = _WINDOW // 2
    count = max(1, -(-len(samples) // hop))
    looks = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[: count * hop : hop]
    edges = np.linspace(0, len(looks), min(columns, len(looks)), endpoint=False).astype(int)
    filters = _filters(rate, bands)
    power = np.empty((bands, len(edges)))
    for column, (start, stop) in enumerate(zip(edges, [*edges[1:], len(looks)], strict=True)):
        spectra = np.abs(np.fft.rfft(looks[start:stop] * window)) ** 2
        power[:, column] = filters @ spectra.mean(axis=0)
    return _decibels(np.sqrt(power) / (window.sum() / 2))


def band_edges_hz(rate: int, bands: int) -> np.ndarray:
    """List the borders of the bands, [bands + 1]."""
    return np.geomspace(_LOWEST_HZ, min(_HIGHEST_HZ, rate / 2), bands + 1)


def tick_step(seconds: float) -> float:
    """Choose how far the marks of a time axis stand apart."""
    return next((step for step in _TICK_STEPS_S if seconds / step <= _MOST_TICKS), 1200)


def time_words(seconds: float, step: float) -> str:
    """Write a time as minutes and seconds, with tenths or hundredths where marks stand that close."""
    digits = 0 if step >= 1 else 1 if step >= 0.1 else 2
    minutes, rest = divmod(round(seconds, digits), 60)
    width = 2 if not digits else 3 + digits
    return f"{minutes:.0f}:{rest:0{width}.{digits}f}"


def _filters(rate: int, bands: int) -> np.ndarray:
    """Weigh spectrum bins into bands, [bands, bins]: triangles, never narrower than the bins lie apart."""
    bins = np.fft.rfftfreq(_WINDOW, 1 / rate)
    edges = band_edges_hz(rate, bands)
    centers = np.sqrt(edges[:-1] * edges[1:])
    half_widths = np.maximum(np.diff(edges), rate / _WINDOW)
    weights = np.maximum(0, 1 - np.abs(bins - centers[:, None]) / half_widths[:, None])
    filters: np.ndarray = weights / weights.max(axis=1, keepdims=True)
    return filters


def _decibels(amplitude: np.ndarray) -> np.ndarray:
    levels: np.ndarray = 20 * np.log10(np.maximum(amplitude, 1e-8))
    return levels


def _draw_song(figure: "Figure", picture: Picture) -> None:
    left, right = 0.075, 0.985
    figure.text(left, 0.955, picture.title, size=17, weight="bold", color=_INK, parse_math=False)
    figure.text(left, 0.925, picture.remarks, size=10, color=_FAINT, parse_math=False)
    strip = figure.add_subplot(figure.add_gridspec(left=left, right=right, top=0.905, bottom=0.867)[0])
    _draw_sections(strip, picture)
    axes = []
    for (track, samples), (bottom, top) in zip(picture.stems.items(), ((0.48, 0.845), (0.065, 0.43)), strict=True):
        grid = figure.add_gridspec(
            2, 1, height_ratios=[0.8, 2.2], hspace=0.06, left=left, right=right, top=top, bottom=bottom
        )
        level, spectrum = (figure.add_subplot(grid[row], sharex=strip) for row in range(2))
        axes += [level, spectrum]
        _draw_level(level, samples, track, picture.seconds)
        _draw_spectrogram(spectrum, samples, picture.rate, track, picture.seconds)
        middle = (bottom + top) / 2
        figure.text(0.015, middle, track, rotation=90, va="center", size=12, weight="bold", color=_HUES[track][1])
    step = tick_step(picture.seconds)
    marks = np.arange(0, picture.seconds + step / 100, step)
    for each in [strip, *axes]:
        each.set_xlim(0, picture.seconds)
        each.set_xticks(marks, [time_words(mark, step) for mark in marks])
        each.tick_params(axis="x", length=0, labelbottom=False)
        for side in each.spines.values():
            side.set_visible(False)
    for each in axes:
        each.tick_params(axis="both", colors=_FAINT, labelsize=9, width=0.6)
        for span in picture.sections[1:]:
            each.axvline(span.start, color=_INK, linewidth=0.6, alpha=0.35)
    axes[-1].tick_params(axis="x", labelbottom=True, length=4)


def _draw_sections(axes: "Axes", picture: Picture) -> None:
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    for span in picture.sections:
        hue = _SECTION_HUES.get(span.name, "#e9e6ec")
        axes.axvspan(span.start, span.stop, 0.08, 0.92, facecolor=hue, edgecolor="white", linewidth=2)
        # About as many letters as fit at this size.
        room = int((span.stop - span.start) / picture.seconds * 130)
        name = span.name if len(span.name) <= room else f"{span.name[: max(room - 1, 0)]}…" if room > 2 else ""
        middle = (span.start + span.stop) / 2
        axes.text(middle, 0.47, name, ha="center", va="center", size=10, color=_INK, parse_math=False)


def _draw_level(axes: "Axes", samples: np.ndarray, track: str, seconds: float) -> None:
    light, middle, _ = _HUES[track]
    peak, mean = level_db(samples, _COLUMNS)
    times = np.linspace(0, seconds, len(peak))
    axes.fill_between(times, _QUIETEST_DB, peak.clip(_QUIETEST_DB), color=light, linewidth=0)
    axes.fill_between(times, _QUIETEST_DB, mean.clip(_QUIETEST_DB), color=middle, linewidth=0)
    axes.set_ylim(_QUIETEST_DB, 3)
    axes.set_yticks([-40, -20, 0], ["−40", "−20", "0 dB"])
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_spectrogram(axes: "Axes", samples: np.ndarray, rate: int, track: str, seconds: float) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    shown = spectrogram_db(samples, rate, _COLUMNS, _BANDS)
    loudest = max(float(np.percentile(shown, 99.7)), _QUIETEST_DB)
    hues: Any = LinearSegmentedColormap.from_list(track, ["#ffffff", *_HUES[track]])
    low, high = np.log2(band_edges_hz(rate, _BANDS)[[0, -1]])
    axes.imshow(
        shown,
        origin="lower",
        aspect="auto",
        extent=(0, seconds, low, high),
        cmap=hues,
        vmin=loudest - _RANGE_DB,
        vmax=loudest,
        interpolation="bilinear",
    )
    marks = {100: "100", 300: "300", 1000: "1 k", 3000: "3 k", 10_000: "10 kHz"}
    axes.set_yticks([np.log2(hertz) for hertz in marks], list(marks.values()))
    axes.set_ylim(low, high)
