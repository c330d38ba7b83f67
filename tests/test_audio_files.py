import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from yue_cli import audio_files
from yue_cli.audio_files import FORMATS, audio_seconds, read_audio, write_audio
from yue_cli.errors import AudioError, StorageError

TAGS = {"title": "Nächte – 夜", "artist": "YuE", "genre": "pop, female", "comment": "seed 7; made with yue"}


def tone(seconds: float, channels: int = 1) -> np.ndarray:
    time = np.arange(int(44_100 * seconds)) / 44_100
    return np.tile(0.5 * np.sin(2 * np.pi * 440 * time), (channels, 1)).astype(np.float32)


def noise(seconds: float) -> np.ndarray:
    return (0.2 * np.random.default_rng(0).standard_normal((1, int(44_100 * seconds)))).astype(np.float32)


@pytest.mark.parametrize("extension", FORMATS)
def test_sound_is_read_back_as_written(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"mix.{extension}"
    samples = tone(2.0)
    write_audio(path, samples, TAGS)
    found, rate = soundfile.read(path, dtype="float32")
    assert rate == 44_100
    lossless = extension in ("wav", "flac")
    assert len(found) == samples.shape[1]
    np.testing.assert_allclose(found, samples[0], atol=2**-15 if lossless else 0.05)


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_keeps_the_tags(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"mix.{extension}"
    write_audio(path, tone(0.2), TAGS)
    with soundfile.SoundFile(path) as file:
        found = file.copy_metadata()
    assert {name: found.get(name) for name in TAGS} == TAGS


@pytest.mark.parametrize(("extension", "mark"), [("wav", b"LIST"), ("flac", b"TITLE="), ("mp3", b"TIT2")])
def test_tags_are_where_players_look(extension: str, mark: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"mix.{extension}"
    write_audio(path, tone(0.2), TAGS)
    assert mark in path.read_bytes().upper()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system whose names are bytes")
@pytest.mark.parametrize("extension", FORMATS)
def test_names_that_are_no_text_are_no_trouble(extension: str, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"s\xffng")
    folder.mkdir()
    path = folder / f"mix.{extension}"
    write_audio(path, tone(0.5), TAGS | {"title": folder.name})
    assert len(read_audio(path)[0]) == 22_050
    assert audio_seconds(path) == 0.5
    with soundfile.SoundFile(os.fsencode(path)) as file:
        assert file.copy_metadata()["title"] == "s?ng"


def test_empty_tags_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "mix.flac"
    write_audio(path, tone(0.2), TAGS | {"genre": ""})
    with soundfile.SoundFile(path) as file:
        assert "genre" not in file.copy_metadata()


def test_wav_is_16_bit(tmp_path: Path) -> None:
    write_audio(tmp_path / "mix.wav", tone(0.1, channels=2), {}, sample_rate=16_000)
    info = soundfile.info(tmp_path / "mix.wav")
    assert (info.subtype, info.channels, info.samplerate, info.frames) == ("PCM_16", 2, 16_000, 4410)


def test_what_is_beyond_full_scale_is_cut_and_does_not_wrap(tmp_path: Path) -> None:
    write_audio(tmp_path / "mix.wav", np.array([[1.5, -1.5, 0.5]], np.float32), {})
    assert soundfile.read(tmp_path / "mix.wav", dtype="int16")[0].tolist() == [32767, -32768, 16384]


def test_a_format_that_libsndfile_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "", "FLAC": ""})
    monkeypatch.setattr(soundfile, "__libsndfile_version__", "1.0.28")
    path = tmp_path / "mix.mp3"
    with pytest.raises(AudioError) as error:
        write_audio(path, tone(0.1), {})
    assert str(error.value) == f"{path}: libsndfile 1.0.28 cannot write mp3; use wav or flac."
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let the system refuse to write beyond 100 KB, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.usefixtures("small_files")
def test_a_refused_write_leaves_what_was_there(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"mix.{extension}"
    path.write_bytes(b"before")
    with pytest.raises(StorageError) as error:
        write_audio(path, noise(20.0), TAGS)
    assert str(error.value) == f"{path}: {os.strerror(errno.EFBIG)}."
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise soundfile.LibsndfileError(2)

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(soundfile.SoundFile, "write", fail)
    monkeypatch.setattr(audio_files, "_ask_the_system", full)
    with pytest.raises(StorageError, match=r"no space left for .*mix\.wav \(\d+ MB free\)"):
        write_audio(tmp_path / "mix.wav", tone(0.1), TAGS)
    assert not list(tmp_path.iterdir())


def test_an_unexplained_failure_still_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise soundfile.LibsndfileError(2)

    monkeypatch.setattr(soundfile.SoundFile, "write", fail)
    with pytest.raises(StorageError) as error:
        write_audio(tmp_path / "mix.wav", tone(0.1), TAGS)
    assert str(error.value) == f"{tmp_path / 'mix.wav'}: libsndfile: System error."


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KB, where one may be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("extension", FORMATS)
def test_a_disk_that_is_full_is_told(extension: str, full_disk: Path) -> None:
    path = full_disk / f"mix.{extension}"
    with pytest.raises(StorageError) as error:
        write_audio(path, noise(30.0), TAGS)
    assert str(error.value).startswith(f"no space left for {path} (0 MB free).")
    assert not list(full_disk.iterdir())


# Reading


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
@pytest.mark.parametrize(
    ("extension", "container", "encoding"),
    [
        ("wav", "WAV", "PCM_24"),
        ("wav", "WAV", "FLOAT"),
        ("flac", "FLAC", "PCM_16"),
        ("ogg", "OGG", "VORBIS"),
        ("opus", "OGG", "OPUS"),
        ("mp3", "MP3", "MPEG_LAYER_III"),
        ("aiff", "AIFF", "PCM_16"),
    ],
)
def test_any_format_and_rate_is_read(extension: str, container: str, encoding: str, rate: int, tmp_path: Path) -> None:
    if (encoding, rate) == ("OPUS", 22_050):
        rate = 24_000  # Opus has five rates only
    samples = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    path = tmp_path / f"voice.{extension}"
    soundfile.write(path, samples, rate, format=container, subtype=encoding)
    found, found_rate = read_audio(path)
    assert (found.dtype, found.ndim, found_rate) == (np.float32, 1, rate)
    assert audio_seconds(path) == pytest.approx(2.0, abs=0.1)
    assert len(found) / rate == pytest.approx(2.0, abs=0.1)
    assert np.sqrt(np.mean(found[rate // 2 : -rate // 2] ** 2)) == pytest.approx(0.5 / 2**0.5, rel=0.05)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = noise(3.0)[0], tone(3.0)[0]
    soundfile.write(tmp_path / "both.wav", np.stack([left, right], axis=1), 44_100, subtype="FLOAT")
    found, _ = read_audio(tmp_path / "both.wav")
    np.testing.assert_array_equal(found, (left + right) / np.float32(2))


def unreadable(path: Path) -> str:
    texts = set()
    for read in (read_audio, audio_seconds):
        with pytest.raises(AudioError) as error:
            read(path)
        texts.add(str(error.value))
    (text,) = texts
    assert "\n" not in text
    return text


def test_a_sound_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "voice.wav"
    assert unreadable(path) == f"{path}: cannot be read (No such file or directory)."
    assert unreadable(tmp_path) == f"{tmp_path}: cannot be read (Is a directory)."


@pytest.mark.parametrize("name", ["voice.wav", "voice.mp3", "lyrics.txt"])
def test_what_is_not_sound_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("[verse]\nThese are words\n" * 50)
    reason = "Format not recognised"
    if name == "voice.mp3":
        reason = unreadable(path).split("libsndfile: ")[1].split(");")[0]
    assert unreadable(path) == (
        f"{path}: is not sound that can be read (libsndfile: {reason}); expected wav, flac, ogg, opus or mp3."
    )


def test_raw_samples_without_a_header_are_no_sound_file(tmp_path: Path) -> None:
    path = tmp_path / "voice.raw"
    path.write_bytes(bytes(1000))
    assert unreadable(path) == (
        f"{path}: is not sound that can be read (libsndfile: no header); expected wav, flac, ogg, opus or mp3."
    )


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "voice.flac"
    write_audio(path, noise(20.0), {})
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"spoilt" * 50
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"voice\.flac: is not sound that can be read \(libsndfile: "):
        read_audio(path)


def test_a_file_of_no_samples_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "voice.wav"
    soundfile.write(path, np.empty(0), 16_000)
    with pytest.raises(AudioError) as error:
        read_audio(path)
    assert str(error.value) == f"{path}: holds no sound."


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "voice.wav"
    soundfile.write(path, np.array([0.1, np.nan, 0.2]), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError) as error:
        read_audio(path)
    assert str(error.value) == f"{path}: some samples are no numbers; the file is damaged."
