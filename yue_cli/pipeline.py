"""Project folder in, project folder out: makes the stages that are wanted and not there, in order.

What must be made is `plan.py`'s business, how a stage is made `making.py`'s.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yue_cli import audio_prompt, budget, machine, making, plan, segments, song
from yue_cli.artifacts import Manifest, read_tokens
from yue_cli.errors import AudioError, Interrupted, LyricsError
from yue_cli.events import Warned
from yue_cli.project import StageState
from yue_cli.song import Song
from yue_cli.vocab import CODEBOOKS, FRAME_RATE
from yue_cli.workbench import TITLES, Workbench


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
        wanted = plan.with_reference(wanted, asked)
        states = plan.states(self.project, replace(self.request, song=asked))
        todo = {state.stage: state for state in plan.to_do(states, wanted)}
        if from_segment is not None and not goes_on:
            before = next(state for state in states if state.stage == "stage1")
            todo["stage1"] = replace(before, state="stale", why=f"from segment {from_segment}")
        if "stage1" in todo:
            self._check_stage1(None if goes_on else from_segment)
        if "reference" in todo:
            self._check_reference(asked)
        self._check_tokens(list(todo))
        self._drop_reference(asked)
        # The request, seed included, is on disk before anything loads. What cannot be done at all is not stored.
        self._store(asked)
        self._check_models(list(todo))
        for state in states:
            if state.stage in wanted and state.stage not in todo:
                self._tell_kept(state)
        try:
            for stage, state in todo.items():
                self._tell_redo(state)
                if stage == "reference":
                    making.make_reference(self.bench)
                elif stage == "stage1":
                    making.make_stage1(self.bench, state, None if goes_on else from_segment)
                elif stage == "stage2":
                    making.make_stage2(self.bench, state)
                else:
                    making.make_audio(self.bench, state)
                self.bench.kept = f"{TITLES[stage]} is kept. The same command goes on after it."
                still = tuple(name for name in self.request.song.forced if name != stage)
                self._store(replace(self.request.song, forced=still))
        except KeyboardInterrupt as error:
            raise Interrupted(self.bench.kept) from error
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

    def _check_reference(self, asked: Song) -> None:
        """Find out whether the sound of the audio prompt is there and long enough. Raises AudioError."""
        if asked.reference is None or not asked.reference.sources:
            raise AudioError(
                f"{self.project.folder('reference')}: its codes are not whole, and where their sound lies is not "
                f"known: give {audio_prompt.FLAGS}."
            )
        audio_prompt.check_files(asked.reference)

    def _check_tokens(self, stages: Sequence[str]) -> None:
        """Find out whether the tokens to start from are there, before a model is fetched. Raises ArtifactError."""
        for stage, before, codebooks in (("stage2", "stage1", 1), ("audio", "stage2", CODEBOOKS)):
            if stage in stages and before not in stages:
                read_tokens(self.project.folder(before), codebooks, self.bench.remedy(before))

    def _drop_reference(self, asked: Song) -> None:
        """Put the codes of a reference that is not wanted any more into history, where they would be taken for one."""
        if asked.reference is None and self.project.hashes("reference") is not None:
            self.project.archive("reference")
            self.bench.note("reference", "is dropped; its codes are kept in history/")

    def _check_models(self, stages: Sequence[str]) -> None:
        """Look at every model that will be needed, before the first one works for minutes.

        Those that are not here are fetched. What cannot fit into memory is refused, by the published sizes before
        that. Raises CheckpointError, DownloadError, EngineError, StorageError.
        """
        budget.choose_forms(self.bench, stages)
        if not self.bench.library.hub.offline:  # else what is not here is refused for that
            budget.check(self.bench, budget.needs(self.bench, stages))
        self._tell_forms()
        self.bench.fetch_models(stages)
        for stage in stages:
            model = self.bench.model(stage)
            if stage in ("stage1", "stage2"):
                self.bench.describe(model)
        for warning in budget.check(self.bench, budget.needs(self.bench, stages)):
            self.bench.emit(Warned(warning))

    def _store(self, asked: Song) -> None:
        self.bench.request = replace(self.request, song=asked)
        song.write_song(self.project.root, asked)

    # What is told

    def _tell_kept(self, state: StageState) -> None:
        music = f" · {state.manifest.music_s:.1f} s of music" if state.manifest else ""
        why = {
            "current": "is current: kept",
            "edited": f"is kept: {state.why}; --force replaces it",
            "foreign": f"is used as it is: its tokens were {state.why}",
        }
        self.bench.note(state.stage, why.get(state.state, f"is skipped: {state.why}") + music)

    def _tell_forms(self) -> None:
        for stage, form in self.bench.forms.items():
            name, _ = self.bench.asked(stage)
            if form != "published" and name is not None:
                free = self.bench.free_bytes() / 1e9
                self.bench.note(stage, f"takes {name}, which is here and fits into the {free:.1f} GB that are free")

    def _tell_redo(self, state: StageState) -> None:
        if state.state == "stale":
            kept = "; the old one is kept in history/" if self.project.folder(state.stage).exists() else ""
            self.bench.note(state.stage, f"is made anew: {state.why}{kept}")

    def _result(self, wanted: Sequence[str], made: Iterable[str], seconds: float) -> Result:
        states = plan.states(self.project, self.request)
        by_name = {state.stage: state for state in states}
        last = by_name[wanted[-1]]
        root = self.project.root
        audio = {}
        if by_name["audio"].manifest is not None:
            audio = dict(
                zip(making.SOUNDS, (root / "audio" / name for name in by_name["audio"].manifest.files), strict=True)
            )
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
