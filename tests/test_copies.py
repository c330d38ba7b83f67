"""Quantized copies in yue's home: names, which copy is meant, and what is said where there is none."""

import os
from pathlib import Path

import pytest

from tests.command_line import done, refused
from yue_cli import budget, copies, inventory
from yue_cli.errors import CheckpointError
from yue_cli.hub import Hub, sha256
from yue_cli.models import CATALOGUE
from yue_cli.weights import Library

EN_COT = CATALOGUE["en-cot"]


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "home", {}, hub=Hub(cache=tmp_path / "cache", offline=True))


def make_copy(home: Path, repository: str, commit: str, format: str, *more: str) -> Path:
    """Write a copy's folder with a record, as `yue quantize` leaves it."""
    folder = copies.place(home, repository, commit, format)
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", *more):
        (folder / name).write_text(f"{name} of {commit}")
    weights = folder / "model.safetensors"
    record = {
        "repository": repository,
        "revision": commit,
        "format": format,
        "sources": {},
        "files": {weights.name: {"bytes": weights.stat().st_size, "sha256": sha256(weights)}},
    }
    (folder / copies.RECORD_FILE).write_bytes(copies.encode_record(record))
    return folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("en-cot@native-4bit", ("en-cot", "native-4bit")),
        ("owner/name@branch@native-8bit", ("owner/name@branch", "native-8bit")),
        ("en-cot", None),
        ("en-cot@main", None),
        ("native-4bit", None),
    ],
)
def test_names(name: str, expected: tuple[str, str] | None) -> None:
    assert copies.split_name(name) == expected


def test_a_copy_is_found_by_its_name_without_the_original(library: Library) -> None:
    folder = make_copy(library.home, EN_COT.repository, EN_COT.revision, "native-4bit", "tokenizer.model")
    found = library.locate("en-cot@native-4bit", "stage1")
    assert (found.name, found.path, found.revision) == ("en-cot@native-4bit", folder, EN_COT.revision)
    assert library.find("en-cot@native-8bit", "stage1") is None
    assert library.find("en-cot", "stage1") is None
    library.fetch([("en-cot@native-4bit", "stage1")])  # nothing is missing


def test_a_copy_of_another_commit_is_another_copy(library: Library) -> None:
    make_copy(library.home, EN_COT.repository, "b" * 40, "native-4bit")
    assert library.find("en-cot@native-4bit", "stage1") is None
    found = library.find(f"en-cot@{'b' * 40}@native-4bit", "stage1")
    assert found is not None
    assert found.revision == "b" * 40


def test_of_a_branch_that_was_never_fetched_the_last_copy_counts(library: Library) -> None:
    for age, commit in ((200, "a" * 40), (100, "b" * 40), (300, "c" * 40)):
        folder = make_copy(library.home, CATALOGUE["zh-cot"].repository, commit, "native-8bit")
        os.utime(folder, (10**9 - age, 10**9 - age))
    assert library.locate("zh-cot@native-8bit", "stage1").revision == "b" * 40


def test_an_absent_copy_names_the_command_that_makes_it(library: Library) -> None:
    text = "en-cot@native-4bit is not on this machine: `yue quantize en-cot --format native-4bit` makes it."
    for attempt in (
        lambda: library.locate("en-cot@native-4bit", "stage1"),
        lambda: library.fetch([("en-cot@native-4bit", "stage1")]),
        lambda: library.pull(["en-cot@native-4bit"]),
        lambda: inventory.remove(library, "en-cot@native-4bit"),
        lambda: inventory.verify(library, "en-cot@native-4bit"),
    ):
        with pytest.raises(CheckpointError) as error:
            attempt()
        assert str(error.value) == text


def test_a_copy_is_of_the_part_that_its_model_is(library: Library) -> None:
    with pytest.raises(CheckpointError) as error:
        library.locate("s2@native-4bit", "stage1")
    assert str(error.value) == "stage1.model: s2 is a stage-2 model; expected a stage-1 model."


def test_copies_are_listed_verified_and_deleted(library: Library) -> None:
    folder = make_copy(library.home, EN_COT.repository, EN_COT.revision, "native-4bit", "tokenizer.model")
    make_copy(library.home, "owner/own", "d" * 40, "native-8bit")
    (library.home / "quantized" / ".unfinished").mkdir()
    facts = [(copy.name, copy.part, copy.revision) for copy in library.copies()]
    assert facts == [
        ("en-cot@native-4bit", "stage1", EN_COT.revision),
        ("owner/own@native-8bit", "stage2", "d" * 40),
    ]
    assert inventory.verify(library, "en-cot@native-4bit") == [(folder / "model.safetensors", "right")]
    (folder / "model.safetensors").write_text("bent")
    with pytest.raises(CheckpointError) as error:
        inventory.verify(library, "en-cot@native-4bit")
    assert str(error.value) == (
        f"{folder}/model.safetensors: not as it was written; `yue models rm en-cot@native-4bit`, then "
        "`yue quantize en-cot --format native-4bit` makes it anew."
    )
    assert inventory.remove(library, "en-cot@native-4bit") > 0
    assert not folder.exists()


def test_a_broken_record_is_one_line(library: Library) -> None:
    folder = make_copy(library.home, EN_COT.repository, EN_COT.revision, "native-4bit")
    (folder / copies.RECORD_FILE).write_text('{"record": "yue-quantized", "version": 2}')
    with pytest.raises(CheckpointError) as error:
        library.copies()
    assert str(error.value) == (
        f"{folder}/quantized.json: not the record of a quantized model of this version of yue (expected yue-quantized, "
        "version 1); quantize it again."
    )


def test_the_command_line_knows_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUE_HOME", str(tmp_path))
    folder = make_copy(tmp_path, EN_COT.repository, EN_COT.revision, "native-4bit", "tokenizer.model")
    assert done("models", "path", "en-cot@native-4bit").out == f"{folder}\n"
    assert "en-cot@native-4bit  stage-1 model, quantized here" in done("models", "list").out
    rows = done("models", "list", "--json").answer["models"]
    assert [row["path"] for row in rows if row["name"] == "en-cot@native-4bit"] == [str(folder)]
    assert refused("models", "path", "s2@native-8bit") == (
        "s2@native-8bit is not on this machine: `yue quantize s2 --format native-8bit` makes it."
    )


def test_an_absent_copy_is_weighed_as_it_would_be() -> None:
    """By hand, of stage 1: 6.2246 G parameters less two tables of 343.9 M are 5.5367 G in the layers."""
    four = budget.published_facts("stage1", 2, "native-4bit").parameter_bytes
    assert four == pytest.approx(5.5367e9 * 4.25 / 8 + 343.9e6 + 2 * 343.9e6, rel=1e-3)
    eight = budget.published_facts("stage1", 2, "native-8bit").parameter_bytes
    assert eight == pytest.approx(5.5367e9 + 3 * 343.9e6, rel=5e-3)
