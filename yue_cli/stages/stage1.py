"""Stage 1: from prompts to interleaved coarse ids, one segment after the other, and from ids to two tracks.

Arrays to arrays: what is kept on disk, and which engine runs, is the pipeline's business.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from yue_cli.engines.base import Advance, Engine
from yue_cli.errors import ArtifactError
from yue_cli.events import Emit, Finished, Progress, ignore
from yue_cli.generation import sample_until
from yue_cli.prompt import Prompts, window_limit
from yue_cli.sampling import Noise, Sampler
from yue_cli.seats import Seat, seat_all
from yue_cli.settings import Stage1Settings
from yue_cli.vocab import FRAME_RATE, Vocabulary

TOPIC = "stage 1"
TOKENS_A_SECOND = 2 * FRAME_RATE  # vocal and instrumental take turns
# YuE-exllamav2 infer_stage1.py allows this many ids from codebook 0 on, which is no codebook boundary.
_EXL2_ALLOWED = 11388
_REHEARSED_PROMPT, _REHEARSED_TOKENS = 300, 2


@dataclass(frozen=True, eq=False)
class Segment:
    ids: np.ndarray  # int32 [m], the closing end-of-audio included
    truncated: bool  # it was still going on when it reached max_new_tokens


@dataclass(frozen=True, eq=False)
class Task:
    """One song that is to be sung, together with others or alone."""

    prompts: Prompts
    seeds: Sequence[int | None]  # one for every wanted segment; None picks the most likely id instead of drawing
    finished: Sequence[np.ndarray] = ()  # ids of the first segments, each with its closing end-of-audio
    seats: Sequence[Seat] = ()  # one for every wanted segment; none: the song is alone
    tags: Sequence[str] = ()  # what segments are called

    def seat(self, index: int) -> Seat:
        return self.seats[index] if self.seats else Seat(1, 0)

    def label(self, index: int) -> str:
        """Say which segment is sung: `2/5 chorus`."""
        return " ".join([f"{index + 1}/{len(self.seeds)}", *self.tags[index : index + 1]])


def needed_rows(settings: Stage1Settings) -> int:
    """Count the rows that an engine needs for each song: two where guidance is on."""
    return 2 if _is_guided(settings.guidance_first) or _is_guided(settings.guidance_later) else 1


def needed_length(prompts: Prompts, settings: Stage1Settings, segments: int) -> int:
    """Count the ids of the longest row that `segments` segments can need."""
    own = sum(len(prompt) for prompt in prompts.segments[:segments]) + segments * (settings.max_new_tokens + 1)
    return min(settings.context, len(prompts.head) + len(prompts.reference) + own)


def generate(
    engine: Engine,
    vocabulary: Vocabulary,
    tasks: Sequence[Task],
    *,
    settings: Stage1Settings,
    rules: str,
    emit: Emit = ignore,
) -> Iterator[tuple[int, Segment]]:
    """Sing the segments that are not finished, and yield each with the number of its task when it is done.

    The songs that lack the first segment sing it together, then those that lack the second, and so on. settings:
    resolved, with no open value. Every segment starts from a fresh cache, so that a resumed song is the same as an
    undisturbed one. Raises ContextError for a prompt that does not fit.
    """
    assert settings.on_overflow is not None, "settings must be resolved"
    allowed = allowed_ids(rules, vocabulary, engine.vocabulary_size)
    samplers: dict[tuple[bool, int], tuple[Sampler, Advance]] = {}
    limit = window_limit(settings.context, settings.max_new_tokens)
    generated = [list(task.finished) for task in tasks]
    for index in range(max(len(task.seeds) for task in tasks)):
        strength = settings.guidance_later if index else settings.guidance_first
        guided = _is_guided(strength)
        lacking = [
            number for number, task in enumerate(tasks) if len(generated[number]) == index and index < len(task.seeds)
        ]
        for batch in seat_all([tasks[number].seat(index) for number in lacking]):
            places = len(batch)
            if (guided, places) not in samplers:
                sampler = make_sampler(engine, vocabulary, allowed, settings, guided=guided, songs=places)
                samplers[guided, places] = sampler, engine.fuse(sampler.pick, sampler.head)
            sampler, advance = samplers[guided, places]
            # A place where nobody sits reads one id and draws nothing.
            windows, noise = [np.array([vocabulary.end_of_audio])] * places, list[Noise | None]([None] * places)
            singers = {place: lacking[item] for place, item in enumerate(batch) if item is not None}
            for place, number in singers.items():
                task = tasks[number]
                windows[place] = task.prompts.window(index, generated[number], limit, settings.on_overflow)
                seed = task.seeds[index]
                noise[place] = None if seed is None else Noise(seed, index)
            sampler.begin(windows, strengths=[strength] * places, noise=noise)
            told = _Told([tasks[number].label(index) for number in singers.values()], settings.max_new_tokens, emit)
            sung = sample_until(
                engine,
                _rows(windows, guided),
                sampler,
                advance,
                end=vocabulary.end_of_audio,
                limit=settings.max_new_tokens,
                songs=list(singers),
                heard=told.heard,
            )
            told.finish(sum(map(len, sung)))
            for number, ids in zip(singers.values(), sung, strict=True):
                truncated = bool(ids[-1] != vocabulary.end_of_audio)
                closed = np.append(ids, vocabulary.end_of_audio) if truncated else ids
                generated[number].append(closed.astype(np.int32))
                yield number, Segment(generated[number][-1], truncated)


def rehearse(engine: Engine, vocabulary: Vocabulary, *, settings: Stage1Settings, rules: str) -> None:
    """Begin a segment with ids that mean nothing, for as many songs as there is room for, as `generate` begins it."""
    strength = settings.guidance_first
    guided = _is_guided(strength)
    songs = engine.rows // needed_rows(settings)
    allowed = allowed_ids(rules, vocabulary, engine.vocabulary_size)
    sampler = make_sampler(engine, vocabulary, allowed, settings, guided=guided, songs=songs)
    windows = [np.full(min(_REHEARSED_PROMPT, engine.length - _REHEARSED_TOKENS), vocabulary.end_of_audio)] * songs
    sampler.begin(windows, strengths=[strength] * songs, noise=[None] * songs)
    advance = engine.fuse(sampler.pick, sampler.head)
    end, limit = vocabulary.end_of_audio, _REHEARSED_TOKENS
    sample_until(engine, _rows(windows, guided), sampler, advance, end=end, limit=limit, songs=range(songs))


def make_sampler(
    engine: Engine,
    vocabulary: Vocabulary,
    allowed: Sequence[range],
    settings: Stage1Settings,
    *,
    guided: bool,
    songs: int = 1,
) -> Sampler:
    """Make the sampler that suits how an engine computes, and how many ids may be picked."""
    kind = Sampler
    if engine.has_kernels:
        from yue_cli.sampling_kernels import MOST_IDS, KernelSampler  # needs Triton

        # The rules of YuE and of YuE-exllamav2 allow nearly all ids.
        kind = KernelSampler if sum(map(len, allowed)) <= MOST_IDS else Sampler
    return kind(vocabulary, allowed, settings, guided=guided, device=engine.device, songs=songs)


def allowed_ids(rules: str, vocabulary: Vocabulary, vocabulary_size: int) -> tuple[range, ...]:
    """Name the ids that may be picked, codebook 0 and end-of-audio first."""
    coarse, end = vocabulary.codebook(0), vocabulary.end_of_audio
    allowed = (coarse, range(end, end + 1))
    if rules == "original":
        # YuE infer.py blocks what comes before end-of-audio and nothing else.
        return (*allowed, range(end + 1, coarse.start), range(coarse.stop, vocabulary_size))
    if rules == "exl2":
        return (*allowed, range(coarse.stop, min(coarse.start + _EXL2_ALLOWED, vocabulary.codebook_stop)))
    return allowed


def split(ids: np.ndarray, vocabulary: Vocabulary, skip_reference: bool) -> tuple[np.ndarray, np.ndarray]:
    """Take stage 1's whole output apart: vocal and instrumental codes, each uint32 [1, T].

    ids: all prompts and segments, as `Prompts.raw` joins them. skip_reference: the first stretch of audio is the
    prompt's. A last vocal code without its instrumental one is left out.
    Raises ArtifactError for stretches that do not close and for ids that are no codes. Source: YuE infer.py.
    """
    starts = np.flatnonzero(ids == vocabulary.start_of_audio)
    ends = np.flatnonzero(ids == vocabulary.end_of_audio)
    if len(starts) != len(ends):
        raise ArtifactError(
            f"stage 1: its output has {len(starts)} starts of audio (id {vocabulary.start_of_audio}) but {len(ends)} "
            f"ends (id {vocabulary.end_of_audio}); remove control strings such as <SOA> from the lyrics."
        )
    first = 1 if skip_reference else 0
    tracks: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for number, (start, end) in enumerate(zip(starts[first:], ends[first:], strict=True), start=1):
        codes = ids[start + 1 : end]
        if len(codes) and codes[0] == vocabulary.separator:
            codes = codes[1:]
        codes = codes[: len(codes) // 2 * 2]
        for track, own in zip(tracks, (codes[::2], codes[1::2]), strict=True):
            track.append(_coarse_codes(own, vocabulary, number))
    vocal, instrumental = (np.concatenate([np.empty(0, np.uint32), *track])[None] for track in tracks)
    return vocal, instrumental


def _coarse_codes(ids: np.ndarray, vocabulary: Vocabulary, segment: int) -> np.ndarray:
    """Turn ids into codes as YuE's codecmanipulator does for one codebook: later codebooks give codes above it."""
    if len(ids) and not vocabulary.codebook(0).start <= ids[0] < vocabulary.codebook(0).stop:
        raise _no_code(ids[0], segment, vocabulary.codebook(0))
    codec = range(vocabulary.codebook_start, vocabulary.codebook_stop)
    wrong = ids[(ids < codec.start) | (ids >= codec.stop)]
    if len(wrong):
        raise _no_code(wrong[0], segment, codec)
    return (ids - codec.start).astype(np.uint32)


def _no_code(found: int, segment: int, expected: range) -> ArtifactError:
    return ArtifactError(
        f"stage 1: segment {segment} holds id {found}, which is no code here; expected {expected.start} to "
        f"{expected.stop - 1}. `--set rules=yue` allows codes of codebook 0 only."
    )


def _rows(windows: Sequence[np.ndarray], guided: bool) -> list[np.ndarray]:
    """List what the rows of all songs begin with: windows int64 [n], then, if guided, the unconditional rows."""
    # YuE infer.py: the unconditional row begins with the last id of the prompt, at position 0.
    return [*windows, *[window[-1:] for window in windows]] if guided else [*windows]


def _is_guided(strength: float) -> bool:
    return strength != 1


class _Told:
    """Turns counts of a segment, sung for one song or several, into events."""

    def __init__(self, labels: Sequence[str], tokens: int, emit: Emit) -> None:
        shared = labels[0] if len(set(labels)) == 1 else f"segment {labels[0].partition('/')[0]}"
        self._label = shared if len(labels) == 1 else f"{shared} · {len(labels)} songs"
        self._total, self._emit = tokens * len(labels), emit
        self._began = time.monotonic()

    def heard(self, done: int) -> None:
        self._emit(Progress(TOPIC, self._label, done, self._total, "tokens", done / TOKENS_A_SECOND))

    def finish(self, done: int) -> None:
        seconds = time.monotonic() - self._began
        self._emit(Finished(TOPIC, self._label, done, "tokens", seconds, done / TOKENS_A_SECOND))
