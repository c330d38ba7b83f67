"""Settings: what is refused and how it is said, which source wins, what `rules` makes of an open value."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yue_cli.errors import SettingsError
from yue_cli.settings import (
    KEYS,
    RULES,
    Layer,
    Settings,
    combine,
    dump_yaml,
    flatten,
    flatten_tree,
    is_execution,
    load_yaml,
    parse_assignments,
    read_preset,
    resolve,
)


def refusal(values) -> str:
    """Say why settings are refused."""
    with pytest.raises(SettingsError) as refused:
        combine([Layer("my.yaml", values)])
    assert "\n" not in str(refused.value)
    return str(refused.value)


def settings(*layers, **values) -> Settings:
    return combine([*layers, Layer("test", values)])[0]


# Keys


def test_the_public_keys_are_those_the_documents_promise():
    stage1 = (
        "model temperature top_k top_p repetition_penalty min_new_tokens max_new_tokens guidance_first guidance_later "
        "context on_overflow"
    )
    expected = ["rules", "seed", "segments"]
    expected += [f"stage1.{name}" for name in stage1.split()]
    expected += ["stage2.model", "stage2.restrict_picks", "stage2.tail"]
    expected += ["decode.codec", "decode.limit", "decode.format"]
    execution = "device engine dtype rows songs mode stage1_weights stage2_weights"
    execution += " stage1_cache stage2_cache memory_limit compute_capability"
    expected += [f"execution.{name}" for name in execution.split()]
    assert list(KEYS) == expected


def test_only_execution_settings_are_execution_settings():
    assert [key for key in KEYS if is_execution(key)] == [key for key in KEYS if key.split(".")[0] == "execution"]


@pytest.mark.parametrize(
    ("unknown", "known"),
    [
        ("stage1.temprature", "stage1.temperature"),
        ("temperature", "stage1.temperature"),
        ("stage2.tial", "stage2.tail"),
        ("sed", "seed"),
        ("execution.devcie", "execution.device"),
        ("rule", "rules"),
        ("stage1.max_tokens", "stage1.max_new_tokens"),
    ],
)
def test_an_unknown_key_names_its_place_and_the_nearest_known_key(unknown, known):
    assert refusal({unknown: 1}) == f"my.yaml: unknown key `{unknown}`; did you mean `{known}`?"


def test_an_unknown_key_that_is_as_near_to_both_stages_names_both():
    known = "`execution.stage1_cache` or `execution.stage2_cache`"
    assert refusal({"execution.cache": "int8"}) == f"my.yaml: unknown key `execution.cache`; did you mean {known}?"


def test_an_unknown_key_like_no_other_lists_all_known_ones():
    text = refusal({"zzzz": 1})
    assert text.startswith("my.yaml: unknown key `zzzz`; known keys: ")
    assert all(key in text for key in KEYS)


# Values


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("stage1.temperature", "hot", "`stage1.temperature` is 'hot'; expected a number."),
        ("stage1.temperature", True, "`stage1.temperature` is True; expected a number."),
        ("stage1.temperature", None, "`stage1.temperature` is None; expected a number."),
        ("stage1.temperature", [1.0], "`stage1.temperature` is [1.0]; expected a number."),
        ("seed", 1.5, "`seed` is 1.5; expected a whole number or nothing (null)."),
        ("seed", False, "`seed` is False; expected a whole number or nothing (null)."),
        ("stage1.model", 7, "`stage1.model` is 7; expected text or nothing (null)."),
        ("stage2.restrict_picks", 1, "`stage2.restrict_picks` is 1; expected true or false or nothing (null)."),
        ("stage1.temperature", 0, "`stage1.temperature` is 0.0; expected a value from 0.01 to 100.0."),
        ("stage1.temperature", float("nan"), "`stage1.temperature` is nan; expected a value from 0.01 to 100.0."),
        ("stage1.top_p", 1.01, "`stage1.top_p` is 1.01; expected a value from 0.0 to 1.0."),
        ("stage1.max_new_tokens", 1, "`stage1.max_new_tokens` is 1; expected a value from 2 to 1000000."),
        ("segments", 0, "`segments` is 0; expected a value from 1 to 10000."),
        ("seed", -1, "`seed` is -1; expected a value from 0 to 9223372036854775807."),
        ("execution.stage1_cache", 8, "`execution.stage1_cache` is 8; expected one of auto, int8, int6, int4."),
        ("rules", "mine", "`rules` is 'mine'; expected one of yue, original, exl2."),
        ("decode.format", "aac", "`decode.format` is 'aac'; expected one of wav, flac, ogg, mp3."),
        ("stage2.tail", "long", "`stage2.tail` is 'long'; expected one of null, overlap, short."),
    ],
)
def test_a_wrong_value_is_told_with_what_was_expected(key, value, expected):
    assert refusal({key: value}) == f"my.yaml: {expected}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stage1.temperature", 0.01),
        ("stage1.temperature", 100.0),
        ("stage1.top_p", 0.0),
        ("stage1.top_k", 0),
        ("stage1.top_k", None),
        ("seed", 0),
        ("seed", 2**63 - 1),
        ("stage2.restrict_picks", False),
        ("execution.rows", 4096),
    ],
)
def test_the_ends_of_a_range_are_in_it(key, value):
    assert flatten(combine([Layer("test", {key: value})])[0])[key] == value


def test_a_whole_number_serves_as_a_fraction():
    value = settings(**{"stage1.temperature": 2}).stage1.temperature
    assert value == 2.0
    assert isinstance(value, float)


# Layers


def test_a_later_layer_wins_and_each_changed_key_knows_its_source():
    found, sources = combine(
        [
            Layer("preset demo", {"stage1.temperature": 0.5, "segments": 2}),
            Layer("song.yaml", {"stage1.temperature": 0.6}),
            Layer("command line", {"stage1.top_p": 0.5}),
        ]
    )
    assert found.stage1.temperature == 0.6
    assert found.segments == 2
    assert found.stage1.top_p == 0.5
    assert sources == {"stage1.temperature": "song.yaml", "segments": "preset demo", "stage1.top_p": "command line"}


def test_no_layer_leaves_the_defaults():
    assert combine([]) == (Settings(), {})


def test_a_refused_value_names_the_layer_it_stands_in():
    with pytest.raises(SettingsError, match=r"^command line: "):
        combine([Layer("preset", {"seed": 3}), Layer("command line", {"seed": "x"})])


# Rules

OPEN = "stage1.top_k stage1.min_new_tokens stage1.on_overflow stage2.restrict_picks stage2.tail decode.limit".split()


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("yue", [50, 100, "drop_oldest", True, "overlap", "scale"]),
        ("original", [50, 100, "keep_last", False, "short", "clip"]),
        ("exl2", [0, 0, "drop_oldest", False, "short", "clip"]),
    ],
)
def test_an_open_value_means_what_the_rules_say(rules, expected):
    found = flatten(resolve(settings(rules=rules)))
    assert [found[key] for key in OPEN] == expected


@pytest.mark.parametrize("rules", RULES)
def test_an_explicit_value_wins_over_the_rules(rules):
    given = {
        "stage1.top_k": 7,
        "stage1.min_new_tokens": 3,
        "stage1.on_overflow": "error",
        "stage2.restrict_picks": rules != "yue",
        "stage2.tail": "overlap",
        "decode.limit": "clip",
    }
    found = flatten(resolve(settings(rules=rules, **given)))
    assert {key: found[key] for key in given} == given


@pytest.mark.parametrize("rules", RULES)
def test_rules_leave_open_only_what_is_chosen_later(rules):
    chosen_later = {"seed", "segments", "stage1.model", "stage2.model", "decode.codec", "execution.rows"}
    chosen_later |= {"execution.songs", "execution.memory_limit", "execution.compute_capability"}
    found = flatten(resolve(settings(rules=rules)))
    assert {key for key, value in found.items() if value is None} == chosen_later


def test_an_explicit_null_opens_again_what_a_layer_below_has_set():
    found = resolve(settings(Layer("preset", {"stage1.top_k": 5}), **{"stage1.top_k": None}))
    assert found.stage1.top_k == 50


# Words on the command line


def test_assignments_are_read_as_in_a_preset():
    words = ["stage1.temperature=0.9", "seed=12", "stage2.restrict_picks=true", "stage1.top_k=null", "rules=exl2"]
    assert parse_assignments(words) == {
        "stage1.temperature": 0.9,
        "seed": 12,
        "stage2.restrict_picks": True,
        "stage1.top_k": None,
        "rules": "exl2",
    }


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("stage1.model=a=b", "a=b"),
        ("stage1.model=C: [", "C: ["),  # no YAML: taken as it is
        ("stage1.model=2026-13-45", "2026-13-45"),  # YAML's idea of a date, but there is no such month
        ("stage1.model=", None),
    ],
)
def test_an_assignment_keeps_everything_after_the_first_equals_sign(word, value):
    assert parse_assignments([word]) == {"stage1.model": value}


@pytest.mark.parametrize("word", ["stage1.temperature", "=3", " =3", ""])
def test_an_assignment_without_key_or_equals_sign_is_refused(word):
    with pytest.raises(SettingsError, match=r"expected KEY=VALUE, such as stage1.temperature=0.9"):
        parse_assignments([word])


@given(st.text())
def test_any_text_after_the_equals_sign_is_read_or_refused(text):
    try:
        combine([Layer("command line", parse_assignments([f"stage1.model={text}"]))])
    except SettingsError as error:
        assert "stage1.model" in str(error)


# Files


def test_a_preset_is_a_description_and_settings_in_groups(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("description: Soft.\nseed: 5\nstage1:\n  temperature: 0.7\nexecution: {device: cpu}\n")
    assert read_preset(path) == ("Soft.", {"seed": 5, "stage1.temperature": 0.7, "execution.device": "cpu"})


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "description: Nothing.\n", "stage1:\n  # all left open\n"])
def test_a_preset_may_set_nothing(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert read_preset(path)[1] == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stage1:\n  temprature: 1\n", "unknown key `stage1.temprature`; did you mean `stage1.temperature`?"),
        ("stage1: hot\n", "unknown key `stage1`; did you mean "),
        ("3: 4\n", "unknown key `3`; known keys: "),
        ("- rules\n", "expected settings such as `rules: yue`, found list."),
        ("rules\n", "expected settings such as `rules: yue`, found str."),
        ("description: [1]\n", "`description` must be text, found [1]."),
        ("a: b: c\n", "not a YAML file ("),
        ("seed: 2026-13-45\n", "not a YAML file ("),
        ("rules: !!python/name:os.system\n", "not a YAML file ("),
    ],
)
def test_a_file_that_is_no_preset_says_what_is_wrong_with_it(tmp_path, text, expected):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as refused:
        read_preset(path, "mine.yaml")
    assert str(refused.value).startswith(f"mine.yaml: {expected}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"rules: \xff\xfe", b"\x00\x01\x02", b"rules: \x07"])
def test_a_binary_file_is_no_preset(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"^mine.yaml: not a YAML file \("):
        read_preset(path, "mine.yaml")


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    with pytest.raises(SettingsError, match=r"^mine.yaml: cannot be read \(Is a directory\)\.$"):
        load_yaml(tmp_path, "mine.yaml")


def test_settings_survive_a_file(tmp_path):
    tree = {"rules": "exl2", "stage1": {"temperature": 0.7, "model": "ä/ö: x"}, "seed": None}
    path = tmp_path / "mine.yaml"
    path.write_text(dump_yaml(tree), encoding="utf-8")
    assert load_yaml(path, "mine.yaml") == tree
    assert flatten_tree(tree)["stage1.model"] == "ä/ö: x"


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        Settings().seed = 3
    assert replace(Settings(), seed=3).seed == 3
