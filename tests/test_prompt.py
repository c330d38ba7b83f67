"""Prompts: the order of their parts, and what is left out when the context is full."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import toy_tokenizer
from yue_cli.errors import AudioError, ContextError, SettingsError, YueError
from yue_cli.lyrics import parse
from yue_cli.prompt import Prompts, Reference, build, check_fits, shorten, window_limit
from yue_cli.tokenizer import TOKENIZER_FILE, Tokenizer

VOCABULARY = toy_tokenizer.vocabulary()
TOY = Tokenizer(toy_tokenizer.FOLDER / TOKENIZER_FILE, VOCABULARY)
START, END = TOY.encode("[start_of_segment]"), TOY.encode("[end_of_segment]")
OPENING = [VOCABULARY.start_of_audio, VOCABULARY.separator]
END_OF_AUDIO = VOCABULARY.end_of_audio
SONG = "[verse]\nstay\n\n[chorus]\ngo <SOA>\n\n[bridge]\n"


def made(rules: str = "yue", reference: Reference | None = None, song: str = SONG) -> Prompts:
    return build(TOY, VOCABULARY, "folk", parse(song, "lyrics.txt", rules).sections, rules, reference)


def counting(head: int, reference: int, segments: list[int], rules: str = "yue") -> Prompts:
    """Make prompts of wanted lengths, every part recognisable by its ids; markers are 2 and 3 ids long."""
    ends = [[]] + [[11, 12, 13]] * (len(segments) - 1)
    return Prompts(
        head=np.arange(501, 501 + head),
        reference=np.full(reference, 2),
        segments=tuple(
            np.array([*end, 21, 22, *[100 + number] * length])
            for number, (end, length) in enumerate(zip(ends, segments, strict=True))
        ),
        start_of_segment=np.array([21, 22]),
        end_of_segment=np.array([11, 12, 13]),
        end_of_audio=9,
        rules=rules,
    )


@st.composite
def full_songs(draw: st.DrawFn) -> tuple[Prompts, list[np.ndarray], int]:
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    prompts = counting(draw(st.integers(1, 8)), draw(st.integers(0, 8)), lengths)
    count = st.integers(0, 12)
    generated = [np.array([1000 + number] * draw(count) + [9]) for number in range(len(lengths) - 1)]
    return prompts, generated, draw(st.integers(1, 80))


@given(full_songs())
def test_drop_oldest_keeps_head_reference_and_the_latest_segments(song: tuple[Prompts, list[np.ndarray], int]) -> None:
    prompts, generated, limit = song
    index = len(generated)
    fixed = [*prompts.head, *prompts.reference]
    try:
        window = prompts.window(index, generated, limit, "drop_oldest")
    except ContextError:
        assert prompts.needed_length(index, "drop_oldest") > limit
        return
    assert len(window) <= limit
    assert window[: len(fixed)].tolist() == fixed
    assert window[len(fixed) :][:2].tolist() == [21, 22], "what is kept starts with a segment's own marker"
    whole = prompts.raw([*generated, np.array([], dtype=np.int64)])
    tail = window[len(fixed) :]
    assert tail.tolist() == whole[len(whole) - len(tail) :].tolist()
    if len(window) < len(whole):
        first = len(prompts.segments) - 1 - int(np.sum(tail == 11))
        longer = (
            len(window) + 3 + len(prompts.segments[first - 1]) - (3 if first > 1 else 0) + len(generated[first - 1])
        )
        assert longer > limit, "no segment is forgotten without need"


@given(full_songs())
def test_drop_oldest_is_what_searching_for_markers_gives(song: tuple[Prompts, list[np.ndarray], int]) -> None:
    prompts, generated, limit = song
    index = len(generated)
    whole = prompts.raw([*generated, np.array([], dtype=np.int64)])
    found = shorten(whole, limit, prompts.start_of_segment)
    if found[0] != prompts.head[0]:
        return  # the search fell back to the last ids
    assert prompts.window(index, generated, limit, "drop_oldest").tolist() == found.tolist()


@given(full_songs())
def test_check_fits_foretells_what_the_window_needs(song: tuple[Prompts, list[np.ndarray], int]) -> None:
    prompts, generated, limit = song
    try:
        check_fits(prompts, limit + 31, 30, "drop_oldest")
    except ContextError:
        with pytest.raises(ContextError):
            for index in range(len(prompts.segments)):
                prompts.window(index, generated, limit, "drop_oldest")
    else:
        for index in range(len(prompts.segments)):
            prompts.window(index, generated, limit, "drop_oldest")


def test_the_first_segment_is_read_after_head_and_reference() -> None:
    prompts = made(reference=Reference(np.arange(100)[None], end_s=0.1))
    head = TOY.encode(
        "Generate music from the given lyrics segment by segment.\n[Genre] folk\n"
        "[verse]\nstay\n\n\n[chorus]\ngo <SOA>\n\n\n[bridge]\n\n\n"
    )
    codes = [VOCABULARY.codebook_start + code for code in range(5)]
    reference = [
        *TOY.encode("[start_of_reference]"), *OPENING, *codes, END_OF_AUDIO, *TOY.encode("[end_of_reference]")
    ]  # fmt: skip
    assert prompts.head.tolist() == head
    assert prompts.reference.tolist() == reference
    assert prompts.window(0, [], 10_000, "error").tolist() == [
        *head, *reference, *START, *TOY.encode("[verse]\nstay\n\n"), *OPENING
    ]  # fmt: skip
    assert prompts.head.dtype == prompts.reference.dtype == prompts.segments[0].dtype == np.int64


def test_later_segments_follow_all_that_was_sung() -> None:
    prompts = made()
    sung = [np.array([600, 601, END_OF_AUDIO]), np.array([602, END_OF_AUDIO])]
    second = [*END, *START, *TOY.encode("[chorus]\ngo <SOA>\n\n"), *OPENING]
    third = [*END, *START, *TOY.encode("[bridge]\n\n\n"), *OPENING]
    assert prompts.segments[1].tolist() == second
    first = prompts.window(0, [], 10_000, "error").tolist()
    assert prompts.window(1, sung, 10_000, "error").tolist() == [*first, 600, 601, END_OF_AUDIO, *second]
    whole = [*first, 600, 601, END_OF_AUDIO, *second, 602, END_OF_AUDIO]
    assert prompts.window(2, sung, 10_000, "error").tolist() == [*whole, *third]
    assert prompts.raw(sung).tolist() == whole
    assert prompts.raw(sung[:1]).tolist() == [*first, 600, 601, END_OF_AUDIO]


def test_control_strings_are_text_unless_the_published_rules_are_asked_for() -> None:
    assert VOCABULARY.start_of_audio not in made().head
    assert list(made().segments[1]).count(VOCABULARY.start_of_audio) == 1
    assert list(made("original").head).count(VOCABULARY.start_of_audio) == 1
    assert list(made("exl2").segments[1]).count(VOCABULARY.start_of_audio) == 2


@pytest.mark.parametrize("rules", ["yue", "original"])
def test_segment_markers_are_left_out_of_what_is_sung(rules: str) -> None:
    prompts = made(rules, song="[verse]\nla [end_of_segment]\nla")
    bare = "la \nla" if rules == "yue" else "la"
    assert prompts.segments[0].tolist() == [*START, *TOY.encode(f"[verse]\n{bare}\n\n"), *OPENING]
    if rules == "yue":
        assert "end_of_segment" in parse("[verse]\nla [end_of_segment]\nla", "lyrics.txt").sections[0].text


def test_two_tracks_are_interleaved_vocal_first() -> None:
    reference = Reference(np.array([[1, 2, 3, 4]]), np.array([[11, 12, 13, 14]]), 0.02, 0.06)
    assert codes_of(made(reference=reference)) == [2, 12, 3, 13]


def test_an_odd_start_swaps_the_tracks_under_the_published_rules_only() -> None:
    reference = Reference(np.array([[1, 2, 3, 4]]), np.array([[11, 12, 13, 14]]), 0.03, 0.07)
    assert codes_of(made("original", reference)) == [12, 3, 13, 4]
    assert codes_of(made("yue", reference)) == [2, 12, 3, 13]


def test_an_end_past_the_reference_is_its_end() -> None:
    assert codes_of(made(reference=Reference(np.array([[1, 2, 3]]), None, 0.02, 30.0))) == [2, 3]


def test_of_two_unequal_tracks_the_end_of_the_longer_is_left_out() -> None:
    reference = Reference(np.array([[1, 2, 3]]), np.array([[11, 12]]))
    prompts = made(reference=reference)
    assert codes_of(prompts) == [1, 11, 2, 12]
    assert prompts.warnings == (
        "the tracks of the reference differ in length (vocal 0.06 s, instrumental 0.04 s); "
        "the end of the longer is left out",
    )


def codes_of(prompts: Prompts) -> list[int]:
    inside = [id - VOCABULARY.codebook_start for id in prompts.reference.tolist()]
    return [code for code in inside if code >= 0]


@pytest.mark.parametrize(
    ("rules", "reference", "error", "message"),
    [
        (
            "original",
            Reference(np.zeros((1, 3), int), np.zeros((1, 2), int)),
            AudioError,
            "the tracks of the reference differ in length (vocal 0.06 s, instrumental 0.04 s); rules original expect "
            "equal lengths. Cut the longer one or use `--set rules=yue`.",
        ),
        (
            "yue",
            Reference(np.zeros((1, 300), int), None, 5.0, 2.0),
            SettingsError,
            "the reference is used from 5.0 s to 2.0 s; expected 0 <= start < end.",
        ),
        (
            "yue",
            Reference(np.zeros((1, 300), int), None, 6.0, 30.0),
            SettingsError,
            "the reference is used from 6.0 s to 30.0 s, but has only 6.00 s; "
            "expected at least one frame (0.02 s). Start earlier.",
        ),
    ],
)
def test_references_that_cannot_be_used_are_refused(
    rules: str, reference: Reference, error: type[YueError], message: str
) -> None:
    with pytest.raises(error) as caught:
        made(rules, reference)
    assert str(caught.value) == message


SUNG = [np.array([1000] * 4 + [9]), np.array([1001] * 4 + [9])]


def test_keep_last_cuts_wherever_it_falls() -> None:
    prompts = counting(3, 0, [1, 1, 1])
    assert prompts.window(1, SUNG, 8, "keep_last").tolist() == [1000, 9, 11, 12, 13, 21, 22, 101]


def test_drop_oldest_forgets_whole_segments() -> None:
    prompts = counting(2, 1, [1, 1, 1])
    third = [11, 12, 13, 21, 22, 102]
    assert prompts.window(2, SUNG, 17, "drop_oldest").tolist() == [501, 502, 2, 21, 22, 101, *SUNG[1], *third]
    assert prompts.window(2, SUNG, 16, "drop_oldest").tolist() == [501, 502, 2, 21, 22, 102]


def test_under_rules_exl2_too_few_segments_fall_back_to_the_last_ids() -> None:
    prompts = counting(2, 1, [1, 1, 1], rules="exl2")
    third = [11, 12, 13, 21, 22, 102]
    assert prompts.window(2, SUNG, 17, "drop_oldest").tolist() == [501, 502, 2, 21, 22, 101, *SUNG[1], *third]
    assert prompts.window(2, SUNG, 12, "drop_oldest").tolist() == [101, *SUNG[1], *third]


def test_shorten_needs_no_marker_and_few_ids() -> None:
    assert shorten(np.arange(4), 2, np.array([21, 22])).tolist() == [2, 3]
    assert shorten(np.array([21, 22, 5, 21]), 2, np.array([21, 22, 5, 6, 7])).tolist() == [5, 21]


def test_an_overflow_is_refused_when_asked_for() -> None:
    with pytest.raises(ContextError) as caught:
        counting(3, 0, [1, 1, 1]).window(1, SUNG, 16, "error")
    assert str(caught.value) == (
        "segment 2: its prompt has 17 tokens, expected at most 16. Sing fewer segments, raise stage1.context, "
        "or forget the oldest segments with `--set stage1.on_overflow=drop_oldest`."
    )


def test_a_segment_that_fits_under_no_rule_is_refused() -> None:
    with pytest.raises(ContextError) as caught:
        counting(9, 0, [1, 1]).window(1, SUNG, 11, "drop_oldest")
    assert str(caught.value) == (
        "segment 2: its prompt has 12 tokens without any earlier segment, expected at most 11. "
        "Shorten lyrics or reference, or raise stage1.context."
    )


def test_the_limit_leaves_room_for_a_segment_and_its_end() -> None:
    assert window_limit(16384, 3000) == 13383


def test_prompts_that_cannot_fit_are_refused_beforehand() -> None:
    prompts = counting(50, 20, [1, 40])
    check_fits(prompts, 200, 100, "drop_oldest", segments=1)
    with pytest.raises(ContextError) as caught:
        check_fits(prompts, 200, 100, "drop_oldest")
    assert str(caught.value) == (
        "segment 2: its prompt has at least 112 tokens (lyrics 50, reference 20, the rest its own), expected at most "
        "99: a context of 200 less 100 for what is sung. Shorten lyrics or reference, or raise stage1.context."
    )
    check_fits(prompts, 200, 100, "keep_last")
    check_fits(counting(50, 0, [1, 40], rules="exl2"), 150, 100, "drop_oldest")


def test_refusing_overflow_counts_all_earlier_prompts() -> None:
    prompts = counting(10, 0, [1, 1, 1])
    assert prompts.needed_length(2, "error") == 10 + 3 + 1 + 6 + 1 + 6
    assert prompts.needed_length(2, "drop_oldest") == 10 + 3
    with pytest.raises(ContextError, match="segment 3: its prompt has at least 27 tokens"):
        check_fits(prompts, 127, 100, "error")


def test_a_context_smaller_than_a_segment_is_refused() -> None:
    with pytest.raises(ContextError) as caught:
        check_fits(counting(1, 0, [1]), 3001, 3000, "keep_last")
    assert str(caught.value) == (
        "stage1.max_new_tokens is 3000, stage1.context is 3001; expected a context of at least 3002. "
        "Lower stage1.max_new_tokens or raise stage1.context."
    )


def test_segments_that_are_not_closed_are_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="not closed"):
        counting(1, 0, [1, 1]).window(1, [np.array([1000])], 100, "error")
    with pytest.raises(AssertionError, match="needs the ids of 1 earlier"):
        counting(1, 0, [1, 1]).window(1, [], 100, "error")
