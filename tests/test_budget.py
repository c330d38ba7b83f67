"""What stages need, before anything loads: exact where a config.json says it, and refused where it cannot fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.command_line import done
from tests.library import tokens
from yue_cli import budget, engines, machine, presets
from yue_cli.artifacts import write_tokens
from yue_cli.audio_prompt import AudioPrompt
from yue_cli.errors import EngineError, LyricsError, OutOfMemory
from yue_cli.events import ignore
from yue_cli.hub import Hub
from yue_cli.models import SIZES
from yue_cli.plan import read_request, recipe
from yue_cli.project import STAGES, Project
from yue_cli.settings import CACHES, Layer, combine, resolve
from yue_cli.song import Song
from yue_cli.weights import Library, ModelFolder
from yue_cli.workbench import MAKERS, Workbench

GB = 10**9
CUDA_CONTEXT = 0.65  # GB of a card that CUDA takes before anything of ours is there, on an H200
LYRICS = "[verse]\nla la la\n\n[chorus]\nlo lo\n"
SONG = Song(lyrics=LYRICS, genre="pop", seed=7)
TOY = {"stage1.model": "toy", "stage2.model": "toy", "decode.codec": "toy", "stage1.max_new_tokens": 400}
PUBLISHED = {
    "stage1": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 83968,
        "max_position_embeddings": 16384,
    },
    "stage2": {
        "hidden_size": 2048,
        "intermediate_size": 5504,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 83840,
        "max_position_embeddings": 8192,
    },
}


@pytest.fixture
def bench(tmp_path, home):
    """Make a bench for a song, with no model of the hub and as much memory as a test says."""

    def make(song: Song = SONG, free: float = 60, **values) -> Workbench:
        given = {key.replace("__", "."): value for key, value in values.items()}
        layer = Layer("test", {"execution.memory_limit": float(free), **given})
        request = read_request(song, resolve(combine([layer])[0]))
        made = Workbench(Project(tmp_path / "song"), request, home, ignore, lambda *_: None)
        made.library = Library(home, MAKERS, hub=Hub(cache=tmp_path / "hub"))
        return made

    return make


def toy_bench(bench, **values) -> Workbench:
    return bench(**{key.replace(".", "__"): value for key, value in TOY.items()} | values)


# Weighing


@pytest.mark.parametrize("part", ["stage1", "stage2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_published_sizes_are_what_the_engine_reads_from_their_config(tmp_path, part, dtype):
    shared = {"model_type": "llama", "num_hidden_layers": 32, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[part] | shared))
    for cache in ("auto", *CACHES):
        assert budget.published_facts(part, dtype.itemsize, None, cache) == engines.describe(
            tmp_path, dtype=dtype, cache=cache
        )


@pytest.mark.parametrize("part", ["stage1", "stage2"])
@pytest.mark.parametrize("form", ["native-8bit", "native-4bit"])
def test_work_with_a_quantized_copy_is_what_the_engine_tells_of_it(tmp_path, part, form):
    engines.write_sizes(tmp_path, SIZES[part], form)
    told, assumed = engines.describe(tmp_path, dtype=torch.bfloat16), budget.published_facts(part, 2, form)
    plain = budget.published_facts(part, 2)
    assert plain.work_bytes < assumed.work_bytes == told.work_bytes
    assert assumed.work_bytes_per_token == told.work_bytes_per_token
    assert abs(assumed.parameter_bytes - told.parameter_bytes) < 0.01 * told.parameter_bytes


def test_a_model_that_is_not_here_is_weighed_as_published(bench):
    first, second, audio = budget.needs(bench(execution__dtype="bfloat16"), ["stage1", "stage2", "audio"])
    assert (first.model, first.is_here) == ("en-cot", False)
    assert first.weights == 12_449_226_752
    assert first.rows == 2
    assert 6000 < first.length < 6100, "two segments of 3,000 tokens and their prompts"
    assert first.cache == 2 * first.length * 65_536
    assert (second.model, second.weights) == ("s2", 3_925_086_208)
    assert (second.rows, second.length) == (2, 3 + 9 * 150), "five words: three seconds, one window a track"
    assert second.cache == 2 * second.length * 262_144
    assert (audio.model, audio.is_here, audio.cache) == ("codec", False, 0)
    assert 0 < first.work < GB


def test_without_guidance_one_row_is_enough(bench):
    [need] = budget.needs(bench(stage1__guidance_first=1, stage1__guidance_later=1), ["stage1"])
    assert need.rows == 1


@pytest.mark.parametrize(
    ("reference", "tokens"),
    [(AudioPrompt(audio="a.wav"), 1500), (AudioPrompt(vocal="v", instrumental="i", end=10), 1000)],
)
def test_reference_audio_is_part_of_the_prompt(bench, reference, tokens):
    [plain] = budget.needs(bench(), ["stage1"])
    encode, need = budget.needs(bench(replace(SONG, reference=reference)), ["reference", "stage1"])
    assert need.length == plain.length + tokens
    assert need.model == "en-icl"
    assert (encode.stage, encode.model, encode.cache) == ("reference", "codec", 0)


def test_a_short_context_bounds_the_cache(bench):
    [need] = budget.needs(bench(stage1__context=2048), ["stage1"])
    assert need.length == 2048


def test_a_model_that_is_here_is_weighed_by_its_own_config(bench):
    first, second, audio = budget.needs(toy_bench(bench), ["stage1", "stage2", "audio"])
    assert all(need.is_here for need in (first, second, audio))
    assert first.weights < 20_000_000
    assert 800 < first.length < 1000, "counted with the model's own tokenizer"


def test_each_stage_keeps_keys_and_values_in_its_own_format(bench):
    formats = {"execution__stage1_cache": "int6", "execution__stage2_cache": "int4"}
    first, second, _ = budget.needs(bench(execution__dtype="bfloat16", **formats), ["stage1", "stage2", "audio"])
    assert first.cache == first.rows * first.length * 25_600
    assert second.cache == second.rows * second.length * 69_632
    made = toy_bench(bench, **formats)
    for stage, bits in (("stage1", 6), ("stage2", 4)):
        model = made.model(stage)
        with made.engine(stage, model, rows=1, length=64) as engine:
            assert {cache.bits for cache in engine._opened().caches} == {bits}
            told = made.describe(stage, model)
            assert told.cache_bytes_per_token * 64 == sum(cache.nbytes for cache in engine._opened().caches)


@pytest.mark.parametrize(("free", "songs"), [(13.9, 1), (15, 2), (18, 4), (24, 8), (60, 8)])
def test_as_many_songs_are_sung_at_once_as_memory_holds(bench, free, songs):
    first, *others = (bench(free=free, execution__dtype="bfloat16") for _ in range(7))
    [need] = budget.needs(first, ["stage1"], others)
    assert (need.songs, need.rows) == (songs, 2 * songs)
    assert need.cache == need.rows * need.length * 65_536
    assert need.total <= free * GB
    words = budget.describe(need)
    assert (f" for {songs} songs at once, {need.rows} rows of " in words) == (songs > 1)


def test_songs_at_once_may_be_bounded(bench):
    first, *others = (bench(execution__dtype="bfloat16", execution__songs=3) for _ in range(9))
    [need] = budget.needs(first, ["stage1"], others)
    assert need.songs == 4, "a step of the ladder"


def test_the_windows_of_all_songs_are_weighed_together(bench):
    first, *others = (bench(execution__dtype="bfloat16") for _ in range(5))
    [alone], [need] = budget.needs(first, ["stage2"]), budget.needs(first, ["stage2"], others)
    assert (alone.rows, need.rows) == (2, 16)


def test_rows_of_stage_2_follow_the_memory_that_is_free(bench):
    row = 2703 * 262_144
    song = replace(SONG, lyrics="[verse]\n" + "la " * 50 + "\n[chorus]\n" + "la " * 50)  # a minute
    weights = 3_925_086_208
    for rows, expected in ((1.5, 1), (4.5, 4), (9, 8), (100, 20)):
        free = (weights + rows * row) / GB
        [need] = budget.needs(bench(song, free=free, execution__dtype="bfloat16"), ["stage1", "stage2"])[1:]
        assert (need.rows, need.cache) == (expected, expected * row)


def test_rows_that_were_asked_for_are_taken(bench):
    [need] = budget.needs(bench(execution__rows=3), ["stage2"])
    assert need.rows == 2, "two tracks of six seconds at the most are two windows"


def test_tokens_that_are_there_say_how_long_the_song_is(bench):
    made = bench(Song())
    made.project.create()
    write_tokens(made.project.begin("stage1"), tokens("stage1", frames=1000))
    [need] = budget.needs(made, ["stage2"])
    assert need.rows == 8, "four windows a track"
    assert budget.weigh_disk(made, [need]).song == 20 * 3 * 2 * 44_100


def test_a_song_without_words_cannot_be_weighed(bench):
    with pytest.raises(LyricsError, match=r"song has no lyrics\.txt or no genre\.txt: give --lyrics and --genre\.$"):
        budget.needs(bench(Song()), ["stage1"])


def test_the_disk_holds_the_song_and_what_is_downloaded(bench):
    made = bench()
    disk = budget.weigh_disk(made, budget.needs(made, ["stage1", "stage2", "audio"]))
    assert disk.download == 17_879_978_943
    assert disk.song_free > 0
    assert budget.weigh_disk(made, budget.needs(toy_bench(bench), ["stage1"])).download == 0
    other = bench(stage1__model="someone/another")
    assert budget.weigh_disk(other, budget.needs(other, ["stage1"])).download is None


# Refusing


def refusal(bench: Workbench, stages) -> str:
    with pytest.raises(EngineError) as caught:
        budget.check(bench, budget.needs(bench, stages))
    return str(caught.value)


def test_weights_that_do_not_fit_are_refused(bench):
    text = refusal(bench(free=11.4, execution__dtype="bfloat16"), ["stage1"])
    assert text == (
        "stage 1 needs 13.2 GB of memory (12.4 GB of weights, 0.8 GB of cache for 2 rows of 6,025 tokens); "
        "this machine has 11.4 GB free. Presets that fit: 12gb, 8gb, 6gb. Nothing was loaded."
    )


def test_a_shorter_context_is_proposed_where_it_helps(bench):
    values = {"execution__dtype": "bfloat16", "segments": 2}
    text = refusal(bench(free=13.1, **values), ["stage1"])
    assert "--set stage1.context=4864 fits, or sing fewer --segments." in text
    made = bench(free=13.1, stage1__context=4864, **values)
    assert budget.check(made, budget.needs(made, ["stage1"])) == [
        "stage 1 may need 13.2 GB of memory at its peak; this machine has 13.1 GB free"
    ]


def test_half_the_bytes_are_proposed_where_float32_does_not_fit(bench):
    assert "--set execution.dtype=bfloat16 halves that." in refusal(bench(free=20), ["stage1"])


def test_fewer_rows_are_proposed_where_they_were_asked_for(bench):
    text = refusal(bench(free=4.2, execution__dtype="bfloat16", execution__rows=2), ["stage2"])
    assert "Use fewer --set execution.rows." in text


@pytest.mark.parametrize(
    ("free", "fitting"),
    [
        (24, ["24gb", "16gb", "12gb", "8gb", "6gb"]),
        (15, ["24gb", "16gb", "12gb", "8gb", "6gb"]),
        (11.4, ["12gb", "8gb", "6gb"]),
        (7.5, ["8gb", "6gb"]),
        (3, []),
    ],
)
def test_presets_that_fit_are_named_the_largest_first(bench, free, fitting):
    made = bench(free=free, execution__dtype="bfloat16", execution__device="cpu")
    assert [name for name in budget.fitting_presets(made, "stage1") if name != "cpu"] == fitting
    [need] = [replace(need, weights=70 * GB) for need in budget.needs(made, ["stage1"])]
    words = f"Presets that fit: {', '.join(fitting)}. " if fitting else "No preset fits here; close what else uses "
    with pytest.raises(EngineError, match=words):
        budget.check(made, [need])


def test_the_processor_is_named_where_the_gpu_is_too_small(bench, monkeypatch):
    """A GPU of which 3 GB are free, in a machine with 60 GB."""
    monkeypatch.setattr(machine, "choose_device", lambda name: torch.device("cpu" if name == "cpu" else "cuda:0"))
    monkeypatch.setattr(machine, "device_name", lambda device: "cuda:0 (a GPU)")
    assert budget.fitting_presets(bench(free=3, execution__compute_capability=8.6), "stage1") == ["cpu"]


@pytest.mark.parametrize("sections", [2, 8], ids=["two segments", "full context"])
@pytest.mark.parametrize("name", presets.CARDS)
def test_every_card_s_preset_fits_its_card_at_the_published_shapes(bench, monkeypatch, name, sections):
    monkeypatch.setattr(machine, "choose_device", lambda name: torch.device("cuda:0"))
    monkeypatch.setattr(machine, "device_name", lambda device: f"cuda:0 ({name})")
    values = {key.replace(".", "__"): value for key, value in presets.find(name).values.items()}
    size = values.pop("execution__memory_limit")
    lyrics = "[verse]\n" + "la " * 50 + "\n"
    song = replace(SONG, lyrics=lyrics * sections, reference=AudioPrompt(vocal="v", instrumental="i"))
    free = size - CUDA_CONTEXT
    made = bench(song, free=free, execution__compute_capability=8.6, **values)
    assert made.dtype == torch.bfloat16
    first, second, _ = found = budget.needs(made, ["stage1", "stage2", "audio"])
    assert first.rows == 2
    assert first.length == made.settings.stage1.context if sections == 8 else first.length > 6000
    assert second.rows >= 2
    if name == "6gb" and sections == 8:  # a long song must see less of itself there, and is told so
        assert "stage 1 may need" in budget.check(made, found)[0]
        return
    assert max(need.total for need in found) <= free * GB
    assert budget.check(made, found) == []


def test_smaller_weights_are_of_models_with_short_names_alone(bench):
    for name in ("toy", "someone/another", "en-cot@main"):
        made = bench(execution__stage1_weights="native-8bit", stage1__model=name)
        assert made.asked("stage1") == (name, "stage1")
    assert bench(execution__stage1_weights="native-8bit").asked("stage1")[0] == "en-cot@native-8bit"
    assert bench(execution__stage2_weights="native-8bit").asked("stage2")[0] == "s2@native-8bit"


# What auto picks


class Shelf:
    """A library in which some models are here, with the sizes that they are published with."""

    def __init__(self, monkeypatch, bench: Workbench, *names: str) -> None:
        monkeypatch.setattr(bench.library, "find", lambda name, part: self.find(name or "s2", part, names))
        monkeypatch.setattr(bench, "describe", self.describe)
        self.bench = bench

    def find(self, name, part, names):
        return ModelFolder(name, Path(part)) if name in names else None

    def describe(self, stage, model):
        form = model.name.partition("@")[2] or None
        return budget.published_facts(str(model.path), self.bench.dtype.itemsize, form)


@pytest.mark.parametrize(
    ("free", "here", "picked"),
    [
        (24, ["en-cot", "en-cot@native-8bit"], "en-cot"),
        (24, ["en-cot@native-8bit", "en-cot@native-4bit"], "en-cot@native-8bit"),
        (11, ["en-cot", "en-cot@native-8bit", "en-cot@native-4bit"], "en-cot@native-8bit"),
        (7, ["en-cot", "en-cot@native-8bit", "en-cot@native-4bit"], "en-cot@native-4bit"),
        (7, ["en-cot", "en-cot@native-8bit"], "en-cot"),
        (24, [], "en-cot"),
    ],
)
def test_auto_picks_the_best_form_that_is_here_and_fits_else_the_published_one(bench, monkeypatch, free, here, picked):
    made = bench(free=free, execution__dtype="bfloat16")
    Shelf(monkeypatch, made, *here)
    budget.choose_forms(made, ["stage1", "stage2"])
    assert made.asked("stage1") == (picked, "stage1")
    assert made.asked("stage2") == (None, "stage2")


def test_what_auto_picks_makes_nothing_stale(bench, monkeypatch):
    made = bench(free=11, execution__dtype="bfloat16", stage1__model="zh-cot")
    Shelf(monkeypatch, made, "zh-cot", "zh-cot@native-8bit")
    before = [recipe(made.request, stage) for stage in STAGES]
    budget.choose_forms(made, ["stage1"])
    assert made.asked("stage1")[0] == "zh-cot@native-8bit"
    assert [recipe(made.request, stage) for stage in STAGES] == before


def test_an_engine_that_reads_no_copies_gets_none(bench, monkeypatch):
    made = bench(free=7, execution__engine="exl2", execution__dtype="bfloat16")
    Shelf(monkeypatch, made, "en-cot", "en-cot@native-4bit")
    budget.choose_forms(made, ["stage1"])
    assert made.asked("stage1")[0] == "en-cot"


def test_a_form_that_was_named_is_not_picked_over(bench, monkeypatch):
    made = bench(free=7, execution__dtype="bfloat16", execution__stage1_weights="published")
    Shelf(monkeypatch, made, "en-cot", "en-cot@native-4bit")
    budget.choose_forms(made, ["stage1"])
    assert made.asked("stage1")[0] == "en-cot"


def test_a_model_of_unknown_size_is_not_refused_before_it_is_here(bench):
    made = bench(free=1, stage1__model="someone/another", execution__dtype="bfloat16")
    [warning] = budget.check(made, budget.needs(made, ["stage1"]))
    assert warning.startswith("stage 1 may need 13.4 GB of memory at its peak; this machine has 1.0 GB free")


def test_what_fits_is_not_complained_of(bench):
    made = bench(execution__dtype="bfloat16")
    assert budget.check(made, budget.needs(made, ["stage1", "stage2", "audio"])) == []


# Pretending


def test_rows_honour_the_limit(tmp_path, home, place):
    """From the command line to the number of rows that stage 2 is made with."""
    done("run", "song", "--preset", "toy", "--lyrics", "lyrics.txt", "--genre", "slow folk", "--dry-run")
    Path("long.txt").write_text("[verse]\n" + "la " * 30 + "\n[chorus]\n" + "la " * 30)
    options = ["--preset", "toy", "--lyrics", "long.txt", "--genre", "slow folk", "--json"]
    wide = done("plan", "song", *options).answer["stages"][1]["needs"]
    narrow = done("plan", "song", *options, "--set", "execution.memory_limit=0.016").answer["stages"][1]["needs"]
    assert (wide["rows"], narrow["rows"]) == (4, 1)


def test_memory_that_runs_out_after_all_is_one_line_with_what_would_fit(bench):
    made = bench(free=13.1, execution__dtype="bfloat16", segments=2)
    made.kept = "section 1 is kept. The same command goes on with section 2."
    with pytest.raises(EngineError) as error, budget.explained(made, "stage1"):
        raise OutOfMemory("cuda:0: not enough memory for a step; use fewer rows.")
    first, second = "cuda:0: not enough memory for a step; use fewer rows. ", "--set stage1.context=4864 fits, or "
    assert str(error.value).startswith(first + second + "sing fewer --segments. Presets that fit: ")
    assert str(error.value).endswith("gb. Section 1 is kept. The same command goes on with section 2.")
