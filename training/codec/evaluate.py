"""Measure a codec folder on held-out songs: `python -m training.codec.evaluate FOLDER --corpus FOLDER`.

Every song goes through the product: encoder with all codebooks, then the 16 kHz decoder on 1, 4 and 8 of them, then
the stage that makes 44.1 kHz stems and mix. Beside it stand floors that anybody could reach.

log-mel distance: mean difference of natural logarithms in 80 mel bands, window 1024, hop 256, magnitudes below -100 dB
of full scale counted as -100 dB. SI-SDR: scale-invariant signal-to-distortion ratio. Means over songs, whole tracks.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from training.codec import picture
from training.codec.losses import LogMel, si_sdr
from training.codec.songs import INSTRUMENTAL, VOCAL
from training.corpus.dataset import TRACKS, CorpusSong, list_songs
from xcodec_mini_infer import SAMPLE_RATE, VOCODER_SAMPLE_RATE, checkpoint
from xcodec_mini_infer.codec import Codec
from xcodec_mini_infer.encoder import Encoder
from yue_cli.stages.decode import Decoders, decode, open_codec

DEPTHS = (1, 4, 8)
MEL_WINDOW, MEL_HOP, MEL_BANDS = 1024, 256, 80
DRAWN_S = 8
LIMIT = "clip"  # as the product does by default
MU, BITS = 255, 4  # of µ-law
Row = dict[str, float]


class Yardstick:
    """Compares sound of one rate."""

    def __init__(self, rate: int) -> None:
        self.mel = LogMel(rate, MEL_WINDOW, MEL_BANDS, MEL_HOP)

    def compare(self, wave: Tensor, truth: Tensor) -> Row:
        """Compare float32 [1, N] with [1, N]."""
        distance = (self.mel(wave) - self.mel(truth)).abs().mean()
        return {"mel": float(distance), "si_sdr": float(si_sdr(wave, truth)[0])}


def main(
    folder: Annotated[Path, typer.Argument(help="A codec folder.")],
    corpus: Annotated[Path, typer.Option(help="Folder that training.corpus made.")] = Path("corpus"),
    songs: Annotated[int, typer.Option(help="How many held-out songs.")] = 8,
    draw: Annotated[Path | None, typer.Option(help="Also draw the first song and its copy: a PNG.")] = None,
) -> None:
    """Print figures as JSON."""
    chosen = list_songs(corpus, "held-out")[:songs]
    decoders = open_codec(folder)
    encoder = checkpoint.load_encoder(folder, codebooks=decoders.codec.config.codebooks)
    typer.echo(json.dumps(measure(decoders, encoder, chosen), indent=1))
    if draw is not None:
        _draw(draw, decoders, encoder, chosen[0])


@torch.inference_mode()
def measure(decoders: Decoders, encoder: Encoder, songs: list[CorpusSong]) -> dict[str, object]:
    """Measure songs: figures by track and by what was done to it."""
    coarse, fine = Yardstick(SAMPLE_RATE), Yardstick(VOCODER_SAMPLE_RATE)
    rows: dict[str, list[Row]] = defaultdict(list)
    codes: dict[str, list[np.ndarray]] = defaultdict(list)
    averages = {track: _mean_spectrum(songs, track, coarse.mel) for track in TRACKS}
    for index, song in enumerate(songs):
        found = []
        for track in TRACKS:
            truth = torch.from_numpy(song.load(track, SAMPLE_RATE))[None]
            found.append(encoder.encode(truth))
            codes[track].append(found[-1][0].numpy())
            for name, wave in _copies(decoders.codec, found[-1], truth, seed=index):
                rows[f"{track} 16 kHz, {name}"].append(coarse.compare(wave, truth))
            constant = {"mel": float((averages[track][:, None] - coarse.mel(truth)[0]).abs().mean())}
            rows[f"{track} 16 kHz, mean spectrum"].append(constant)
        stems = decode(decoders, found[VOCAL][0].numpy(), found[INSTRUMENTAL][0].numpy(), LIMIT)
        true = [torch.from_numpy(song.load(track, VOCODER_SAMPLE_RATE))[None] for track in TRACKS]
        for name, made, truth in (
            ("vocal", stems.vocal, true[VOCAL]),
            ("instrumental", stems.instrumental, true[INSTRUMENTAL]),
            ("mix", stems.mix, true[VOCAL] + true[INSTRUMENTAL]),
        ):
            rows[f"{name} 44.1 kHz"].append(fine.compare(torch.from_numpy(made), truth))
            rows[f"{name} 44.1 kHz, silence"].append(fine.compare(torch.zeros_like(truth), truth))
    figures: dict[str, object] = {"songs": len(songs), "minutes": round(sum(song.frames for song in songs) / 3000, 2)}
    figures |= {name: _mean(found) for name, found in rows.items()}
    for track in TRACKS:
        joined = np.concatenate(codes[track], axis=1)
        figures[f"{track} codebooks"] = [_use(book) for book in joined]
    both = np.concatenate([part for parts in codes.values() for part in parts], axis=1)
    figures["codebooks"] = [_use(book) for book in both]
    return figures


def _draw(path: Path, decoders: Decoders, encoder: Encoder, song: CorpusSong) -> None:
    """Draw the first seconds of a song's tracks and mix beside their copies."""
    codes = [encoder.encode(torch.from_numpy(song.load(track, SAMPLE_RATE))[None])[0].cpu().numpy() for track in TRACKS]
    stems = decode(decoders, codes[VOCAL], codes[INSTRUMENTAL], LIMIT)
    vocal, instrumental = (song.load(track, VOCODER_SAMPLE_RATE) for track in TRACKS)
    pairs = (
        ("vocal", vocal, stems.vocal),
        ("instrumental", instrumental, stems.instrumental),
        ("mix", vocal + instrumental, stems.mix),
    )
    stop = DRAWN_S * VOCODER_SAMPLE_RATE
    picture.draw(path, [(name, truth[:stop], copy[0, :stop]) for name, truth, copy in pairs], VOCODER_SAMPLE_RATE)


def _copies(codec: Codec, codes: Tensor, truth: Tensor, seed: int) -> Iterable[tuple[str, Tensor]]:
    """Make the copies of a track, and its floors."""
    for depth in DEPTHS:
        yield f"{depth} of 8 codebooks", codec.decode(codes[:, :depth])
    order = torch.from_numpy(np.random.default_rng(seed).permutation(codes.shape[-1]))
    yield "frames shuffled", codec.decode(codes[..., order])
    yield "silence", torch.zeros_like(truth)
    yield f"{BITS}-bit µ-law", mu_law(truth)


def mu_law(wave: Tensor) -> Tensor:
    """Round float32 of about ±1 to 4 bits of µ-law and back, silence to silence: 64 kbit/s at 16 kHz."""
    levels = 2 ** (BITS - 1) - 1  # on either side of 0
    bent = (1 + MU * wave.abs().clamp(max=1)).log() / np.log(1 + MU)
    rounded = (bent * levels).round() / levels
    return wave.sign() * ((1 + MU) ** rounded - 1) / MU


def _mean_spectrum(songs: list[CorpusSong], track: str, mel: Callable[[Tensor], Tensor]) -> Tensor:
    """Average the log-mel spectra of a track over the songs: [bands]. The best of all constant answers, nearly."""
    spectra = [mel(torch.from_numpy(song.load(track, SAMPLE_RATE))[None])[0] for song in songs]
    return torch.cat(spectra, dim=1).median(dim=1).values


def _use(codes: np.ndarray) -> dict[str, float]:
    """Count the codes in use, and their perplexity: the size of a book of equally frequent codes that says as much."""
    counts = np.bincount(codes)
    share = counts[counts > 0] / counts.sum()
    return {"used": len(share), "perplexity": round(float(np.exp(-(share * np.log(share)).sum())), 1)}


def _mean(rows: list[Row]) -> Row:
    return {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}


if __name__ == "__main__":
    typer.run(main)
