"""Sampling against numbers worked out by hand, and against transformers' rules written out in numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yue_cli.sampling import (
    NOISE_STEPS,
    Noise,
    Sampler,
    guide,
    keep_top_k,
    keep_top_p,
    most_likely,
    noise_columns,
    penalize,
)
from yue_cli.settings import Settings, Stage1Settings, resolve
from yue_cli.vocab import Vocabulary

INF = float("inf")
CPU = torch.device("cpu")
# 40 ids: text 0..9, end of audio 12, codebook 0 is 20..27.
TINY = Vocabulary(
    specials={"<SOA>": 11, "<EOA>": 12, "<stage_1>": 13, "<stage_2>": 14},
    separator=15,
    codebook_start=20,
    codebook_size=8,
    codebooks=2,
)
COARSE_AND_END = (range(20, 28), range(12, 13))
EVERYTHING_FROM_END = (*COARSE_AND_END, range(13, 20), range(28, 40))


def stage1_settings(**values: Any) -> Stage1Settings:
    return resolve(Settings(stage1=Stage1Settings(**values))).stage1


def plain(**values: Any) -> Stage1Settings:
    """Settings with every limit off, but for those given."""
    return stage1_settings(**{"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "min_new_tokens": 0, **values})


def make(settings: Stage1Settings, *, guided: bool = False, allowed: tuple[range, ...] = COARSE_AND_END) -> Sampler:
    return Sampler(TINY, allowed, settings, guided=guided, device=CPU)


# Functions


def test_guidance_by_hand() -> None:
    conditional, unconditional = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])
    given_, free = np.log(np.array([np.e, 1]) / (np.e + 1)), np.log([0.5, 0.5])
    expected = 1.5 * (given_ - free) + free
    torch.testing.assert_close(guide(conditional, unconditional, 1.5), torch.tensor(expected).float())


def test_the_penalty_lowers_seen_scores_of_either_sign() -> None:
    scores, seen = torch.tensor([-2.0, 3.0, -2.0, 3.0]), torch.tensor([True, True, False, False])
    torch.testing.assert_close(penalize(scores, seen, 1.5), torch.tensor([-3.0, 2.0, -2.0, 3.0]))


def test_top_k_keeps_ties_with_the_last() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    assert keep_top_k(scores, 2).tolist() == [[-INF, 3, 2, 2, -INF]]
    assert keep_top_k(scores, 0) is scores
    assert keep_top_k(scores, 99) is scores


def test_top_p_keeps_the_smallest_set_of_that_mass() -> None:
    scores = torch.tensor([[0.4, 0.1, 0.2, 0.3]]).log()
    kept = [keep_top_p(scores, mass).isfinite()[0].tolist() for mass in (0.39, 0.41, 0.69, 0.71, 0.95, 1.0)]
    best_two, best_three = [True, False, False, True], [True, False, True, True]
    assert kept == [[True, False, False, False], best_two, best_two, best_three, [True] * 4, [True] * 4]


def test_top_p_of_nothing_keeps_one() -> None:
    assert keep_top_p(torch.tensor([[1.0, 2.0, 0.0]]), 0.0).tolist() == [[-INF, 2, -INF]]


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=30, unique=True), st.floats(0, 1), st.integers(1, 30)
)
def test_limits_keep_what_transformers_would(values: list[float], mass: float, count: int) -> None:
    scores = torch.tensor(values)
    by_rank = np.argsort(-np.array(values))
    kept_by_rank = set(by_rank[:count].tolist())
    assert set(keep_top_k(scores, count).isfinite().nonzero().ravel().tolist()) == kept_by_rank

    # transformers, TopPLogitsWarper: ascending, drop while the sum so far is at most 1 - p, keep the last.
    ascending = by_rank[::-1]
    sums = torch.softmax(scores[ascending.copy()], -1).cumsum(-1)
    kept = {int(place) for place, total in zip(ascending, sums, strict=True) if total > 1 - mass} | {int(by_rank[0])}
    if mass < 1:
        assert set(keep_top_p(scores, mass).isfinite().nonzero().ravel().tolist()) == kept


def test_most_likely_counts_from_the_start_of_its_head() -> None:
    assert most_likely(100, torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])).tolist() == [[101], [100]]


# Noise


def test_columns_are_codebook_0_then_the_end_then_all_others() -> None:
    ids = np.array([20, 27, 12, 0, 11, 13, 19, 28, 39])
    assert noise_columns(ids, TINY).tolist() == [0, 7, 8, 9, 20, 21, 27, 28, 39]


@pytest.mark.parametrize("vocabulary", [TINY, Vocabulary()], ids=["tiny", "published"])
def test_every_id_has_a_column_of_its_own(vocabulary: Vocabulary) -> None:
    size = vocabulary.codebook_stop + 7
    assert sorted(noise_columns(np.arange(size), vocabulary)) == list(range(size))


columns_strategy = st.lists(st.integers(0, 300), min_size=1, max_size=40, unique=True).map(np.array)


@given(st.integers(0, 2**63 - 1), st.integers(0, 50), st.integers(0, 5000), columns_strategy, st.data())
def test_noise_depends_on_step_and_column_only(
    seed: int, segment: int, first: int, columns: np.ndarray, data: st.DataObject
) -> None:
    noise = Noise(seed, segment)
    block = noise.draw(range(first, first + 3), columns)
    step, place = data.draw(st.integers(0, 2)), data.draw(st.integers(0, len(columns) - 1))
    alone = noise.draw(range(first + step, first + step + 1), columns[place : place + 1])
    assert alone[0, 0] == block[step, place]


def test_noise_is_the_same_for_ever() -> None:
    """A seed's song must not change with a version of yue or numpy."""
    drawn = Noise(seed=1879, segment=2).draw(range(3, 5), np.array([0, 1, 1024, 1025, 50000]))
    expected = [
        [0.41743416, 0.95180261, 0.65413839, 0.044375665, -0.23976892],
        [-0.18851346, -0.20965745, -1.0866772, -0.67034101, 0.71120942],
    ]
    np.testing.assert_allclose(drawn, expected, rtol=1e-6)


def test_noise_differs_between_seeds_segments_and_steps() -> None:
    columns = np.arange(64)
    blocks = [
        Noise(seed, segment).draw(range(step, step + 1), columns)
        for seed, segment, step in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    assert len(np.unique(np.concatenate(blocks))) == 4 * 64


def test_noise_is_gumbel() -> None:
    numbers = np.sort(Noise(7, 0).draw(range(200), np.arange(100)).ravel()).astype(np.float64)
    expected = (np.arange(len(numbers)) + 0.5) / len(numbers)
    assert np.abs(np.exp(-np.exp(-numbers)) - expected).max() < 0.01  # Kolmogorov-Smirnov, 20,000 numbers


# Sampler


def test_the_best_allowed_id_is_picked_without_noise() -> None:
    sampler = make(plain())
    sampler.begin([np.array([1, 2])], strengths=[1.0], noise=[None])
    logits = torch.zeros(1, 9)
    logits[0, 3] = 1
    assert sampler.head == COARSE_AND_END
    assert sampler.pick(logits).tolist() == [[23]]


def test_both_rows_of_guidance_get_the_same_id() -> None:
    sampler = make(plain(), guided=True)
    sampler.begin([np.array([1, 2])], strengths=[3.0], noise=[None])
    logits = torch.zeros(2, 40)
    logits[0, 21], logits[0, 22], logits[1, 21] = 2, 1.5, 1.9  # 22 gained more by the prompt
    logits[0, 5] = 9  # not allowed
    assert sampler.head is None
    assert sampler.pick(logits).tolist() == [[22], [22]]


def test_ids_of_the_window_and_picked_ones_are_penalised_once() -> None:
    sampler = make(plain(repetition_penalty=2.0))
    sampler.begin([np.array([20, 20, 20, 3])], strengths=[1.0], noise=[None])
    logits = torch.tensor([[8.0, 7.0, 6.0, 0, 0, 0, 0, 0, -1.0]])
    assert sampler.score(logits)[0, :3].tolist() == [4, 7, 6]
    assert [sampler.pick(logits).item() for _ in range(3)] == [21, 22, 20]
    assert sampler.score(logits)[0, :3].tolist() == [4, 3.5, 3]


def test_the_end_comes_not_before_the_minimum() -> None:
    sampler = make(plain(min_new_tokens=2))
    sampler.begin([np.array([1])], strengths=[1.0], noise=[None])
    logits = torch.zeros(1, 9)
    logits[0, 8] = 5
    assert [sampler.pick(logits).item() for _ in range(3)] == [20, 20, 12]


def test_a_new_segment_forgets_the_last() -> None:
    sampler = make(plain(repetition_penalty=2.0, min_new_tokens=1))
    logits = torch.tensor([[3.0, 2.0, 0, 0, 0, 0, 0, 0, 9.0]])
    for _ in range(2):
        sampler.begin([np.array([5])], strengths=[1.0], noise=[None])
        assert [sampler.pick(logits).item() for _ in range(2)] == [20, 12]


def draws(sampler: Sampler, logits: torch.Tensor, steps: int, noise: Noise) -> list[int]:
    sampler.begin([np.array([1])], strengths=[1.0], noise=[noise])
    picked = []
    for step in range(steps):
        sampler.prepare(step)
        picked.append(int(sampler.pick(logits)[0]))
    return picked


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0, 0, 0, 0, 0]]).log()
    picked = draws(make(plain()), logits, 4000, Noise(3, 0))
    shares = np.bincount(picked, minlength=28)[20:24] / 4000
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.3, 0.4], atol=0.025)


def test_a_temperature_sharpens_or_flattens() -> None:
    logits = torch.tensor([[0.2, 0.8, 0, 0, 0, 0, 0, 0, 0]]).log()
    picked = draws(make(plain(temperature=0.5)), logits, 4000, Noise(3, 0))
    assert np.mean(np.array(picked) == 21) == pytest.approx(0.8**2 / (0.8**2 + 0.2**2), abs=0.02)


def test_a_seed_means_the_same_whatever_is_allowed_or_kept() -> None:
    """With ids ruled out that would not have been drawn, the draws stay what they were."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(1, 40, generator=generator)
    whole[:, [*range(13, 20), *range(28, 40)]] -= 1000
    expected = draws(make(plain()), whole[:, [*range(20, 28), 12]], 150, Noise(11, 4))
    wide = torch.cat([whole[:, part.start : part.stop] for part in EVERYTHING_FROM_END], dim=1)
    assert draws(make(plain(), allowed=EVERYTHING_FROM_END), wide, 150, Noise(11, 4)) == expected
    assert draws(make(plain(top_k=9)), whole[:, [*range(20, 28), 12]], 150, Noise(11, 4)) == expected
    assert len(set(expected)) > 5


def test_a_block_of_noise_is_drawn_at_once_and_each_one_after_it_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = Noise.draw
    monkeypatch.setattr(Noise, "draw", lambda self, steps, ids: drawn.extend(steps) or draw(self, steps, ids))
    made = make(plain())
    made.begin([np.array([1])], strengths=[1.0], noise=[Noise(0, 0)])
    counts = []
    for step in range(NOISE_STEPS + 2):
        made.prepare(step)
        counts.append(len(drawn))
    assert drawn == list(range(2 * NOISE_STEPS + 2))
    assert counts == [NOISE_STEPS + 1 + step for step in range(NOISE_STEPS + 2)]


def test_a_step_that_was_left_out_is_refused() -> None:
    made = make(plain())
    made.begin([np.array([1])], strengths=[1.0], noise=[Noise(0, 0)])
    made.prepare(0)
    with pytest.raises(AssertionError, match="step 2 comes after 1 others"):
        made.prepare(2)


# Several songs


@pytest.mark.parametrize("guided", [False, True])
def test_every_song_is_sung_as_if_it_were_alone(guided: bool) -> None:
    """Windows, noise, strengths and picks of one song are nothing to another."""
    settings = stage1_settings(min_new_tokens=4, repetition_penalty=1.7, top_k=5)
    generator = torch.Generator().manual_seed(1)
    rows, songs = (2, 40) if guided else (1, 9), 3
    logits = 2 * torch.randn(80, rows[0], songs, rows[1], generator=generator)
    windows = [np.array([20, 21]), np.array([5]), np.array([27, 12, 22])]
    noise, strengths = [Noise(5, 0), None, Noise(5, 3)], [1.5, 3.0, 1.2]

    def picks(chosen: list[int]) -> list[list[int]]:
        sampler = Sampler(TINY, COARSE_AND_END, settings, guided=guided, device=CPU, songs=len(chosen))
        sampler.begin(
            [windows[song] for song in chosen],
            strengths=[strengths[song] for song in chosen],
            noise=[noise[song] for song in chosen],
        )
        picked = []
        for step, step_logits in enumerate(logits):
            sampler.prepare(step)
            ids = sampler.pick(step_logits[:, chosen].reshape(-1, rows[1]))
            assert torch.equal(ids[: len(chosen)], ids[-len(chosen) :]), "both rows of a song get the same id"
            picked.append(ids[: len(chosen), 0].tolist())
        return np.array(picked).T.tolist()

    together = picks([0, 1, 2])
    assert [picks([song])[0] for song in range(songs)] == together
    assert len({tuple(song) for song in together}) == 3


def test_a_sampler_refuses_another_number_of_songs() -> None:
    with pytest.raises(AssertionError, match="one of each for every song"):
        make(plain()).begin([np.array([1])] * 2, strengths=[1.0, 1.0], noise=[None, None])


def test_noise_drawn_ahead_is_the_noise_of_its_steps() -> None:
    """Across a border of blocks, and after a new start in the middle of one."""
    made = make(plain())
    columns = noise_columns(np.array([*range(20, 28), 12]), TINY)
    for seed in (1, 2):
        made.begin([np.empty(0, np.int64)], strengths=[1.0], noise=[Noise(seed, 0)])
        for step in range(NOISE_STEPS + 3):
            made.prepare(step)
            expected = Noise(seed, 0).draw(range(step, step + 1), columns)
            np.testing.assert_array_equal(made._noise[step % NOISE_STEPS].numpy(), expected)
