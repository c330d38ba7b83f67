"""What each step starts from: songs, the states of the steps before it, and the checkpoint made of them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from training.codec.autoencoder import Autoencoder, prepare
from training.codec.corpus_songs import LABELS, load_songs
from training.codec.export import encode_songs, write_checkpoint
from training.codec.presets import Preset
from training.codec.renderer import DecoderRenderer, VocoderRenderer, prepare_vocoder
from training.codec.semantic import WHOLE, SemanticStudent, make_hubert
from training.codec.snakes import fuse_snakes
from training.codec.songs import TRACKS, Songs
from training.loop import Student, has_state, load_state
from xcodec_mini_infer import SAMPLE_RATE, VOCODER_SAMPLE_RATE, checkpoint
from xcodec_mini_infer.codec import Codec
from xcodec_mini_infer.encoder import Encoder
from xcodec_mini_infer.precision import full_precision
from xcodec_mini_infer.semantic import Hubert
from xcodec_mini_infer.vocoder import Vocoder
from yue_cli.atomic import write_atomic

SPLITS = ("train", "held-out")
CODEC_SHARES = (0.5, 0.5, 0.0)  # of tracks: nobody decodes a mix from one track's codes


@dataclass(frozen=True)
class Workplace:
    """One folder of runs, and how they are made."""

    corpus: Path
    run: Path
    preset: Preset
    device: torch.device
    seed: int
    bf16: bool = False
    fuse: bool = False
    hours: float = float("inf")
    fine_hours: float = float("inf")  # for the decoder's last touch and the vocoders

    def student(self, step: str) -> Student:
        """Make what a step trains, fresh; the loop gives it the state that it left."""
        student: Student
        if step == "semantic":
            songs, held_out = self._songs(SAMPLE_RATE)
            student = SemanticStudent(
                self.preset.codec, self.preset.semantic, songs, held_out, LABELS, self.seed, self.bf16
            )
        elif step == "autoencoder":
            student = self._autoencoder()
        elif step == "decoder":
            songs, held_out = self._songs(SAMPLE_RATE, self.fine_hours)
            codec = checkpoint.load_codec(self.export()).to(self.device)
            run = self.preset.decoder
            codes = self._codes(songs, held_out)
            student = DecoderRenderer(codec, run, songs, held_out, *codes, CODEC_SHARES, self.seed, self.bf16)
        else:
            codec = checkpoint.load_codec(self.export()).to(self.device)
            codes = self.codes()
            songs, held_out = self._songs(VOCODER_SAMPLE_RATE, self.fine_hours)
            vocoder = prepare_vocoder(Vocoder(self.preset.vocoder))
            shares = tuple(float(name == step) for name in TRACKS)
            run = getattr(self.preset, step)
            student = VocoderRenderer(vocoder, codec, run, songs, held_out, *codes, shares, self.seed, self.bf16)
        if self.fuse:
            fuse_snakes(student)
        return student.to(self.device)

    def read_songs(self) -> None:
        """Read the corpus at both rates, so that the steps find it read."""
        self._songs(SAMPLE_RATE)
        self._songs(VOCODER_SAMPLE_RATE, self.fine_hours)

    def codes(self) -> tuple[Tensor, Tensor]:
        """Encode the songs, and the held-out songs, that vocoders learn from: int16 [2, K, frames] each."""
        return self._codes(*self._songs(SAMPLE_RATE, self.fine_hours))

    def export(self) -> Path:
        """Write all that is trained as a checkpoint folder; a vocoder that is not is written as it starts."""
        encoder, codec, vocal, instrumental = self._assembled()
        modules: dict[str, tuple[Codec | Encoder | Vocoder, ...]] = {
            checkpoint.CODEC_FILE: (encoder, codec),
            checkpoint.VOCAL_FILE: (vocal,),
            checkpoint.INSTRUMENTAL_FILE: (instrumental,),
        }
        write_checkpoint(self._checkpoint, self.preset.codec, self.preset.vocoder, modules)
        return self._checkpoint

    @property
    def _checkpoint(self) -> Path:
        return self.run / "checkpoint"

    def _autoencoder(self) -> Autoencoder:
        hubert = make_hubert(self.preset.codec)
        hubert.load_state_dict(load_state(self.run / "semantic", "hubert"))
        hubert = hubert.to(self.device).eval()
        songs, held_out = self._songs(SAMPLE_RATE)
        features = self._kept("features", hubert, lambda each: _features(hubert, each), songs, held_out)
        return Autoencoder(self.preset, hubert, songs, held_out, *features, LABELS, self.seed, self.bf16)

    def _assembled(self) -> tuple[Encoder, Codec, Vocoder, Vocoder]:
        encoder, codec = Encoder(self.preset.codec, codebooks=0), Codec(self.preset.codec)
        prepare(encoder)
        prepare(codec)
        encoder.load_state_dict(load_state(self.run / "autoencoder", "encoder"))
        codec.load_state_dict(load_state(self.run / "autoencoder", "codec"))
        if has_state(self.run / "decoder"):
            codec.to_decoder.load_state_dict(load_state(self.run / "decoder", "to_decoder"))
            codec.decoder.load_state_dict(load_state(self.run / "decoder", "decoder"))
        return encoder, codec, self._vocoder("vocal"), self._vocoder("instrumental")

    def _vocoder(self, track: str) -> Vocoder:
        vocoder = prepare_vocoder(Vocoder(self.preset.vocoder))
        if has_state(self.run / track):
            vocoder.load_state_dict(load_state(self.run / track, "vocoder"))
        return vocoder

    def _songs(self, rate: int, hours: float = float("inf")) -> tuple[Songs, Songs]:
        hours = min(hours, self.hours)
        train, held_out = (
            load_songs(self.corpus, split, rate, self.run / "songs", hours).to(self.device) for split in SPLITS
        )
        return train, held_out

    def _codes(self, songs: Songs, held_out: Songs) -> tuple[Tensor, Tensor]:
        """Encode all songs with the checkpoint, or find the codes that it made before."""
        encoder = checkpoint.load_encoder(self._checkpoint, self.device, self.preset.codec.codebooks)
        return self._kept("codes", encoder, lambda each: encode_songs(encoder, each), songs, held_out)

    def _kept(
        self, name: str, module: nn.Module, make: Callable[[Songs], Tensor], songs: Songs, held_out: Songs
    ) -> tuple[Tensor, Tensor]:
        """Find what a frozen module once made of all songs, or let it make that."""
        digest = hashlib.sha256(repr((songs.bounds, held_out.bounds)).encode())
        for key, values in sorted(module.state_dict().items()):
            digest.update(key.encode() + values.cpu().numpy().tobytes())
        path = self.run / f"{name}-{digest.hexdigest()[:12]}.pt"
        if not path.is_file():
            made = [make(songs).cpu(), make(held_out).cpu()]
            write_atomic(path, lambda temporary: torch.save(made, temporary))
        of_songs, of_held_out = torch.load(path, weights_only=True)
        return of_songs.to(self.device), of_held_out.to(self.device)


@torch.no_grad()
def _features(hubert: Hubert, songs: Songs) -> Tensor:
    """Compute HuBERT's features of whole songs: float16 [3, frames, width]."""
    tracks = []
    for track in range(len(TRACKS)):
        with full_precision():  # as in use
            parts = [hubert(songs.song(index, track), WHOLE)[0].half() for index in range(songs.count)]
        tracks.append(torch.cat(parts))
    return torch.stack(tracks)
