"""From a model's name to a folder: which one is meant, and what is said when there is none."""

import pytest

from yue_cli.errors import CheckpointError
from yue_cli.weights import PARTS, ModelFolder, locate


def no_maker(home):
    raise AssertionError("nothing should be made")


MAKERS = {"toy": no_maker}


@pytest.mark.parametrize("part", PARTS)
def test_a_model_that_nobody_named_lies_in_the_models_home(tmp_path, part):
    folder = tmp_path / "models" / part
    folder.mkdir(parents=True)
    assert locate(None, part, tmp_path, MAKERS) == ModelFolder(part, folder)


@pytest.mark.parametrize(
    ("part", "title", "flag", "needed"),
    [
        ("stage1", "stage-1 model", "stage1.model", "config.json, model.safetensors and tokenizer.model"),
        ("stage2", "stage-2 model", "stage2.model", "config.json and model.safetensors"),
        (
            "codec",
            "codec",
            "decode.codec",
            "config.json, codec.safetensors, vocal.safetensors and instrumental.safetensors",
        ),
    ],
)
def test_without_a_model_the_expected_folder_and_its_files_are_told(tmp_path, part, title, flag, needed):
    with pytest.raises(CheckpointError) as refused:
        locate(None, part, tmp_path, MAKERS)
    assert str(refused.value) == (
        f"no {title} in {tmp_path / 'models' / part}: expected a folder with {needed} there, or name one with "
        f"--set {flag}=FOLDER. `yue demo` tries the tool without a model."
    )


def test_a_folder_of_ones_own_is_taken_as_it_is(tmp_path):
    assert locate(str(tmp_path), "stage1", tmp_path / "home", MAKERS) == ModelFolder(str(tmp_path), tmp_path)


def test_a_folder_that_holds_all_parts_gives_the_one_that_is_meant(tmp_path):
    (tmp_path / "stage2").mkdir()
    assert locate(str(tmp_path), "stage2", tmp_path / "home", MAKERS).path == tmp_path / "stage2"
    assert locate(str(tmp_path), "stage1", tmp_path / "home", MAKERS).path == tmp_path


def test_a_folder_may_be_named_from_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert locate("~/mine", "codec", tmp_path, MAKERS).path == tmp_path / "mine"


@pytest.mark.parametrize("name", ["en-cot", "/nowhere/at/all"])
def test_a_name_without_a_folder_says_what_was_expected(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        locate(name, "stage1", tmp_path, MAKERS)
    assert str(refused.value) == (
        f"stage1.model: there is no folder {name}; expected a folder with config.json, model.safetensors and "
        "tokenizer.model, or toy."
    )


def test_a_file_is_no_model_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"^stage2\.model: there is no folder .*model\.safetensors; expected"):
        locate(str(tmp_path / "model.safetensors"), "stage2", tmp_path, MAKERS)


def test_a_model_that_is_made_on_first_use_knows_its_revision(tmp_path):
    def make(home):
        return home / "toy-abc"

    assert locate("toy", "stage1", tmp_path, {"toy": make}) == ModelFolder(
        "toy", tmp_path / "toy-abc/stage1", "toy-abc"
    )
