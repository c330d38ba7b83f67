"""The making of stage 1, for one song or several that are sung together: every finished segment at once on disk."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from yue_cli import audio_prompt, budget, plan, prompt, segments
from yue_cli.artifacts import read_track
from yue_cli.engines import ModelFacts
from yue_cli.engines.base import Engine
from yue_cli.events import Warned
from yue_cli.project import SEATS_FILE, SegmentRecord, encode_seats
from yue_cli.seats import Seat, deal
from yue_cli.settings import Stage1Settings
from yue_cli.stages import stage1
from yue_cli.tokenizer import TOKENIZER_FILE, Tokenizer
from yue_cli.vocab import FRAME_RATE, Vocabulary
from yue_cli.weights import ModelFolder
from yue_cli.workbench import Order, Workbench, check_vocabulary


@dataclass(frozen=True)
class _Model:
    """The model that all songs share, and how it is used."""

    folder: ModelFolder
    facts: ModelFacts
    vocabulary: Vocabulary
    settings: Stage1Settings


@dataclass
class _Singer:
    """One song on its way through the stage."""

    bench: Workbench
    prompts: prompt.Prompts
    keys: segments.SegmentKeys
    wanted: int
    records: list[SegmentRecord]  # its finished segments
    begin: dict[str, Path | bytes] | None  # files that its new folder starts with; None: it goes on in the old one
    seats: list[Seat] | None = None  # one for every wanted segment
    tags: list[str] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return len(self.records) == self.wanted

    @property
    def ids(self) -> list[np.ndarray]:
        return [record.ids for record in self.records]


def make_stage1(orders: Sequence[Order]) -> None:
    """Sing the missing segments and split all of them into int16 [1, T] a track, in `stage1/`.

    The songs share model, settings and device. What fails for one song alone is noted on its bench. Raises YueError.
    """
    bench = orders[0].bench
    folder = bench.model("stage1")
    facts = bench.describe("stage1", folder)
    settings = replace(bench.settings.stage1, context=min(bench.settings.stage1.context, facts.max_length))
    model = _Model(folder, facts, Vocabulary.read(folder.path), settings)
    singers: list[_Singer] = []
    for order in orders:
        with order.bench.trial():
            singers.append(_prepare(order, model))
    lacking = [singer for singer in singers if not singer.is_done]
    seconds = 0.0
    if lacking:
        length = max(stage1.needed_length(singer.prompts, settings, singer.wanted) for singer in lacking)
        _deal_seats(lacking, model, length)
        rows = stage1.needed_rows(settings) * max(seat.rows for singer in lacking for seat in singer.seats or [])
        rehearse = partial(stage1.rehearse, vocabulary=model.vocabulary, settings=settings, rules=bench.settings.rules)
        with (
            budget.explained(bench, "stage1"),
            bench.engine("stage1", folder, rows=rows, length=length, rehearse=rehearse) as engine,
        ):
            for singer in singers:
                _begin(singer)
            seconds = _sing(engine, model, lacking) / len(lacking)
    else:
        for singer in singers:
            _begin(singer)
    for singer in singers:
        with singer.bench.trial():
            _finish(singer, model, seconds if singer in lacking else 0.0)


def read_reference(bench: Workbench) -> prompt.Reference | None:
    """Read the codes of the audio prompt, if the song has one. Raises ArtifactError, AudioError."""
    asked, folder = bench.request.song.reference, bench.project.folder("reference")
    if asked is None:
        return None
    remedy = bench.remedy("reference")
    vocal, second = read_track(folder / "vocal.npy", 1, remedy), folder / "instrumental.npy"
    instrumental = read_track(second, 1, remedy) if second.exists() else None
    seconds = min(track.shape[1] for track in (vocal, instrumental) if track is not None) / FRAME_RATE
    if asked.crop:
        return prompt.Reference(vocal, instrumental, 0.0, seconds)
    audio_prompt.check_length(asked, str(folder), seconds)
    return prompt.Reference(vocal, instrumental, asked.start, asked.end_s)


def _prepare(order: Order, model: _Model) -> _Singer:
    """Build the prompts of a song and find out which segments it has."""
    bench, settings = order.bench, model.settings
    asked, lyrics, wanted = bench.request.song, bench.request.lyrics, bench.request.segments
    assert lyrics is not None and asked.genre is not None and wanted is not None
    assert settings.on_overflow is not None
    tokenizer = Tokenizer(model.folder.path / TOKENIZER_FILE, model.vocabulary)
    audio = read_reference(bench)
    prompts = prompt.build(tokenizer, model.vocabulary, asked.genre, lyrics.sections, bench.settings.rules, audio)
    for warning in prompts.warnings:
        bench.emit(Warned(warning))
    ids = np.concatenate([prompts.head, prompts.reference, *prompts.segments])
    check_vocabulary(ids, model.facts.vocabulary_size, model.folder)
    prompt.check_fits(prompts, settings.context, settings.max_new_tokens, settings.on_overflow, wanted)

    keys = segments.SegmentKeys(prompts, asked, plan.recipe(bench.request, "stage1"))
    there = bench.project.segments()
    if order.from_segment is not None:
        records = segments.keep_before(order.from_segment, there, keys)
    elif order.state.manifest is not None and "stage1" in asked.forced:
        records = []
    else:
        records = segments.keep_current(there, keys, wanted)
    _tell_segments(bench, len(records))
    if 0 < len(records) < wanted:
        bench.note("stage1", f"{sections(len(records))} there · going on with {len(records) + 1}")
    goes_on = records == there and order.state.state == "unfinished"
    begin = None if goes_on else segments.copies(bench.project, records)
    tags = [section.tag for section in lyrics.sections[:wanted]]
    singer = _Singer(bench, prompts, keys, wanted, records, begin, tags=tags)
    if goes_on:
        seats = bench.project.seats("stage1") or []
        singer.seats = seats if len(seats) >= wanted else None
    return singer


def _deal_seats(lacking: Sequence[_Singer], model: _Model, length: int) -> None:
    """Give every song a seat for every segment that it lacks. Who has sung in its seats keeps them.

    Where all have seats, that is where a run goes on, all keep them; else those who have not sung are dealt new ones,
    for seats are written down one song after the other, and the run may have been killed on the way.
    """
    fit = budget.choose_songs([singer.bench for singer in lacking], model.facts, length)
    for singer in lacking:
        if singer.seats and max(seat.rows for seat in singer.seats) > fit:
            singer.seats = None
            if singer.records:
                singer.bench.note("stage1", "fewer songs fit together than before: tokens to come may differ")
    if not all(singer.seats for singer in lacking):
        for singer in lacking:
            if not singer.records:
                singer.seats = None
    new = [singer for singer in lacking if singer.seats is None]
    dealt: list[list[Seat]] = [[Seat(1, 0)] * len(singer.records) for singer in new]
    for index in range(max((singer.wanted for singer in new), default=0)):
        together = [
            seats for singer, seats in zip(new, dealt, strict=True) if len(seats) == index and index < singer.wanted
        ]
        for seats, seat in zip(together, deal(len(together), fit), strict=True):
            seats.append(seat)
    for singer, seats in zip(new, dealt, strict=True):
        singer.seats = seats


def _begin(singer: _Singer) -> None:
    """Open the folder of the stage and write down the seats."""
    project = singer.bench.project
    if singer.begin is not None:
        seats = {SEATS_FILE: encode_seats(singer.seats)} if singer.seats else {}
        project.begin("stage1", {**singer.begin, **seats})
    elif singer.seats and singer.seats != project.seats("stage1"):
        project.save_seats("stage1", encode_seats(singer.seats))


def _sing(engine: Engine, model: _Model, singers: Sequence[_Singer]) -> float:
    """Add the segments that are missing, each on disk before the next begins. Returns seconds."""
    tasks, seeds = [], []
    for singer in singers:
        song = singer.bench.request.song
        seeds.append([song.segment_seed(number) for number in range(1, singer.wanted + 1)])
        tasks.append(stage1.Task(singer.prompts, seeds[-1], singer.ids, singer.seats or [], singer.tags))
    bench = singers[0].bench
    began = time.perf_counter()
    for number, segment in stage1.generate(
        engine, model.vocabulary, tasks, settings=model.settings, rules=bench.settings.rules, emit=bench.emit
    ):
        singer = singers[number]
        done = len(singer.records)
        record = SegmentRecord(
            number=done + 1,
            ids=segment.ids,
            key=singer.keys.key(done + 1, singer.ids),
            section=singer.tags[done],
            seed=seeds[number][done],
            truncated=segment.truncated,
            songs=tasks[number].seat(done).rows,
        )
        singer.bench.project.save_segment(record)
        singer.records.append(record)
        _tell_segments(singer.bench, len(singer.records))
    return time.perf_counter() - began


def _finish(singer: _Singer, model: _Model, seconds: float) -> None:
    """Split a song's segments into tracks and complete the stage."""
    bench, prompts = singer.bench, singer.prompts
    asked = bench.request.song
    raw = prompts.raw(singer.ids)
    vocal, instrumental = stage1.split(raw, model.vocabulary, skip_reference=len(prompts.reference) > 0)
    tokens = bench.storable("stage1", vocal, instrumental, "`--set rules=yue` allows codebook 0 only.")
    rows = max(record.songs for record in singer.records) * stage1.needed_rows(model.settings)
    bench.finish_tokens(
        "stage1",
        tokens,
        model=model.folder,
        inputs=bench.project.hashes("reference") or {} if asked.reference else {},
        seconds=seconds,
        rows=rows,
        texts={"lyrics": asked.lyrics or "", "genre": asked.genre or ""},
        truncated=[record.number for record in singer.records if record.truncated],
    )


def _tell_segments(bench: Workbench, count: int) -> None:
    if count:
        bench.kept = f"{sections(count)} kept. The same command goes on with section {count + 1}."


def sections(count: int) -> str:
    """Name the first sections as the subject of a sentence."""
    return "section 1 is" if count == 1 else f"sections 1–{count} are"
