"""`yue bench`: what it measures, computes, remembers and refuses, on models too small to take time."""

from pathlib import Path

import pytest
import torch

from tests.command_line import done, refused, yue
from tests.tiny_llama import CONFIG
from yue_cli import bench, engines, machine, models, speeds, stopwatch
from yue_cli.stopwatch import Enough, Watch
from yue_cli.timings import extend, segment_starts

TOY = ["--set", "stage1.model=toy", "--set", "stage2.model=toy", "--set", "decode.codec=toy"]
SMALL = CONFIG | {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 58_000, "num_hidden_layers": 4}


@pytest.fixture(scope="module")
def bench_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home apart from that of other tests, which must not know any speeds."""
    return tmp_path_factory.mktemp("bench-home")


@pytest.fixture(autouse=True)
def quick(bench_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time few tokens, and make up models that are small."""
    monkeypatch.setenv("YUE_HOME", str(bench_home))
    for name, value in {"_ENOUGH_S": 0.0, "_TOKENS": 8, "_WARM_UP_TOKENS": 4, "_CPU_MUSIC_S": 1.0}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(models, "SIZES", {"stage1": SMALL, "stage2": SMALL})


def test_every_stage_is_timed_and_a_song_computed() -> None:
    answer = done("bench", "--json", "-q", *TOY).answer
    assert set(answer) == {
        *("device", "hardware", "engine", "dtype", "songs", "music_s", "date", "versions"),
        *("stage1", "stage2", "decode", "seconds"),
    }
    assert (answer["device"], answer["dtype"], answer["songs"], answer["music_s"]) == ("cpu", "float32", 1, 60.0)
    first, second, last = answer["stage1"], answer["stage2"], answer["decode"]
    assert first["model"] == {
        "name": "toy",
        "is_synthetic": False,
        "weight_bytes": first["model"]["weight_bytes"],
        "timed_layers": None,
    }
    assert (first["rows"], first["tokens"], first["points"][0]["context"]) == (2, 6000, 1000)
    assert (second["windows"], second["rows"]) == (20, 4)
    assert answer["seconds"] == pytest.approx(first["seconds"] + second["seconds"] + last["seconds"])
    assert min(first["token_s"], second["window_s"], last["decode_s"]) > 0
    # 20 windows of 4 together.
    assert second["seconds"] == pytest.approx(5 * second["window_s"])
    assert last["seconds"] == pytest.approx(60 * last["decode_s"])


def test_one_stage_alone_makes_no_song() -> None:
    answer = done("bench", "--stage", "stage2", "--json", "-q", *TOY).answer
    assert (answer["stage1"], answer["decode"], answer["seconds"]) == (None, None, None)
    assert answer["stage2"]["frames"] >= 1


def test_several_songs_sit_in_rows_of_their_own() -> None:
    answer = done("bench", "--songs", 3, "--seconds", 6, "--stage", "stage1", "--json", "-q", *TOY).answer
    assert (answer["songs"], answer["stage1"]["rows"], answer["stage1"]["tokens"]) == (3, 8, 600)
    windows = done("bench", "--songs", 3, "--seconds", 6, "--stage", "stage2", "--json", "-q", *TOY).answer["stage2"]
    assert (windows["windows"], windows["rows"]) == (6, 4)
    assert windows["window_s"] < windows["seconds"] != pytest.approx(2 * windows["window_s"])  # 4 together, then 2


def test_what_people_read() -> None:
    outcome = done("bench", *TOY)
    lines = outcome.out.splitlines()
    assert [line.split("  ")[0] for line in lines if line[0] != " "] == [
        *("device", "stage 1", "stage 2", "decode", "song"),
    ]
    assert "ms a token after 1,000 · measured · 2 rows" in outcome.out
    assert "computed from a part" in outcome.out
    assert lines[-1].startswith("song     1 song of 60 s: ")
    assert lines[-1].endswith("s for a second of music (computed; loading apart)")


def test_a_model_that_is_not_here_is_made_up() -> None:
    first = done("bench", "--stage", "stage1", "--json", "-q").answer["stage1"]
    assert first["model"]["name"] == "en-cot"
    assert first["model"]["is_synthetic"]
    assert "en-cot · 0.0 GB of weights · made up in " in done("bench", "--stage", "stage1").out


def test_a_model_that_was_named_and_is_not_here_is_missed() -> None:
    assert refused("bench", "--stage", "stage1", "--set", "stage1.model=zh-cot").startswith("zh-cot")


def test_of_a_large_model_a_part_is_timed_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_CPU_WEIGHTS", 1000)
    outcome = done("bench", "--stage", "stage1")
    assert "too slow to time here: 1 and 2 of its layers, made up" in outcome.out
    assert "ms a token after 512 · computed from a part · 2 rows" in outcome.out


def test_a_song_that_is_measured_is_remembered(bench_home: Path) -> None:
    done("bench", "-q", *TOY)
    known = speeds.remembered(bench_home, machine.hardware_name(machine.choose_device("cpu")))
    assert known is not None
    assert {item.stage for item in known.measured} == {"stage1", "stage2", "decode"}
    assert known.decode_s(10.0) is not None


def test_several_songs_are_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUE_HOME", str(tmp_path))
    done("bench", "-q", "--songs", 2, "--stage", "stage1")
    assert not (tmp_path / speeds.FILE).exists()
    done("bench", "-q", "--stage", "stage1")
    assert (tmp_path / speeds.FILE).exists()


def test_too_little_memory_is_told_with_what_is_needed() -> None:
    line = refused("bench", "--stage", "stage1", "--set", "execution.memory_limit=0.001", *TOY)
    assert line.startswith("toy needs 0.0 GB of memory with 2 rows of ")
    assert line.endswith("this machine has 0.0 GB free. Take a smaller model with --set, or use --device cpu.")
    line = refused("bench", "--stage", "stage1", "--songs", 4, "--set", "execution.memory_limit=0.001", *TOY)
    assert "Take fewer --songs" in line


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--songs", "0"], "Invalid value for '--songs': Input should be greater than or equal to 1"),
        (["--stage", "sing"], "Invalid value for '--stage'"),
        (["--seconds", "0"], "Invalid value for '--seconds'"),
    ],
)
def test_wrong_usage(words: list[str], text: str) -> None:
    outcome = yue("bench", *words)
    assert outcome.code == 2
    assert text in outcome.err


def test_an_unknown_preset_and_device() -> None:
    assert refused("bench", "--preset", "nothing").startswith("there is no preset `nothing`; known presets: ")
    assert refused("bench", "--device", "tpu") == "execution.device is `tpu`; expected auto, cpu, cuda or cuda:N."


def test_segments_follow_each_other_until_the_context_is_full() -> None:
    assert segment_starts(6000, 13_383) == [(800, 3000), (3900, 3000)]
    assert segment_starts(3100, 13_383) == [(800, 3000), (3900, 100)]
    # The fifth prompt would have 13,200 tokens, the sixth 16,300: the oldest segment is left out.
    assert [start for start, _ in segment_starts(18_000, 13_383)] == [800, 3900, 7000, 10_100, 13_200, 13_200]


def test_layers_that_were_not_timed_take_as_long_as_those_that_were() -> None:
    assert extend({2: 5.0, 1: 4.0}, 32) == pytest.approx(35.0)
    assert extend({32: 7.0}, 32) == 7.0


def test_a_loop_is_stopped_when_its_speed_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 1.5, 2.0, 2.5])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(times))
    watch = Watch(enough_s=1.0)
    with pytest.raises(Enough):
        for done_by_now in (2, 4, 6, 8):
            watch.hear(done_by_now)
    assert watch.unit_s == pytest.approx(0.25)
    assert watch.before_s == pytest.approx(0.5)  # 1 s until two units were done, of which they took half
    assert watch.done == 8


def test_smaller_weights_are_taken_where_the_published_ones_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = SMALL | {"hidden_size": 256, "intermediate_size": 512}
    monkeypatch.setattr(models, "SIZES", {"stage1": sizes})
    engines.write_sizes(tmp_path, sizes, "native-8bit")
    facts = engines.describe(tmp_path, dtype=torch.float32)
    limit = (facts.parameter_bytes + 2 * 7000 * facts.cache_bytes_per_token) / 1e9
    answer = done("bench", "--stage", "stage1", "--json", "-q", "--set", f"execution.memory_limit={limit}").answer
    assert answer["stage1"]["model"]["name"] == "en-cot@native-8bit"
    assert answer["stage1"]["model"]["weight_bytes"] == facts.parameter_bytes
