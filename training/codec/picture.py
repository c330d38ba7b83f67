"""Draw spectrograms of sounds that are compared, such as songs and their copies, one pair a row."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

WINDOW, HOP = 1024, 256
SOFTEST_DB, LOUDEST_DB = -90.0, -20.0  # of full scale, as colours


def draw(
    path: Path,
    rows: Sequence[tuple[str, np.ndarray, np.ndarray]],
    rate: int,
    columns: tuple[str, str] = ("original", "copy"),
) -> None:
    """Write a PNG; rows: a name and a wave for either column, float32 [N] each."""
    figure = Figure(figsize=(11, 2.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2, sharex=True, sharey=True, squeeze=False)
    for pair, (name, *waves) in zip(axes, rows, strict=True):
        for place, what, wave in zip(pair, columns, waves, strict=True):
            seconds = len(wave) / rate
            place.imshow(
                _levels_db(wave),
                origin="lower",
                aspect="auto",
                extent=(0, seconds, 0, rate / 2000),
                vmin=SOFTEST_DB,
                vmax=LOUDEST_DB,
                cmap="magma",
            )
            place.set_title(f"{name}, {what}", fontsize=9)
        pair[0].set_ylabel("kHz")
    for place in axes[-1]:
        place.set_xlabel("s")
    figure.savefig(path, dpi=60)


def _levels_db(wave: np.ndarray) -> np.ndarray:
    """Compute the levels of a spectrogram in dB of full scale: [bins, frames]."""
    window = np.hanning(WINDOW)
    frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP]
    magnitudes = np.abs(np.fft.rfft(frames * window)) * 2 / window.sum()
    levels: np.ndarray = 20 * np.log10(magnitudes + 1e-6).T
    return levels
