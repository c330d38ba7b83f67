"""Presets: those that come with yue are what they say, and a user's own are found by path."""

import pytest

from yue_cli import presets
from yue_cli.errors import SettingsError
from yue_cli.presets import CARDS
from yue_cli.settings import Settings, combine, resolve


def resolved(name):
    return resolve(combine([presets.find(name).layer()])[0])


def test_the_presets_that_come_with_yue_are_listed_in_order():
    assert presets.names() == sorted(presets.names())
    assert {"auto", "cpu", "demo", "exl2-port", "original", *presets.CARDS} <= set(presets.names())


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_valid_and_says_what_it_is_for(name):
    preset = presets.find(name)
    assert preset.name == name
    assert preset.description.endswith(".")
    assert "\n" not in preset.description
    assert preset.layer().source == f"preset {name}"
    assert resolved(name).rules


def test_the_original_preset_is_what_infer_py_computes():
    # YuE infer.py: rules of its own, --run_n_segments 2, --seed 42 and its sampling arguments.
    found = resolved("original")
    assert (found.rules, found.seed, found.segments) == ("original", 42, 2)
    stage1 = found.stage1
    assert (stage1.top_p, stage1.temperature, stage1.repetition_penalty) == (0.93, 1.0, 1.1)
    assert (stage1.min_new_tokens, stage1.max_new_tokens, stage1.top_k) == (100, 3000, 50)
    assert (stage1.guidance_first, stage1.guidance_later) == (1.5, 1.2)
    assert found.decode.limit == "clip"


def test_auto_is_what_is_set_nowhere():
    assert resolved("auto") == resolve(Settings())


def test_cards_and_cpu_change_no_song():
    """So that a song may go on under another of them."""
    assert all(presets.find(name).is_execution for name in (*CARDS, "cpu"))


def test_a_card_says_how_much_of_it_is_used_and_leaves_nothing_to_be_picked():
    for name in CARDS:
        execution = resolved(name).execution
        assert f"{execution.memory_limit:g}gb" == name
        assert "auto" not in (execution.stage1_weights, execution.stage2_weights)
        assert (execution.device, execution.dtype, execution.rows) == ("auto", "auto", None)


def test_the_demo_needs_no_model_and_no_gpu():
    for name, model in (("demo", "tiny"), ("toy", "toy")):
        found = resolved(name)
        assert {found.stage1.model, found.stage2.model, found.decode.codec} == {model}
        assert found.execution.device == "cpu"


def test_a_preset_of_ones_own_is_found_by_its_path_and_remembered_by_the_whole_of_it(tmp_path, monkeypatch):
    (tmp_path / "soft.yaml").write_text("description: Soft.\nstage1: {temperature: 0.5}\n")
    monkeypatch.chdir(tmp_path)
    found = presets.find("soft.yaml")
    assert found.name == str(tmp_path / "soft.yaml")
    assert (found.description, found.values) == ("Soft.", {"stage1.temperature": 0.5})


def test_a_name_that_comes_with_yue_wins_over_a_file_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "demo").write_text("seed: 1\n")
    monkeypatch.chdir(tmp_path)
    assert presets.find("demo").name == "demo"
    assert presets.find("./demo").values == {"seed": 1}


@pytest.mark.parametrize("name", ["mine.yaml", "mine.yml", "some/where", "./demo2"])
def test_a_path_without_a_file_says_so(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as refused:
        presets.find(name)
    assert str(refused.value) == f"{name}: there is no such preset file."


@pytest.mark.parametrize("name", ["24gigs", ""])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(SettingsError) as refused:
        presets.find(name)
    assert str(refused.value) == (
        f"there is no preset `{name}`; known presets: {', '.join(presets.names())}, or the path of a YAML file."
    )


def test_a_wrong_key_in_ones_own_preset_names_the_file_as_it_was_given(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("stage1: {temprature: 1}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as refused:
        presets.find("mine.yaml")
    assert str(refused.value) == "mine.yaml: unknown key `stage1.temprature`; did you mean `stage1.temperature`?"
