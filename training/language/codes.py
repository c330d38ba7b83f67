"""The corpus as codes, made once: `python -m training.language.codes corpus codec codes`.

Every track is encoded whole, as the product encodes a reference: each code depends on all of the sound.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from training.corpus.dataset import TRACKS, CorpusSong, list_songs
from training.language.rows import CodedSong
from xcodec_mini_infer import SAMPLE_RATE, checkpoint
from xcodec_mini_infer.encoder import Encoder
from yue_cli.atomic import write_atomic
from yue_cli.lyrics import parse
from yue_cli.vocab import CODEBOOKS

SPLITS = ("train", "held-out")


def main(
    corpus: Annotated[Path, typer.Argument(help="Folder of the corpus.")],
    codec: Annotated[Path, typer.Argument(help="Folder of the trained codec.")],
    out: Annotated[Path, typer.Argument(help="Folder for the codes.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Encode all songs that are not encoded yet."""
    encoder = checkpoint.load_encoder(codec, device, CODEBOOKS)
    for split in SPLITS:
        songs = list_songs(corpus, split)
        missing = [song for song in songs if not _path(out, split, song).is_file()]
        began, frames = time.monotonic(), 0
        for song in missing:
            _encode(encoder, song, _path(out, split, song))
            frames += song.frames
        seconds = time.monotonic() - began
        typer.echo(
            f"{split}  {len(songs)} songs, {len(missing)} encoded in {seconds:.0f} s ({frames / 50:.0f} s of music)"
        )


def load(codes: Path, split: str) -> list[CodedSong]:
    """Read the coded songs of a split, `train` or `held-out`."""
    songs = []
    for path in sorted((codes / split).glob("*.npz")):
        with np.load(path, allow_pickle=False) as content:
            text = json.loads(str(content["text"]))
            sections = parse(text["lyrics"], path.name).sections
            spans = tuple(range(*span) for span in text["spans"])
            assert len(sections) == len(spans), f"{path}: {len(sections)} sections, {len(spans)} spans of frames"
            songs.append(CodedSong(text["genre"], sections, spans, content["vocal"], content["instrumental"]))
    return songs


def _encode(encoder: Encoder, song: CorpusSong, path: Path) -> None:
    device = encoder.fuse.weight.device
    arrays = {}
    for track in TRACKS:
        wave = torch.from_numpy(song.load(track, SAMPLE_RATE))[None].to(device)
        codes = encoder.encode(wave)[0].cpu().numpy()
        assert codes.shape == (CODEBOOKS, song.frames), f"{song.folder}: {codes.shape} codes for {song.frames} frames"
        arrays[track] = codes.astype(np.uint16)
    spans = [[section["start"], section["stop"]] for section in song.score["sections"]]
    text = json.dumps({"genre": song.score["genre"], "lyrics": song.score["lyrics"], "spans": spans})
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, text=np.array(text), vocal=arrays["vocal"], instrumental=arrays["instrumental"])

    write_atomic(path, write)


def _path(out: Path, split: str, song: CorpusSong) -> Path:
    return out / split / f"{song.folder.name}.npz"


if __name__ == "__main__":
    typer.run(main)
