"""Sound on disk. The only writer of it: wav, flac, ogg and mp3 files with tags, whole or not at all. Reads more."""

import errno
import io
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from yue_cli.atomic import write_atomic
from yue_cli.errors import AudioError

SAMPLE_RATE = 44_100  # of what yue makes
FORMATS = {  # file extension: libsndfile's names of the container and of what is in it
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
_BLOCK = 65_536  # samples converted and written at once
_ID3_FRAMES = {"title": b"TIT2", "artist": b"TPE1", "genre": b"TCON", "comment": b"COMM"}


def write_audio(path: Path, samples: np.ndarray, tags: Mapping[str, str], sample_rate: int = SAMPLE_RATE) -> None:
    """Write a waveform in the format that the file's extension says.

    samples: float32 [C, N]; what is beyond ±1 is cut. tags: of title, artist, genre and comment; empty ones are left
    out. They are stored as LIST/INFO (wav), Vorbis comments (flac, ogg) or ID3v2 (mp3).
    Raises StorageError for a full disk, and AudioError for a format that the installed libsndfile lacks.
    """
    extension = path.suffix.removeprefix(".")
    assert extension in FORMATS, f"{path.name}: sound is written as {', '.join(FORMATS)}"
    # A folder's name need not be text in UTF-8; a tag must.
    tags = {name: text.encode("utf-8", "replace").decode() for name, text in tags.items()}
    container, encoding = FORMATS[extension]
    if container not in soundfile.available_formats():
        raise AudioError(
            f"{path}: libsndfile {soundfile.__libsndfile_version__} cannot write {extension}; use wav or flac."
        )

    def write_mp3(temporary: Path) -> None:
        # libsndfile marks tags in an mp3 as Latin-1 and spells them in UTF-8, so they are ours to write.
        encoded = io.BytesIO()
        _write_blocks(encoded, samples, {}, samplerate=sample_rate, format=container, subtype=encoding)
        with temporary.open("wb") as file:
            file.write(_id3(tags))
            file.write(encoded.getbuffer())

    def write(temporary: Path) -> None:
        try:
            _write_blocks(temporary, samples, tags, samplerate=sample_rate, format=container, subtype=encoding)
        except soundfile.LibsndfileError as error:
            _ask_the_system(temporary)
            raise OSError(errno.EIO, f"libsndfile: {error.error_string.rstrip('.')}") from error

    write_atomic(path, write_mp3 if extension == "mp3" else write)


def read_audio(path: Path) -> tuple[np.ndarray, int]:
    """Read a sound file of any format that libsndfile knows, its channels averaged.

    Returns float32 [N], about [-1, 1], N > 0, and the sample rate. Raises AudioError.
    """
    with _opened(path) as file:
        blocks = [block.mean(axis=1) for block in file.blocks(_BLOCK, dtype="float32", always_2d=True)]
        samples = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
        if not len(samples):
            raise AudioError(f"{path}: holds no sound.")
        if not np.isfinite(samples).all():
            raise AudioError(f"{path}: some samples are no numbers; the file is damaged.")
        return samples, file.samplerate


def audio_seconds(path: Path) -> float:
    """Tell how long a sound file is, by its header alone. Raises AudioError."""
    with _opened(path) as file:
        return float(file.frames / file.samplerate)


def writable_formats() -> tuple[str, dict[str, bool]]:
    """Tell the version of the installed libsndfile, and which of our formats it can write."""
    there = soundfile.available_formats()
    return soundfile.__libsndfile_version__, {name: container in there for name, (container, _) in FORMATS.items()}


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """Open a sound file for reading; what goes wrong meanwhile is told, too."""
    try:
        with path.open("rb"):
            pass  # the system says better than libsndfile why a file cannot be opened
        with soundfile.SoundFile(_spelled(path)) as file:
            yield file
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror}).") from error
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless .raw
        reason = getattr(error, "error_string", "no header").rstrip(".")
        raise AudioError(
            f"{path}: is not sound that can be read (libsndfile: {reason}); expected wav, flac, ogg, opus or mp3."
        ) from error


def _spelled(path: Path) -> Path | bytes:
    """Spell a path for soundfile, which takes text for UTF-8: not every name on a Unix is."""
    return os.fsencode(path) if os.name == "posix" else path


def _write_blocks(target: Path | io.BytesIO, samples: np.ndarray, tags: Mapping[str, str], **form: Any) -> None:
    file_name = _spelled(target) if isinstance(target, Path) else target
    with soundfile.SoundFile(file_name, "w", channels=len(samples), **form) as file:
        for name, text in tags.items():
            if text:
                setattr(file, name, text)
        for start in range(0, samples.shape[1], _BLOCK):
            file.write(samples[:, start : start + _BLOCK].T)


def _ask_the_system(path: Path) -> None:
    """Find out why a write failed, by another one: libsndfile says only "System error". Raises OSError."""
    with path.open("ab") as file:
        file.write(bytes(2 * _BLOCK))
        file.flush()
        os.fsync(file.fileno())


def _id3(tags: Mapping[str, str]) -> bytes:
    """Spell tags as ID3v2.3 in UTF-16, which every player reads. Source: id3.org/id3v2.3.0."""
    frames = b""
    for name, text in tags.items():
        if text:
            # A comment has a language and a description, here an empty one.
            head = b"\x01eng\xff\xfe\x00\x00" if name == "comment" else b"\x01"
            content = head + text.encode("utf-16")
            frames += _ID3_FRAMES[name] + struct.pack(">IH", len(content), 0) + content
    size = bytes(len(frames) >> shift & 0x7F for shift in (21, 14, 7, 0))  # seven bits a byte
    return b"ID3\x03\x00\x00" + size + frames
