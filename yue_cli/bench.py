"""What this machine does: each stage timed with the very loops that make songs, and a whole song computed from that.

A model that is not here is made up at the published sizes. On a CPU, where the published models would take minutes to
say anything, one and two of their layers are timed and the rest is computed: time is a straight line in the layers.
"""

import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from yue_cli import engines, machine, models, seats
from yue_cli.engines.base import Engine
from yue_cli.errors import EngineError
from yue_cli.events import Emit, Note
from yue_cli.generation import fill_frames
from yue_cli.prompt import Prompts
from yue_cli.settings import Settings, flatten
from yue_cli.stages import decode, stage1, stage2
from yue_cli.stopwatch import Enough, Watch
from yue_cli.timings import (
    SEGMENT_TOKENS,
    DecodeResult,
    Model,
    Point,
    Report,
    Stage1Result,
    Stage2Result,
    extend,
    segment_starts,
    singing_s,
)
from yue_cli.vocab import CODEBOOKS, FRAME_RATE, WINDOW_FRAMES, Vocabulary
from yue_cli.weights import Library
from yue_cli.workbench import TITLES

STAGES = ("stage1", "stage2", "decode")
CONTEXTS = (1000, 4000, 7000, 10_000, 13_000, 16_000)  # tokens, at which stage 1 is timed
_CPU_CONTEXTS = (512,)
_TOKENS = 600  # timed at a context, or those that are sung in
_ENOUGH_S = 2.0  # seconds
_WARM_UP_CONTEXT, _WARM_UP_TOKENS, _WARM_UP_FRAMES = 16, 40, 24  # graphs are recorded and kernels chosen in these
_CPU_WEIGHTS = 1_500_000_000  # bytes: of larger models only a part is timed on a CPU, …
_CPU_LAYERS = (1, 2)  # … with so many of their layers
_CPU_ROWS, _CPU_FILLED = 4, WINDOW_FRAMES // 2  # the middle of a window stands for all of it
_CPU_MUSIC_S = 6.0  # of music that is decoded


def measure(
    settings: Settings,
    library: Library,
    *,
    stages: Sequence[str],
    songs: int,
    music_s: float,
    synthetic: bool,
    emit: Emit,
) -> Report:
    """Time the stages of songs of `music_s` seconds. synthetic: make up weights even where the models are here.

    settings: resolved. Raises EngineError for what does not fit into memory, CheckpointError for a model that was
    named and is not here.
    """
    with tempfile.TemporaryDirectory(prefix="yue-bench-") as name:
        bench = _Bench(settings, library, Path(name), songs, music_s, synthetic, emit)
        return Report(
            device=str(bench.device),
            hardware=machine.hardware_name(bench.device),
            engine=settings.execution.engine,
            dtype=str(bench.dtype).removeprefix("torch."),
            songs=songs,
            music_s=music_s,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=machine.versions(),
            stage1=bench.stage1() if "stage1" in stages else None,
            stage2=bench.stage2() if "stage2" in stages else None,
            decode=bench.decode() if "decode" in stages else None,
        )


@dataclass(frozen=True)
class _Subject:
    """A language model that is to be timed: the folders that hold it, or parts of it, by their number of layers."""

    model: Model
    layers: int
    folders: dict[int, Path]
    facts: engines.ModelFacts  # of the largest folder, …
    whole: engines.ModelFacts  # … and of all of the model
    vocabulary: Vocabulary


class _Bench:
    def __init__(
        self,
        settings: Settings,
        library: Library,
        scratch: Path,
        songs: int,
        music_s: float,
        synthetic: bool,
        emit: Emit,
    ) -> None:
        self.settings, self.library, self.scratch, self.emit = settings, library, scratch, emit
        self.songs, self.music_s, self.synthetic = songs, music_s, synthetic
        self.device = machine.choose_device(settings.execution.device)
        execution = settings.execution
        self.dtype = machine.choose_dtype(execution.dtype, self.device, execution.compute_capability)
        self.is_cpu = self.device.type == "cpu"
        self.random = np.random.default_rng(0)

    # Stage 1

    def stage1(self) -> Stage1Result:
        settings = replace(self.settings.stage1, guidance_later=self.settings.stage1.guidance_first)
        tokens = round(self.music_s * stage1.TOKENS_A_SECOND)
        starts = segment_starts(tokens, settings.context - SEGMENT_TOKENS - 1)
        reached = max(start + count for start, count in starts)
        rows = stage1.needed_rows(settings) * seats.ladder_step(self.songs)
        subject = self._subject("stage1", rows, reached, _CPU_CONTEXTS[-1])
        contexts = self._contexts(subject, reached, min(settings.context, subject.whole.max_length))
        length = max(contexts[-1], _WARM_UP_CONTEXT) + _TOKENS + 1

        points: dict[int, dict[int, Point]] = {context: {} for context in contexts}
        for layers, folder in subject.folders.items():
            with self._engine("stage1", folder, subject, rows, length) as (engine, open_s):
                first_s = self._time_first(engine, subject.vocabulary)
                for context in contexts:
                    points[context][layers] = self._time_tokens(engine, subject.vocabulary, context, _TOKENS)
                memory, peak = engine.memory, machine.peak_on(self.device)
        whole = tuple(
            Point(
                context,
                extend({layers: point.token_s for layers, point in found.items()}, subject.layers),
                extend({layers: point.read_s for layers, point in found.items()}, subject.layers),
            )
            for context, found in points.items()
        )
        sung = singing_s([(point.context, point.token_s) for point in whole], starts)
        # Reading takes as long a token everywhere, nearly.
        read = sum(start * whole[-1].read_s / whole[-1].context for start, _ in starts)
        return Stage1Result(
            model=subject.model,
            cache=self.settings.execution.stage1_cache,
            rows=rows,
            open_s=open_s,
            first_s=first_s,
            points=whole,
            tokens=tokens,
            token_s=sung / tokens,
            seconds=sung + read,
            memory_bytes=memory,
            peak_bytes=peak,
        )

    def _contexts(self, subject: _Subject, reached: int, longest: int) -> list[int]:
        """Choose the contexts to time: up to the first that is not shorter than any of the song."""
        known = CONTEXTS if subject.model.timed_layers is None else _CPU_CONTEXTS
        room = longest - _TOKENS - 1
        chosen = [context for index, context in enumerate(known) if index == 0 or known[index - 1] < reached]
        return [context for context in chosen if context <= room] or [max(1, room)]

    def _time_tokens(self, engine: Engine, vocabulary: Vocabulary, context: int, tokens: int) -> Point:
        """Sing the beginning of a segment after a prompt of `context` ids, with every song in its seat."""
        nothing, end = np.empty(0, dtype=np.int64), np.array([vocabulary.separator])
        prompts = Prompts(
            head=self._codes(vocabulary, context - 1),
            reference=nothing,
            segments=(end,),
            start_of_segment=nothing,
            end_of_segment=nothing,
            end_of_audio=vocabulary.end_of_audio,
        )
        settings = replace(
            self.settings.stage1, min_new_tokens=tokens, max_new_tokens=tokens, context=context + tokens + 1
        )
        dealt = seats.deal(self.songs, seats.ladder_step(self.songs))
        tasks = [stage1.Task(prompts, seeds=[song], seats=[seat]) for song, seat in enumerate(dealt)]
        watch = Watch(_ENOUGH_S)
        sung = stage1.generate(engine, vocabulary, tasks, settings=settings, rules="yue", emit=watch.hear_event)
        with suppress(Enough):
            next(sung)
        read_s = watch.before_s
        if not self.is_cpu:  # there, graphs were recorded before the first tokens, too
            began = time.perf_counter()
            engine.prefill([np.concatenate([prompts.head, end])]).cpu()
            read_s = (time.perf_counter() - began) * self.songs
        return Point(context, watch.unit_s * self.songs, read_s)

    def _time_first(self, engine: Engine, vocabulary: Vocabulary) -> float:
        """Sing a few tokens: all that is done but once is done then, and for the most part of that time."""
        began = time.perf_counter()
        self._time_tokens(engine, vocabulary, _WARM_UP_CONTEXT, _WARM_UP_TOKENS)
        return time.perf_counter() - began

    # Stage 2

    def stage2(self) -> Stage2Result:
        tail = self.settings.stage2.tail
        assert tail is not None, "settings must be resolved"
        windows = len(stage2.cut(max(1, round(self.music_s * FRAME_RATE)), tail)) * self.songs
        length = stage2.cache_length(WINDOW_FRAMES)
        least = seats.ladder_step(min(self.settings.execution.rows or 1, windows))
        subject = self._subject("stage2", least, length, length)
        rows = self._rows(subject, windows, length)
        batches = Counter(len(batch) for batch in seats.seat_all(seats.deal(windows, rows)))  # by their rows
        times: dict[int, dict[int, float]] = {size: {} for size in batches}
        for layers, folder in subject.folders.items():
            with self._engine("stage2", folder, subject, rows, length) as (engine, open_s):
                first_s, frames, times[rows][layers] = self._time_frames(engine, subject.vocabulary, rows)
                for size in batches.keys() - {rows}:  # a smaller one at the end
                    times[size][layers] = self._time_frames(engine, subject.vocabulary, size)[-1]
                memory, peak = engine.memory, machine.peak_on(self.device)
        batch_s = {size: extend(found, subject.layers) for size, found in times.items()}
        return Stage2Result(
            model=subject.model,
            cache=self.settings.execution.stage2_cache,
            rows=rows,
            windows=windows,
            open_s=open_s,
            first_s=first_s,
            frames=frames,
            window_s=batch_s[rows],
            seconds=sum(count * batch_s[size] for size, count in batches.items()),
            memory_bytes=memory,
            peak_bytes=peak,
        )

    def _rows(self, subject: _Subject, windows: int, length: int) -> int:
        rows = self.settings.execution.rows
        if rows is not None:
            return seats.ladder_step(min(rows, windows))
        free = self._free() - subject.whole.parameter_bytes
        wanted = min(windows, _CPU_ROWS) if self.is_cpu else windows
        return seats.rows_that_fit(free, bytes_per_row=subject.whole.cache_bytes_per_token * length, wanted=wanted)

    def _time_frames(self, engine: Engine, vocabulary: Vocabulary, rows: int) -> tuple[float, int, float]:
        """Fill windows: seconds until the first frames, frames that were timed, seconds for all of a window."""
        assert self.settings.stage2.restrict_picks is not None, "settings must be resolved"
        choices = stage2.frame_choices(engine, vocabulary, self.settings.stage2.restrict_picks)
        coarse = self._codes(vocabulary, rows * WINDOW_FRAMES).reshape(rows, WINDOW_FRAMES)
        prompts = np.stack([stage2.window_prompt(vocabulary, row) for row in coarse])

        def fill(filled: int, frames: int, enough_s: float) -> Watch:
            known = self._codes(vocabulary, rows * filled * CODEBOOKS).reshape(rows, -1)
            watch = Watch(enough_s)
            with suppress(Enough):
                given = coarse[:, filled : filled + frames]
                fill_frames(engine, np.concatenate([prompts, known], axis=1), given, choices, heard=watch.hear)
            return watch

        began = time.perf_counter()
        if self.is_cpu:
            # The cost of a frame is a straight line in those before it.
            watch = fill(_CPU_FILLED, WINDOW_FRAMES - _CPU_FILLED, _ENOUGH_S)
            return time.perf_counter() - began, watch.done // stage2.FINE, watch.unit_s * WINDOW_FRAMES * stage2.FINE
        first_s = fill(0, _WARM_UP_FRAMES, math.inf).before_s
        began = time.perf_counter()
        fill(0, WINDOW_FRAMES, math.inf)
        return first_s, WINDOW_FRAMES, time.perf_counter() - began

    # Decode

    def decode(self) -> DecodeResult:
        machine.begin_peak(self.device)
        name = self.settings.decode.codec or models.DEFAULTS["codec"]
        found = None if self.synthetic else self.library.find(name, "codec")
        if found is None and self.settings.decode.codec is not None and not self.synthetic:
            self.library.locate(name, "codec")  # says what is missing
        folder = None if found is None else found.path
        began = time.perf_counter()
        decoders = decode.make_codec(self.device) if folder is None else decode.open_codec(folder, self.device)
        open_s = time.perf_counter() - began
        music_s = min(self.music_s, _CPU_MUSIC_S) if self.is_cpu else self.music_s
        frames = max(1, round(music_s * FRAME_RATE))
        codebooks = min(CODEBOOKS, decoders.codec.config.codebooks)
        codes = self.random.integers(0, decoders.codec.config.codebook_size, (2, codebooks, frames), dtype=np.int16)
        limit = self.settings.decode.limit
        assert limit is not None, "settings must be resolved"
        times = []
        with machine.threads_for(decoders.weight_bytes):
            for _ in range(2):  # the first time, kernels are chosen
                began = time.perf_counter()
                decode.decode(decoders, codes[0], codes[1], limit)
                times.append(time.perf_counter() - began)
        decode_s = times[-1] * FRAME_RATE / frames
        return DecodeResult(
            model=Model(name, folder is None, decoders.weight_bytes, None),
            open_s=open_s,
            first_s=times[0],
            music_s=frames / FRAME_RATE,
            decode_s=decode_s,
            seconds=decode_s * self.music_s * self.songs,
            peak_bytes=machine.peak_on(self.device),
        )

    # Models

    def _subject(self, part: str, rows: int, whole_length: int, part_length: int) -> _Subject:
        """Choose what is timed: the model that is here, one that is made up, or on a CPU a part of either.

        Of several forms of its weights, the first that fits with so many rows of `whole_length`, or of `part_length`
        where a part is timed. Raises EngineError, CheckpointError.
        """
        asked = flatten(self.settings)
        named, form = asked[f"{part}.model"], asked[f"execution.{part}_weights"]
        forms = ("published", *models.FORMATS) if form == "auto" else (str(form),)
        base = str(named or models.DEFAULTS[part])
        names = {form: base if form == "published" else models.in_form(base, form) for form in forms}
        folders = {} if self.synthetic else {form: self.library.find(name, part) for form, name in names.items()}
        here = {form: folder.path for form, folder in folders.items() if folder is not None}
        if not here and named is not None and not self.synthetic:
            self.library.locate(names[forms[0]], part)  # says what is missing
        for form in here or forms:
            subject = self._subject_in(part, names[form], form, here.get(form))
            length = whole_length if subject.model.timed_layers is None else part_length
            need = subject.facts.parameter_bytes + subject.facts.cache_bytes_per_token * rows * length
            if need <= self._free():
                return subject
        fewer = "Take fewer --songs" if self.songs > 1 else "Take a smaller model with --set"
        raise EngineError(
            f"{subject.model.name} needs {need / 1e9:.1f} GB of memory with {rows} rows of {length:,} tokens; "
            f"{machine.device_name(self.device)} has {self._free() / 1e9:.1f} GB free. {fewer}, or use --device cpu."
        )

    def _subject_in(self, part: str, name: str, form: str, folder: Path | None) -> _Subject:
        """Look at one form of a model; folder: where it is, None to make it up."""
        is_synthetic = folder is None
        if folder is None:
            folder = self.scratch / f"{part}-{form}"
            engines.write_sizes(folder, models.SIZES[part], None if form == "published" else form)
        facts = self._describe(part, folder)
        sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        layers: int = sizes["num_hidden_layers"]
        model = Model(name, is_synthetic, facts.parameter_bytes, None)
        vocabulary = Vocabulary.read(folder)
        if not (self.is_cpu and facts.parameter_bytes > _CPU_WEIGHTS):
            return _Subject(model, layers, {layers: folder}, facts, facts, vocabulary)
        folders = {count: self.scratch / f"{folder.name}-{count}" for count in _CPU_LAYERS}
        for count, place in folders.items():
            # One table for both ends: looking up rows of the first costs nothing.
            engines.write_sizes(place, sizes | {"num_hidden_layers": count, "tie_word_embeddings": True})
        part_facts = self._describe(part, folders[max(_CPU_LAYERS)])
        return _Subject(replace(model, timed_layers=_CPU_LAYERS), layers, folders, part_facts, facts, vocabulary)

    def _describe(self, part: str, folder: Path) -> engines.ModelFacts:
        execution = self.settings.execution
        name = engines.choose(execution.engine, folder)
        return engines.describe(folder, dtype=self.dtype, engine=name, cache=execution.cache(part))

    @contextmanager
    def _engine(
        self, stage: str, folder: Path, subject: _Subject, rows: int, length: int
    ) -> Iterator[tuple[Engine, float]]:
        """Open an engine, tell how long that took, and give its memory back afterwards."""
        machine.begin_peak(self.device)
        began = time.perf_counter()
        execution = self.settings.execution
        engine = engines.open_engine(
            execution.engine,
            folder,
            rows=rows,
            length=length,
            device=self.device,
            dtype=self.dtype,
            cache=execution.cache(stage),
            mode=execution.mode,
            capability=execution.compute_capability,
            emit=self.emit,
        )
        open_s = time.perf_counter() - began
        model = subject.model
        part = "" if model.timed_layers is None else " · a part of it"
        how = "weights made up" if model.is_synthetic or part else "loaded"
        self.emit(Note(TITLES[stage], f"{model.name}{part} · {how} in {open_s:.1f} s · {engine.memory / 1e9:.2f} GB"))
        try:
            with machine.threads_for(subject.facts.parameter_bytes):
                yield engine, open_s
            if engine.cost:
                self.emit(Note(TITLES[stage], engine.cost))
        finally:
            engine.close()
            del engine
            machine.free_memory(self.device)

    def _free(self) -> int:
        return machine.free_bytes(self.device, self.settings.execution.memory_limit)

    def _codes(self, vocabulary: Vocabulary, count: int) -> np.ndarray:
        """Draw ids of codebook 0: what the model reads does not change its speed."""
        coarse = vocabulary.codebook(0)
        return self.random.integers(coarse.start, coarse.stop, count, dtype=np.int64)
