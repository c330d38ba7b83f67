"""The language-model stages against what the published programs computed, step by step and as whole tracks.

The vectors come from YuE's infer.py and from YuE-exllamav2's infer_stage1.py with a tiny model and the draw replaced
by argmax. Tolerance of logits and scores: 1e-3 at a scale of 20, both sides being float32; ids are exact.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conformance.folders import files
from tests.conformance.lm_weights import fill_arrays, write_model
from yue_cli.engines import open_engine
from yue_cli.engines.base import Engine
from yue_cli.prompt import Prompts
from yue_cli.sampling import Sampler, guide, penalize
from yue_cli.seats import ladder_step
from yue_cli.settings import RULES, Settings, Stage1Settings, Stage2Settings, resolve
from yue_cli.stages import stage1, stage2
from yue_cli.vocab import CODEBOOKS, WINDOW_FRAMES, Vocabulary

TOLERANCE = 1e-3
VOCABULARY = Vocabulary()
START_OF_SEGMENT = np.array([518, 2962, 29918, 974, 29918, 28192, 29962])  # the published tokenizer's
END_OF_SEGMENT = np.array([518, 355, 29918, 974, 29918, 28192, 29962])

Open = Callable[[Path, int, int], Engine]


# On a GPU everything is proved in float32, with and without graphs; on a CPU with the steps that graphs would record.
WAYS = [
    ("cpu", "eager"),
    pytest.param(("cpu", "graphs"), marks=pytest.mark.slow),
    *[pytest.param(("cuda", mode), marks=pytest.mark.gpu) for mode in ("eager", "graphs")],
]


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def open_tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Open the model of a golden file, with room for some rows and ids."""
    device, mode = torch.device(request.param[0]), request.param[1]

    @cache
    def folder(golden: Path, config: str, fill: str) -> Path:
        return write_model(golden, config, fill, tmp_path_factory.mktemp("tiny"))

    def open_(path: Path, rows: int, length: int) -> Engine:
        if path.name.startswith("s1_"):
            place = folder(path.parent, "config_s1.json", "fill_s1.json")
        else:
            place = folder(path.parent, "config_s2.json", f"fill_{path.stem}.json")
        return open_engine("native", place, rows=rows, length=length, device=device, dtype=torch.float32, mode=mode)

    return open_


def close(found: Tensor | np.ndarray, expected: np.ndarray) -> None:
    found = found.cpu() if isinstance(found, Tensor) else found
    np.testing.assert_allclose(np.asarray(found), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("path", files("lm", "fill_*.json"))
def test_weights_follow_from_the_rule(path: Path) -> None:
    content = json.loads(path.read_text())
    for name, array in fill_arrays(content).items():
        assert array.astype(np.float64).sum() == pytest.approx(content["tensors"][name]["sum"], abs=1e-6)


# Stage 1: logits and scores


@pytest.mark.slow
@pytest.mark.parametrize("path", files("lm", "s1_logits.npz"))
def test_logits(path: Path, open_tiny: Open) -> None:
    with np.load(path) as file:
        golden = dict(file)
    engine = open_tiny(path, 2, len(golden["tf_ids"]))
    close(engine.prefill([golden["prompt_ids"]])[0], golden["cond_logits"])
    close(engine.prefill([golden["prompt_ids"][-1:]])[0], golden["uncond_logits"])
    for kind in ("", "uncond_"):
        ids, positions = golden[f"{kind or 'tf_'}ids"], golden[f"{kind}tf_positions"]
        columns = golden["tf_token_ids"]
        logits = [engine.prefill([ids[: positions[0] + 1]])]
        for low, high in pairwise(positions):
            known = torch.from_numpy(ids[None, low + 1 : high + 1].astype(np.int64))
            logits.append(engine.step(known.to(engine.device)))
        close(torch.cat(logits)[:, columns], golden[f"{kind}tf_logits"])


@pytest.mark.parametrize("path", files("lm", "s1_scores_*.npz"))
def test_scores(path: Path, open_tiny: Open) -> None:
    """Guidance, penalty, minimum length and blocking, top-k and top-p at every recorded step, and every pick."""
    with np.load(path) as file:
        golden = dict(file)
    window, new_ids, score_ids = golden["input_ids"].astype(np.int64), golden["new_ids"], golden["score_ids"]
    settings = stage1_settings(
        top_k=int(golden["top_k"]),
        top_p=float(golden.get("top_p", 0.93)),
        repetition_penalty=float(golden.get("repetition_penalty", 1.1)),
        min_new_tokens=int(golden.get("min_new_tokens", 100)),
    )
    strength = float(golden["guidance_scale"])
    engine = open_tiny(path, 2, len(window) + len(new_ids))
    allowed = stage1.allowed_ids("original", VOCABULARY, engine.vocabulary_size)
    allowed_ids = np.concatenate([np.arange(part.start, part.stop) for part in allowed])
    sampler = Sampler(VOCABULARY, allowed, settings, guided=True, device=engine.device)
    sampler.begin([window], strengths=[strength], noise=[None])
    recorded = {int(step): row for row, step in enumerate(golden["steps"])}
    logits = engine.prefill([window, window[-1:]])
    for step, expected in enumerate(new_ids):
        if step in recorded:
            row = recorded[step]
            guided = guide(logits[0], logits[1], strength)
            seen = torch.zeros(engine.vocabulary_size, dtype=torch.bool, device=engine.device)
            seen[np.concatenate([window, new_ids[:step]])] = True
            penalized = penalize(guided, seen, settings.repetition_penalty)
            close(logits[0, score_ids], golden["raw"][row])
            close(guided[score_ids], golden["cfg"][row])
            close(penalized[score_ids], golden["rep"][row])
            processed = golden["proc"][row]
            close(penalized[score_ids][processed > -np.inf], processed[processed > -np.inf])
            assert bool(processed[score_ids == VOCABULARY.end_of_audio] == -np.inf) == (step < settings.min_new_tokens)

            scores = sampler.score(logits)[0]
            kept = {int(allowed_ids[column]): float(scores[column]) for column in scores.isfinite().nonzero().ravel()}
            best = sorted(kept, key=lambda number: -kept[number])
            is_kept = golden["kept_ids"][row] >= 0
            assert best == golden["kept_ids"][row][is_kept].tolist(), f"step {step}"
            close(np.array([kept[number] for number in best]), golden["kept_scores"][row][is_kept])
        ids = sampler.pick(logits)
        assert ids.tolist() == [[expected], [expected]], f"step {step}"
        logits = engine.step(ids)


# Stage 1: whole runs


def stage1_settings(**values: Any) -> Stage1Settings:
    return resolve(Settings(stage1=Stage1Settings(**values), rules="original")).stage1


def read_run(path: Path) -> tuple[Mapping[str, np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Read a recorded run: the file, each segment's whole input, each segment's new ids."""
    with np.load(path) as file:
        golden = {key: file[key] for key in file}
    count = sum(key.startswith("input_ids_") for key in golden)
    inputs = [golden[f"input_ids_{number}"].astype(np.int64) for number in range(1, count + 1)]
    return golden, inputs, [golden[f"new_ids_{number}"] for number in range(1, count + 1)]


def prompts_of(inputs: list[np.ndarray], rules: str) -> Prompts:
    """Find the prompts again: a later segment's is what follows the last end-of-audio of its input."""
    later = [ids[np.flatnonzero(ids == VOCABULARY.end_of_audio)[-1] + 1 :] for ids in inputs[1:]]
    nothing = np.empty(0, dtype=np.int64)
    return Prompts(
        head=nothing,
        reference=nothing,
        segments=(inputs[0], *later),
        start_of_segment=START_OF_SEGMENT,
        end_of_segment=END_OF_SEGMENT,
        end_of_audio=VOCABULARY.end_of_audio,
        rules=rules,
    )


def check_run(path: Path, open_tiny: Open, settings: Stage1Settings, rules: str, allowed: str) -> None:
    """Sing all segments with the most likely ids and compare inputs, new ids, cuts, raw output and tracks."""
    golden, inputs, new_ids = read_run(path)
    prompts = prompts_of(inputs, rules)
    engine = open_tiny(path, 2, stage1.needed_length(prompts, settings, len(inputs)))
    read = record_prefills(engine)
    segments = stage1.generate(
        engine,
        VOCABULARY,
        [stage1.Task(prompts, seeds=[None] * len(inputs))],
        settings=settings,
        rules=allowed,
    )
    generated = []
    for number, (_, segment) in enumerate(segments):
        np.testing.assert_array_equal(read[number][0], inputs[number], err_msg=f"input {number + 1}")
        ends = new_ids[number][-1] == VOCABULARY.end_of_audio
        assert segment.truncated == (not ends)
        expected = new_ids[number] if ends else np.append(new_ids[number], VOCABULARY.end_of_audio)
        np.testing.assert_array_equal(segment.ids, expected, err_msg=f"segment {number + 1}")
        generated.append(segment.ids)
    assert len(generated) == len(inputs)
    if "forced_eoa" in golden:
        assert [ids[-1] != VOCABULARY.end_of_audio for ids in new_ids] == golden["forced_eoa"].astype(bool).tolist()
    raw = prompts.raw(generated)
    if "raw_output" in golden:
        np.testing.assert_array_equal(raw, golden["raw_output"])
    for track, name in zip(
        stage1.split(raw, VOCABULARY, skip_reference=False), ("vocals", "instrumentals"), strict=True
    ):
        assert track.dtype == golden[name].dtype
        np.testing.assert_array_equal(track, golden[name])


def record_prefills(engine: Engine) -> list[list[np.ndarray]]:
    """Note the rows of every prefill from now on."""
    read: list[list[np.ndarray]] = []
    prefill = engine.prefill

    def noted(rows: Any, head: Any = None) -> Tensor:
        read.append(list(rows))
        return prefill(rows, head)

    engine.prefill = noted  # type: ignore[method-assign]
    return read


@pytest.mark.parametrize("allowed", RULES)
@pytest.mark.parametrize("path", files("lm", "s1_two_segments.npz"))
def test_two_segments(path: Path, allowed: str, open_tiny: Open) -> None:
    golden, _, _ = read_run(path)
    check_run(path, open_tiny, stage1_settings(max_new_tokens=len(golden["new_ids_1"])), "original", allowed)


@pytest.mark.parametrize("path", files("lm", "s1_overflow_original.npz"))
def test_overflow_of_the_original(path: Path, open_tiny: Open) -> None:
    golden, _, _ = read_run(path)
    budget = int(golden["budget"])
    context = int(golden["max_context"]) + budget + 1
    check_run(path, open_tiny, stage1_settings(context=context, max_new_tokens=budget), "original", "original")


@pytest.mark.parametrize("path", files("lm", "s1_overflow_exl2.npz"))
def test_overflow_of_the_exl2_variant(path: Path, open_tiny: Open) -> None:
    golden, _, _ = read_run(path)
    settings = stage1_settings(
        context=int(golden["cache_size"]), max_new_tokens=int(golden["max_new_tokens"]), on_overflow="drop_oldest"
    )
    check_run(path, open_tiny, settings, "exl2", "yue")


@pytest.mark.parametrize("path", files("lm", "s1_split.json"))
def test_split(path: Path) -> None:
    for case in json.loads(path.read_text()):
        vocal, instrumental = stage1.split(np.array(case["ids"]), VOCABULARY, skip_reference=case["icl"])
        assert vocal.tolist() == case["vocals"]
        assert instrumental.tolist() == case["instrumentals"]


# Stage 2

S2_FILES = files("lm", "s2_*.npz")
FINE_IDS = range(VOCABULARY.codebook(1).start, VOCABULARY.codebook(CODEBOOKS).start)


def read_tracks(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


Filled = tuple[stage2.Task, dict[int, np.ndarray], list[list[np.ndarray]]]


def decode(path: Path, open_tiny: Open, *, restrict_picks: bool, tail: str) -> Filled:
    """Decode both tracks; returns the task, the ids of each window and the rows each batch began with."""
    golden = read_tracks(path)
    tracks = (golden["vocal_cb0"], golden["instrumental_cb0"])
    frames = tracks[0].shape[1]
    windows = stage2.cut(frames, tail)
    rows = ladder_step(len(windows))
    [seats] = stage2.deal_seats([windows], rows)
    engine = open_tiny(path, rows, stage2.cache_length(min(frames, WINDOW_FRAMES)))
    read = record_prefills(engine)
    settings = Stage2Settings(restrict_picks=restrict_picks, tail=tail)
    task, filled = stage2.Task(tracks, windows, seats, {}), dict[int, np.ndarray]()
    for batch in stage2.decode(engine, VOCABULARY, [task], settings=settings):
        filled |= batch[0]
    return task, filled, read


@cache
def decode_as_original(path: Path, open_tiny: Open) -> Filled:
    return decode(path, open_tiny, restrict_picks=False, tail="short")


def frames_of(task: stage2.Task) -> int:
    return int(task.tracks[0].shape[1])


@pytest.mark.parametrize("path", S2_FILES)
def test_whole_tracks(path: Path, open_tiny: Open) -> None:
    golden = read_tracks(path)
    task, filled, read = decode_as_original(path, open_tiny)
    tracks = stage2.assemble(frames_of(task), task.windows, filled, VOCABULARY, restrict_picks=False)
    began_with = {tuple(row) for rows in read for row in rows}
    for first_input in (golden["first_input_0"], golden["first_input_1"]):
        assert {tuple(row) for row in first_input} <= began_with
    close_picks = {tuple(pick) for pick in golden["close_picks"].tolist()}
    places = recorded_places(golden)
    for track, name in enumerate(("vocal", "instrumental")):
        assert tracks[track].dtype == golden[name].dtype
        assert tracks[track].shape == golden[name].shape
        for start in range(0, frames_of(task), WINDOW_FRAMES):
            window = slice(start, min(start + WINDOW_FRAMES, frames_of(task)))
            difference = first_difference(tracks[track][:, window], golden[name][:, window])
            if difference is not None:
                offset, found, expected = difference
                batch, row = places[track, start]
                assert (batch, offset, row) in close_picks, (
                    f"{name}, window at {start}: first mismatch at frame {offset // CODEBOOKS}, codebook "
                    f"{offset % CODEBOOKS}: found {found}, expected {expected}, and it was no close pick"
                )


def recorded_places(golden: dict[str, np.ndarray]) -> dict[tuple[int, int], tuple[int, int]]:
    """Tell in which batch and row the reference ran each (track, start of window)."""
    frames = golden["vocal"].shape[1]
    windows = [(track, start) for track in range(2) for start in range(0, frames, WINDOW_FRAMES)]
    places = [(batch, row) for batch, rows in enumerate(golden["group_rows"]) for row in range(rows)]
    return dict(zip(windows, places, strict=True))


def first_difference(found: np.ndarray, expected: np.ndarray) -> tuple[int, int, int] | None:
    """Find the first pick that differs, in the order of picking: offset, found, expected."""
    mine, theirs = found.T.ravel(), expected.T.ravel()
    different = np.flatnonzero(mine != theirs)
    return (int(different[0]), int(mine[different[0]]), int(theirs[different[0]])) if len(different) else None


@pytest.mark.parametrize("path", S2_FILES)
def test_first_scores(path: Path, open_tiny: Open) -> None:
    golden = read_tracks(path)
    rows = golden["first_input_0"].astype(np.int64)
    engine = open_tiny(path, len(rows), rows.shape[1] + len(golden["first_scores"]) + 1)
    logits = engine.prefill([*rows], (FINE_IDS,))
    for number, expected in enumerate(golden["first_scores"]):
        close(logits, expected)
        ids = expected.argmax(-1)[:, None] + FINE_IDS.start
        if (number + 1) % (CODEBOOKS - 1) == 0:  # the next frame's given id comes after two opening ids and its own
            frame = (number + 1) // (CODEBOOKS - 1)
            ids = np.concatenate([ids, rows[:, 2 + frame : 3 + frame]], axis=1)
        logits = engine.step(torch.from_numpy(ids).to(engine.device), (FINE_IDS,))


@pytest.mark.parametrize("path", S2_FILES)
def test_restricted_picks_with_an_overlapping_tail(path: Path, open_tiny: Open) -> None:
    """Where every pick of the reference is in its own codebook, restricting them changes nothing in full windows."""
    _, filled, _ = decode_as_original(path, open_tiny)
    codebooks = [(ids - VOCABULARY.codebook_start) // VOCABULARY.codebook_size for ids in filled.values()]
    golden = read_tracks(path)
    task, restricted, _ = decode(path, open_tiny, restrict_picks=True, tail="overlap")
    tracks = stage2.assemble(frames_of(task), task.windows, restricted, VOCABULARY, restrict_picks=True)
    for track, name in zip(tracks, ("vocal", "instrumental"), strict=True):
        assert track.dtype == np.int16
        assert track.shape == golden[name].shape
        np.testing.assert_array_equal(track[0], golden[name][0])
        if all((index == np.arange(CODEBOOKS)).all() for index in codebooks):
            full = frames_of(task) // WINDOW_FRAMES * WINDOW_FRAMES
            np.testing.assert_array_equal(track[:, :full], golden[name][:, :full])
