"""Project folder in, project folder out: makes the stages that are wanted and not there, in order.

Carries arrays between disk and stages. What must be made is `plan.py`'s business; how an engine is opened and a
manifest written is `workbench.py`'s.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from yue_cli import engines, machine, mixing, plan, prompt, segments, song
from yue_cli.artifacts import TRACKS, Manifest, read_tokens, sha256_json
from yue_cli.audio_files import write_audio
from yue_cli.engines.base import Engine
from yue_cli.errors import Interrupted, LyricsError
from yue_cli.project import SegmentRecord, StageState
from yue_cli.settings import Stage1Settings, flatten
from yue_cli.song import Song
from yue_cli.stages import decode, stage1, stage2
from yue_cli.tokenizer import TOKENIZER_FILE, Tokenizer
from yue_cli.vocab import CODEBOOKS, FRAME_RATE, WINDOW_FRAMES, Vocabulary
from yue_cli.weights import ModelFolder
from yue_cli.workbench import Workbench, check_vocabulary

SOUNDS = ("mix", *TRACKS)
CREDIT = "AI-generated with YuE by HKUST/M-A-P"


@dataclass
class Result:
    """What a run left behind."""

    root: Path
    seed: int
    answer: Path  # what was asked for: the mix, or the folder of a stage
    seconds: float
    music_s: float
    peak_memory: tuple[int, int]  # bytes: main memory, GPU
    stages: list[StageState]
    segments: list[dict[str, Any]]
    audio: dict[str, Path]
    made: list[str]  # stages that this run made
    remarks: list[str]  # what the user should know of them

    def as_json(self, warnings: Sequence[str]) -> dict[str, Any]:
        """List it for programs, with the warnings that were given on the way."""
        return {
            "song": str(self.root),
            "audio": {name: str(path) for name, path in self.audio.items()},
            "seconds_of_music": round(self.music_s, 3),
            "seconds_taken": round(self.seconds, 3),
            "peak_memory_bytes": max(self.peak_memory),
            "seed": self.seed,
            "stages": [{"name": state.stage, "state": state.state, "why": state.why} for state in self.stages],
            "segments": self.segments,
            "warnings": [*warnings, *self.remarks],
        }


class Pipeline:
    """Makes the stages of one song. The caller holds the project's lock."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.project = bench.project
        self.settings = bench.settings
        self.emit = bench.emit
        self._kept = "what was finished is kept. The same command goes on."

    @property
    def request(self) -> plan.Request:
        """What is wanted; the song's seeds may change when a run begins."""
        return self.bench.request

    def run(
        self,
        wanted: Sequence[str],
        force: bool = False,
        from_segment: int | None = None,
        new_seed: int | None = None,
    ) -> Result:
        """Make the wanted stages that are not there. Raises YueError, Interrupted.

        force: also what is current. from_segment: keep the segments before it whatever they were made from.
        new_seed: for what these two redo; None draws one.
        """
        began = time.perf_counter()
        asked, goes_on = self._ask_anew(wanted, force, from_segment, new_seed)
        states = plan.states(self.project, replace(self.request, song=asked))
        todo = {state.stage: state for state in plan.to_do(states, wanted)}
        if from_segment is not None and not goes_on:
            todo["stage1"] = replace(states[0], state="stale", why=f"from segment {from_segment}")
        if "stage1" in todo:
            self._check_stage1(None if goes_on else from_segment)
        # The request, seed included, is on disk before anything loads. What cannot be done at all is not stored.
        self._store(asked)
        self._check_models(todo)
        for state in states:
            if state.stage in wanted and state.stage not in todo:
                self._tell_kept(state)
        try:
            for stage, state in todo.items():
                self._tell_redo(state)
                if stage == "stage1":
                    self._make_stage1(state, None if goes_on else from_segment)
                elif stage == "stage2":
                    self._make_stage2(state)
                else:
                    self._make_audio(state)
                still = tuple(name for name in self.request.song.forced if name != stage)
                self._store(replace(self.request.song, forced=still))
        except KeyboardInterrupt as error:
            raise Interrupted(self._kept) from error
        return self._result(wanted, todo, time.perf_counter() - began)

    def _ask_anew(
        self, wanted: Sequence[str], force: bool, from_segment: int | None, new_seed: int | None
    ) -> tuple[Song, bool]:
        """Put what is redone by --force or --from-segment, and its seed, into the request.

        Returns the request, and whether the same was asked before and is only to be finished.
        """
        asked = self.request.song
        stage1_ended = Manifest.read(self.project.folder("stage1")) is not None
        goes_on = bool(force and asked.forced) or bool(
            from_segment and not stage1_ended and max(asked.reseeded, default=0) == from_segment
        )
        if not goes_on:
            seed = song.draw_seed() if new_seed is None else new_seed
            if from_segment is not None:
                asked = asked.reseed_from(from_segment, seed)
            elif force:
                asked = replace(asked, forced=tuple(wanted))
                if "stage1" in wanted:
                    asked = replace(asked, seed=seed, reseeded={})
        return asked, goes_on

    def _check_stage1(self, from_segment: int | None) -> None:
        """Find out whether there is something to sing. Raises LyricsError, SettingsError, ArtifactError."""
        wanted = self.request.segments
        if wanted is None or self.request.song.genre is None:
            raise LyricsError(f"{self.project.root} has no lyrics.txt or no genre.txt: give --lyrics and --genre.")
        if from_segment is not None:
            segments.check_start(from_segment, self.project.segments(), wanted)

    def _check_models(self, stages: Iterable[str]) -> None:
        """Look at every model that will be needed, before the first one works for minutes. Raises CheckpointError."""
        for stage in stages:
            model = self._model(stage)
            if stage != "audio":
                self.bench.describe(model)

    def _model(self, stage: str) -> ModelFolder:
        name = flatten(self.settings)[plan.MODEL_KEYS[stage]]
        assert name is None or isinstance(name, str)
        return self.bench.locate(name, "codec" if stage == "audio" else stage)

    def _store(self, asked: Song) -> None:
        self.bench.request = replace(self.request, song=asked)
        song.write_song(self.project.root, asked)

    # Stage 1

    def _make_stage1(self, state: StageState, from_segment: int | None) -> None:
        asked, lyrics, wanted = self.request.song, self.request.lyrics, self.request.segments
        assert lyrics is not None and asked.genre is not None and wanted is not None
        model = self._model("stage1")
        vocabulary, facts = Vocabulary.read(model.path), self.bench.describe(model)
        settings = replace(self.settings.stage1, context=min(self.settings.stage1.context, facts.max_length))
        assert settings.on_overflow is not None
        tokenizer = Tokenizer(model.path / TOKENIZER_FILE, vocabulary)
        prompts = prompt.build(tokenizer, vocabulary, asked.genre, lyrics.sections, self.settings.rules)
        check_vocabulary(np.concatenate([prompts.head, *prompts.segments]), facts.vocabulary_size, model)
        prompt.check_fits(prompts, settings.context, settings.max_new_tokens, settings.on_overflow, wanted)

        keys = segments.SegmentKeys(prompts, asked, plan.recipe(self.request, "stage1"))
        there = self.project.segments()
        if from_segment is not None:
            records = segments.keep_before(from_segment, there, keys)
        elif state.manifest is not None and "stage1" in asked.forced:
            records = []
        else:
            records = segments.keep_current(there, keys, wanted)
        self._count_segments(len(records))
        if 0 < len(records) < wanted:
            self.bench.note("stage1", f"{_sections(len(records))} there · going on with {len(records) + 1}")
        if records == there and state.state in ("missing", "unfinished"):
            begin = None  # goes on in the folder that is there
        else:
            begin = segments.copies(self.project, records)

        seconds = 0.0
        if len(records) < wanted:
            rows, length = stage1.needed_rows(settings), stage1.needed_length(prompts, settings, wanted)
            with self.bench.engine("stage1", model, rows=rows, length=length) as engine:
                if begin is not None:
                    self.project.begin("stage1", begin)
                seconds = self._sing(engine, vocabulary, prompts, settings, keys, records, wanted)
        elif begin is not None:
            self.project.begin("stage1", begin)
        raw = prompts.raw([record.ids for record in records])
        vocal, instrumental = stage1.split(raw, vocabulary, skip_reference=len(prompts.reference) > 0)
        tokens = self.bench.storable("stage1", vocal, instrumental, "`--set rules=yue` allows codebook 0 only.")
        self.bench.finish_tokens(
            "stage1",
            tokens,
            model=model,
            inputs={},
            seconds=seconds,
            texts={"lyrics": asked.lyrics or "", "genre": asked.genre},
            truncated=[record.number for record in records if record.truncated],
        )

    def _sing(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        prompts: prompt.Prompts,
        settings: Stage1Settings,
        keys: segments.SegmentKeys,
        records: list[SegmentRecord],
        wanted: int,
    ) -> float:
        """Add the segments that are missing to `records`, each on disk before the next begins. Returns seconds."""
        assert self.request.lyrics is not None
        tags = [section.tag for section in self.request.lyrics.sections[:wanted]]
        seeds = [self.request.song.segment_seed(number) for number in range(1, wanted + 1)]
        began = time.perf_counter()
        for segment in stage1.generate(
            engine,
            vocabulary,
            prompts,
            finished=[record.ids for record in records],
            seeds=seeds,
            settings=settings,
            rules=self.settings.rules,
            labels=[f"{number}/{wanted} {tag}" for number, tag in enumerate(tags, start=1)],
            emit=self.emit,
        ):
            done = len(records)
            key = keys.key(done + 1, [record.ids for record in records])
            record = SegmentRecord(done + 1, segment.ids, key, tags[done], seeds[done], segment.truncated)
            self.project.save_segment(record)
            records.append(record)
            self._count_segments(len(records))
        return time.perf_counter() - began

    # Stage 2

    def _make_stage2(self, state: StageState) -> None:
        settings = self.settings.stage2
        tokens = read_tokens(self.project.folder("stage1"), 1, self.bench.remedy("stage1"))
        inputs = self.project.hashes("stage1")
        assert inputs is not None and settings.tail is not None and settings.restrict_picks is not None
        model = self._model("stage2")
        vocabulary, facts = Vocabulary.read(model.path), self.bench.describe(model)
        check_vocabulary(np.array(vocabulary.codebook(CODEBOOKS - 1)), facts.vocabulary_size, model)
        length = stage2.cache_length(min(tokens.frames, WINDOW_FRAMES))

        key = sha256_json({"recipe": plan.recipe(self.request, "stage2"), "inputs": inputs})
        resumed = None if state.manifest is not None else self.project.batches(key)
        rows, batches = resumed or (self._choose_rows(tokens.frames, facts, length), {})
        batch_plan = stage2.plan(tokens.frames, settings.tail, rows)
        wanted = len(batch_plan.batches)
        if 0 < len(batches) < wanted:
            self.bench.note("stage2", f"{len(batches)} of {wanted} batches are there · going on")
        seconds = 0.0
        if len(batches) < wanted:
            with self.bench.engine("stage2", model, rows=rows, length=length) as engine:
                if resumed is None:
                    self.project.begin_batches(key, rows)
                began = time.perf_counter()
                for number, ids in stage2.decode(
                    engine,
                    vocabulary,
                    (tokens.vocal, tokens.instrumental),
                    settings=settings,
                    rows=rows,
                    finished=batches,
                    emit=self.emit,
                ):
                    self.project.save_batch(number, ids)
                    batches[number] = ids
                    self._kept = f"{len(batches)} of {wanted} batches of stage 2 are kept. The same command goes on."
                seconds = time.perf_counter() - began
        vocal, instrumental = stage2.assemble(batch_plan, batches, vocabulary, restrict_picks=settings.restrict_picks)
        remedy = "`--set stage2.restrict_picks=true` keeps every pick in its codebook."
        made = self.bench.storable("stage2", vocal, instrumental, remedy)
        self.bench.finish_tokens("stage2", made, model=model, inputs=inputs, seconds=seconds, rows=rows)

    def _choose_rows(self, frames: int, facts: engines.ModelFacts, length: int) -> int:
        """Choose how many windows are decoded together: all of them, or as many as free memory holds."""
        assert self.settings.stage2.tail is not None
        windows = stage2.count_windows(frames, self.settings.stage2.tail)
        rows = self.settings.execution.rows
        if rows is not None:
            return stage2.ladder_step(min(rows, windows))
        free = machine.free_bytes(self.bench.device) - facts.parameter_bytes
        return stage2.rows_that_fit(free, bytes_per_row=facts.cache_bytes_per_token * length, windows=windows)

    # Decode

    def _make_audio(self, state: StageState) -> None:
        settings, asked = self.settings.decode, self.request.song
        tokens = read_tokens(self.project.folder("stage2"), CODEBOOKS, self.bench.remedy("stage2"))
        inputs = self.project.hashes("stage2")
        assert inputs is not None and settings.limit is not None
        model = self._model("audio")
        decoders = decode.open_codec(model.path, self.bench.device)
        began = time.perf_counter()
        with machine.threads_for(decoders.weight_bytes):
            stems = decode.decode(decoders, tokens.vocal, tokens.instrumental, settings.limit, self.emit)
        gain = mixing.limit(stems.mix, settings.limit)
        if gain < 1:
            how = f"turned down to {100 * gain:.0f} %" if settings.limit == "scale" else "clipped"
            self.bench.note("audio", f"the mix was {how}: its peak passed full scale")
        folder = self.project.begin("audio")
        names = [f"{name}.{settings.format}" for name in SOUNDS]
        tags = {
            "title": self.project.root.resolve().name,
            "artist": "YuE",
            "genre": asked.genre or "",
            "comment": f"seed {asked.seed}; {CREDIT}",
        }
        for name, file in zip(SOUNDS, names, strict=True):
            write_audio(folder / file, getattr(stems, name), tags)
        seconds = time.perf_counter() - began
        self.bench.finish("audio", names, model=model, inputs=inputs, music_s=tokens.seconds, seconds=seconds)

    # What is told

    def _tell_kept(self, state: StageState) -> None:
        music = f" · {state.manifest.music_s:.1f} s of music" if state.manifest else ""
        why = {
            "current": "is current: kept",
            "edited": f"is kept: {state.why}; --force replaces it",
            "foreign": "is used as it is: its tokens were not written by this yue",
        }
        self.bench.note(state.stage, why.get(state.state, f"is skipped: {state.why}") + music)

    def _tell_redo(self, state: StageState) -> None:
        if state.state == "stale":
            kept = "; the old one is kept in history/" if self.project.folder(state.stage).exists() else ""
            self.bench.note(state.stage, f"is made anew: {state.why}{kept}")

    def _count_segments(self, count: int) -> None:
        if count:
            self._kept = f"{_sections(count)} kept. The same command goes on with section {count + 1}."

    def _result(self, wanted: Sequence[str], made: Iterable[str], seconds: float) -> Result:
        states = plan.states(self.project, self.request)
        by_name = {state.stage: state for state in states}
        last = by_name[wanted[-1]]
        root = self.project.root
        audio = {}
        if by_name["audio"].manifest is not None:
            audio = dict(zip(SOUNDS, (root / "audio" / name for name in by_name["audio"].manifest.files), strict=True))
        return Result(
            root=root,
            seed=self.request.song.seed or 0,
            answer=audio["mix"] if wanted[-1] == "audio" else self.project.folder(wanted[-1]),
            seconds=seconds,
            music_s=last.manifest.music_s if last.manifest else 0.0,
            peak_memory=machine.peak_bytes(),
            stages=states,
            segments=[
                {"number": record.number, "section": record.section, "seed": record.seed, "truncated": record.truncated}
                for record in self.project.segments()
            ],
            audio=audio,
            made=list(made),
            remarks=self._remarks(by_name["stage1"].manifest) if "stage1" in made else [],
        )

    def _remarks(self, manifest: Manifest | None) -> list[str]:
        """Say which sections were cut."""
        if manifest is None or self.request.lyrics is None:
            return []
        limit_s = self.settings.stage1.max_new_tokens / (2 * FRAME_RATE)
        remarks = []
        for number in manifest.truncated:
            crowded = self.request.lyrics.sections[number - 1].seconds > limit_s
            why = "more words than fit" if crowded else "it did not end by itself"
            remarks.append(f"section {number} was cut at {limit_s:g} s: {why}")
        return remarks


def _sections(count: int) -> str:
    return "section 1 is" if count == 1 else f"sections 1–{count} are"
