"""What is to be done: which settings shape which stage, and what is made anew for which reason."""

from dataclasses import replace

import pytest

from tests.library import make_stage, tokens
from yue_cli.artifacts import write_tokens
from yue_cli.audio_prompt import AudioPrompt
from yue_cli.errors import LyricsError
from yue_cli.plan import Request, read_request, recipe, states, to_do, try_request, with_reference
from yue_cli.project import STAGES, Project, StageState
from yue_cli.settings import KEYS, RULES, Layer, Settings, combine, flatten, is_execution, resolve
from yue_cli.song import Song

LYRICS = "[verse]\nla la la\n\n[chorus]\nlo lo\n\n[outro]\nend\n"
SONG = Song(lyrics=LYRICS, genre="pop", seed=7)
OTHER = {
    "rules": "exl2",
    "seed": 8,
    "segments": 2,
    "stage1.on_overflow": "error",
    "stage2.restrict_picks": False,
    "stage2.tail": "short",
    "decode.limit": "clip",
    "decode.format": "flac",
    "execution.dtype": "float16",
    "execution.rows": 4,
    "execution.stage1_weights": "native-8bit",
    "execution.stage2_weights": "native-4bit",
    "execution.songs": 4,
    "execution.stage1_cache": "int8",
    "execution.stage2_cache": "int4",
    "execution.mode": "graphs",
    "execution.memory_limit": 8.0,
    "execution.compute_capability": 7.5,
}


def settings(**values) -> Settings:
    return resolve(combine([Layer("test", {key.replace("__", "."): value for key, value in values.items()})])[0])


def request(song: Song = SONG, **values) -> Request:
    return read_request(song, settings(**values))


def another(key):
    """Give a key a value that differs from what a plain request has."""
    if key in OTHER:
        return OTHER[key]
    now = flatten(settings())[key]
    return "other" if now is None or isinstance(now, str) else now / 2 if isinstance(now, float) else now + 1


def make_song(project: Project, asked: Request) -> None:
    project.create()
    for stage in STAGES:
        make_stage(project, stage, recipe=recipe(asked, stage))


@pytest.fixture
def project(tmp_path) -> Project:
    """A song that was made as it is asked for."""
    found = Project(tmp_path / "song")
    make_song(found, request())
    return found


def seen(project: Project, asked: Request) -> list[str]:
    return [state.state for state in states(project, asked)]


def done(project: Project, asked: Request, wanted=STAGES) -> list[tuple[str, str]]:
    return [(state.stage, state.why) for state in to_do(states(project, asked), wanted)]


# Requests


def test_segments_are_counted_by_the_lyrics_and_limited_by_the_setting():
    assert request().segments == 3
    assert request(segments=2).segments == 2
    assert request(segments=9).segments == 3
    assert Request(Song(), settings()).segments is None


def test_lyrics_that_cannot_be_read_are_refused_but_may_be_looked_at():
    wordless = replace(SONG, lyrics="no tag at all")
    with pytest.raises(LyricsError, match=r"^words\.txt has no section tag"):
        read_request(wordless, settings(), "words.txt")
    assert try_request(wordless, settings()).lyrics is None
    assert try_request(SONG, settings()).segments == 3


# Recipes


def shaped_by(key) -> set[str]:
    """Tell which stages' recipes differ when one setting does."""
    value = another(key)
    song = replace(SONG, seed=value) if key == "seed" else SONG
    before, after = request(), request(song, **{key: value})
    assert flatten(after.settings)[key] != flatten(before.settings)[key]
    return {stage for stage in STAGES if recipe(before, stage) != recipe(after, stage)}


@pytest.mark.parametrize("key", [key for key in KEYS if is_execution(key)])
def test_execution_settings_shape_no_stage(key):
    assert shaped_by(key) == set()


@pytest.mark.parametrize("key", [key for key in KEYS if not is_execution(key)])
def test_every_result_setting_shapes_its_stage(key):
    expected = {"decode": "audio", "rules": "stage1", "seed": "stage1", "segments": "stage1"}
    group = key.split(".")[0]
    shaped = shaped_by(key)
    assert expected.get(group, group) in shaped
    assert key == "rules" or len(shaped) == 1


def test_rules_shape_a_later_stage_only_through_its_settings():
    explicit = {"stage2__restrict_picks": True, "stage2__tail": "overlap", "decode__limit": "scale"}
    recipes = [[recipe(request(rules=rules, **explicit), stage) for stage in ("stage2", "audio")] for rules in RULES]
    assert recipes[0] == recipes[1] == recipes[2]


@pytest.mark.parametrize("change", [{"lyrics": LYRICS + "more"}, {"genre": "rock"}, {"reseeded": {2: 9}}])
def test_texts_and_later_seeds_shape_stage_1_alone(change):
    after = request(replace(SONG, **change))
    assert [stage for stage in STAGES if recipe(request(), stage) != recipe(after, stage)] == ["stage1"]


def test_a_model_that_nobody_named_is_not_part_of_a_recipe():
    assert [key for stage in STAGES for key in recipe(request(), stage) if key.endswith(("model", "codec"))] == []
    named = request(stage1__model="a", stage2__model="b", decode__codec="c")
    assert recipe(named, "stage1")["stage1.model"] == "a"
    assert recipe(named, "stage2")["stage2.model"] == "b"
    assert recipe(named, "audio")["decode.codec"] == "c"


def test_a_value_that_the_rules_give_is_the_same_as_one_that_was_given():
    assert recipe(request(), "stage1") == recipe(request(stage1__top_k=50), "stage1")


def test_more_segments_than_there_are_ask_for_the_same_song():
    assert recipe(request(segments=3), "stage1") == recipe(request(), "stage1") == recipe(request(segments=8), "stage1")


# States and what follows from them


def test_a_song_that_is_as_asked_for_leaves_nothing_to_do(project):
    assert seen(project, request()) == ["current"] * 3
    assert done(project, request()) == []


def test_everything_is_to_do_for_a_new_song(tmp_path):
    asked = request()
    assert seen(Project(tmp_path), asked) == ["missing"] * 3
    assert [stage for stage, _ in done(Project(tmp_path), asked)] == list(STAGES)


def test_a_changed_setting_redoes_its_stage_and_all_after_it(project):
    assert done(project, request(stage1__top_p=0.5)) == [
        ("stage1", "stage1.top_p was 0.93, now 0.5"),
        ("stage2", "stage1 is made anew"),
        ("audio", "stage2 is made anew"),
    ]
    assert done(project, request(stage2__tail="short")) == [
        ("stage2", "stage2.tail was overlap, now short"),
        ("audio", "stage2 is made anew"),
    ]
    assert done(project, request(decode__format="mp3")) == [("audio", "decode.format was wav, now mp3")]


def test_a_stage_alone_is_the_only_one_to_do(project):
    asked = request(stage1__top_p=0.5)
    assert done(project, asked, ["stage2"]) == []
    assert [stage for stage, _ in done(project, asked, ["stage1"])] == ["stage1"]


def test_tokens_of_others_are_used_and_only_what_follows_is_made(tmp_path):
    project = Project(tmp_path)
    project.folder("stage1").mkdir()
    write_tokens(project.folder("stage1"), tokens("stage1"))
    asked = Request(Song(seed=1), settings())
    assert seen(project, asked) == ["foreign", "missing", "missing"]
    assert [stage for stage, _ in done(project, asked)] == ["stage2", "audio"]


def test_finished_tokens_of_others_need_no_singing(tmp_path):
    project = Project(tmp_path)
    project.folder("stage2").mkdir()
    write_tokens(project.folder("stage2"), tokens("stage2"))
    asked = Request(Song(seed=1), settings())
    assert [stage for stage, _ in done(project, asked)] == ["audio"]
    assert [stage for stage, _ in done(project, asked, ["stage1"])] == ["stage1"]


def test_edited_tokens_are_kept_and_what_follows_is_made_from_them(project):
    write_tokens(project.folder("stage1"), tokens("stage1", value=99))
    asked = request()
    assert seen(project, asked) == ["edited", "stale", "current"]
    assert done(project, asked) == [
        ("stage2", "made from other tokens than are there now"),
        ("audio", "stage2 is made anew"),
    ]


def test_edited_tokens_are_not_replaced_when_the_stage_before_is_made_anew(project):
    write_tokens(project.folder("stage2"), tokens("stage2", value=99))
    picked = [stage for stage, _ in done(project, request(stage1__top_p=0.5))]
    assert picked == ["stage1", "audio"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_forced_stage_is_to_do_whatever_it_holds(project, stage):
    if stage != "audio":
        write_tokens(project.folder(stage), tokens(stage, value=99))  # edited
    asked = request(replace(SONG, forced=(stage,)))
    assert (stage, "--force") in done(project, asked)


def test_a_forced_stage_that_is_unfinished_goes_on():
    there = StageState("stage1", "unfinished", "the run that made it did not end")
    assert to_do([there, *(StageState(stage, "missing", "") for stage in STAGES[1:])], STAGES)[0] is there


def test_states_look_at_nothing_but_the_folder(project):
    unknown = Request(Song(), settings())
    assert seen(project, unknown) == ["current"] * 3, "what is not known is not compared"


# References


def followed(path=None, **changes) -> Song:
    """The song with reference audio; without a path, with codes that somebody put there."""
    return replace(SONG, reference=AudioPrompt(audio=path and str(path), **changes))


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "voice.wav"
    path.write_bytes(b"sound")
    return path


def test_a_reference_comes_before_stage_1_alone():
    assert with_reference(STAGES, SONG) == STAGES
    assert with_reference(STAGES, followed()) == ("reference", *STAGES)
    assert with_reference(("stage1",), followed()) == ("reference", "stage1")
    assert with_reference(("stage2",), followed()) == ("stage2",)


def test_seconds_shape_stage_1_and_a_crop_the_reference(sound):
    plain, later = request(followed(sound)), request(followed(sound, start=2.0))
    assert recipe(plain, "reference") == recipe(later, "reference")
    assert (recipe(plain, "stage1")["reference"], recipe(later, "stage1")["reference"]) == ("0–30 s", "2–32 s")
    assert "reference" not in recipe(request(), "stage1")
    cropped = request(followed(sound, start=2.0, crop=True))
    assert recipe(cropped, "reference")["crop"] == "2–32 s"
    assert recipe(cropped, "stage2") == recipe(plain, "stage2")


def test_sound_is_known_by_its_content_and_may_be_gone(sound):
    before = recipe(request(followed(sound)), "reference")
    moved = sound.rename(sound.with_name("moved.wav"))
    assert recipe(request(followed(sound)), "reference")["audio"] is None, "not known, so not compared"
    assert recipe(request(followed(moved)), "reference") == before
    moved.write_bytes(b"other sound")
    assert recipe(request(followed(moved)), "reference") != before


def test_finished_tokens_of_others_need_no_reference(tmp_path, sound):
    project = Project(tmp_path)
    project.folder("stage2").mkdir()
    write_tokens(project.folder("stage2"), tokens("stage2"))
    assert [stage for stage, _ in done(project, request(followed(sound)), ("reference", *STAGES))] == ["audio"]
