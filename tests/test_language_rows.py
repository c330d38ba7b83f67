"""Rows to learn from: the product's prompts, the right answers, and mistakes where they belong."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from training.corpus.compose import compose
from training.language.alignment import NOBODY, align
from training.language.rows import (
    CURRICULUM_STEPS,
    Noise,
    Row,
    _draw_runs,
    draw_line,
    draw_song_row,
    draw_window_row,
    draw_words,
    free_row,
    song_row,
    window_row,
)
from training.language.songs import CodedSong
from training.language.text import BrokenTokenizer, WholeTokenizer
from yue_cli import prompt
from yue_cli.lyrics import parse
from yue_cli.resources import resource
from yue_cli.tokenizer import TOKENIZER_FILE
from yue_cli.vocab import Vocabulary

FOLDER = resource("toy")
VOCABULARY = Vocabulary.read(FOLDER)
TOKENIZER = WholeTokenizer(FOLDER / TOKENIZER_FILE, VOCABULARY)
NOISE = Noise(neighbours=(np.arange(1024)[:, None] + np.arange(1, 9)) % 1024, replaced=0.2, repeated=0.1, longest=4)

# The | har·bour | lights | Are | fa·ding | low, with rests; Car·ry | me | home.
SYLLABLES = (
    np.array(
        [[2, 6, 0, 3], [6, 10, 4, 7], [10, 15, 7, 11], [15, 25, 12, 18]]
        + [[29, 35, 19, 22], [35, 40, 23, 26], [40, 44, 26, 29], [44, 55, 30, 33]]
    ),
    np.array([[62, 70, 0, 2], [70, 75, 2, 5], [75, 80, 6, 8], [80, 95, 9, 13]]),
)


def dice(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def song() -> CodedSong:
    sections = parse("[verse]\nThe harbour lights\nAre fading low\n[chorus]\nCarry me home\n", "song").sections
    numbers = np.random.default_rng(7)
    tracks = [numbers.integers(0, 1024, (8, 100)) for _ in range(2)]
    lines = ((range(30), range(30, 60)), (range(60, 100),))
    return CodedSong("folk calm", sections, (range(60), range(60, 100)), lines, SYLLABLES, *tracks)


def make_song_row(song: CodedSong, **more: object) -> Row:
    return song_row(song, TOKENIZER, VOCABULARY, **{"length": 4096, "dice": dice(), **more})  # type: ignore[arg-type]


def test_a_song_row_is_what_the_product_reads_and_sings(song: CodedSong) -> None:
    row = make_song_row(song)
    prompts = prompt.build(TOKENIZER, VOCABULARY, song.genre, song.sections)
    frames = np.stack([song.vocal[0], song.instrumental[0]], axis=1)
    sung = [
        np.append(VOCABULARY.codebook_start + frames[span.start : span.stop].ravel(), VOCABULARY.end_of_audio)
        for span in song.spans
    ]
    assert np.array_equal(row.ids, prompts.raw(sung))
    assert np.array_equal(row.answers, row.ids)
    assert row.weights.sum() == 2 * 100 + 2, "codes and both ends count, text does not"
    assert np.array_equal(np.unique(row.ids[row.weights > 0])[:1], [VOCABULARY.end_of_audio])


def test_a_row_ends_with_the_last_segment_that_fits(song: CodedSong) -> None:
    whole = make_song_row(song)
    shorter = make_song_row(song, length=len(whole) - 1)
    assert shorter.weights.sum() == 2 * 60 + 1
    assert np.array_equal(shorter.ids, whole.ids[: len(shorter)])


def test_a_song_may_begin_later_as_if_the_context_had_been_full(song: CodedSong) -> None:
    row = make_song_row(song, first=1, most=1)
    prompts = prompt.build(TOKENIZER, VOCABULARY, song.genre, song.sections)
    earlier = [np.array([VOCABULARY.end_of_audio])]
    limit = prompts.needed_length(1, "drop_oldest")
    begun = prompts.window(1, earlier, limit, "drop_oldest")
    assert np.array_equal(row.ids[: len(begun)], begun)
    assert row.weights.sum() == 2 * 40 + 1


def test_a_line_is_a_song_of_its_own(song: CodedSong) -> None:
    lines = {draw_line(song, dice(seed)).sections[0].text: draw_line(song, dice(seed)) for seed in range(30)}
    assert set(lines) == {"The harbour lights", "Are fading low", "Carry me home"}
    low = lines["Are fading low"]
    assert (low.sections[0].tag, low.spans) == ("verse", (range(30, 60),))
    row = make_song_row(low)
    assert row.weights.sum() == 2 * 30 + 1
    assert row.answers[row.weights > 0][0] == VOCABULARY.codebook_start + song.vocal[0, 30]


def test_lines_come_first(song: CodedSong) -> None:
    def count_answers(step: int) -> list[float]:
        return [
            draw_song_row([song], TOKENIZER, VOCABULARY, 4096, None, step, dice(seed)).weights.sum()
            for seed in range(100)
        ]

    early, late = (sum(answers <= 81 for answers in count_answers(step)) for step in (0, CURRICULUM_STEPS))
    assert early > late + 10


def test_a_free_row_is_the_unconditional_row_of_guidance(song: CodedSong) -> None:
    row = free_row(song, 1, VOCABULARY, dice=dice())
    assert row.ids[0] == VOCABULARY.separator
    assert row.weights.tolist() == [0.0] + [1.0] * 81
    assert row.ids[1] == VOCABULARY.codebook_start + song.vocal[0, 60]


def test_mistakes_are_read_and_never_the_answer(song: CodedSong) -> None:
    clean, spoilt = make_song_row(song), make_song_row(song, noise=NOISE)
    assert np.array_equal(spoilt.answers, clean.answers)
    wrong = np.flatnonzero(spoilt.ids != clean.ids)
    assert 10 < len(wrong) < 120
    assert (clean.weights[wrong] > 0).all()
    assert (spoilt.ids[wrong] != VOCABULARY.end_of_audio).all()


def test_a_window_row_holds_prompt_and_frames(song: CodedSong) -> None:
    row = window_row(song.vocal, range(10, 40), VOCABULARY, dice=dice())
    head = [VOCABULARY.start_of_audio, VOCABULARY.stage_1, *(VOCABULARY.codebook_start + song.vocal[0, 10:40])]
    assert row.ids[: 30 + 3].tolist() == [*head, VOCABULARY.stage_2]
    assert np.array_equal(row.ids[33:], VOCABULARY.codes_to_ids(song.vocal[:, 10:40]))
    assert row.weights[33:41].tolist() == pytest.approx([0, 1, 11 / 12, 10 / 12, 9 / 12, 8 / 12, 7 / 12, 0.5])


def test_a_mistake_in_a_window_is_the_same_in_its_prompt_and_its_frames(song: CodedSong) -> None:
    row = window_row(song.vocal, range(100), VOCABULARY, noise=NOISE, own_mistakes=0.1, dice=dice())
    given, frames = row.ids[2:102], row.ids[103:].reshape(100, 8)
    assert np.array_equal(given, frames[:, 0])
    answers = row.answers[103:].reshape(100, 8)
    assert np.array_equal(answers, VOCABULARY.codes_to_ids(song.vocal).reshape(100, 8))
    assert 30 < (frames[:, 1:] != answers[:, 1:]).sum() < 110
    books = (frames - VOCABULARY.codebook_start) // VOCABULARY.codebook_size
    assert np.array_equal(books, np.tile(np.arange(8), (100, 1))), "a wrong code stays in its book"


def test_drawn_rows_are_of_every_kind_and_repeat_with_their_seed(song: CodedSong) -> None:
    rows = [
        draw_song_row([song], TOKENIZER, VOCABULARY, 4096, None, CURRICULUM_STEPS, dice(seed)) for seed in range(60)
    ]
    again = [
        draw_song_row([song], TOKENIZER, VOCABULARY, 4096, None, CURRICULUM_STEPS, dice(seed)) for seed in range(60)
    ]
    assert all(np.array_equal(row.ids, other.ids) for row, other in zip(rows, again, strict=True))
    free = sum(row.ids[0] == VOCABULARY.separator for row in rows)
    marker = TOKENIZER.encode("[start_of_reference]")
    with_reference = sum(bytes(np.array(marker)) in bytes(row.ids) for row in rows)
    assert free > 0
    assert with_reference > 0
    assert free + with_reference < 60
    assert all(row.weights.sum() > 0 for row in rows)


def test_windows_are_mostly_whole_and_stay_inside_the_track() -> None:
    track = np.random.default_rng(0).integers(0, 1024, (8, 700))
    song = CodedSong("", (), (), (), (), track, track)
    rows = [draw_window_row([song], VOCABULARY, None, 0.0, dice(seed)) for seed in range(80)]
    frames = [len(row) // 9 for row in rows]
    assert max(frames) == 300
    assert 50 < frames.count(300) < 80
    assert min(frames) >= 30


def test_broken_words_decode_to_the_same_text_and_repeat_with_their_seed() -> None:
    broken = BrokenTokenizer(FOLDER / TOKENIZER_FILE, VOCABULARY)
    text = "The harbour lights are fading low"

    def cut(seed: int) -> tuple[int, ...]:
        broken.dice = Random(seed)
        return tuple(broken.encode(text))

    cuts = {cut(seed) for seed in range(20)}
    assert len(cuts) > 5
    assert cut(3) == cut(3)
    pieces = broken._pieces
    assert {pieces.decode(list(each)) for each in cuts} == {text}


@pytest.mark.parametrize(
    "text", ["The harbour lights", "[verse]\nCarry me home\n\n", "[Genre] folk  calm", "naïve", ""]
)
def test_words_of_which_nothing_is_left_out_are_whole(text: str) -> None:
    broken = BrokenTokenizer(FOLDER / TOKENIZER_FILE, VOCABULARY)
    broken.left_out = 0.0
    assert broken.encode(text) == TOKENIZER.encode(text)


def test_a_hidden_voice_is_asked_for_and_not_read(song: CodedSong) -> None:
    clean = make_song_row(song)
    rows = [make_song_row(song, hidden=0.5, dice=dice(seed)) for seed in range(20)]
    changed = np.concatenate([np.flatnonzero(row.ids != clean.ids) for row in rows])
    assert all(np.array_equal(row.answers, clean.answers) for row in rows)
    assert {int(id) for row in rows for id in row.ids[row.ids != clean.ids]} == {VOCABULARY.specials["<EOD>"]}
    assert np.isin(clean.ids[changed] - VOCABULARY.codebook_start, song.vocal[0]).all()
    assert 600 < len(changed) < 1400, "half of a hundred frames in twenty rows"


def test_hidden_frames_come_in_runs() -> None:
    marked = np.concatenate([_draw_runs(500, 0.4, dice(seed)) for seed in range(20)])
    assert 0.3 < marked.mean() < 0.5
    assert np.abs(np.diff(marked.astype(int))).sum() < 600


def test_the_ids_of_a_syllable_write_it(song: CodedSong) -> None:
    row = make_song_row(song)
    pieces = TOKENIZER._pieces
    found = []
    for number in range(12):
        first, last = row.written.T
        found.append(pieces.decode([int(id) for id in row.ids[(first >= 0) & (first <= number) & (number <= last)]]))
    runs = [(section, run) for section in range(2) for run in song.syllables[section]]
    for text, (section, (*_, first, end)) in zip(found, runs, strict=True):
        assert song.sections[section].text[first:end] in text
    assert row.written.max() == 11
    assert (row.written[row.weights > 0] == NOBODY).all()


def test_codes_of_the_voice_know_what_is_sung_in_them_and_was_before(song: CodedSong) -> None:
    row = make_song_row(song)
    answers = np.flatnonzero(row.weights)
    last, now = row.sung[answers[: 2 * 60 : 2]].T
    assert now[[0, 2, 5, 6, 24, 25, 28, 29, 54, 55]].tolist() == [-1, 0, 0, 1, 3, -1, -1, 4, 7, -1]
    assert last[[0, 2, 3, 6, 7, 25, 29, 30, 59]].tolist() == [-1, -1, 0, 0, 1, 3, 3, 4, 7]
    assert (row.sung[answers[1 : 2 * 60 : 2]] == NOBODY).all(), "the band sings nothing"
    assert row.sung[answers[121:]].max() == 11
    assert (row.sung[row.weights == 0] == NOBODY).all()


def test_words_in_pieces_are_traced_as_whole_ones_are(song: CodedSong) -> None:
    broken = BrokenTokenizer(FOLDER / TOKENIZER_FILE, VOCABULARY)
    broken.left_out, broken.dice = 0.6, Random(0)
    row = song_row(song, broken, VOCABULARY, length=4096, dice=dice())
    writes = row.written[:, 0] >= 0
    assert writes.sum() > (make_song_row(song).written[:, 0] >= 0).sum()
    for number, (first, end) in enumerate(song.syllables[0][:, 2:]):
        ids = row.ids[writes & (row.written[:, 0] <= number) & (number <= row.written[:, 1])]
        assert song.sections[0].text[first:end] in broken._pieces.decode(ids.tolist())


def test_a_line_takes_its_syllables_along(song: CodedSong) -> None:
    low = next(
        line for line in (draw_line(song, dice(seed)) for seed in range(30)) if line.sections[0].text[:3] == "Are"
    )
    assert low.syllables[0].tolist() == [[29, 35, 0, 3], [35, 40, 4, 7], [40, 44, 7, 10], [44, 55, 11, 14]]
    row = make_song_row(low)
    assert row.sung[np.flatnonzero(row.weights)][0].tolist() == [-1, 0], "cut at the line's first frame"


def test_a_few_words_are_a_song_of_their_own(song: CodedSong) -> None:
    line = draw_line(song, dice(3))
    found = {draw_words(line, dice(seed)).sections[0].text: draw_words(line, dice(seed)) for seed in range(40)}
    words = line.sections[0].text.split()
    assert set(found) == {" ".join(words[a:b]) for a in range(3) for b in range(a + 1, 4) if b <= len(words)}
    for text, cut in found.items():
        assert cut.spans[0] == range(cut.syllables[0][0, 0], cut.syllables[0][-1, 1])
        row = make_song_row(cut)
        assert row.sung[np.flatnonzero(row.weights)][0].tolist() == [-1, 0], text
        assert row.weights.sum() == 2 * len(cut.spans[0]) + 1


def test_other_words_are_not_traced(song: CodedSong) -> None:
    row = make_song_row(replace(song, syllables=(song.syllables[0][:0],) * 2))
    assert (row.written == NOBODY).all()
    assert (row.sung == NOBODY).all()


@pytest.mark.parametrize("seed", [0, 2, 39, 81, 118])
def test_every_word_of_a_composed_song_is_aligned(seed: int) -> None:
    composed = compose(seed)
    notes = [
        {"start": 100 * number, "stop": 100 * number + 90, "onset": 5, "section": section}
        | {"word": note.word, "syllable": note.syllable}
        for section, part in enumerate(composed.sections)
        for number, note in enumerate(part.notes)
    ]
    runs = align(composed.sections, notes)
    for section, of_section in zip(composed.sections, runs, strict=True):
        text = "\n".join(section.lines)
        assert "".join(text[first:end] for *_, first, end in of_section) == "".join(text.split())
        assert all(first < end for *_, first, end in of_section)
