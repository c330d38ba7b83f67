"""Finished songs read again by two models: which rows, which tokens count, what is told, what is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.command_line import GENRE, LYRICS, done, refused
from tests.tiny_llama import CONFIG, random_tensors, write_checkpoint, write_quantized
from yue_cli import replay, toy
from yue_cli.commands.request import read_song
from yue_cli.comparison import Comparison, compare
from yue_cli.engines import open_engine
from yue_cli.events import ignore
from yue_cli.project import Project
from yue_cli.replay import Row
from yue_cli.resources import resource
from yue_cli.stages import stage1, stage2
from yue_cli.vocab import Vocabulary
from yue_cli.weights import ModelFolder

CPU = torch.device("cpu")
SEGMENT = 40  # tokens that every segment has
FRAMES = SEGMENT  # of two segments, two tokens a frame


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Make a short song and the toy that sang it; quantized copies lie beside."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YUE_HOME", str(root / "home"))
        (root / "lyrics.txt").write_text(LYRICS)
        limits = [f"--set=stage1.{limit}_new_tokens={SEGMENT}" for limit in ("min", "max")]
        texts = ["--genre", GENRE, "--lyrics", root / "lyrics.txt", "--seed", 7]
        done("stage1", root / "song", *texts, "--preset", "toy", *limits)
        done("stage2", root / "song")
        home = toy.make(root / "home")
        for stage in replay.STAGES:
            done("quantize", home / stage, "--format", "native-8bit", "-o", root / "copies" / stage)
        yield root, home


@pytest.fixture(autouse=True)
def home(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUE_HOME", str(made[0] / "home"))


def rows_of(made: tuple[Path, Path], stage: str, limit: int | None = None) -> list[Row]:
    root, home = made
    return replay.read_rows(stage, [root / "song"], ModelFolder("toy", home / stage), root / "home", ignore, limit)


def test_rows_of_stage_1_are_what_the_model_read_and_sang(made: tuple[Path, Path]) -> None:
    root, home = made
    rows, records = rows_of(made, "stage1"), Project(root / "song").segments()
    vocabulary = Vocabulary.read(home / "stage1")
    assert len(rows) == len(records) == 2
    for row, record in zip(rows, records, strict=True):
        assert record.truncated
        assert row.ids[row.start] == vocabulary.separator
        sung = record.ids[:-1]  # the last was put there because the segment was full
        assert np.array_equal(row.ids[row.start + 1 :], sung)
        assert row.chosen == len(sung) == SEGMENT
        assert row.allowed == (stage1.allowed_ids("yue", vocabulary, 8768),)
    # The second window begins with the first, with all that was sung in it.
    before = rows[0].ids
    assert np.array_equal(rows[1].ids[: len(before)], before)
    assert rows[1].ids[len(before)] == vocabulary.end_of_audio


def test_rows_of_stage_2_are_its_windows(made: tuple[Path, Path]) -> None:
    root, home = made
    rows, vocabulary = rows_of(made, "stage2"), Vocabulary.read(home / "stage2")
    assert len(rows) == len(stage2.cut(FRAMES, "overlap")) == 2
    for row, track in zip(rows, ("vocal", "instrumental"), strict=True):
        codes = np.load(root / "song" / "stage2" / f"{track}.npy")
        opening = [vocabulary.start_of_audio, vocabulary.stage_1, *(codes[0] + vocabulary.codebook_start)]
        assert row.ids[: row.start].tolist() == [*opening, vocabulary.stage_2]
        assert np.array_equal(row.ids[row.start :], vocabulary.codes_to_ids(codes))
        assert row.chosen == 7 * FRAMES
        for kind, number in zip(row.kinds, row.ids[row.start + 1 :], strict=True):
            if kind == -1:
                assert number in vocabulary.codebook(0)
            else:
                assert number in row.allowed[kind][0]
                assert row.allowed[kind] == (vocabulary.codebook(kind),)


def test_the_first_choices_of_the_model_that_made_stage_2_are_its_tokens(made: tuple[Path, Path]) -> None:
    """Stage 2 is greedy: a place shifted by one anywhere would give other ids."""
    _, home = made
    engine = open_engine("native", home / "stage2", rows=1, length=1000, device=CPU, dtype=torch.float32)
    for row in rows_of(made, "stage2"):
        logits = torch.cat(list(engine.follow(row.ids[:-1], row.start)))
        for place in np.flatnonzero(row.kinds != -1):
            part = row.allowed[row.kinds[place]][0]
            assert int(logits[place, part.start : part.stop].argmax()) + part.start == row.ids[row.start + 1 + place]


def test_a_limit_cuts_after_so_many_chosen_tokens(made: tuple[Path, Path]) -> None:
    assert [row.chosen for row in rows_of(made, "stage1", limit=50)] == [40, 10]
    assert [row.chosen for row in rows_of(made, "stage2", limit=10)] == [10]
    whole, cut = rows_of(made, "stage2")[0], rows_of(made, "stage2", limit=10)[0]
    assert np.array_equal(cut.ids, whole.ids[: len(cut.ids)])
    assert len(cut.kinds) == len(cut.ids) - 1 - cut.start


def random_rows() -> list[Row]:
    """Rows of the tiny model, some of whose tokens were given; two kinds of choices."""
    generator = np.random.default_rng(0)
    allowed = ((range(100, 300),), (range(300, 400), range(7, 8)))
    rows = []
    for length, start in ((700, 30), (90, 0), (40, 38)):
        kinds = generator.integers(-1, 2, length - 1 - start)
        kinds[0] = 1
        rows.append(Row(generator.integers(0, CONFIG["vocab_size"], length), start, kinds, allowed))
    return rows


def by_whole_rows(rows: list[Row], model: list[Tensor], reference: list[Tensor]) -> Comparison:
    """Compare at every chosen token from the logits of whole rows, one token at a time."""
    total = Comparison()
    for row, ours, theirs in zip(rows, model, reference, strict=True):
        for place, kind in enumerate(row.kinds):
            if kind != -1:
                at, token = row.start + place, torch.from_numpy(row.ids[row.start + 1 + place :][:1])
                total += compare(ours[at : at + 1], theirs[at : at + 1], token, row.allowed[kind])
    return total


def assert_alike(found: Comparison, expected: Comparison) -> None:
    assert found.tokens == expected.tokens
    assert found.agreed == pytest.approx(expected.agreed, abs=1)  # a tie may fall either way
    for name in ("kl", "kl_allowed", "perplexity", "perplexity_reference"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-3), name


def folders(tmp_path: Path, format: str) -> tuple[ModelFolder, ModelFolder, dict[str, Tensor]]:
    copy, meant = write_quantized(tmp_path / "copy", format)
    original = write_checkpoint(tmp_path / "original")
    return ModelFolder("copy", copy), ModelFolder("original", original), meant


@pytest.mark.parametrize("format", ["native-8bit", "native-4bit"])
def test_two_models_are_compared_as_transformers_computes_them(tmp_path: Path, format: str) -> None:
    transformers = pytest.importorskip("transformers")
    model, reference, meant = folders(tmp_path, format)
    rows = random_rows()

    def logits(tensors: dict[str, Tensor]) -> list[Tensor]:
        llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).eval()
        llama.load_state_dict(tensors)
        with torch.inference_mode():
            return [llama(torch.from_numpy(row.ids)[None]).logits[0].float() for row in rows]

    expected = by_whole_rows(rows, logits(meant), logits(random_tensors()))
    found = replay.compare_models(rows, model, reference, engine="native", device=CPU, dtype=torch.float32, emit=ignore)
    assert found.tokens == sum(row.chosen for row in rows)
    assert_alike(found, expected)


def test_two_models_are_compared_as_plain_arithmetic_does(tmp_path: Path) -> None:
    from tests.tiny_llama import plain_logits

    model, reference, meant = folders(tmp_path, "native-4bit")
    rows = random_rows()[1:]
    ours = [plain_logits(CONFIG, meant, row.ids) for row in rows]
    theirs = [plain_logits(CONFIG, random_tensors(), row.ids) for row in rows]
    found = replay.compare_models(rows, model, reference, engine="native", device=CPU, dtype=torch.float32, emit=ignore)
    assert found.kl > 1e-4
    assert_alike(found, by_whole_rows(rows, ours, theirs))


def test_engines_whose_pieces_differ_are_paired() -> None:
    numbers = torch.arange(20.0)[:, None]
    ours, theirs = iter(numbers.split(7)), iter(numbers.split(3))
    pairs = list(replay._paired(ours, theirs))
    assert all(torch.equal(left, right) for left, right in pairs)
    assert torch.equal(torch.cat([left for left, _ in pairs]), numbers)


# The command


def test_the_command_prints_a_line_a_stage(made: tuple[Path, Path]) -> None:
    root, home = made
    copy = root / "copies"
    lines = done("eval", "--model", copy, "--against", home, root / "song").out.splitlines()
    assert [line.split()[:2] for line in lines] == [["stage1", "80"], ["stage2", "560"]]
    answer = done("eval", "--model", copy, "--against", home, root / "song", "--json").answer
    assert [row["stage"] for row in answer["stages"]] == ["stage1", "stage2"]
    for row in answer["stages"]:
        assert 0 < row["kl"] < 1e-3
        assert 0 < row["kl_allowed"] < 1e-3
        assert row["agreement"] > 0.9
        assert row["perplexity"] == pytest.approx(row["perplexity_against"], rel=1e-2)


def test_a_model_does_not_differ_from_itself(made: tuple[Path, Path]) -> None:
    root, home = made
    answer = done("eval", "--model", "toy", "--against", home, root / "song", "--json").answer
    assert [(row["kl"], row["agreement"]) for row in answer["stages"]] == [(0.0, 1.0), (0.0, 1.0)]


def test_the_fewer_bits_keys_and_values_have_the_further_a_model_is_from_itself(made: tuple[Path, Path]) -> None:
    root, home = made
    answers = [
        done("eval", "--model", "toy", "--against", home, root / "song", "--json", "--cache", cache).answer
        for cache in ("int8", "int6", "int4")
    ]
    for rows in zip(*(answer["stages"] for answer in answers), strict=True):
        assert [row["cache"] for row in rows] == ["int8", "int6", "int4"]
        assert 0 < rows[0]["kl"] < rows[1]["kl"] < rows[2]["kl"] < 0.1


def test_one_stage_and_a_limit(made: tuple[Path, Path]) -> None:
    root, home = made
    answer = done(
        "eval", "--model", "toy", "--against", home, root / "song", "--json", "--stage", "stage2", "--limit", 20
    ).answer
    assert [(row["stage"], row["tokens"]) for row in answer["stages"]] == [("stage2", 20)]


def test_quantizing_measures_on_songs_that_are_given(made: tuple[Path, Path], tmp_path: Path) -> None:
    root, home = made
    answer = done(
        "quantize",
        home / "stage1",
        "--calibrate",
        root / "song",
        root / "song",
        "--format",
        "native-4bit",
        "-o",
        tmp_path / "copy",
        "--stage",
        "stage1",
        "--json",
    ).answer
    assert [row["tokens"] for row in answer["quality"]] == [160], "a pattern of the shell may follow --calibrate"
    record = json.loads((tmp_path / "copy" / "quantized.json").read_text())
    assert record["quality"] == answer["quality"]
    assert "| stage 1 | 160 |" in (tmp_path / "copy" / "README.md").read_text()


# What is refused


def test_which_stage_is_not_clear(made: tuple[Path, Path]) -> None:
    root, home = made
    assert refused("eval", "--model", home / "stage1", "--against", home / "stage1", root / "song") == (
        f"of which stage {home / 'stage1'} and {home / 'stage1'} are is not clear: give --stage stage1 or stage2."
    )
    assert refused("eval", "--model", "toy", "--against", "toy", root / "song", "--stage", "decode") == (
        "--stage decode: expected stage1 or stage2."
    )
    assert refused("eval", "--model", "toy", "--against", "toy", root / "song", "--cache", "q4") == (
        "--cache q4: expected one of auto, int8, int6, int4."
    )


def test_songs_that_hold_nothing(made: tuple[Path, Path], tmp_path: Path) -> None:
    root, _ = made
    (tmp_path / "empty").mkdir()
    assert refused("eval", "--model", "toy", "--against", "toy", tmp_path / "empty") == (
        "no song here holds tokens of stage 1; `yue run FOLDER` makes them."
    )
    assert refused("eval", "--model", "toy", "--against", "toy", tmp_path / "none") == (
        f"{tmp_path / 'none'}: there is no such folder; expected a song's."
    )
    shutil.copytree(root / "song", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "stage2")
    assert refused("eval", "--model", "toy", "--against", "toy", tmp_path / "cut", "--stage", "stage2") == (
        "no song here holds tokens of stage 2; `yue run FOLDER` makes them."
    )


def test_models_of_different_vocabularies(made: tuple[Path, Path], tmp_path: Path) -> None:
    root, home = made
    write_checkpoint(tmp_path / "tiny")
    assert refused(
        "eval", "--model", tmp_path / "tiny", "--against", home / "stage1", root / "song", "--stage", "stage1"
    ) == (f"{tmp_path / 'tiny'} knows 512 ids, {home / 'stage1'} 8768; only copies of one model are compared.")


def test_models_that_did_not_sing_it(made: tuple[Path, Path], tmp_path: Path) -> None:
    root, home = made
    for file in ("tokenizer.model", "vocabulary.json"):
        write_checkpoint(tmp_path / "tiny")
        shutil.copyfile(home / "stage1" / file, tmp_path / "tiny" / file)
    line = refused(
        "eval", "--model", tmp_path / "tiny", "--against", tmp_path / "tiny", root / "song", "--stage", "stage2"
    )
    assert line.endswith(f", {tmp_path / 'tiny'} knows 512; it did not sing them.")


def test_a_song_of_another_vocabulary(made: tuple[Path, Path]) -> None:
    root, _ = made
    own = Vocabulary.read(resource("checkpoints/tiny/stage1/vocabulary.json").parent).end_of_audio
    assert own != Vocabulary.read(made[1] / "stage1").end_of_audio
    line = refused("eval", "--model", "tiny", "--against", "tiny", root / "song", "--stage", "stage1")
    assert line.startswith(f"{root / 'song'}: its sections do not end with id {own}, tiny's end of audio. ")
    assert line.endswith("sang them; compare models on songs of their own.")


def test_two_models_that_do_not_fit(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root, _ = made
    monkeypatch.setattr("yue_cli.machine.measure_free_bytes", lambda device: 10**6)
    line = refused("eval", "--model", "toy", "--against", "toy", root / "song", "--stage", "stage2")
    assert line == (
        "toy and toy need 0.0 GB of memory together; this machine has 0.0 GB free. --device cpu may have more."
    )


def test_a_song_is_read_as_the_other_commands_read_it(made: tuple[Path, Path]) -> None:
    assert replay._read_song(made[0] / "song") == read_song(Project(made[0] / "song"))
