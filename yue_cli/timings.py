"""What `yue bench` found out, as values, and what a whole song takes by it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from yue_cli.speeds import Measured, interpolate

SEGMENT_TOKENS = 3000  # the longest segment: 30 s
PROMPT_TOKENS, NEXT_PROMPT_TOKENS = 800, 100  # before the first segment of a usual song, and before each later one


@dataclass(frozen=True)
class Model:
    """What was timed. On a CPU it may have been a part."""

    name: str
    is_synthetic: bool  # its weights were made up
    weight_bytes: int  # of all of it
    timed_layers: tuple[int, ...] | None  # None: all


@dataclass(frozen=True)
class Point:
    context: int
    token_s: float  # for one more token of every song
    read_s: float  # for reading that much, for every song


@dataclass(frozen=True)
class Stage1Result:
    model: Model
    cache: str  # format of keys and values
    rows: int
    open_s: float
    first_s: float  # for the first few tokens: kernels are chosen, graphs recorded
    points: tuple[Point, ...]
    tokens: int  # of each song
    token_s: float  # mean of the song; computed
    seconds: float  # for all songs; computed
    memory_bytes: int
    peak_bytes: int | None


@dataclass(frozen=True)
class Stage2Result:
    model: Model
    cache: str
    rows: int
    windows: int
    open_s: float
    first_s: float
    frames: int  # that were timed
    window_s: float  # for all frames of a batch of windows
    seconds: float  # for all windows
    memory_bytes: int
    peak_bytes: int | None


@dataclass(frozen=True)
class DecodeResult:
    model: Model
    open_s: float
    first_s: float
    music_s: float  # that was decoded
    decode_s: float  # for a second of music
    seconds: float  # for all songs
    peak_bytes: int | None


@dataclass(frozen=True)
class Report:
    device: str
    hardware: str
    engine: str
    dtype: str
    songs: int
    music_s: float  # of each song
    date: str
    versions: dict[str, str]
    stage1: Stage1Result | None
    stage2: Stage2Result | None
    decode: DecodeResult | None

    @property
    def seconds(self) -> float | None:
        """The time for all songs, loading apart; None where a stage was not timed."""
        parts = [self.stage1, self.stage2, self.decode]
        return None if None in parts else sum(part.seconds for part in parts if part is not None)

    def speeds(self) -> list[Measured]:
        """List what is worth remembering: what one song takes."""
        if self.songs != 1:
            return []
        found = []
        about = partial(Measured, self.hardware, versions=self.versions, date=self.date)
        if self.stage1 is not None:
            points = tuple((point.context, point.token_s) for point in self.stage1.points)
            found.append(_of(self.stage1.model, partial(about, "stage1", token_s=points, cache=self.stage1.cache)))
        if self.stage2 is not None:
            second = self.stage2
            about_windows = partial(about, "stage2", rows=second.rows, window_s=second.window_s, cache=second.cache)
            found.append(_of(second.model, about_windows))
        if self.decode is not None:
            found.append(_of(self.decode.model, partial(about, "decode", decode_s=self.decode.decode_s)))
        return found


def segment_starts(tokens: int, limit: int) -> list[tuple[int, int]]:
    """Tell of every segment of a song how long its prompt is and how many tokens it has.

    limit: of a prompt; beyond it the oldest segments are left out.
    """
    found, context = [], PROMPT_TOKENS
    for done in range(0, tokens, SEGMENT_TOKENS):
        while context > max(limit, PROMPT_TOKENS):
            context -= SEGMENT_TOKENS + NEXT_PROMPT_TOKENS
        count = min(SEGMENT_TOKENS, tokens - done)
        found.append((context, count))
        context += count + NEXT_PROMPT_TOKENS
    return found


def singing_s(token_s: Sequence[tuple[int, float]], starts: Sequence[tuple[int, int]]) -> float:
    """Compute how long the tokens of a song's segments take. token_s: context, seconds for one more token there."""
    return sum(count * interpolate(token_s, start + count / 2) for start, count in starts)


def extend(times: dict[int, float], layers: int) -> float:
    """Compute the time of `layers` layers from that of one or two numbers of them."""
    (few, short), *more = sorted(times.items())
    if not more:
        return short
    many, long = more[-1]
    return short + (long - short) / (many - few) * (layers - few)


def _of(model: Model, measured: Callable[..., Measured]) -> Measured:
    return measured(weight_bytes=model.weight_bytes, is_computed=model.timed_layers is not None)
