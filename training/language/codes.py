"""The corpus as codes: `python -m training.language.codes BANK CODEC CODES --hours 60 --device cuda`.

Songs are rendered by many processes, and encoded as they come: no sound is ever written. Every track is encoded whole,
as the product encodes a reference, since each code depends on all of the sound. The songs are those of the corpus.
"""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from itertools import count, islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional

from training.corpus.bank import load_bank
from training.corpus.compose import compose, is_held_out
from training.corpus.render import Renderer
from training.corpus.song import Song
from training.corpus.world import BAR
from training.corpus.world import SAMPLE_RATE as CORPUS_RATE
from training.language.alignment import align
from training.language.songs import DONE_FILE, write_shard
from xcodec_mini_infer import SAMPLE_RATE, checkpoint
from xcodec_mini_infer.encoder import CHUNK_FRAMES, Encoder
from xcodec_mini_infer.resample import resample
from yue_cli.vocab import CODEBOOKS, FRAME_RATE

SHARD_FRAMES = 3600 * FRAME_RATE  # an hour
WHOLE_SONG = 30_000  # frames; a GPU need not encode in pieces
_FULL = 32_767.0
_OLD, _NEW = 441, 160  # samples of a period at the corpus' rate and at the codec's
_BEFORE, _SEEN = 32, 512  # samples that a period sees before its first, and in all

Rendered = tuple[dict[str, Any], np.ndarray]


def main(
    bank: Annotated[Path, typer.Argument(help="Folder of the bank.")],
    codec: Annotated[Path, typer.Argument(help="Folder of the trained codec.")],
    out: Annotated[Path, typer.Argument(help="Folder for the codes.")],
    hours: Annotated[float, typer.Option(help="Hours of music to learn from.")] = 60.0,
    held_out: Annotated[int, typer.Option(help="Songs that are not learned from.")] = 16,
    workers: Annotated[int, typer.Option(help="Processes that render.")] = max((os.cpu_count() or 2) - 1, 1),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    minutes: Annotated[float, typer.Option(help="Stop after so long with what there is.")] = float("inf"),
    skip: Annotated[int, typer.Option(help="Leave out so many of the songs to learn from, and make the next.")] = 0,
    part: Annotated[int, typer.Option(help="Which of several such commands this is, from 0 on.")] = 0,
    parts: Annotated[int, typer.Option(help="How many such commands share the songs and hours.")] = 1,
) -> None:
    """Make all songs anew: first those that are held out, then those to learn from, a shard for every hour.

    Of several commands the first alone makes those that are held out.
    """
    if not 0 <= part < parts:
        raise typer.BadParameter(f"part {part} of {parts}: expected 0 to {parts - 1}.")
    began = time.monotonic()
    context = get_context("forkserver")
    context.set_forkserver_preload(["training.corpus.render", "xcodec_mini_infer.checkpoint"])
    frames, shard, songs = 0, 0, list[Rendered]()
    with ProcessPoolExecutor(workers, context, _open_bank, (bank, os.getppid())) as pool:
        seeds = islice((seed for seed in count() if not is_held_out(seed)), skip + part, None, parts)
        held_out = held_out if part == 0 else 0
        held_out_seeds = islice(filter(is_held_out, count()), held_out)
        rendered = _render(pool, held_out_seeds, seeds, 3 * workers)
        encoder = checkpoint.load_encoder(codec, device, CODEBOOKS)
        if held_out:
            write_shard(out / "held-out" / "0000.npz", [_encode(encoder, *next(rendered)) for _ in range(held_out)])
            typer.echo(f"codes    {held_out} songs held out, {time.monotonic() - began:.0f} s")
        for text, sound in rendered:
            songs.append(_encode(encoder, text, sound))
            is_enough = frames + _frames(songs) >= hours / parts * 3600 * FRAME_RATE
            is_over = is_enough or time.monotonic() - began > 60 * minutes
            if is_over or _frames(songs) >= SHARD_FRAMES:
                write_shard(out / "train" / f"{shard * parts + part:04}.npz", songs)
                frames, shard, songs = frames + _frames(songs), shard + 1, []
                music_s, seconds = frames / FRAME_RATE, time.monotonic() - began
                typer.echo(f"codes    {music_s / 3600:.1f} h in {seconds:.0f} s · {music_s / seconds:.0f} × real time")
            if is_over:
                break
        pool.shutdown(wait=False, cancel_futures=True)
    (out / DONE_FILE).touch()


def describe(song: Song, notes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Say where a song's words lie: lines share a section evenly, but for the old tunes. notes: of its score."""
    spans: list[list[int]] = []
    lines: list[list[list[int]]] = []
    start = 0
    for section in song.sections:
        stop = start + section.bars * BAR * song.frames_per_sixteenth
        edges = np.linspace(start, stop, len(section.lines) + 1).astype(int).tolist()
        lines.append([] if song.old_tune else [list(pair) for pair in pairwise(edges)])
        spans.append([start, stop])
        start = stop
    texts = {"seed": song.seed, "genre": song.genre, "lyrics": song.lyrics}
    return texts | {"spans": spans, "lines": lines, "syllables": align(song.sections, notes)}


def _render(pool: ProcessPoolExecutor, held_out: Iterator[int], seeds: Iterator[int], ahead: int) -> Iterator[Rendered]:
    """Render the songs of all seeds in their order, never more than `ahead` that nobody has taken."""
    waiting: deque[Future[Rendered]] = deque()
    for each in (held_out, seeds):
        for seed in each:
            waiting.append(pool.submit(_sound, seed))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_renderer: Renderer | None = None  # of this process


def _open_bank(bank: Path, _: int) -> None:
    global _renderer
    torch.set_num_threads(1)
    os.nice(5)  # who learns goes first
    _renderer = Renderer(*load_bank(bank))


def _sound(seed: int) -> Rendered:
    """Render a song: its text, and vocal and instrumental at the codec's rate, int16 [2, T * 320]."""
    assert _renderer, "_open_bank comes first"
    song = compose(seed)
    rendered = _renderer.render(song)
    sound = to_codec_rate(torch.from_numpy(np.stack([rendered.vocal, rendered.instrumental])))
    return describe(song, rendered.score["notes"]), (sound * _FULL).round_().clamp_(-_FULL, _FULL).to(
        torch.int16
    ).numpy()


def to_codec_rate(sound: Tensor) -> Tensor:
    """Resample float32 [C, frames * 882] to [C, frames * 320] as `resample` does, five times as fast.

    Every period of the slower clock is the same linear map of what surrounds it.
    """
    padded = functional.pad(sound, (_BEFORE, _SEEN))
    periods = padded.unfold(-1, _SEEN, _OLD)[:, : sound.shape[-1] // _OLD]
    return (periods @ _resampling()).flatten(1)


@cache
def _resampling() -> Tensor:
    """How the samples seen by a period become its samples: float32 [_SEEN, _NEW], read off from impulses."""
    answers = resample(torch.eye(3 * _OLD), CORPUS_RATE, SAMPLE_RATE)[:, _NEW : 2 * _NEW]
    seen = slice(_OLD - _BEFORE, _OLD - _BEFORE + _SEEN)
    assert answers.count_nonzero() == answers[seen].count_nonzero(), "a period sees more than that"
    return answers[seen].contiguous()


def _encode(encoder: Encoder, text: dict[str, Any], sound: np.ndarray) -> Rendered:
    """Encode both tracks, uint16 [2, 8, T]."""
    device = encoder.fuse.weight.device
    wave = torch.from_numpy(sound).to(device).float() / _FULL
    chunk_frames = WHOLE_SONG if device.type == "cuda" else CHUNK_FRAMES
    codes = encoder.encode(wave, chunk_frames).to(torch.int32).cpu().numpy().astype(np.uint16)
    frames = text["spans"][-1][1]
    assert codes.shape == (2, CODEBOOKS, frames), f"song {text['seed']}: {codes.shape} codes for {frames} frames"
    return text, codes


def _frames(songs: list[Rendered]) -> int:
    return sum(codes.shape[-1] for _, codes in songs)


if __name__ == "__main__":
    typer.run(main)
