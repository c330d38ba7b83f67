"""Bad input and trouble on the command line: one clear line each, and nothing is lost."""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

import yue_cli.pipeline  # noqa: F401  loaded once, before a test gives up its rights
from tests.command_line import GENRE, LYRICS, SHORT, done, history, is_within, refused, stored
from tests.folders import contents, refusing_folder, small_disk
from yue_cli.artifacts import MANIFEST_FILE
from yue_cli.project import STAGES, Project

pytestmark = pytest.mark.usefixtures("place")


# Which folder


def start(*arguments: object, stdin: bytes = b"") -> str:
    """Begin a song that cannot end for want of a model, and tell which folder was taken."""
    before = {path.name for path in Path().glob("song-*")}
    text = refused("run", *arguments, "--set", "stage1.model=nowhere", stdin=stdin)
    assert text.startswith("stage1.model: there is no folder nowhere")
    [taken] = {path.name for path in Path().glob("song-*")} - before or {""}
    return taken


def test_songs_without_a_folder_are_numbered_and_an_unfinished_one_is_taken_up_again(place, song):
    words = ["--lyrics", "lyrics.txt", "--genre", GENRE]
    assert start(*words) == "song-001"
    assert start(*words) == "", "the same request goes on in song-001"
    assert start("--lyrics", "lyrics.txt", "--genre", "rock") == "song-002"
    assert start(*words, "--seed", "12") == "song-003"
    shutil.copytree(song, place / "song-009")
    assert start("--lyrics", "lyrics.txt", "--genre", "jazz") == "song-010"


def test_a_finished_song_is_not_taken_up_again(place, finished_song):
    shutil.copytree(finished_song, place / "song-001")
    shutil.rmtree(place / "song-001" / "stage2")
    assert start(*SHORT, "--lyrics", "lyrics.txt", "--genre", GENRE) == "song-002"


def test_a_song_that_cannot_be_read_does_not_keep_a_new_one_from_its_folder(place):
    (place / "song-001").mkdir()
    (place / "song-001" / "song.yaml").write_text("format: yue-song\nversion: 99\n")
    assert start("--lyrics", "lyrics.txt", "--genre", GENRE) == "song-002"


def test_run_alone_goes_on_with_the_unfinished_song(place):
    start("--lyrics", "lyrics.txt", "--genre", GENRE)
    seed = stored(place / "song-001")["seed"]
    assert start() == ""
    assert stored(place / "song-001")["seed"] == seed


def test_run_alone_with_no_song_asks_for_words(place):
    assert refused("run") == "song-001 has no lyrics.txt yet: give --lyrics."
    assert not (place / "song-001").exists()


# Texts


def test_a_genre_is_words_unless_it_looks_like_a_file(place):
    (place / "texts").mkdir()
    (place / "texts" / "genre").write_text("from a file\n")
    (place / "genre.txt").write_text("\ufefffrom a text file\r\n", encoding="utf-8")
    (place / "pop").write_text("a file with a word for a name")
    for source, expected in [
        ("pop", "pop"),
        (" pop, soft ", "pop, soft"),
        ("~dreamy~ pop", "~dreamy~ pop"),
        ("texts/genre", "from a file"),
        ("genre.txt", "from a text file"),
    ]:
        taken = start("--lyrics", "lyrics.txt", "--genre", source)
        assert (place / taken / "genre.txt").read_text() == expected


@pytest.mark.parametrize("source", ["none.txt", "hip/hop"])
def test_a_genre_that_looks_like_a_file_must_be_one(source):
    text = refused("run", "song", "--lyrics", "lyrics.txt", "--genre", source)
    assert text == f"--genre {source}: cannot be read (No such file or directory)."


@pytest.mark.parametrize("genre", ["", "  "])
def test_an_empty_genre_is_refused(place, genre):
    assert refused("run", "song", "--lyrics", "lyrics.txt", "--genre", genre).startswith("--genre is empty. ")
    assert not (place / "song").exists()


def test_lyrics_may_come_from_standard_input(place):
    taken = start("--lyrics", "-", "--genre", GENRE, stdin=b"\xef\xbb\xbf[verse]\r\nH\xc3\xa4\r\n")
    assert (place / taken / "lyrics.txt").read_text(encoding="utf-8") == "[verse]\nHä\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no tag\nat all\n", "bad.txt has no section tag. Put each part under a line such as [verse] or [chorus]"),
        (b"", "bad.txt is empty."),
        (b" \n\n", "bad.txt is empty."),
        (b"[verse]\nla\0la", "bad.txt: not a text file (a zero at byte 10)."),
        (b"[verse]\nl\xe4", "bad.txt: not UTF-8 text (byte 0xe4 in line 2). Save it as UTF-8."),
        ("[verse]\nla".encode("utf-16"), "bad.txt: expected UTF-8 text, found UTF-16. Save it as UTF-8."),
    ],
)
def test_lyrics_that_cannot_be_sung_are_refused_before_anything_is_made(place, content, said):
    (place / "bad.txt").write_bytes(content)
    before = contents(place)
    assert refused("run", "song", "--lyrics", "bad.txt", "--genre", GENRE).startswith(said)
    assert refused("run", "song", "--lyrics", "-", "--genre", GENRE, stdin=content).startswith(
        said.replace("bad.txt", "standard input")
    )
    assert contents(place) == before


def test_lyrics_that_are_not_there_are_told(place):
    assert refused("run", "song", "--lyrics", "none.txt", "--genre", GENRE) == (
        "--lyrics none.txt: cannot be read (No such file or directory)."
    )


def test_bad_lyrics_change_nothing_in_a_song(song, place):
    (place / "bad.txt").write_text("no tag")
    before = contents(song)
    assert refused("run", "song", "--lyrics", "bad.txt").startswith("bad.txt has no section tag")
    assert contents(song) == before


# Settings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "stage1.temprature=1"], "command line: unknown key `stage1.temprature`; did you mean"),
        (["--set", "stage1.temperature=0"], "command line: `stage1.temperature` is 0.0; expected a value from"),
        (["--set", "temperature"], "--set temperature: expected KEY=VALUE"),
        (["--format", "aac"], "command line: `decode.format` is 'aac'; expected one of wav, flac, ogg, mp3."),
        (["--segments", "0"], "command line: `segments` is 0; expected a value from 1 to"),
        (["--seed", "-1"], "command line: `seed` is -1; expected a value from 0 to"),
        (["--preset", "24gigs"], "there is no preset `24gigs`; known presets: "),
        (["--preset", "none.yaml"], "none.yaml: there is no such preset file."),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_changes(song, words, said):
    before = contents(song)
    assert refused("run", "song", *words).startswith(said)
    assert contents(song) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "gpu"], "execution.device is `gpu`; expected auto, cpu, cuda or cuda:N."),
        (["--device", "cuda:99"], ""),
        (["--engine", "magic"], "magic"),
    ],
)
def test_a_device_or_engine_that_is_not_there_is_told(song, words, said):
    stages = {name: held for name, held in contents(song).items() if name.startswith(STAGES)}
    assert said in refused("run", "song", *words, "--set", "stage1.top_p=0.5")
    assert {name: held for name, held in contents(song).items() if name.startswith(STAGES)} == stages
    assert history(song) == []


# Models


@pytest.fixture
def broken_toy(home, finished_song, place) -> Path:
    """A copy of the toy to break a file of."""
    [toy] = home.glob("toy-*")
    return Path(shutil.copytree(toy, place / "broken", copy_function=os.link))


def replace_tensors(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def no_norm(tensors) -> None:
    """no tensor model.norm.weight"""
    del tensors["model.norm.weight"]


def short_norm(tensors) -> None:
    """model.norm.weight"""
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:5]


def short_window(tensors) -> None:
    """head.istft.window"""
    tensors["head.istft.window"] = tensors["head.istft.window"][:5]


@pytest.mark.parametrize(
    ("key", "name", "change"),
    [
        ("stage1.model", "stage1/config.json", None),
        ("stage1.model", "stage1/model.safetensors", None),
        ("stage1.model", "stage1/tokenizer.model", None),
        ("stage1.model", "stage1/model.safetensors", no_norm),
        ("stage1.model", "stage1/model.safetensors", short_norm),
        ("stage2.model", "stage2/config.json", None),
        ("stage2.model", "stage2/model.safetensors", no_norm),
        ("decode.codec", "codec/config.json", None),
        ("decode.codec", "codec/vocal.safetensors", None),
        ("decode.codec", "codec/vocal.safetensors", short_window),
    ],
)
def test_a_broken_model_is_told_by_its_file_and_no_stage_is_lost(song, broken_toy, key, name, change):
    if change is None:
        (broken_toy / name).unlink()
    else:
        replace_tensors(broken_toy / name, change)
    before = {file: held for file, held in contents(song).items() if file.startswith(STAGES)}
    text = refused("run", "song", "--set", f"{key}=broken")
    folder, _, file = name.partition("/")
    assert text.startswith(f"broken/{folder}")
    assert (file if change is None else change.__doc__) in text.replace("model*", "model")
    after = {file: held for file, held in contents(song).items() if file.startswith(STAGES)}
    assert after == before
    assert history(song) == []
    assert done("run", "song", "--set", f"{key}=toy").err.count("is current: kept") == 3


def test_the_path_of_a_model_holds_from_any_folder(song, broken_toy, place, monkeypatch):
    done("decode", "song", "--model", "./broken")
    assert stored(song)["overrides"]["decode.codec"] == str(broken_toy)
    (place / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert done("run", "../song").err.count("is current: kept") == 3
    done("decode", "../song", "--force")


def test_without_a_model_the_command_that_fetches_it_is_told(place, monkeypatch):
    monkeypatch.setenv("YUE_HOME", str(place / "nowhere"))
    text = refused("run", "song", "--lyrics", "lyrics.txt", "--genre", GENRE)
    assert text == (
        "en-cot, s2 and codec are not on this machine, and offline nothing is fetched: `yue models pull en-cot s2 "
        "codec`, with a network, fetches them. `yue demo` tries the tool without a model."
    )
    assert not (place / "nowhere").exists()


@pytest.mark.parametrize(
    "words",
    [["--lyrics", "~nobody-here/l.txt"], ["--preset", "~nobody-here/p.yaml"], ["--genre", "~nobody-here/g.txt"]],
)
def test_the_home_of_an_unknown_user_is_a_folder_that_is_not_there(place, words):
    assert "~nobody-here/" in refused("run", "song", *words)


def test_missing_tokens_are_told_before_a_missing_model(place):
    (place / "song").mkdir()
    assert refused("decode", "song") == "song/stage2/vocal.npy: is missing; `yue stage2 song` makes it."
    assert refused("stage2", "song") == "song/stage1/vocal.npy: is missing; `yue stage1 song` makes it."
    assert sorted(path.name for path in (place / "song").iterdir() if path.name[:5] != ".lock") == []


# Folders that make trouble


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system whose names are bytes")
def test_a_song_s_folder_may_have_a_name_that_is_no_text(finished_song, place):
    song = shutil.copytree(finished_song, place / os.fsdecode(b"s\xffng"))
    for format in ("mp3", "flac"):
        answer = done("decode", song, "--format", format, "--json").answer
        assert answer["audio"]["mix"] == str(song / "audio" / f"mix.{format}")
    assert (song / "audio" / "mix.flac").is_file()


def test_two_runs_on_one_folder_do_not_meet(song):
    before = contents(song)
    with Project(song).locked():
        text = refused("run", "song", "--set", "stage2.tail=short")
        assert text.startswith(f"song is in use by another yue (process {os.getpid()}, since ")
        assert done("status", "song").out.count(" current ") == 3, "looking is free"
    assert contents(song) == before


@pytest.mark.parametrize("stage", STAGES)
def test_a_manifest_of_a_newer_yue_is_not_touched(song, stage):
    path = song / stage / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 9}))
    before = contents(song)
    said = f"song/{stage}/manifest.json: has version 9; this yue reads version 1. Update yue to use this song."
    for command in (["run", "song"], ["run", "song", "--force"], ["status", "song"], ["run", "song", "--dry-run"]):
        assert refused(*command) == said
        assert contents(song) == before


def test_a_song_of_a_newer_yue_is_not_touched(song):
    (song / "song.yaml").write_text("format: yue-song\nversion: 2\n")
    before = contents(song)
    assert "expected yue-song version 1, found yue-song version 2." in refused("run", "song")
    assert contents(song) == before


def test_a_file_in_place_of_the_folder_is_told(place):
    (place / "song").write_bytes(b"x")
    text = refused("run", "song", "--lyrics", "lyrics.txt", "--genre", GENRE)
    assert text == "song: is a file; a song needs a folder. Choose another name."


def test_a_folder_that_may_not_be_written_is_told_and_nothing_changes(finished_song):
    with refusing_folder(finished_song) as folder:
        before = contents(folder)
        text = refused("run", folder, "--set", "stage2.tail=short")
        assert contents(folder) == before
    assert text.startswith(f"{folder}")
    assert text.endswith("cannot be written (Permission denied). Choose a folder you may write to.")


def test_a_new_song_in_a_folder_that_may_not_be_written_is_told():
    with refusing_folder() as folder:
        text = refused("run", folder / "song", "--lyrics", "-", "--genre", GENRE, stdin=LYRICS.encode())
    assert text == f"{folder / 'song'}: cannot be written (Permission denied). Choose a folder you may write to."


def test_a_folder_that_may_not_even_be_looked_into_is_told():
    with refusing_folder(mode=0o000) as folder:
        for command in (["run", folder / "song"], ["status", folder / "song"], ["presets", folder / "x.yaml"]):
            assert "Permission denied" in refused(*command)


@pytest.mark.parametrize("words", [["run", "x" * 300], ["status", "x" * 300], ["presets", "x" * 300]])
def test_a_name_that_is_too_long_is_told(words):
    assert refused(*words) == f"{'x' * 300}: File name too long."


@pytest.mark.parametrize("free_pages", [0, 1, 3, 12])
def test_a_full_disk_loses_nothing_and_the_same_command_goes_on(finished_song, free_pages):
    with small_disk(kilobytes=512) as disk:
        song = Path(shutil.copytree(finished_song, disk / "song"))
        (disk / "spare").write_bytes(bytes(4096 * free_pages))
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        (disk / "spare").unlink()
        before = contents(song)
        text = refused("run", song, "--set", "stage2.tail=short")
        assert text.startswith("no space left for ")
        assert is_within(before, song)
        assert not [name for name in contents(song) if Path(name).name.startswith(".writing-")]
        (disk / "filler").unlink()
        done("run", song, "--set", "stage2.tail=short")
        assert is_within(before, song)
        assert done("status", song).out.count(" current ") == 3
