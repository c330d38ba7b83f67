"""Listen to a corpus and compare it with its scores: `python -m training.corpus.check corpus`."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from training.corpus.bank import load_bank
from training.corpus.compose import compose
from training.corpus.dataset import CLASSES, TRACKS, CorpusSong, list_songs
from training.corpus.measures import HEARING_RATE, HOP_S, Heard, count_syllables, listen
from training.corpus.phonemes import PHONEMES, VOWELS
from training.corpus.render import Renderer
from training.corpus.tags import WORDS
from training.corpus.world import FRAME_RATE, SAMPLES_PER_FRAME

_HOPS_PER_FRAME = round(1 / (FRAME_RATE * HOP_S))
_IS_VOWEL = np.array([name in VOWELS for name in PHONEMES] + [False])  # the last is for -1, no phoneme
_LOWEST = int(CLASSES["semitone"][0])


def main(
    corpus: Annotated[Path, typer.Argument(help="Folder of the corpus.")],
    songs: Annotated[int, typer.Option(help="How many songs to listen to, spread over the corpus.")] = 40,
) -> None:
    """Measure pitch, syllables, rests and levels on the audio, and count tags and words in the scores."""
    everything = [*list_songs(corpus, "train"), *list_songs(corpus, "held-out")]
    chosen = everything[:: max(len(everything) // songs, 1)][:songs]
    for line in _count(everything):
        typer.echo(line)
    typer.echo(f"listened to {len(chosen)} songs, {sum(song.frames for song in chosen) / FRAME_RATE / 60:.0f} min")
    heard = [(song, listen(song.load("vocal", HEARING_RATE))) for song in chosen]
    typer.echo(measure_pitch(heard))
    typer.echo(measure_syllables(heard))
    for line in measure_levels(chosen):
        typer.echo(line)
    typer.echo(measure_speed(corpus / "bank", [song.score["seed"] for song in chosen[:8]]))


def measure_pitch(songs: Sequence[tuple[CorpusSong, Heard]]) -> str:
    """Cents between the pitch tracked in the audio and the score, over the frames of vowels."""
    cents = []
    for song, heard in songs:
        labels = song.labels()
        semitone = heard.semitone[::_HOPS_PER_FRAME][: song.frames]
        vowel = _IS_VOWEL[labels["phoneme"][: len(semitone)]]
        cents.append(100 * (semitone - labels["semitone"][: len(semitone)] - _LOWEST)[vowel])
    error = np.abs(np.concatenate(cents))
    is_heard = np.isfinite(error)
    return (
        f"pitch      {len(error)} frames of vowels: {np.mean(error < 50):.1%} within 50 cents, half of them within "
        f"{np.median(error[is_heard]):.1f}; {np.mean(error > 600):.2%} off by more than half an octave, "
        f"{np.mean(~is_heard):.2%} not heard as voiced"
    )


def measure_syllables(songs: Sequence[tuple[CorpusSong, Heard]]) -> str:
    """How well syllables can be counted by ear, line by line; the error is the counter's own."""
    pairs = [
        (count_syllables(heard.part(start * _HOPS_PER_FRAME, stop * _HOPS_PER_FRAME)), syllables)
        for song, heard in songs
        for start, stop, syllables in _lines(song)
    ]
    counted, written = np.array(pairs).T
    off = np.abs(counted - written)
    return (
        f"syllables  {len(off)} lines: {np.mean(off == 0):.1%} counted right, {np.mean(off <= 1):.1%} within one, "
        f"{off.mean():.2f} off on average; {counted.sum()} heard of {written.sum()}"
    )


def measure_levels(songs: Sequence[CorpusSong]) -> Iterator[str]:
    """Peaks, loudness, and how much of each track is digital silence."""
    peaks: dict[str, list[float]] = {"vocal": [], "instrumental": [], "mix": []}
    powers: dict[str, list[float]] = {track: [] for track in TRACKS}
    silent: dict[str, list[np.ndarray]] = {track: [] for track in TRACKS}
    rests = []
    for song in songs:
        tracks = {track: song.load(track) for track in TRACKS}
        for track, samples in tracks.items():
            frames = samples.reshape(-1, SAMPLES_PER_FRAME)
            silent[track].append(np.logical_not(frames.any(axis=1)))
            peaks[track].append(float(np.abs(samples).max()))
            powers[track].append(float((samples[samples != 0].astype(np.float64) ** 2).mean()))
        peaks["mix"].append(float(np.abs(tracks["vocal"] + tracks["instrumental"]).max()))
        rests.append(silent["vocal"][-1][song.labels()["phoneme"] < 0])
    yield f"rests      {np.concatenate(rests).mean():.2%} of the vocal's rests are exact zeros"
    for track in TRACKS:
        yield (
            f"{track:<12} {np.concatenate(silent[track]).mean():.1%} of the frames silent, else "
            f"{10 * np.log10(np.mean(powers[track])):.1f} dB RMS, highest peak {max(peaks[track]):.2f}"
        )
    yield f"mix          highest peak {max(peaks['mix']):.2f}"


def measure_speed(bank: Path, seeds: Sequence[int]) -> str:
    """Compose and render some songs in this process, writing nothing."""
    renderer = Renderer(*load_bank(bank))
    started = time.process_time()
    frames = sum(len(renderer.render(compose(seed)).vocal) // SAMPLES_PER_FRAME for seed in seeds)
    rate = frames / FRAME_RATE / (time.process_time() - started)
    return f"speed      {rate:.0f} hours of music in an hour of one core, composed and rendered"


def _lines(song: CorpusSong) -> Iterator[tuple[int, int, int]]:
    """The frames [start, stop) of each sung line, its first consonants included, and its syllables."""
    for _, group in groupby(song.score["notes"], key=lambda note: (note["section"], note["line"])):
        notes = list(group)
        yield notes[0]["start"] - notes[0]["onset"], notes[-1]["stop"], len(notes)


def _count(songs: Sequence[CorpusSong]) -> Iterator[str]:
    """What the scores say of the whole corpus."""
    scores = [song.score for song in songs]
    held_out = [score for score in scores if score["split"] == "held-out"]
    frames = sum(score["frames"] for score in scores)
    yield f"corpus     {len(scores)} songs, {frames / FRAME_RATE / 3600:.2f} h; {len(held_out)} held out"
    sections = [section for score in scores for section in score["sections"]]
    words = Counter(word for section in sections for line in section["lines"] for word in line.split())
    old = sum(bool(score["old_tune"]) for score in scores)
    yield (
        f"text       {len(sections)} sections, {sum(not s['lines'] for s in sections)} without words, "
        f"{sum(len(s['lines']) for s in sections)} lines, {words.total()} words of {len(words)} kinds, {old} old tunes"
    )
    lines = {
        split: {line for score in scores if score["split"] == split for s in score["sections"] for line in s["lines"]}
        for split in ("train", "held-out")
    }
    yield f"held out   {len(lines['held-out'])} lines, {len(lines['held-out'] & lines['train'])} of them in training"
    notes = sum(len(score["notes"]) for score in scores)
    yield f"notes      {notes} sung, {notes / frames * FRAME_RATE:.2f} a second"
    for kind, values in WORDS.items():
        found = Counter(score["tags"][kind] for score in scores)
        yield f"{kind:<10} " + ", ".join(f"{value} {found[value] / len(scores):.0%}" for value in values)
    tempi = Counter(score["frames_per_sixteenth"] for score in scores)
    yield "frames in a sixteenth: " + ", ".join(f"{k}: {tempi[k] / len(scores):.0%}" for k in sorted(tempi))


if __name__ == "__main__":
    typer.run(main)
