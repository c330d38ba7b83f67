"""Project folders in, project folders out: makes the stages that are wanted and not there, in order.

What must be made is `plan.py`'s business, how a stage is made that of `making.py`, `singing.py` and `filling.py`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yue_cli import audio_prompt, budget, filling, machine, making, plan, segments, singing, song
from yue_cli.artifacts import Manifest, read_tokens
from yue_cli.errors import AudioError, Interrupted, LyricsError, YueError
from yue_cli.events import Warned
from yue_cli.project import StageState
from yue_cli.song import Song
from yue_cli.vocab import CODEBOOKS, FRAME_RATE
from yue_cli.workbench import TITLES, Order, Workbench, companies

MAKERS: dict[str, Callable[[Sequence[Order]], None]] = {
    "reference": making.make_reference,
    "stage1": singing.make_stage1,
    "stage2": filling.make_stage2,
    "audio": making.make_audio,
}


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


@dataclass(frozen=True)
class Job:
    """What is to be made of one song."""

    bench: Workbench
    asked: Song  # the request as it will be stored
    wanted: tuple[str, ...]  # stages
    states: list[StageState]  # of all stages
    todo: dict[str, StageState]  # of those that must be made, in order
    from_segment: int | None


class Pipeline:
    """Makes the stages of songs, as many together as can be. The caller holds the locks of their projects."""

    def __init__(self, benches: Sequence[Workbench]) -> None:
        self.benches = benches

    def run(
        self,
        wanted: Sequence[str],
        force: bool = False,
        from_segment: int | None = None,
        new_seeds: Sequence[int | None] = (),
    ) -> list[Result]:
        """Make the wanted stages that are not there. Raises YueError, Interrupted.

        force: also what is current. from_segment: keep the segments before it whatever they were made from.
        new_seeds: for each song, for what these two redo; None draws one.
        Returns the results of the songs that could be finished; of the others, unless there is one song only, the
        bench tells the failure.
        """
        began = time.perf_counter()
        seeds = new_seeds or [None] * len(self.benches)
        if any(_goes_on(bench, force, from_segment) for bench in self.benches):
            force, from_segment = False, None  # the same was asked before and is only to be finished
        jobs = [
            _order(bench, wanted, force, from_segment, seed) for bench, seed in zip(self.benches, seeds, strict=True)
        ]
        # The requests, seeds included, are on disk before anything loads. What cannot be done at all is not stored.
        for job in jobs:
            _drop_reference(job.bench, job.asked)
            _store(job.bench, job.asked)
        for group in companies([(job.bench, list(job.todo)) for job in jobs]):
            _check_models([jobs[number] for number in group])
        for job in [job for job in jobs if job.todo or len(jobs) == 1]:
            for state in job.states:
                if state.stage in job.wanted and state.stage not in job.todo:
                    _tell_kept(job.bench, state)
        try:
            for stage in MAKERS:
                self._make(stage, [job for job in jobs if stage in job.todo])
        except KeyboardInterrupt as error:
            kept = f"what was finished of {len(jobs)} songs is kept. The same command goes on."
            raise Interrupted(jobs[0].bench.kept if len(jobs) == 1 else kept) from error
        seconds = time.perf_counter() - began
        return [_result(job, seconds) for job in jobs if job.bench.failure is None]

    def copy(self) -> Path:
        """Encode voice and band of one folder with all codebooks, as if they were a song of ours.

        Returns the folder of the tokens. The song's request stays as it is on disk. Raises YueError, Interrupted.
        """
        [bench] = self.benches
        bench.fetch_models(["reference"])
        try:
            making.make_copy(bench)
        except KeyboardInterrupt as error:
            raise Interrupted("nothing was written.") from error
        return bench.project.folder("stage2")

    def _make(self, stage: str, jobs: Sequence[Job]) -> None:
        """Make one stage of all songs that need it, group after group."""
        going = [job for job in jobs if job.bench.failure is None]
        for numbers in companies([(job.bench, [stage]) for job in going]):
            group = [going[number] for number in numbers]
            for job in group:
                _tell_redo(job.bench, job.todo[stage])
            try:
                MAKERS[stage]([Order(job.bench, job.todo[stage], job.from_segment) for job in group])
            except YueError as error:
                for job in group:
                    job.bench.failure = job.bench.failure or error
            for job in group:
                if job.bench.failure is None:
                    job.bench.kept = f"{TITLES[stage]} is kept. The same command goes on after it."
                    song_now = job.bench.request.song
                    still = tuple(name for name in song_now.forced if name != stage)
                    _store(job.bench, replace(song_now, forced=still))
                elif len(self.benches) == 1:
                    raise job.bench.failure


def _goes_on(bench: Workbench, force: bool, from_segment: int | None) -> bool:
    """Tell whether a run that was to redo this, by --force or --from-segment, was stopped before its end."""
    asked = bench.request.song
    stage1_ended = Manifest.read(bench.project.folder("stage1")) is not None
    return bool(force and asked.forced) or bool(
        from_segment and not stage1_ended and max(asked.reseeded, default=0) == from_segment
    )


def _order(bench: Workbench, wanted: Sequence[str], force: bool, from_segment: int | None, new_seed: int | None) -> Job:
    """Find out what is to be made of a song, and that it can be. Nothing is written. Raises YueError."""
    asked = bench.request.song
    seed = song.draw_seed() if new_seed is None else new_seed
    if from_segment is not None:
        asked = asked.reseed_from(from_segment, seed)
    elif force:
        asked = replace(asked, forced=tuple(wanted))
        if "stage1" in wanted:
            asked = replace(asked, seed=seed, reseeded={})
    wanted = plan.with_reference(wanted, asked)
    states = plan.states(bench.project, replace(bench.request, song=asked))
    todo = {state.stage: state for state in plan.to_do(states, wanted)}
    if from_segment is not None:
        before = next(state for state in states if state.stage == "stage1")
        todo["stage1"] = replace(before, state="stale", why=f"from segment {from_segment}")
    if "stage1" in todo:
        _check_stage1(bench, from_segment)
    if "reference" in todo:
        _check_reference(bench, asked)
    _check_tokens(bench, list(todo))
    return Job(bench, asked, wanted, states, todo, from_segment)


def _check_stage1(bench: Workbench, from_segment: int | None) -> None:
    """Find out whether there is something to sing. Raises LyricsError, SettingsError, ArtifactError."""
    wanted = bench.request.segments
    if wanted is None or bench.request.song.genre is None:
        raise LyricsError(f"{bench.project.root} has no lyrics.txt or no genre.txt: give --lyrics and --genre.")
    if from_segment is not None:
        segments.check_start(from_segment, bench.project.segments(), wanted)


def _check_reference(bench: Workbench, asked: Song) -> None:
    """Find out whether the sound of the audio prompt is there and long enough. Raises AudioError."""
    if asked.reference is None or not asked.reference.sources:
        raise AudioError(
            f"{bench.project.folder('reference')}: its codes are not whole, and where their sound lies is not "
            f"known: give {audio_prompt.FLAGS}."
        )
    audio_prompt.check_files(asked.reference)


def _check_tokens(bench: Workbench, stages: Sequence[str]) -> None:
    """Find out whether the tokens to start from are there, before a model is fetched. Raises ArtifactError."""
    for stage, before, codebooks in (("stage2", "stage1", 1), ("audio", "stage2", CODEBOOKS)):
        if stage in stages and before not in stages:
            read_tokens(bench.project.folder(before), codebooks, bench.remedy(before))


def _drop_reference(bench: Workbench, asked: Song) -> None:
    """Put the codes of a reference that is not wanted any more into history, where they would be taken for one."""
    if asked.reference is None and bench.project.hashes("reference") is not None:
        bench.project.archive("reference")
        bench.note("reference", "is dropped; its codes are kept in history/")


def _check_models(jobs: Sequence[Job]) -> None:
    """Look at every model that will be needed, before the first one works for minutes.

    Those that are not here are fetched. What cannot fit into memory is refused, by the published sizes before
    that. Raises CheckpointError, DownloadError, EngineError, StorageError.
    """
    bench, others, stages = jobs[0].bench, [job.bench for job in jobs[1:]], list(jobs[0].todo)
    budget.choose_forms(bench, stages)
    for other in others:
        other.forms = bench.forms
    if not bench.library.hub.offline:  # else what is not here is refused for that
        budget.check(bench, budget.needs(bench, stages, others))
    _tell_forms(bench)
    bench.fetch_models(stages)
    for stage in stages:
        model = bench.model(stage)
        if stage in ("stage1", "stage2"):
            bench.describe(stage, model)
    for warning in budget.check(bench, budget.needs(bench, stages, others)):
        bench.emit(Warned(warning))


def _store(bench: Workbench, asked: Song) -> None:
    bench.request = replace(bench.request, song=asked)
    song.write_song(bench.project.root, asked)


def _tell_kept(bench: Workbench, state: StageState) -> None:
    music = f" · {state.manifest.music_s:.1f} s of music" if state.manifest else ""
    why = {
        "current": "is current: kept",
        "edited": f"is kept: {state.why}; --force replaces it",
        "foreign": f"is used as it is: its tokens were {state.why}",
    }
    bench.note(state.stage, why.get(state.state, f"is skipped: {state.why}") + music)


def _tell_forms(bench: Workbench) -> None:
    for stage, form in bench.forms.items():
        name, _ = bench.asked(stage)
        if form != "published" and name is not None:
            free = bench.free_bytes() / 1e9
            bench.note(stage, f"takes {name}, which is here and fits into the {free:.1f} GB that are free")


def _tell_redo(bench: Workbench, state: StageState) -> None:
    if state.state == "stale":
        kept = "; the old one is kept in history/" if bench.project.folder(state.stage).exists() else ""
        bench.note(state.stage, f"is made anew: {state.why}{kept}")


def _result(job: Job, seconds: float) -> Result:
    bench, root = job.bench, job.bench.project.root
    states = plan.states(bench.project, bench.request)
    by_name = {state.stage: state for state in states}
    last = by_name[job.wanted[-1]]
    audio = {}
    if by_name["audio"].manifest is not None:
        audio = dict(
            zip(making.SOUNDS, (root / "audio" / name for name in by_name["audio"].manifest.files), strict=True)
        )
    return Result(
        root=root,
        seed=bench.request.song.seed or 0,
        answer=audio["mix"] if job.wanted[-1] == "audio" else bench.project.folder(job.wanted[-1]),
        seconds=seconds,
        music_s=last.manifest.music_s if last.manifest else 0.0,
        peak_memory=machine.peak_bytes(),
        stages=states,
        segments=[
            {"number": record.number, "section": record.section, "seed": record.seed, "truncated": record.truncated}
            for record in bench.project.segments()
        ],
        audio=audio,
        made=list(job.todo),
        remarks=_remarks(bench, by_name["stage1"].manifest) if "stage1" in job.todo else [],
    )


def _remarks(bench: Workbench, manifest: Manifest | None) -> list[str]:
    """Say which sections were cut."""
    if manifest is None or bench.request.lyrics is None:
        return []
    limit_s = bench.settings.stage1.max_new_tokens / (2 * FRAME_RATE)
    remarks = []
    for number in manifest.truncated:
        crowded = bench.request.lyrics.sections[number - 1].seconds > limit_s
        why = "more words than fit" if crowded else "it did not end by itself"
        remarks.append(f"section {number} was cut at {limit_s:g} s: {why}")
    return remarks
