"""The arithmetic of the measures of sung songs, on signals whose answer is known."""

import numpy as np
import pytest
import torch

from training.corpus.measures import Heard
from training.corpus.tags import WORDS
from training.language.measure_band import chroma, hear_key, hear_tempo, learn_templates, onset_strength
from training.language.measure_hearing import audible_semitones, count_lines, leaks, pitch_shares, word_shares
from training.language.measure_learning import probability_of_voice
from training.language.measure_listeners import edits, learn_names, learn_reading, spell
from training.language.measure_prompts import draw_lessons, draw_prompts
from training.language.measure_report import confusion_table, share, table

RATE, FRAME = 16_000, 320


def clicks(sixteenth: int, seconds: int = 12) -> np.ndarray:
    """Short noises on every eighth note."""
    wave = np.zeros(seconds * RATE, np.float32)
    noise = np.random.default_rng(0).normal(size=400).astype(np.float32) * np.linspace(0.3, 0, 400, dtype=np.float32)
    for start in range(0, len(wave) - 400, 2 * sixteenth * FRAME):
        wave[start : start + 400] += noise
    return wave


def chord(pitches: list[int], seconds: float = 1.0) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    tones = [np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time) for pitch in pitches]
    return (0.1 * np.sum(tones, axis=0)).astype(np.float32)


@pytest.mark.parametrize("sixteenth", [5, 6, 7, 9, 10, 12])
def test_tempo_is_heard_where_every_eighth_is_struck(sixteenth):
    assert hear_tempo(onset_strength(clicks(sixteenth))) == sixteenth


def test_key_is_heard_from_templates_of_another_tonic():
    major = [[60, 64, 67], [65, 69, 72], [67, 71, 74], [60, 64, 67]]
    minor = [[57, 60, 64], [62, 65, 69], [64, 67, 71], [57, 60, 64]]

    def heard(chords: list[list[int]], up: int) -> np.ndarray:
        return chroma(np.concatenate([chord([pitch + up for pitch in pitches]) for pitches in chords]))

    templates = learn_templates([(heard(major, 0), 0, "major"), (heard(minor, 0), 9, "minor")])
    assert hear_key(heard(major, 5), templates) == (5, "major")
    assert hear_key(heard(minor, 5), templates) == (2, "minor")


def test_pitch_is_judged_by_the_given_key():
    semitones = np.array([60.0, 62.2, 64.4, 61.0])  # C, D, E 40 cents sharp, D flat
    shares = pitch_shares(semitones, (0, "major"))
    assert shares["pitch in the band's key"] == (3, 4)
    assert shares["pitch near a semitone"] == (3, 4)


def test_a_soft_or_unvoiced_voice_is_not_judged():
    voice = Heard(np.array([60.0, np.nan, 62.0, 64.0]), np.array([-10.0, -10.0, -60.0, -20.0]))
    assert audible_semitones(voice).tolist() == [60.0, 64.0]


def test_lines_are_cut_at_the_rest_near_their_end():
    note = [np.full(30, 60.0), np.full(5, np.nan)]
    semitone = np.concatenate(note * 3 + note * 2 + [np.full(30, np.nan)])
    loudness = np.where(np.isfinite(semitone), -10.0, -80.0)
    assert count_lines(Heard(semitone, loudness), 2) == [3, 2]


def test_phonemes_are_spelled_without_rests_repeats_and_splinters():
    assert spell(np.array([0, 0, 3, 3, 3, 5, 0, 0, 3, 3, 4, 4])) == [2, 3]


@pytest.mark.parametrize(
    "found, wanted, count", [([], [1, 2], 2), ([1, 2, 3], [1, 2, 3], 0), ([1, 3], [1, 2, 3], 1), ([4, 1, 5], [1, 2], 2)]
)
def test_edits_are_counted_as_by_hand(found, wanted, count):
    assert edits(found, wanted) == count


def test_own_words_are_told_from_others():
    shares = word_shares([[1, 2, 3]], [[[1, 2, 4]], [[7, 8, 9]]])
    assert shares["phonemes amiss, of those written"] == (1, 3)
    assert shares["... against other prompts' words"] == (3, 3)
    assert shares["sections whose own words are nearest"] == (1, 1)


def test_codes_of_the_other_track_are_leaks():
    chance = probability_of_voice(np.array([[0, 0, 1], [2, 2, 1]]), 4)
    assert np.array_equal(chance, [1.0, 0.5, 0.0, np.nan], equal_nan=True)
    found = leaks(np.array([[0, 2, 1], [2, 0, 3]]), chance)
    assert found == {"voice's codes that are the band's": (1, 3), "band's codes that are the voice's": (1, 2)}


def test_namers_and_readers_learn_what_is_plain():
    dice = torch.Generator().manual_seed(0)
    low = [torch.rand(64, 100, generator=dice) * (torch.arange(64) < 32)[:, None] for _ in range(4)]
    high = [torch.rand(64, 100, generator=dice) * (torch.arange(64) >= 32)[:, None] for _ in range(4)]
    namer = learn_names(low[:3] + high[:3], ["low"] * 3 + ["high"] * 3)
    assert (namer.name(low[3]), namer.name(high[3])) == ("low", "high")
    reader = learn_reading([low[0], high[0]], [np.full(50, 1), np.full(50, 2)], 3, steps=30)
    assert set(reader.read(low[3])) == {1}


def test_prompts_are_held_out_and_contrast_one_tag_at_a_time():
    prompts = draw_prompts(3, 1, 2)
    others = sum(len(values) - 1 for values in WORDS.values())
    assert 3 + others - len(WORDS["mood"]) <= len(prompts) <= 3 + others  # old tunes are left out
    assert all(prompt.song.held_out for prompt in prompts)
    assert not any(prompt.song.held_out for prompt in draw_lessons(3, 2))
    assert all(prompt.lines == prompts[0].lines for prompt in prompts[3:])
    assert all(len(prompt.bounds) == prompt.sections + 1 for prompt in prompts)


def test_a_share_counts_all_songs_together_and_has_an_interval():
    figure = share([(1, 1), (0, 3)])
    assert figure["share"] == 0.25
    assert (figure["low"], figure["high"], figure["songs"], figure["of"]) == (0.0, 1.0, 2, 4)


def test_tables_have_a_column_for_each_kind():
    text = table({"original": {"tempo": share([(1, 1)])}, "floor": {}})
    assert text.splitlines()[2] == "| tempo | 100.0% (100%–100%) | – |"
    assert confusion_table("tempo", {"6": {"6": 2}}).splitlines()[2] == "| 6 | 2 |"
