"""Several songs with one command: takes of one, and folders that hold their own texts."""

import json
import shutil
from pathlib import Path

import pytest

import yue_cli.pipeline  # noqa: F401  loaded once
from tests.command_line import GENRE, LYRICS, SEED, SHORT, done, history, refused, stored, yue
from tests.folders import contents
from yue_cli import making
from yue_cli.errors import StorageError
from yue_cli.project import STAGES, Project
from yue_cli.resources import resource

pytestmark = pytest.mark.usefixtures("place")

TEXTS = ["--lyrics", "lyrics.txt", "--genre", GENRE, "--seed", SEED]
LONGER = LYRICS + "\n[outro]\nBye\n"
TOKENS = [f"{stage}/{track}.npy" for stage in ("stage1", "stage2") for track in ("vocal", "instrumental")]


def takes_of(song: str, count: int, *more: object):
    return done("run", song, "--takes", count, *SHORT, *TEXTS, *more)


def tokens(folder: Path | str) -> list[bytes]:
    return [(Path(folder) / name).read_bytes() for name in TOKENS]


def sung_together(folder: Path | str) -> list[int]:
    """How many songs each segment was sung among."""
    paths = sorted((Path(folder) / "stage1" / "segments").glob("*.json"))
    return [json.loads(path.read_text())["songs"] for path in paths]


def write_song(name: str, lyrics: str = LYRICS, **values: object) -> None:
    """Make a folder that holds its texts and settings, nothing else."""
    folder = Path(name)
    folder.mkdir()
    (folder / "lyrics.txt").write_text(lyrics)
    (folder / "genre.txt").write_text(GENRE)
    overrides = {"stage1.min_new_tokens": 8, "stage1.max_new_tokens": 8, **values}
    seed = sum(map(ord, name))
    lines = ["format: yue-song", "version: 1", "preset: demo", f"seed: {seed}", f"overrides: {json.dumps(overrides)}"]
    (folder / "song.yaml").write_text("\n".join(lines) + "\n")


def interrupt_after(monkeypatch, saved: int) -> None:
    """Press Ctrl-C when so many segments, of all songs, are on disk."""
    save, left = Project.save_segment, [saved]

    def save_or_stop(project, record):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        save(project, record)

    monkeypatch.setattr(Project, "save_segment", save_or_stop)


# Takes


def test_takes_are_the_songs_that_their_seeds_make_alone(place):
    outcome = takes_of("song", 3)
    assert outcome.out.splitlines() == [f"song/takes/0{number}/audio/mix.wav" for number in (1, 2, 3)]
    assert "takes    3 takes · seeds 7 to 9\n" in outcome.err
    assert "stage 1  1/2 verse · 3 songs · 0.2 s of music · 24 tokens in " in outcome.err
    assert outcome.err.splitlines()[-1].startswith("done     3 songs · 0:00 of music in ")
    for number in (1, 2, 3):
        take = Path(f"song/takes/0{number}")
        assert stored(take)["seed"] == SEED + number - 1
        assert sung_together(take) == [4, 4]
        done("run", f"alone-{number}", *SHORT, *TEXTS[:4], "--seed", SEED + number - 1)
        assert tokens(take) == tokens(f"alone-{number}")
    assert len({tokens(path)[0] for path in Path("song/takes").iterdir()}) == 3
    assert sorted(path.name for path in Path("song").iterdir() if path.is_dir()) == ["takes"]


def test_more_takes_keep_those_that_there_are(place):
    takes_of("song", 2)
    before = [contents(Path(f"song/takes/0{number}")) for number in (1, 2)]
    outcome = done("run", "song", "--takes", 4)
    assert [contents(Path(f"song/takes/0{number}")) for number in (1, 2)] == before
    assert [stored(Path(f"song/takes/0{number}"))["seed"] for number in (1, 2, 3, 4)] == [7, 8, 9, 10]
    assert "done     take 1 · 0:00 of music · seed 7 · nothing to do\n" in outcome.err
    assert sung_together("song/takes/03") == [2, 2]
    assert "nothing to do" in done("run", "song", "--takes", 2).err


def test_a_drawn_seed_is_stored_and_listed(place):
    outcome = done("run", "song", "--takes", 2, *SHORT, *TEXTS[:4])
    first = stored(Path("song"))["seed"]
    assert f"takes    2 takes · seeds {first} to {first + 1}\n" in outcome.err
    assert [stored(Path(f"song/takes/0{number}"))["seed"] for number in (1, 2)] == [first, first + 1]


def test_the_highest_seed_leaves_no_room_for_takes(place):
    text = refused("run", "song", "--takes", 2, *SHORT, *TEXTS[:4], "--seed", 2**63 - 1)
    assert text == f"take 2 has no seed: --seed {2**63 - 1} is too high; expected one that leaves room."


def test_what_is_changed_in_one_take_stays_until_the_song_asks_for_something_else(place):
    takes_of("song", 2)
    first = (Path("song/takes/02/stage1/segments") / "001.npy").read_bytes()
    done("stage1", "song/takes/02", "--from-segment", 2, "--seed", 99)
    done("run", "song/takes/02")
    changed = tokens("song/takes/02")
    told = done("run", "song", "--takes", 2).err
    assert told.count("nothing to do") == 2
    assert tokens("song/takes/02") == changed
    assert (Path("song/takes/02/stage1/segments") / "001.npy").read_bytes() == first
    (Path("song") / "lyrics.txt").write_text(LYRICS.replace("light", "lamp"))
    told = done("run", "song", "--takes", 2).err
    assert "stage 1  take 2 · is made anew: the lyrics changed, seed was 8, 99 from segment 2, now 8" in told
    assert "reseeded" not in stored(Path("song/takes/02"))
    assert history(Path("song/takes/02")) == ["audio", "audio", "stage1", "stage1", "stage2", "stage2"]


def test_forced_takes_have_new_seeds_that_follow_each_other(place):
    takes_of("song", 2)
    told = done("run", "song", "--takes", 2, "--force").err
    first = stored(Path("song"))["seed"]
    assert first != SEED
    assert f"seeds {first} to {first + 1}\n" in told
    assert [stored(Path(f"song/takes/0{number}"))["seed"] for number in (1, 2)] == [first, first + 1]
    assert history(Path("song/takes/01")) == sorted(STAGES)
    assert done("run", "song", "--takes", 2).err.count("nothing to do") == 2


def test_a_forced_run_of_takes_that_was_stopped_goes_on(place, monkeypatch):
    takes_of("song", 2)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        assert yue("run", "song", "--takes", 2, "--force").code == 130
    first = stored(Path("song"))["seed"]
    done("run", "song", "--takes", 2, "--force")
    assert [stored(Path(f"song/takes/0{number}"))["seed"] for number in (1, 2)] == [first, first + 1]
    assert history(Path("song/takes/01")) == sorted(STAGES)


def test_takes_share_the_codes_of_their_reference(place, monkeypatch):
    sound = str(resource("prompt_egs/vocal.ogg"))
    encoded = []
    encode = making._encode
    monkeypatch.setattr(making, "_encode", lambda *given: encoded.append(1) or encode(*given))
    takes_of("song", 2, "--audio", sound)
    assert len(encoded) == 1
    codes = [Path(f"song/takes/0{number}/reference/vocal.npy").read_bytes() for number in (1, 2)]
    assert codes[0] == codes[1]
    done("encode", "other", "--audio", sound, "--preset", "toy")
    encoded.clear()
    takes_of("other", 1)
    assert encoded == []
    assert Path("other/takes/01/reference/vocal.npy").read_bytes() == codes[0]
    assert done("run", "other", "--takes", 1).err.count("nothing to do") == 1


def test_takes_of_a_song_without_words_are_refused(place):
    assert refused("run", "song", "--takes", 2, "--preset", "toy", "--genre", GENRE) == (
        "song has no lyrics.txt yet: give --lyrics."
    )


def test_without_a_folder_takes_are_taken_up_until_they_are_whole(place):
    command = ["run", "--takes", 1, *SHORT, *TEXTS]
    assert done(*command).out == "song-001/takes/01/audio/mix.wav\n"
    shutil.rmtree("song-001/takes/01/audio")
    assert done(*command).out == "song-001/takes/01/audio/mix.wav\n"
    assert done(*command).out == "song-002/takes/01/audio/mix.wav\n"
    assert done("run", *SHORT, *TEXTS).out == "song-003/audio/mix.wav\n"


# Folders


def test_songs_of_several_folders_are_the_songs_alone(place):
    for folder in ("together", "alone"):
        Path(folder).mkdir()
        write_song(f"{folder}/a", LONGER)
        write_song(f"{folder}/b")
        write_song(f"{folder}/c", LYRICS.replace("One", "Two"))
    shutil.copy("together/a/song.yaml", "alone/a/song.yaml")
    shutil.copy("together/b/song.yaml", "alone/b/song.yaml")
    shutil.copy("together/c/song.yaml", "alone/c/song.yaml")
    outcome = done("run", "together/a", "together/b", "together/c")
    assert outcome.out.splitlines() == [f"together/{name}/audio/mix.wav" for name in "abc"]
    assert "stage 1  segment 1 · 3 songs · " in outcome.err
    assert "stage 1  3/3 outro · 0.1 s of music" in outcome.err
    assert [sung_together(f"together/{name}") for name in "abc"] == [[4, 4, 1], [4, 4], [4, 4]]
    for name in "abc":
        done("run", f"alone/{name}")
        assert tokens(f"together/{name}") == tokens(f"alone/{name}")


def test_songs_that_are_sampled_otherwise_are_sung_apart(place):
    write_song("a")
    write_song("b", **{"stage1.temperature": 0.5})
    write_song("c", **{"decode.format": "flac"})
    outcome = done("run", "a", "b", "c")
    assert outcome.out.splitlines() == ["a/audio/mix.wav", "b/audio/mix.wav", "c/audio/mix.flac"]
    assert [sung_together(name) for name in "abc"] == [[2, 2], [1, 1], [2, 2]]
    assert "stage 2  3 songs · " in outcome.err


def test_stages_alone_take_several_folders(place):
    write_song("a")
    write_song("b")
    assert done("stage1", "a", "b").out == "a/stage1\nb/stage1\n"
    assert done("stage2", "a", "b").out == "a/stage2\nb/stage2\n"
    assert done("decode", "a", "b", "--format", "flac").out == "a/audio/mix.flac\nb/audio/mix.flac\n"
    assert done("run", "a", "b").err.count("nothing to do") == 2
    done("stage1", "a", "b", "--from-segment", 2)
    seeds = [stored(Path(name))["reseeded"][2] for name in "ab"]
    assert seeds[0] != seeds[1]


def test_memory_bounds_how_many_are_sung_at_once(place):
    takes_of("song", 3, "--set", "execution.songs=2")
    assert [sung_together(f"song/takes/0{number}") for number in (1, 2, 3)] == [[2, 2], [2, 2], [1, 1]]
    takes_of("other", 3)
    for number in (1, 2, 3):
        assert tokens(f"song/takes/0{number}") == tokens(f"other/takes/0{number}")


# Interruption


@pytest.mark.parametrize("saved", [0, 1, 3, 4])
def test_songs_that_were_stopped_go_on_together_or_alone_as_if_they_had_not_been(place, monkeypatch, saved):
    takes_of("undisturbed", 3)
    with monkeypatch.context() as patch:
        interrupt_after(patch, saved)
        outcome = yue("run", "song", "--takes", 3, *SHORT, *TEXTS)
    assert outcome.code == 130
    assert outcome.err.endswith("interrupted: what was finished of 3 songs is kept. The same command goes on.\n")
    seats = [json.loads(path.read_text())["seats"] for path in sorted(Path("song/takes").glob("*/stage1/seats.json"))]
    assert seats == [[[4, place], [4, place]] for place in range(3)]
    done("run", "song/takes/02")
    done("run", "song", "--takes", 3)
    for number in (1, 2, 3):
        assert tokens(f"song/takes/0{number}") == tokens(f"undisturbed/takes/0{number}")
        assert history(Path(f"song/takes/0{number}")) == []
        if saved:  # those that have sung keep their seats, whoever sings with them
            assert number > saved or sung_together(f"song/takes/0{number}") == [4, 4]


def test_songs_that_do_not_fit_together_any_more_go_on_in_smaller_batches_and_say_so(place, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        assert yue("run", "song", "--takes", 3, *SHORT, *TEXTS).code == 130
    told = done("run", "song", "--takes", 3, "--set", "execution.songs=1").err
    note = "stage 1  take 2 · fewer songs fit together than before: tokens to come may differ"
    assert note in told.splitlines()
    assert [sung_together(f"song/takes/0{number}") for number in (1, 2, 3)] == [[4, 1]] * 3


def test_windows_of_several_songs_that_were_stopped_keep_their_places(place, monkeypatch):
    write_song("a", LONGER)
    write_song("b")
    done("stage1", "a", "b")
    for name in "ab":
        shutil.copytree(name, f"{name}2")
    done("stage2", "a", "b", "--set", "execution.rows=2")
    save = Project.save_windows

    def save_or_stop(project, filled):
        if project.root.name == "b2":
            raise KeyboardInterrupt
        save(project, filled)

    with monkeypatch.context() as patch:
        patch.setattr(Project, "save_windows", save_or_stop)
        assert yue("stage2", "a2", "b2", "--set", "execution.rows=2").code == 130
    done("stage2", "b2")
    assert json.loads(Path("b2/stage2/manifest.json").read_text())["engine"]["rows"] == "2"
    done("stage2", "a2")
    for name in "ab":
        assert tokens(name) == tokens(f"{name}2")


# Trouble


def test_a_song_that_cannot_be_read_refuses_all_before_anything_is_made(place):
    write_song("a")
    write_song("b")
    (Path("b") / "lyrics.txt").write_text("no tag at all")
    before = contents(place)
    assert refused("run", "a", "b").startswith("b/lyrics.txt has no section tag.")
    assert contents(place) == before


def test_a_folder_in_use_refuses_all(place):
    write_song("a")
    write_song("b")
    with Project(Path("b")).locked():
        assert refused("run", "a", "b").startswith("b is in use by another yue (process ")
    assert not (Path("a") / "stage1").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "b", "--lyrics", "lyrics.txt"], "--lyrics is for one song; of several, every folder holds its own."),
        (["a", "b", "--genre", "folk"], "--genre is for one song; of several, every folder holds its own."),
        (["a", "b", "--audio", "x.ogg"], "reference audio is for one song; of several, every folder holds its own."),
        (["a", "b", "a/../a"], "a is named twice; name every song once."),
        (["a", "c"], "c: there is no such folder. `yue run c` makes a song there."),
    ],
)
def test_what_several_folders_cannot_have(place, words, said):
    write_song("a")
    write_song("b")
    assert refused("run", *words).startswith(said)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_song_that_fails_later_leaves_the_others_alone(place, monkeypatch, flags):
    write_song("a")
    write_song("b")
    write_song("c")
    decode = making._decode

    def fail(bench, *given):
        if bench.project.root.name == "b":
            raise StorageError("no space left on b.")
        decode(bench, *given)

    monkeypatch.setattr(making, "_decode", fail)
    outcome = yue("run", "a", "b", "c", *flags)
    assert outcome.code == 1
    if flags:
        answer = outcome.answer
        assert [song["song"] for song in answer["songs"]] == ["a", "c", "b"]
        assert answer["songs"][2]["error"] == {"kind": "storage", "message": "no space left on b."}
        assert answer["error"] == {"kind": "songs", "message": "1 of 3 songs failed", "exit_code": 1}
    else:
        assert outcome.out == "a/audio/mix.wav\nc/audio/mix.wav\n"
        assert outcome.err.endswith("\nerror: b: no space left on b.\n")
    monkeypatch.undo()


# Looking


def test_several_songs_are_one_object_for_programs(place):
    answer = takes_of("song", 2, "--json").answer
    assert [song["song"] for song in answer["songs"]] == ["song/takes/01", "song/takes/02"]
    assert [song["seed"] for song in answer["songs"]] == [7, 8]
    assert answer["songs"][1]["audio"]["mix"] == "song/takes/02/audio/mix.wav"
    assert answer["seconds_of_music"] == 0.32
    assert answer.keys() == {"songs", "seconds_of_music", "seconds_taken", "peak_memory_bytes", "warnings"}


def test_status_lists_the_takes(place):
    takes_of("song", 2)
    (Path("song/takes/02") / "audio" / "mix.wav").unlink()
    assert done("status", "song").out.splitlines() == [
        "take 01 current         0:00  seed 7",
        "take 02 audio stale           seed 8",
    ]
    answer = done("status", "song", "--json").answer
    assert [take["song"] for take in answer["takes"]] == ["song/takes/01", "song/takes/02"]
    assert [stage["state"] for stage in answer["takes"][0]["stages"]] == ["current"] * 3
    done("run", "song")
    rows = done("status", "song").out.splitlines()
    assert [row.split()[0] for row in rows] == [*STAGES, "take", "take"]


def test_a_dry_run_of_takes_says_what_is_sung_at_once_and_makes_nothing(place):
    takes_of("song", 1)
    before = contents(place)
    outcome = done("run", "song", "--takes", 3, "--dry-run")
    lines = outcome.out.splitlines()
    assert lines[0] == "take 1  seed 7 · stays: stage1, stage2, audio"
    assert lines[2].startswith("take 3  seed 9 · would be made: stage1 (not made yet), ")
    assert "2 songs at once, 4 rows of " in lines[3]
    answer = done("plan", "song", "--takes", 3, "--json").answer
    assert [song["seed"] for song in answer["songs"]] == [7, 8, 9]
    assert answer["together"][0]["songs"] == ["song/takes/02", "song/takes/03"]
    assert answer["together"][0]["needs"]["stage1"]["songs"] == 2
    assert contents(place) == before
