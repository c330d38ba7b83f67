"""The making of stage 2, for one song or several together: every finished batch of windows at once on disk."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from yue_cli import budget, plan
from yue_cli.artifacts import Tokens, read_tokens, sha256_json
from yue_cli.project import SEATS_FILE, encode_seats
from yue_cli.seats import Seat
from yue_cli.stages import stage2
from yue_cli.vocab import CODEBOOKS, Vocabulary
from yue_cli.weights import ModelFolder
from yue_cli.workbench import Order, Workbench, check_vocabulary


@dataclass
class _Filler:
    """One song on its way through the stage."""

    bench: Workbench
    tokens: Tokens
    inputs: Mapping[str, str]
    windows: list[stage2.Window]
    key: str  # what the windows are made from
    goes_on: bool  # in the folder that is there
    seats: list[Seat] | None = None  # one for every window
    filled: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        return len(self.filled) == len(self.windows)


def make_stage2(orders: Sequence[Order]) -> None:
    """Decode the missing windows into int16 [8, T] a track, in `stage2/`.

    The songs share model, settings and device. What fails for one song alone is noted on its bench. Raises YueError.
    """
    fillers: list[_Filler] = []
    for order in orders:
        with order.bench.trial():
            fillers.append(_prepare(order))
    bench = orders[0].bench
    model = bench.model("stage2")
    vocabulary, facts = Vocabulary.read(model.path), bench.describe("stage2", model)
    check_vocabulary(np.array(vocabulary.codebook(CODEBOOKS - 1)), facts.vocabulary_size, model)
    lacking = [filler for filler in fillers if not filler.is_done]
    seconds = 0.0
    if lacking:
        length = stage2.cache_length(max(window.length for filler in lacking for window in filler.windows))
        _deal_seats(lacking, budget.choose_rows(bench, sum(len(f.windows) for f in lacking), facts, length))
        rows = max(seat.rows for filler in lacking for seat in filler.seats or [])
        rehearse = partial(stage2.rehearse, vocabulary=vocabulary, settings=bench.settings.stage2)
        with (
            budget.explained(bench, "stage2"),
            bench.engine("stage2", model, rows=rows, length=length, rehearse=rehearse) as engine,
        ):
            for filler in fillers:
                _begin(filler)
            began = time.perf_counter()
            tracks = [(filler.tokens.vocal, filler.tokens.instrumental) for filler in lacking]
            tasks = [
                stage2.Task(both, filler.windows, filler.seats or [], dict(filler.filled))
                for both, filler in zip(tracks, lacking, strict=True)
            ]
            for batch in stage2.decode(engine, vocabulary, tasks, settings=bench.settings.stage2, emit=bench.emit):
                for number, filled in batch.items():
                    _keep(lacking[number], filled)
            seconds = (time.perf_counter() - began) / len(lacking)
    for filler in fillers:
        with filler.bench.trial():
            _finish(filler, vocabulary, model, seconds if filler in lacking else 0.0)


def _prepare(order: Order) -> _Filler:
    """Cut a song into windows and find out which are done."""
    bench, tail = order.bench, order.bench.settings.stage2.tail
    tokens = read_tokens(bench.project.folder("stage1"), 1, bench.remedy("stage1"))
    inputs = bench.project.hashes("stage1")
    assert inputs is not None and tail is not None
    key = sha256_json({"recipe": plan.recipe(bench.request, "stage2"), "inputs": inputs})
    windows = stage2.cut(tokens.frames, tail)
    seats = None if order.state.manifest is not None else bench.project.seats("stage2", key)
    filler = _Filler(bench, tokens, inputs, windows, key, goes_on=seats is not None)
    if seats is not None and len(seats) == len(windows):
        filler.seats, filler.filled = seats, bench.project.windows()
        if 0 < len(filler.filled) < len(windows):
            bench.note("stage2", f"{_share(filler)} there · going on")
    return filler


def _deal_seats(lacking: Sequence[_Filler], rows: int) -> None:
    """Give every window a seat. Who has begun keeps them; so do all, if all have seats, for then a run goes on."""
    if not all(filler.seats for filler in lacking):
        for filler in lacking:
            if not filler.filled:
                filler.seats = None
    new = [filler for filler in lacking if filler.seats is None]
    for filler, seats in zip(new, stage2.deal_seats([filler.windows for filler in new], rows), strict=True):
        filler.seats = seats


def _begin(filler: _Filler) -> None:
    """Open the folder of the stage and write down the seats."""
    project = filler.bench.project
    content = encode_seats(filler.seats or [], filler.key)
    if not filler.goes_on:
        project.begin("stage2", {SEATS_FILE: content})
    elif filler.seats != project.seats("stage2", filler.key):
        project.save_seats("stage2", content)


def _keep(filler: _Filler, filled: Mapping[int, np.ndarray]) -> None:
    filler.bench.project.save_windows(filled)
    filler.filled |= filled
    filler.bench.kept = f"{_share(filler)} kept. The same command goes on."


def _finish(filler: _Filler, vocabulary: Vocabulary, model: ModelFolder, seconds: float) -> None:
    """Join a song's windows into tracks and complete the stage."""
    bench = filler.bench
    restrict = bench.settings.stage2.restrict_picks
    assert restrict is not None, "settings must be resolved"
    vocal, instrumental = stage2.assemble(
        filler.tokens.frames, filler.windows, filler.filled, vocabulary, restrict_picks=restrict
    )
    remedy = "`--set stage2.restrict_picks=true` keeps every pick in its codebook."
    made = bench.storable("stage2", vocal, instrumental, remedy)
    rows = max(seat.rows for seat in filler.seats or [])
    bench.finish_tokens("stage2", made, model=model, inputs=filler.inputs, seconds=seconds, rows=rows)


def _share(filler: _Filler) -> str:
    return f"{len(filler.filled)} of {len(filler.windows)} windows of stage 2 are"
