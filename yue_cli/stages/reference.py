"""The stage before all: an audio prompt's sound to codes of codebook 0, which stage 1 reads before it sings.

Source: YuE infer.py, `load_audio_mono` and `encode_audio`; arrays to arrays.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from xcodec_mini_infer import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE, CodecError, checkpoint
from xcodec_mini_infer.encoder import Encoder
from xcodec_mini_infer.resample import resample
from yue_cli.errors import AudioError, CheckpointError
from yue_cli.events import Emit, Finished, Progress, Warned, ignore

TOPIC = "encode"
MIN_SECONDS = 1.0

Sound = tuple[np.ndarray, int]  # float32 [N], sample rate


def open_encoder(folder: Path, device: str | torch.device = "cpu", codebooks: int = 1) -> Encoder:
    """Load the encoding half of a codec folder. Raises CheckpointError for what is missing or of another shape."""
    try:
        return checkpoint.load_encoder(folder, device, codebooks)
    except CodecError as error:
        raise CheckpointError(str(error)) from error


def encode(
    encoder: Encoder, tracks: Mapping[str, Sound], crop: tuple[float, float] | None = None, emit: Emit = ignore
) -> dict[str, np.ndarray]:
    """Turn the sound of one track, or of two that belong together, into int16 codes [K, T] each, of equal T.

    tracks: by name. Whole tracks are encoded, since every code depends on all of the sound; crop: only these seconds
    are, which gives other codes. Of two lengths the shorter holds, with a warning.
    Raises AudioError for sound under a second, or seconds that are not there.
    """
    waves = {name: _prepared(name, sound, crop) for name, sound in tracks.items()}
    codes: dict[str, np.ndarray] = {}
    for name, wave in waves.items():
        began, frames = time.monotonic(), len(wave) // FRAME_SAMPLES

        def watch(share: float, name: str = name, frames: int = frames) -> None:
            emit(Progress(TOPIC, name, round(share * frames), frames, "frames"))

        watch(0.0)
        found = encoder.encode(torch.from_numpy(wave)[None], watch=watch)[0].cpu().numpy()
        codes[name] = found.astype(np.int16)
        emit(Finished(TOPIC, name, found.shape[1], "frames", time.monotonic() - began, found.shape[1] / FRAME_RATE))
    lengths = {name: track.shape[1] for name, track in codes.items()}
    shortest = min(lengths.values())
    if len(set(lengths.values())) > 1:
        found_s = ", ".join(f"{name} {length / FRAME_RATE:.2f} s" for name, length in lengths.items())
        emit(Warned(f"the tracks of the reference differ in length ({found_s}); the end of the longer is left out"))
    return {name: np.ascontiguousarray(track[:, :shortest]) for name, track in codes.items()}


def _prepared(name: str, sound: Sound, crop: tuple[float, float] | None) -> np.ndarray:
    """Bring one track to the codec's rate, cut to the wanted seconds: float32 [S]."""
    samples, rate = sound
    wave = resample(torch.from_numpy(samples)[None], rate, SAMPLE_RATE)[0].numpy()
    if crop is not None:
        wave = wave[round(crop[0] * SAMPLE_RATE) : round(crop[1] * SAMPLE_RATE)]
    if len(wave) < MIN_SECONDS * SAMPLE_RATE:
        raise AudioError(
            f"{name}: {len(wave) / SAMPLE_RATE:.2f} s of sound; expected at least {MIN_SECONDS:g} s of reference."
        )
    return wave
