"""What is asked for: which source wins, what is stored, and what the folder says of it afterwards."""

import pytest

from tests.folders import contents
from yue_cli import song as songs
from yue_cli.audio_prompt import AudioPrompt
from yue_cli.errors import ArtifactError, SettingsError
from yue_cli.presets import Preset
from yue_cli.song import SEEDS, SONG_FILE, Song, read_song, settle, write_song


def preset(**values) -> Preset:
    return Preset("demo", "", {key.replace("__", "."): value for key, value in values.items()})


@pytest.fixture(autouse=True)
def known_presets(monkeypatch):
    """Let the name `soft` stand for a preset, as a song's stored one."""
    soft = Preset(
        "soft", "", {"stage1.temperature": 0.5, "stage1.top_p": 0.5, "segments": 3, "execution.dtype": "float32"}
    )

    def find(name):
        if name != "soft":
            raise SettingsError(f"there is no preset `{name}`")
        return soft

    monkeypatch.setattr(songs, "find", find)


# Which source wins


def test_each_source_wins_over_the_one_before_it():
    stored = Song(preset="soft", overrides={"stage1.top_p": 0.6, "stage2.tail": "short"}, seed=1)
    _, settings, sources = settle(stored, preset(segments=2, stage2__tail="overlap"), {"segments": 1})
    assert settings.stage1.temperature == 1.0, "the stored preset was replaced by the one given now"
    assert settings.stage1.top_p == 0.6, "a stored override stays where the new preset says nothing"
    assert settings.stage2.tail == "overlap", "the new preset wins over a stored override"
    assert settings.segments == 1, "a flag wins over all"
    assert sources == {
        "stage1.top_p": "song.yaml",
        "stage2.tail": "preset demo",
        "segments": "command line",
    }


def test_a_stored_preset_lies_below_the_stored_overrides():
    _, settings, sources = settle(Song(preset="soft", overrides={"stage1.top_p": 0.6}, seed=1), None, {})
    assert (settings.stage1.temperature, settings.stage1.top_p, settings.segments) == (0.5, 0.6, 3)
    assert sources["stage1.temperature"] == "preset soft"


def test_a_new_preset_drops_the_overrides_that_it_sets():
    stored = Song(preset="soft", overrides={"stage1.top_p": 0.6, "stage2.tail": "short"}, seed=1)
    asked, _, _ = settle(stored, preset(stage2__tail="overlap"), {})
    assert asked.preset == "demo"
    assert asked.overrides == {"stage1.top_p": 0.6}


def test_a_preset_of_execution_settings_alone_holds_now_and_is_not_stored():
    stored = Song(preset="soft", overrides={"stage1.top_p": 0.6}, seed=1)
    card = Preset("8gb", "", {"execution.dtype": "float16", "execution.rows": 4})
    asked, settings, sources = settle(stored, card, {"execution.rows": 2})
    assert asked == stored
    assert (settings.stage1.temperature, settings.stage1.top_p) == (0.5, 0.6), "the song is the same"
    assert (settings.execution.dtype, settings.execution.rows) == ("float16", 2)
    assert sources["execution.dtype"] == "preset 8gb"


def test_a_preset_that_sets_nothing_replaces_the_stored_one():
    asked, settings, _ = settle(Song(preset="soft", seed=1), Preset("auto", "", {}), {})
    assert asked.preset == "auto"
    assert settings.stage1.temperature == 1.0


def test_a_flag_given_with_a_new_preset_stays_an_override():
    asked, settings, _ = settle(Song(seed=1), preset(segments=2), {"segments": 1})
    assert asked.overrides == {"segments": 1}
    assert settings.segments == 1


def test_the_same_request_again_is_the_same_song():
    first, settings, _ = settle(Song(), preset(segments=2), {"stage1.top_p": 0.9, "execution.device": "cpu"})
    again, settings_again, _ = settle(first, preset(segments=2), {"stage1.top_p": 0.9})
    assert again == first
    assert settings_again.stage1 == settings.stage1


def test_execution_settings_are_never_stored():
    asked, settings, _ = settle(Song(), None, {"execution.device": "cpu", "execution.rows": 4, "decode.format": "flac"})
    assert asked.overrides == {"decode.format": "flac"}
    assert settings.execution.rows == 4


def test_a_wrong_flag_is_named_as_one_and_changes_nothing():
    with pytest.raises(SettingsError, match=r"^command line: unknown key `stage1.temprature`"):
        settle(Song(), None, {"stage1.temprature": 1})


def test_a_wrong_stored_override_is_named_by_its_file():
    with pytest.raises(SettingsError, match=r"^song.yaml: `stage1.top_p` is 5"):
        settle(Song(overrides={"stage1.top_p": 5}), None, {})


def test_a_stored_preset_that_is_gone_is_named():
    with pytest.raises(SettingsError, match="there is no preset `lost`"):
        settle(Song(preset="lost"), None, {})


# Seeds


def test_a_seed_is_drawn_once_and_kept():
    asked, settings, _ = settle(Song(), None, {})
    assert 0 <= asked.seed < SEEDS
    assert settings.seed == asked.seed
    again, settings, _ = settle(asked, None, {})
    assert (again.seed, settings.seed) == (asked.seed, asked.seed)


def test_drawn_seeds_differ():
    assert len({settle(Song(), None, {})[0].seed for _ in range(20)}) > 10


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_a_given_seed_is_stored_in_its_own_place(seed):
    asked, settings, _ = settle(Song(seed=1), None, {"seed": seed})
    assert (asked.seed, settings.seed, asked.overrides) == (seed, seed, {})


def test_a_null_seed_draws_a_new_one(monkeypatch):
    monkeypatch.setattr(songs, "draw_seed", lambda: 77)
    assert settle(Song(seed=1), None, {"seed": None})[0].seed == 77


def test_a_preset_given_now_brings_its_seed_and_a_flag_wins_over_it():
    assert settle(Song(seed=1), preset(seed=42), {})[0].seed == 42
    assert settle(Song(seed=1), preset(seed=42), {"seed": 3})[0].seed == 3


def test_the_seed_of_a_stored_preset_does_not_undo_a_later_one():
    assert settle(Song(preset="soft", seed=9), None, {})[0].seed == 9


def test_later_segments_keep_their_own_seeds_until_another_is_asked_for():
    asked = Song(seed=1).reseed_from(2, 20).reseed_from(4, 40)
    assert [asked.segment_seed(number) for number in range(1, 6)] == [1, 20, 20, 40, 40]
    assert settle(asked, None, {"seed": 1})[0].reseeded == {2: 20, 4: 40}
    assert settle(asked, None, {"seed": 2})[0].reseeded == {}


def test_redoing_from_an_earlier_segment_forgets_the_seeds_after_it():
    asked = Song(seed=1).reseed_from(2, 20).reseed_from(4, 40).reseed_from(3, 30)
    assert asked.reseeded == {2: 20, 3: 30}


# Files


def test_a_song_comes_back_as_it_was_written(tmp_path):
    written = Song(
        lyrics="[verse]\nÄh 歌\n",
        genre="pop",
        preset="soft",
        overrides={"stage1.top_p": 0.6, "stage1.top_k": None, "rules": "exl2"},
        seed=2**63 - 1,
        reseeded={2: 5},
        forced=("stage1", "audio"),
    )
    write_song(tmp_path, written)
    found = read_song(tmp_path)
    assert found == Song(
        preset=written.preset,
        overrides=written.overrides,
        seed=written.seed,
        reseeded=written.reseeded,
        forced=written.forced,
    )
    assert (tmp_path / "lyrics.txt").read_bytes() == "[verse]\nÄh 歌\n".encode()
    assert (tmp_path / "genre.txt").read_bytes() == b"pop"


def test_a_song_without_texts_writes_none(tmp_path):
    write_song(tmp_path, Song(seed=3))
    assert contents(tmp_path).keys() == {SONG_FILE}


def test_what_did_not_change_is_not_written_again(tmp_path):
    asked = Song(lyrics="[verse]\nla", genre="pop", seed=3)
    write_song(tmp_path, asked)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    inodes = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    write_song(tmp_path, asked)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == inodes


def test_a_folder_without_a_song_asks_for_nothing(tmp_path):
    assert read_song(tmp_path) == Song()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "format: yue-song\nversion: 2\n",
            "expected yue-song version 1, found yue-song version 2. Update yue to use this",
        ),
        ("", "expected yue-song version 1, found None version None."),
        ("format: other\nversion: 1\n", "expected yue-song version 1, found other version 1."),
        ("format: yue-song\nversion: 1\nmood: blue\n", "unknown key `mood`; it was written by another version of yue."),
        (
            "format: yue-song\nversion: 1\nseed: often\n",
            "`seed` is 'often'; expected a whole number or nothing (null).",
        ),
        ("format: yue-song\nversion: 1\nseed: -5\n", "`seed` is -5; expected a value from 0 to "),
        ("format: yue-song\nversion: 1\npreset: 5\n", "a value has the wrong form ("),
        ("format: yue-song\nversion: 1\noverrides: [1]\n", "a value has the wrong form ("),
        ("format: yue-song\nversion: 1\nreseeded: 4\n", "a value has the wrong form ("),
        ("format: yue-song\nversion: 1\nforced: 4\n", "a value has the wrong form ("),
        ("format: yue-song\nversion: 1\nforced: stage1\n", "a value has the wrong form ("),
        (
            "- format\n",
            "expected settings such as `rules: yue`, found list. Remove it to start from the default settings.",
        ),
        ("format: [\n", "not a YAML file ("),
    ],
)
def test_a_song_file_of_another_kind_is_never_guessed_at(tmp_path, text, said):
    path = tmp_path / SONG_FILE
    path.write_text(text)
    with pytest.raises((ArtifactError, SettingsError)) as refused:
        read_song(tmp_path)
    assert str(refused.value).startswith(f"{path}: {said}")
    assert "\n" not in str(refused.value)


# Reference audio


def test_reference_audio_is_stored_and_read_back(tmp_path):
    asked = Song(seed=3, reference=AudioPrompt(vocal="/v.ogg", instrumental="/i.ogg", start=2.5, end=9.0, crop=True))
    write_song(tmp_path, asked)
    assert read_song(tmp_path) == asked
    assert (
        "  vocal: /v.ogg\n  instrumental: /i.ogg\n  start: 2.5\n  end: 9.0\n  crop: true\n"
        in (tmp_path / SONG_FILE).read_text()
    )


def test_codes_that_lie_there_are_no_request(tmp_path):
    write_song(tmp_path, Song(seed=3, reference=AudioPrompt()))
    assert "reference" not in (tmp_path / SONG_FILE).read_text()


def test_a_wrong_reference_is_named_with_its_file(tmp_path):
    write_song(tmp_path, Song(seed=3, reference=AudioPrompt(audio="/a.ogg")))
    path = tmp_path / SONG_FILE
    path.write_text(path.read_text().replace("audio:", "sound:"))
    with pytest.raises(ArtifactError) as error:
        read_song(tmp_path)
    assert str(error.value) == (
        f"{path}: unknown key `reference.sound`; known: start, end, crop, audio, vocal, instrumental."
    )
