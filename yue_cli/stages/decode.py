"""The last stage: the codes of two tracks to two stems and their mix, at 44.1 kHz.

Source: YuE infer.py and `post_process_audio.py`, with every step kept in memory as float32.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from xcodec_mini_infer import FRAME_RATE, FRAME_SAMPLES, VOCODER_FRAME_SAMPLES, CodecError, checkpoint
from xcodec_mini_infer.codec import CHUNK_FRAMES, Codec, CodecConfig
from xcodec_mini_infer.context import chunks, trim
from xcodec_mini_infer.vocoder import Vocoder, VocoderConfig
from yue_cli import mixing
from yue_cli.errors import ArtifactError, CheckpointError
from yue_cli.events import Emit, Finished, Progress, ignore

TOPIC = "decode"
# A GPU is faster than its many small steps are launched: 60 s took it 0.31 s in chunks of 200 frames, 0.22 s in these.
_GPU_CHUNK_FRAMES = 800
TRACKS = ("vocal", "instrumental")


@dataclass(frozen=True)
class Decoders:
    """What turns codes into sound: one codec, and a vocoder for each track."""

    codec: Codec
    vocal: Vocoder
    instrumental: Vocoder

    @property
    def device(self) -> torch.device:
        return self.codec.to_decoder.weight.device

    @property
    def weight_bytes(self) -> int:
        modules = (self.codec, self.vocal, self.instrumental)
        return sum(weight.nbytes for module in modules for weight in module.parameters())


@dataclass(frozen=True, eq=False)
class Stems:
    """A song: float32 [1, N] each, 44.1 kHz. The mix is not limited and may pass ±1."""

    mix: np.ndarray
    vocal: np.ndarray
    instrumental: np.ndarray


def open_codec(folder: Path, device: str | torch.device = "cpu") -> Decoders:
    """Load a codec folder. Raises CheckpointError for what is missing or of another shape."""
    try:
        return Decoders(
            checkpoint.load_codec(folder, device),
            checkpoint.load_vocoder(folder, checkpoint.VOCAL_FILE, device),
            checkpoint.load_vocoder(folder, checkpoint.INSTRUMENTAL_FILE, device),
        )
    except CodecError as error:
        raise CheckpointError(str(error)) from error


def make_codec(device: str | torch.device = "cpu") -> Decoders:
    """Make up a codec of the published size: as fast as the real one, but what it decodes is noise."""
    with torch.device(device):
        codec, vocal, instrumental = Codec(CodecConfig()), Vocoder(VocoderConfig()), Vocoder(VocoderConfig())
        for book in codec.quantizer.codebooks:
            torch.nn.init.normal_(book)
    for module in (codec, vocal, instrumental):
        module.eval().requires_grad_(False)
    return Decoders(codec, vocal, instrumental)


def decode(
    decoders: Decoders, vocal: np.ndarray, instrumental: np.ndarray, limit: str, emit: Emit = ignore, label: str = ""
) -> Stems:
    """Turn the codes of a song into its sound.

    vocal, instrumental: integers [K, T] of equal T. limit: what happens to sound beyond ±0.99 in the stems and in
    the mix that gives the high band, "clip" or "scale". label: what the song is called where several are decoded.
    Raises ArtifactError for codes that this codec does not have.
    """
    assert vocal.shape == instrumental.shape, f"tracks of shapes {vocal.shape} and {instrumental.shape}"
    frames = vocal.shape[-1]
    low_mix = np.zeros((1, FRAME_SAMPLES * frames), np.float32)
    stems = [np.empty((1, VOCODER_FRAME_SAMPLES * frames), np.float32) for _ in TRACKS]
    codes = [_checked(decoders.codec, name, track) for name, track in zip(TRACKS, (vocal, instrumental), strict=True)]
    vocoders = (decoders.vocal, decoders.instrumental)
    size = CHUNK_FRAMES if decoders.device.type == "cpu" else _GPU_CHUNK_FRAMES
    began = time.monotonic()
    emit(Progress(TOPIC, label, 0, frames, "frames"))
    for chunk in chunks(frames, size, max(vocoder.context for vocoder in vocoders)):
        low = low_mix[:, FRAME_SAMPLES * chunk.start : FRAME_SAMPLES * chunk.stop]
        for track_codes, vocoder, stem in zip(codes, vocoders, stems, strict=True):
            embedding = decoders.codec.embed(track_codes[..., chunk.run])
            wave = decoders.codec.decode_embedding(*trim(embedding, chunk.left, chunk.right, decoders.codec.context))
            # Always clipped here, whatever `limit` says: YuE does not hand its rescale flag to this step.
            low += wave.clamp(-mixing.LIMIT, mixing.LIMIT).cpu().numpy()
            sound = vocoder.decode(embedding, chunk.left, chunk.right)
            stem[:, VOCODER_FRAME_SAMPLES * chunk.start : VOCODER_FRAME_SAMPLES * chunk.stop] = sound.cpu().numpy()
        emit(Progress(TOPIC, label, chunk.stop, frames, "frames", chunk.stop / FRAME_RATE))
    mix = stems[0] + stems[1]
    for waveform in (mix, *stems):
        mixing.limit(waveform, limit)
    mixing.replace_low(low_mix, mix, out=mix, device=decoders.device)
    emit(Finished(TOPIC, label, frames, "frames", time.monotonic() - began, frames / FRAME_RATE))
    return Stems(mix, *stems)


def _checked(codec: Codec, name: str, codes: np.ndarray) -> torch.Tensor:
    """Give codes the shape [1, K, T], when the codec has them."""
    tensor = torch.from_numpy(codes.astype(np.int64))[None]
    try:
        codec.quantizer.check(tensor)
    except CodecError as error:
        raise ArtifactError(f"{name} track: {error} Were its codes made for another codec?") from error
    return tensor
