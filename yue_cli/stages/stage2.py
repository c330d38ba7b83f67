"""Stage 2: from coarse codes to all eight codebooks, in windows that know nothing of each other.

Windows of both tracks are decoded together in batches. Arrays to arrays: what is kept on disk is the pipeline's
business. Source: YuE infer.py, stage2_inference.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from yue_cli.engines.base import Engine
from yue_cli.errors import ArtifactError
from yue_cli.events import Emit, Finished, Progress, ignore
from yue_cli.generation import Choice, fill_frames
from yue_cli.sampling import most_likely
from yue_cli.seats import Seat, deal, seat_all
from yue_cli.settings import Stage2Settings
from yue_cli.vocab import CODEBOOKS, FRAME_RATE, WINDOW_FRAMES, Vocabulary

TOPIC = "stage 2"
TRACKS = 2  # vocal, instrumental
FINE = CODEBOOKS - 1

_HEADER = 3  # ids of a prompt beside its frames: start of audio, stage 1, stage 2
_REHEARSED_FRAMES = 2  # the second reads two ids a row


@dataclass(frozen=True)
class Window:
    """Frames of one track that are decoded together, and which of them are kept."""

    track: int  # 0 vocal, 1 instrumental
    start: int  # frame
    length: int
    kept_from: int = 0  # earlier frames are those of the window before

    @property
    def kept(self) -> slice:
        """Name the frames of the track that this window gives."""
        return slice(self.start + self.kept_from, self.start + self.length)


@dataclass(frozen=True, eq=False)
class Task:
    """One song whose codes are to be filled in, together with others or alone."""

    tracks: tuple[np.ndarray, np.ndarray]  # coarse codes of vocal and instrumental, integers [1, T]
    windows: Sequence[Window]  # all that `cut` made of them
    seats: Sequence[Seat]  # one for every window
    finished: Mapping[int, np.ndarray]  # windows that are done, by number: int32 ids [frames, 8]


@dataclass(frozen=True)
class _Batch:
    members: tuple[tuple[int, int], ...]  # task and window for every place; where nobody sits, somebody's again
    seated: tuple[int, ...]  # the places where somebody sits
    windows: tuple[Window, ...]  # of those

    @property
    def steps(self) -> int:
        return FINE * self.windows[0].length

    @property
    def kept_frames(self) -> int:
        return sum(window.length - window.kept_from for window in self.windows)


def cut(frames: int, tail: str) -> list[Window]:
    """Cut both tracks into windows.

    tail: `overlap` decodes the end of a track as its last full window; `short` as a shorter one (YuE infer.py).
    """
    return [window for track in range(TRACKS) for window in _windows(track, frames, tail)]


def deal_seats(songs: Sequence[Sequence[Window]], rows: int) -> list[list[Seat]]:
    """Deal the windows of all songs their seats in batches of up to `rows`, each of windows of one length."""
    dealt: dict[tuple[int, int], Seat] = {}
    for length in sorted({window.length for windows in songs for window in windows}):
        alike = [
            (song, number)
            for song, windows in enumerate(songs)
            for number, window in enumerate(windows)
            if window.length == length
        ]
        dealt |= dict(zip(alike, deal(len(alike), rows), strict=True))
    return [[dealt[song, number] for number in range(len(windows))] for song, windows in enumerate(songs)]


def cache_length(frames: int) -> int:
    """Count the ids of a row that decodes a window of this many frames."""
    return _HEADER + frames + CODEBOOKS * frames


def decode(
    engine: Engine,
    vocabulary: Vocabulary,
    tasks: Sequence[Task],
    *,
    settings: Stage2Settings,
    emit: Emit = ignore,
) -> Iterator[dict[int, dict[int, np.ndarray]]]:
    """Decode the windows that are not finished and yield each batch of them when it is done: by task, by number.

    settings: resolved, with no open value. A window is int32 ids [frames, 8].
    Raises ArtifactError for tracks of different length or values that are no codes.
    """
    assert settings.restrict_picks is not None, "settings must be resolved"
    coarse = [_checked(task.tracks, vocabulary) for task in tasks]
    choices = frame_choices(engine, vocabulary, settings.restrict_picks)
    batches = _batches(tasks)
    told = _Told(batches, len(tasks), emit)
    for batch in batches:
        cuts = [(coarse[task], tasks[task].windows[number]) for task, number in batch.members]
        given = np.stack([ids[window.track, window.start : window.start + window.length] for ids, window in cuts])
        prompts = np.stack([window_prompt(vocabulary, row) for row in given])
        ids = fill_frames(engine, prompts, given, choices, heard=told.heard).astype(np.int32)
        told.next_batch()
        done: dict[int, dict[int, np.ndarray]] = {}
        for place in batch.seated:
            task, number = batch.members[place]
            done.setdefault(task, {})[number] = ids[place]
        yield done
    told.finish()


def rehearse(engine: Engine, vocabulary: Vocabulary, *, settings: Stage2Settings) -> None:
    """Begin windows of codes that mean nothing, in all rows, as `decode` begins each batch."""
    assert settings.restrict_picks is not None, "settings must be resolved"
    frames = min(WINDOW_FRAMES, engine.length - _HEADER - CODEBOOKS * _REHEARSED_FRAMES)
    if frames < _REHEARSED_FRAMES:
        return
    given = np.full((engine.rows, frames), vocabulary.codebook_start, dtype=np.int64)
    prompts = np.stack([window_prompt(vocabulary, row) for row in given])
    choices = frame_choices(engine, vocabulary, settings.restrict_picks)
    fill_frames(engine, prompts, given[:, :_REHEARSED_FRAMES], choices)


def window_prompt(vocabulary: Vocabulary, coarse: np.ndarray) -> np.ndarray:
    """Say what is read before a window's first frame. coarse: its ids of codebook 0, [T]. Returns int64 [T + 3]."""
    return np.concatenate([[vocabulary.start_of_audio, vocabulary.stage_1], coarse, [vocabulary.stage_2]])


def frame_choices(engine: Engine, vocabulary: Vocabulary, restrict_picks: bool) -> list[Choice]:
    """Say from which ids each of a frame's seven picks comes: its own codebook, or any but the first."""

    def choice(ids: range) -> Choice:
        return Choice.of(engine, partial(most_likely, ids.start), (ids,))

    if restrict_picks:
        return [choice(vocabulary.codebook(index)) for index in range(1, CODEBOOKS)]
    return [choice(range(vocabulary.codebook(1).start, vocabulary.codebook(CODEBOOKS).start))] * FINE


def assemble(
    frames: int,
    windows: Sequence[Window],
    filled: Mapping[int, np.ndarray],
    vocabulary: Vocabulary,
    *,
    restrict_picks: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Join the ids of a song's windows into the codes of vocal and instrumental, each [8, T].

    With restricted picks every code is one: int16. Otherwise uint32 as YuE infer.py saves: ids of a wrong codebook are
    replaced by the row's most frequent value, which may be a wrong one itself.
    """
    ids = np.zeros((TRACKS, CODEBOOKS, frames), dtype=np.uint32)
    for number, window in enumerate(windows):
        ids[window.track, :, window.kept] = filled[number][window.kept_from :].T
    starts = [vocabulary.codebook(index).start for index in range(CODEBOOKS)]
    codes = ids - np.array(starts, dtype=np.uint32)[:, None]  # too small ids wrap around, as in the original
    if restrict_picks:
        assert codes.size == 0 or codes.max() < vocabulary.codebook_size, "a restricted pick is in its codebook"
        codes = codes.astype(np.int16)
    else:
        codes = np.stack([[_repaired(row, vocabulary.codebook_size) for row in track] for track in codes])
    return codes[0], codes[1]


def _batches(tasks: Sequence[Task]) -> list[_Batch]:
    """Put the windows that are not finished into batches, the longest first."""
    lacking = [
        (task, number)
        for task, song in enumerate(tasks)
        for number in range(len(song.windows))
        if number not in song.finished
    ]
    batches = []
    for length in sorted({tasks[task].windows[number].length for task, number in lacking}, reverse=True):
        alike = [(task, number) for task, number in lacking if tasks[task].windows[number].length == length]
        for places in seat_all([tasks[task].seats[number] for task, number in alike]):
            present = [item for item in places if item is not None]
            windows = tuple(tasks[task].windows[number] for task, number in (alike[item] for item in present))
            members = tuple(alike[present[-1] if item is None else item] for item in places)
            seated = tuple(place for place, item in enumerate(places) if item is not None)
            batches.append(_Batch(members, seated, windows))
    return batches


def _windows(track: int, frames: int, tail: str) -> list[Window]:
    windows = [Window(track, start, WINDOW_FRAMES) for start in range(0, frames - WINDOW_FRAMES + 1, WINDOW_FRAMES)]
    rest = frames % WINDOW_FRAMES
    if rest and windows and tail == "overlap":
        windows.append(Window(track, frames - WINDOW_FRAMES, WINDOW_FRAMES, kept_from=WINDOW_FRAMES - rest))
    elif rest:
        windows.append(Window(track, frames - rest, rest))
    return windows


def _checked(tracks: tuple[np.ndarray, np.ndarray], vocabulary: Vocabulary) -> np.ndarray:
    """Turn coarse codes into ids, int64 [2, T]."""
    shapes = [list(track.shape) for track in tracks]
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][0] != 1:
        raise ArtifactError(f"stage 2: expected two tracks [1, T] of one length, found {shapes[0]} and {shapes[1]}.")
    codes = np.concatenate(tracks).astype(np.int64)
    wrong = codes[(codes < 0) | (codes >= vocabulary.codebook_size)]
    if len(wrong):
        raise ArtifactError(
            f"stage 2: stage 1's tracks hold {wrong[0]}, which is no code; expected 0 to "
            f"{vocabulary.codebook_size - 1}. `--set rules=yue` makes stage 1 allow codes of codebook 0 only."
        )
    return codes + vocabulary.codebook_start


def _repaired(row: np.ndarray, codebook_size: int) -> np.ndarray:
    """Replace what is no code by the row's most frequent value; of several, the one that comes first."""
    values, firsts, counts = np.unique(row, return_index=True, return_counts=True)
    if not len(values):
        return row
    most = np.lexsort((firsts, -counts))[0]
    repaired: np.ndarray = np.where(row < codebook_size, row, values[most])
    return repaired


class _Told:
    """Turns the steps of batch after batch into events of the whole stage."""

    def __init__(self, batches: list[_Batch], songs: int, emit: Emit) -> None:
        self._batches, self._emit = batches, emit
        self._label = "" if songs == 1 else f"{songs} songs"
        self._total = sum(batch.steps for batch in batches)
        self._number = self._steps_before = self._frames_before = 0
        self._began = time.monotonic()

    def heard(self, steps: int) -> None:
        batch = self._batches[self._number]
        frames = self._frames_before + batch.kept_frames * steps / batch.steps
        done = self._steps_before + steps
        self._emit(Progress(TOPIC, self._label, done, self._total, "steps", frames / TRACKS / FRAME_RATE))

    def next_batch(self) -> None:
        batch = self._batches[self._number]
        self._number += 1
        self._steps_before += batch.steps
        self._frames_before += batch.kept_frames

    def finish(self) -> None:
        seconds = time.monotonic() - self._began
        music_s = self._frames_before / TRACKS / FRAME_RATE
        self._emit(Finished(TOPIC, self._label, self._total, "steps", seconds, music_s))
