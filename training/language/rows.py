"""Rows of ids to learn from, in the prompt format that the product sings from.

A row of stage 1 is a song with its prompt (and sometimes a reference), or, for guidance, the codes of one segment
alone. A row of stage 2 is a window of one track. Text and given codes are read, not guessed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from training.language.alignment import NOBODY, sung, written
from training.language.songs import CodedSong
from training.language.text import WholeTokenizer
from yue_cli import prompt
from yue_cli.vocab import CODEBOOKS, FRAME_RATE, WINDOW_FRAMES, Vocabulary

# Of the rows of stage 1: those of a single line, of them those of a few of its words, and those whose voice is partly
# hidden, at first and after CURRICULUM_STEPS; those that follow a reference; those of one segment alone. The rest are
# songs with all their words, from any segment on.
LINE_SHARES, WORDS_SHARES, HIDDEN_SHARES, CURRICULUM_STEPS = (0.8, 0.2), (0.8, 0.1), (0.5, 0.1), 3000
MOST_WORDS = 3  # are a few
HIDDEN = "<EOD>"  # stands for what is not read; nothing else of stage 1 uses it
HIDDEN_FRAMES = 25  # what is hidden lasts so long on average
REFERENCE_SHARE, FREE_SHARE = 0.1, 0.15
FROM_START, FEW_SEGMENTS = 0.5, 0.5  # of the songs; the others begin later, or are sung as long as they fit
REFERENCE_S = (3.0, 10.0)
TAIL_SHARE = 0.15  # windows of stage 2 that are shorter than a whole one
SHORTEST_TAIL = 30  # frames
# Books that are heard less count less: from the first fine codebook to the last.
BOOK_WEIGHTS = np.linspace(1.0, 0.5, CODEBOOKS - 1)


@dataclass(frozen=True, eq=False)
class Row:
    """What is read, what should have been there, and how much each id counts as an answer (0: it is none).

    Syllables are numbered through a row; `alignment.NOBODY` stands for none.
    """

    ids: np.ndarray  # int64 [n], with mistakes
    answers: np.ndarray  # int64 [n], without
    weights: np.ndarray  # float32 [n]
    written: np.ndarray  # int16 [n, 2], the first and last syllable that the text of an id writes
    sung: np.ndarray  # int16 [n, 2], the syllable sung before a code of the voice, and the one sung in it

    @classmethod
    def join(cls, parts: Sequence["Row"]) -> "Row":
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @classmethod
    def wordless(cls, ids: np.ndarray, answers: np.ndarray, weights: np.ndarray) -> "Row":
        """Make a row of which no words are known."""
        nobody = np.full((len(ids), 2), NOBODY, dtype=np.int16)
        return cls(ids, answers, weights, nobody, nobody)

    @classmethod
    def given(cls, ids: Sequence[int] | np.ndarray) -> "Row":
        """Ids that nobody has to guess."""
        array = np.asarray(ids, dtype=np.int64)
        return cls.wordless(array, array, np.zeros(len(array), dtype=np.float32))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: slice) -> "Row":
        return Row(*(getattr(self, field.name)[place] for field in fields(Row)))


@dataclass(frozen=True, eq=False)
class Noise:
    """Mistakes put into what a model reads, never into what it is to answer: it will read its own answers later.

    neighbours: int64 [size of a codebook, n], for each code of codebook 0 those that sound nearest to it.
    """

    neighbours: np.ndarray
    replaced: float = 0.03  # of the codes
    repeated: float = 0.01  # of the frames, by the frame before
    longest: int = 1  # frames that one mistake lasts at most

    def spoil(self, codes: np.ndarray, dice: np.random.Generator) -> np.ndarray:
        """Return codes of codebook 0, int64 [T], with mistakes."""
        codes = codes.copy()
        lengths = dice.integers(1, self.longest + 1, len(codes))
        starts = np.flatnonzero(dice.random(len(codes)) < self.replaced / lengths.mean())
        for start in starts:
            place = slice(start, start + lengths[start])
            codes[place] = self.neighbours[codes[place], dice.integers(self.neighbours.shape[1])]
        held = 1 + np.flatnonzero(dice.random(len(codes) - 1) < self.repeated)
        codes[held] = codes[held - 1]
        return codes


def song_row(
    song: CodedSong,
    tokenizer: WholeTokenizer,
    vocabulary: Vocabulary,
    *,
    length: int,
    first: int = 0,
    most: int | None = None,
    reference: prompt.Reference | None = None,
    noise: Noise | None = None,
    hidden: float = 0.0,
    dice: np.random.Generator,
) -> Row:
    """Write a song as stage 1 will read and sing it: at most `most` whole segments, as many as `length` ids hold.

    first: the segment that is the first one not forgotten, as in a context that was full. hidden: the share of the
    voice that is not read.
    """
    prompts = prompt.build(tokenizer, vocabulary, song.genre, song.sections, reference=reference)
    parts = [Row.given(prompts.head), Row.given(prompts.reference)]
    stop = None if most is None else first + most
    syllables = 0
    for number, span in list(enumerate(song.spans))[first:stop]:
        text = Row.given(prompts.segments[number])
        segment = _segment(song, span, vocabulary, noise, dice, hidden)
        marks = len(prompts.start_of_segment) + len(prompts.end_of_segment) * bool(number)
        text, segment = _trace(song, number, text, segment, slice(marks, len(text) - 2), tokenizer, syllables)
        syllables += len(song.syllables[number])
        if number == first > 0:
            text = text[len(prompts.end_of_segment) :]
        if sum(map(len, parts)) + len(text) + len(segment) > length:
            break
        parts += [text, segment]
    return Row.join(parts)


def free_row(
    song: CodedSong, section: int, vocabulary: Vocabulary, *, noise: Noise | None = None, dice: np.random.Generator
) -> Row:
    """Write one segment as the unconditional row of guidance sees it: the separator, then its codes."""
    return Row.join([Row.given([vocabulary.separator]), _segment(song, song.spans[section], vocabulary, noise, dice)])


def window_row(
    track: np.ndarray,
    frames: range,
    vocabulary: Vocabulary,
    *,
    noise: Noise | None = None,
    own_mistakes: float = 0.0,
    dice: np.random.Generator,
) -> Row:
    """Write frames of a track [8, T] as stage 2 reads and fills them.

    own_mistakes: the share of fine codes that are replaced by any other code of their book, as input only.
    """
    books = track[:, frames.start : frames.stop].astype(np.int64)
    given = books.copy()
    if noise is not None:
        given[0] = noise.spoil(given[0], dice)
    wrong = dice.random(given[1:].shape) < own_mistakes
    given[1:][wrong] = dice.integers(0, vocabulary.codebook_size, int(wrong.sum()))
    opening = [vocabulary.start_of_audio, vocabulary.stage_1]
    head = Row.given([*opening, *vocabulary.codes_to_ids(given[:1]), vocabulary.stage_2])
    weights = np.tile(np.concatenate([[0.0], BOOK_WEIGHTS]), len(frames)).astype(np.float32)
    return Row.join([head, Row.wordless(vocabulary.codes_to_ids(given), vocabulary.codes_to_ids(books), weights)])


def draw_song_row(
    songs: Sequence[CodedSong],
    tokenizer: WholeTokenizer,
    vocabulary: Vocabulary,
    length: int,
    noise: Noise | None,
    step: int,
    dice: np.random.Generator,
) -> Row:
    """Draw a row of stage 1. Single lines and words come first: on them it is found out that words mean sounds.

    What was just sung tells nearly all of the next frame, the words hardly more; so the voice is hidden now and then.
    """
    song = songs[int(dice.integers(len(songs)))]
    kind = dice.random()
    shares = (
        early + (late - early) * min(step / CURRICULUM_STEPS, 1)
        for early, late in (LINE_SHARES, WORDS_SHARES, HIDDEN_SHARES)
    )
    is_line, is_words, is_hidden = (dice.random() < share for share in shares)
    if is_line and any(song.lines):
        song = draw_line(song, dice)
        song = draw_words(song, dice) if is_words else song
    if kind < FREE_SHARE:
        return free_row(song, int(dice.integers(len(song.spans))), vocabulary, noise=noise, dice=dice)
    reference = None
    if kind < FREE_SHARE + REFERENCE_SHARE and len(song.spans) > 1:
        # The last section is heard before the others are sung; itself it is not sung.
        reference = _draw_reference(song, song.spans[-1], dice)
        song = replace(
            song,
            sections=song.sections[:-1],
            spans=song.spans[:-1],
            lines=song.lines[:-1],
            syllables=song.syllables[:-1],
        )
    first = 0 if dice.random() < FROM_START else int(dice.integers(len(song.spans)))
    most = int(dice.integers(1, 3)) if dice.random() < FEW_SEGMENTS else None
    row = song_row(
        song,
        tokenizer,
        vocabulary,
        length=length,
        first=first,
        most=most,
        reference=reference,
        noise=noise,
        hidden=dice.random() if is_hidden else 0.0,
        dice=dice,
    )
    return row if row.weights.any() else free_row(song, first, vocabulary, noise=noise, dice=dice)


def draw_line(song: CodedSong, dice: np.random.Generator) -> CodedSong:
    """Make one line of a song a song of its own."""
    number = int(dice.choice([number for number, lines in enumerate(song.lines) if lines]))
    line = int(dice.integers(len(song.lines[number])))
    first, end = list(re.finditer(r".+", song.sections[number].text))[line].span()
    return _excerpt(song, number, first, end, song.lines[number][line])


def draw_words(line: CodedSong, dice: np.random.Generator) -> CodedSong:
    """Make a few words of a song of one line a song of their own, from their first sound to their last."""
    words = list(re.finditer(r"\S+", line.sections[0].text))
    count = int(dice.integers(1, min(MOST_WORDS, len(words)) + 1))
    at = int(dice.integers(len(words) - count + 1))
    return _excerpt(line, 0, words[at].start(), words[at + count - 1].end())


def _excerpt(song: CodedSong, number: int, first: int, end: int, span: range | None = None) -> CodedSong:
    """Make characters [first, end) of a section a song of their own. span: its frames, if not those of its sound."""
    section, runs = song.sections[number], song.syllables[number]
    runs = runs[(runs[:, 2] >= first) & (runs[:, 3] <= end)] - [0, 0, first, first]
    span = range(int(runs[0, 0]), int(runs[-1, 1])) if span is None else span
    section = replace(section, text=section.text[first:end])
    return replace(song, sections=(section,), spans=(span,), lines=((span,),), syllables=(runs,))


def draw_window_row(
    songs: Sequence[CodedSong],
    vocabulary: Vocabulary,
    noise: Noise | None,
    own_mistakes: float,
    dice: np.random.Generator,
) -> Row:
    """Draw a row of stage 2: mostly whole windows, sometimes a short one as short songs have."""
    song = songs[int(dice.integers(len(songs)))]
    track = song.vocal if dice.random() < 0.5 else song.instrumental
    whole = min(WINDOW_FRAMES, track.shape[1])
    count = int(dice.integers(min(SHORTEST_TAIL, whole), whole + 1)) if dice.random() < TAIL_SHARE else whole
    start = int(dice.integers(track.shape[1] - count + 1))
    return window_row(track, range(start, start + count), vocabulary, noise=noise, own_mistakes=own_mistakes, dice=dice)


def _segment(
    song: CodedSong,
    span: range,
    vocabulary: Vocabulary,
    noise: Noise | None,
    dice: np.random.Generator,
    hidden: float = 0.0,
) -> Row:
    """Interleave a section's two tracks, the vocal first, and close it with end-of-audio."""

    def interleave(tracks: list[np.ndarray]) -> np.ndarray:
        ids = vocabulary.codes_to_ids(np.stack(tracks, axis=1).reshape(1, -1))
        return np.append(ids, vocabulary.end_of_audio)

    tracks = [track[0, span.start : span.stop].astype(np.int64) for track in (song.vocal, song.instrumental)]
    answers = interleave(tracks)
    ids = interleave(tracks if noise is None else [noise.spoil(track, dice) for track in tracks])
    if hidden:
        ids[:-1:2][_draw_runs(len(span), hidden, dice)] = vocabulary.specials[HIDDEN]
    return Row.wordless(ids, answers, np.ones(len(ids), dtype=np.float32))


def _trace(
    song: CodedSong, number: int, text: Row, segment: Row, place: slice, tokenizer: WholeTokenizer, syllables: int
) -> tuple[Row, Row]:
    """Tell which ids of a segment's prompt write what is sung in its codes.

    place: where the section stands among the prompt's ids, without markers. syllables: how many came before in the row.
    """
    section, runs = song.sections[number], song.syllables[number]
    if not len(runs):
        return text, segment
    edges = tokenizer.edges(text.ids[place])
    before = len(section.prompt_text.encode()) - len(f"{section.text}\n\n".encode())
    assert edges[-1] == len(section.prompt_text.encode()), f"{edges[-1]} bytes of pieces for {section.prompt_text!r}"
    of_text, of_voice = text.written.copy(), segment.sung.copy()
    of_text[place] = written(runs, section.text, before, edges)
    of_voice[:-1:2] = sung(runs, song.spans[number])
    for array in (of_text, of_voice):
        array[array != NOBODY] += syllables
    return replace(text, written=of_text), replace(segment, sung=of_voice)


def _draw_runs(frames: int, share: float, dice: np.random.Generator) -> np.ndarray:
    """Mark about this share of frames, in runs: bool [frames]."""
    pieces = max(round(frames / HIDDEN_FRAMES), 1)
    edges = np.sort(dice.integers(0, frames, pieces))
    marked = dice.random(pieces + 1) < share
    return marked[np.searchsorted(edges, np.arange(frames), side="right")]


def _draw_reference(song: CodedSong, span: range, dice: np.random.Generator) -> prompt.Reference:
    """Draw a few seconds of a section: both tracks mostly, else one of them."""
    frames = min(int(dice.uniform(*REFERENCE_S) * FRAME_RATE), len(span))
    start = span.start + int(dice.integers(len(span) - frames + 1))
    tracks = [track[:1, start : start + frames] for track in (song.vocal, song.instrumental)]
    if dice.random() < 0.75:
        return prompt.Reference(tracks[0], tracks[1], end_s=frames / FRAME_RATE)
    return prompt.Reference(tracks[dice.integers(2)], end_s=frames / FRAME_RATE)
