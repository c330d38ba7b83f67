"""What the making of every stage shares: where the model is, an opened engine, tokens that can be stored, manifests."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from yue_cli import engines, machine, models, plan, tiny, toy
from yue_cli.artifacts import TRACKS, Manifest, Tokens, describe_files, storable, write_tokens
from yue_cli.engines.base import Engine, Rehearse
from yue_cli.errors import ArtifactError, CheckpointError, YueError
from yue_cli.events import Emit, Note
from yue_cli.project import Project, StageState
from yue_cli.settings import Settings, flatten
from yue_cli.weights import Library, Maker, ModelFolder

TITLES = {"reference": "encode", "stage1": "stage 1", "stage2": "stage 2", "audio": "decode"}
MAKERS: dict[str, Maker] = {tiny.NAME: tiny.make, "toy": toy.make}


@dataclass(frozen=True)
class Order:
    """One stage that is to be made for one song."""

    bench: "Workbench"
    state: StageState  # what its folder holds
    from_segment: int | None = None  # stage 1: keep the segments before it, counted from 1


class Workbench:
    """One song's folder, what is wanted of it, and the device it is made on.

    label: what the song is called where several are made; empty for one alone.
    """

    def __init__(
        self,
        project: Project,
        request: plan.Request,
        home: Path,
        emit: Emit,
        detail: Callable[[str, str], None],
        offline: bool = False,
        label: str = "",
    ) -> None:
        self.project = project
        self.request = request
        self.settings = request.settings
        self.library = Library(home, MAKERS, emit, offline)
        self.emit = emit
        self.forms: dict[str, str] = {}  # by stage: the form of the weights that was picked where the settings leave it
        self.detail = detail  # what only a curious user wants to know: topic, text
        self.label = label
        self.failure: YueError | None = None  # why this song cannot be finished, though others may
        self.kept = "what was finished is kept. The same command goes on."  # what an interrupted run may rely on
        self.device = machine.choose_device(self.settings.execution.device)
        execution = self.settings.execution
        self.dtype = machine.choose_dtype(execution.dtype, self.device, execution.compute_capability)

    def with_settings(self, settings: Settings) -> "Workbench":
        """Set up another bench for the same song, to see how it would do. Raises EngineError."""
        request = replace(self.request, settings=settings)
        other = Workbench(self.project, request, self.library.home, self.emit, self.detail)
        other.library = self.library
        return other

    @property
    def device_name(self) -> str:
        return machine.device_name(self.device)

    def free_bytes(self) -> int:
        """Tell how much memory may be taken, or what `execution.memory_limit` pretends."""
        return machine.free_bytes(self.device, self.settings.execution.memory_limit)

    def model(self, stage: str) -> ModelFolder:
        """Find the folder of a stage's model. Raises CheckpointError."""
        return self.library.locate(*self.asked(stage))

    def fetch_models(self, stages: Iterable[str]) -> None:
        """Fetch the models of these stages that are not here. Raises CheckpointError, DownloadError, StorageError."""
        self.library.fetch([self.asked(stage) for stage in stages])

    def asked(self, stage: str) -> tuple[str | None, str]:
        """Tell which model a stage asks for, and of which part."""
        name = flatten(self.settings)[plan.MODEL_KEYS[stage]]
        assert name is None or isinstance(name, str)
        if stage == "stage1" and name is None:
            name = models.choose_stage1("en", self.request.song.reference is not None)
        if stage in ("reference", "audio"):
            return name, "codec"
        form = self.form(stage)
        return (name if form == "published" else models.in_form(name or models.DEFAULTS[stage], form)), stage

    def form(self, stage: str) -> str:
        """Tell in which form the weights of a language model are wanted: as published, or smaller."""
        execution = self.settings.execution
        form = {"stage1": execution.stage1_weights, "stage2": execution.stage2_weights}[stage]
        return self.forms.get(stage, "published") if form == "auto" else form

    def describe(self, stage: str, model: ModelFolder) -> engines.ModelFacts:
        """Read the sizes of a stage's language model without loading it.

        Raises CheckpointError; EngineError where its engine cannot be used here.
        """
        execution = self.settings.execution
        name = engines.choose(execution.engine, model.path)
        return engines.describe(model.path, dtype=self.dtype, engine=name, cache=execution.cache(stage))

    def company(self, stage: str) -> tuple[Any, ...]:
        """Tell what songs must share so that a stage can be made for them together."""
        name, part = self.asked(stage)
        shared = {"stage1": ("rules", "stage1."), "stage2": ("stage2.",)}.get(stage, ())
        flat = flatten(self.settings)
        values = {key: value for key, value in flat.items() if key.startswith(("execution.", *shared))}
        values.pop(f"{stage}.model", None)
        return name or models.DEFAULTS[part], tuple(values.items())

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Do what may fail for this song while others go on: a YueError is noted within, not raised."""
        try:
            yield
        except YueError as error:
            self.failure = error

    @contextmanager
    def engine(
        self, stage: str, model: ModelFolder, *, rows: int, length: int, rehearse: Rehearse | None = None
    ) -> Iterator[Engine]:
        """Open an engine for a stage and give its memory back afterwards.

        rehearse: what the stage begins with, see `engines.open_engine`. Raises CheckpointError, EngineError.
        """
        began = time.perf_counter()
        execution = self.settings.execution
        opened = engines.open_engine(
            execution.engine,
            model.path,
            rows=rows,
            length=length,
            device=self.device,
            dtype=self.dtype,
            cache=execution.cache(stage),
            mode=execution.mode,
            capability=execution.compute_capability,
            emit=self.emit,
            rehearse=rehearse,
        )
        took = time.perf_counter() - began
        self.detail(TITLES[stage], f"{model.name} on {self.device} in {took:.1f} s · {opened.memory / 1e9:.2f} GB")
        if opened.falls_back:
            self.note(stage, f"steps: {opened.how}")
        else:
            self.detail(TITLES[stage], f"steps: {opened.how}")
        try:
            with machine.threads_for(self.describe(stage, model).parameter_bytes):
                yield opened
            if opened.cost:
                self.detail(TITLES[stage], opened.cost)
        finally:
            opened.close()
            del opened
            self.free_memory()

    def free_memory(self) -> None:
        """Give back what a model took, so that the next one fits."""
        machine.free_memory(self.device)

    def storable(self, stage: str, vocal: np.ndarray, instrumental: np.ndarray, remedy: str) -> Tokens:
        """Turn a stage's codes into tokens. Those that cannot be stored are kept raw and refused: ArtifactError."""
        tracks = dict(zip(TRACKS, (vocal, instrumental), strict=True))
        if not vocal.size:
            raise ArtifactError(f"{TITLES[stage]} made no music: every segment ended at once. Try another --seed.")
        try:
            return Tokens(*(storable(codes, f"{stage}/{track}.npy", remedy) for track, codes in tracks.items()))
        except ArtifactError as error:
            raw = self.project.keep_raw(stage, tracks)
            raise ArtifactError(f"{error} The raw arrays are in {raw}.") from error

    def finish_tokens(self, stage: str, tokens: Tokens, **facts: Any) -> None:
        """Write both tracks, then the manifest. `facts` are the manifest's."""
        folder = self.project.folder(stage)
        write_tokens(folder, tokens)
        self.finish(stage, [f"{track}.npy" for track in TRACKS], music_s=tokens.seconds, **facts)

    def finish(
        self,
        stage: str,
        files: Sequence[str],
        *,
        model: ModelFolder,
        inputs: Mapping[str, str],
        music_s: float,
        seconds: float,
        rows: int | None = None,
        texts: Mapping[str, str] | None = None,
        truncated: Sequence[int] = (),
    ) -> None:
        """Write a stage's manifest, which completes it."""
        engine: dict[str, Any] = {"device": str(self.device), "dtype": str(self.dtype).removeprefix("torch.")}
        if stage in ("stage1", "stage2"):
            facts = self.describe(stage, model)
            engine |= {"name": facts.engine, "rows": str(rows), "deterministic": facts.deterministic}
            engine["cache"] = self.settings.execution.cache(stage)
            engine |= {"dtype": facts.dtype} if facts.dtype else {}
        manifest = Manifest(
            stage=stage,
            recipe=plan.recipe(self.request, stage),
            inputs=inputs,
            files=describe_files(self.project.folder(stage), files),
            music_s=music_s,
            seconds=round(seconds, 3),
            texts=texts or {},
            seed=self.request.song.seed,
            settings=flatten(self.settings),
            model={"name": model.name, "revision": model.revision}
            | ({"format": model.format} if model.format is not None else {})
            | ({"about": tiny.ABOUT} if model.name == tiny.NAME else {}),
            engine=engine,
            truncated=tuple(truncated),
            versions=machine.versions(),
        )
        self.project.finish(stage, manifest)

    def remedy(self, stage: str) -> str:
        """Say how the tokens of a stage are made, or made anew."""
        anew = " --force" if self.project.holds(stage) else ""
        command = "encode" if stage == "reference" else stage
        return f"`yue {command} {self.project.root}{anew}` makes it{' anew' if anew else ''}."

    def note(self, stage: str, text: str) -> None:
        """Tell one line about a stage."""
        self.emit(Note(TITLES[stage], f"{self.label} · {text}" if self.label else text))


def companies(songs: Sequence[tuple[Workbench, Sequence[str]]]) -> list[list[int]]:
    """Put songs together, by number, that share all that matters to the stages that each has to make."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, (bench, stages) in enumerate(songs):
        key = (tuple(stages), *(bench.company(stage) for stage in stages))
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def check_vocabulary(ids: np.ndarray, vocabulary_size: int, model: ModelFolder) -> None:
    """Refuse a model that does not know the ids that tokenizer and vocabulary make. Raises CheckpointError."""
    highest = int(ids.max())
    if highest >= vocabulary_size:
        raise CheckpointError(
            f"{model.path}: tokenizer and vocabulary make ids up to {highest}, the model knows {vocabulary_size}; "
            "they do not belong together."
        )
