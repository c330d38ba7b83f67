"""Finished songs read again: their tokens as rows of ids, and two models compared on them (teacher forcing).

Both models see the very tokens that were sung; nothing is drawn.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from yue_cli import copies, engines, machine, models, plan, prompt, singing, song
from yue_cli.artifacts import read_tokens
from yue_cli.comparison import Comparison, compare
from yue_cli.engines.base import Engine
from yue_cli.errors import ArtifactError, CheckpointError, EngineError, SettingsError
from yue_cli.events import Emit, Note, Progress
from yue_cli.lyrics import parse_genre, read_text
from yue_cli.project import Project
from yue_cli.settings import CACHES, resolve
from yue_cli.stages import stage1, stage2
from yue_cli.tokenizer import TOKENIZER_FILE, Tokenizer
from yue_cli.vocab import CODEBOOKS, Vocabulary
from yue_cli.weights import Library, ModelFolder
from yue_cli.workbench import TITLES, Workbench

STAGES = ("stage1", "stage2")
_GIVEN = -1  # the kind of a token that no model chose


@dataclass(frozen=True, eq=False)
class Row:
    """One row of ids that a stage made: what the model was given, then what it chose."""

    ids: np.ndarray  # int64 [n]
    start: int  # the id at this place is the first after which a token was chosen
    kinds: np.ndarray  # int64 [n - 1 - start]: for each later id the place of its choices in `allowed`, or _GIVEN
    allowed: tuple[tuple[range, ...], ...]

    @property
    def chosen(self) -> int:
        return int((self.kinds != _GIVEN).sum())

    def cut(self, limit: int) -> "Row":
        """Leave out what follows after `limit` chosen tokens."""
        places = np.flatnonzero(self.kinds != _GIVEN)[:limit]
        count = int(places[-1]) + 1
        return Row(self.ids[: self.start + 1 + count], self.start, self.kinds[:count], self.allowed)


def stage1_rows(bench: Workbench, model: ModelFolder) -> list[Row]:
    """Read the segments of a song as its rows: prompt, then all ids that were sung. Raises YueError."""
    asked, lyrics = bench.request.song, bench.request.lyrics
    records = bench.project.segments()
    if not records or lyrics is None or asked.genre is None:
        return []
    vocabulary, facts = Vocabulary.read(model.path), bench.describe("stage1", model)
    tokenizer = Tokenizer(model.path / TOKENIZER_FILE, vocabulary)
    settings = bench.settings
    assert settings.stage1.on_overflow is not None, "settings must be resolved"
    audio = singing.read_reference(bench)
    prompts = prompt.build(tokenizer, vocabulary, asked.genre, lyrics.sections, settings.rules, audio)
    limit = prompt.window_limit(min(settings.stage1.context, facts.max_length), settings.stage1.max_new_tokens)
    allowed = (stage1.allowed_ids(settings.rules, vocabulary, facts.vocabulary_size),)
    sung = [record.ids.astype(np.int64) for record in records[: len(prompts.segments)]]
    if any(ids[-1] != vocabulary.end_of_audio for ids in sung):
        raise CheckpointError(
            f"{bench.project.root}: its sections do not end with id {vocabulary.end_of_audio}, {model.name}'s end of "
            "audio. A model with another vocabulary sang them; compare models on songs of their own."
        )
    rows = []
    for index, ids in enumerate(sung):
        window = prompts.window(index, sung, limit, settings.stage1.on_overflow)
        if records[index].truncated:
            ids = ids[:-1]  # its end-of-audio was put there, not chosen
        rows.append(Row(np.concatenate([window, ids]), len(window) - 1, np.zeros(len(ids), np.int64), allowed))
    return rows


def stage2_rows(bench: Workbench, model: ModelFolder) -> list[Row]:
    """Read the windows of a song's two tracks as rows: coarse ids, then eight ids a frame. Raises YueError."""
    folder = bench.project.folder("stage2")
    if not folder.is_dir():
        return []
    tokens, vocabulary = read_tokens(folder, CODEBOOKS, bench.remedy("stage2")), Vocabulary.read(model.path)
    assert bench.settings.stage2.tail is not None, "settings must be resolved"
    allowed = tuple((vocabulary.codebook(index),) for index in range(CODEBOOKS))
    rows = []
    for window in stage2.cut(tokens.frames, bench.settings.stage2.tail):
        codes = (tokens.vocal, tokens.instrumental)[window.track][:, window.start : window.start + window.length]
        ids = vocabulary.codes_to_ids(codes)
        opening = [vocabulary.start_of_audio, vocabulary.stage_1, *ids[::CODEBOOKS], vocabulary.stage_2]
        kinds = np.tile([_GIVEN, *range(1, CODEBOOKS)], window.length)
        # The first given id stands before the first choice.
        rows.append(Row(np.concatenate([opening, ids]).astype(np.int64), len(opening), kinds[1:], allowed))
    return rows


def read_rows(
    stage: str, folders: Sequence[Path], model: ModelFolder, home: Path, emit: Emit, limit: int | None = None
) -> list[Row]:
    """Collect the rows of finished songs, `limit` chosen tokens at the most. Raises YueError.

    model: whose tokenizer and vocabulary are used.
    """
    rows: list[Row] = []
    left = limit
    for folder in folders:
        if not folder.is_dir():
            raise ArtifactError(f"{folder}: there is no such folder; expected a song's.")
        asked, settings, _ = song.settle(_read_song(folder), None, {})
        bench = Workbench(
            Project(folder), plan.try_request(asked, resolve(settings)), home, emit, lambda topic, text: None
        )
        found = stage1_rows(bench, model) if stage == "stage1" else stage2_rows(bench, model)
        if not any(row.chosen for row in found):
            emit(Note(TITLES[stage], f"{folder} holds no tokens of this stage: left out"))
        for row in found:
            if row.chosen and (left is None or left > 0):
                rows.append(row if left is None else row.cut(left))
                left = None if left is None else left - rows[-1].chosen
    if not rows:
        raise ArtifactError(f"no song here holds tokens of {TITLES[stage]}; `yue run FOLDER` makes them.")
    return rows


def _read_song(folder: Path) -> song.Song:
    lyrics, genre = (
        read_text(path.read_bytes(), str(path)) if (path := folder / f"{name}.txt").is_file() else None
        for name in ("lyrics", "genre")
    )
    return replace(song.read_song(folder), lyrics=lyrics, genre=None if genre is None else parse_genre(genre))


def choose_stages(library: Library, names: Sequence[str], asked: str | None) -> list[str]:
    """Tell of which stages models are: what was asked, what their names say, or both for those that hold both.

    Raises SettingsError.
    """
    check_stage(asked)
    if asked is not None:
        return [asked]
    known: set[str] = set()
    for name in names:
        base, _ = copies.split_name(name) or (name, None)
        folder, source = Path(name).expanduser(), models.find_source(base)
        if not folder.is_dir() and isinstance(source, models.Model):
            known.add(source.part)
        elif (folder / copies.RECORD_FILE).is_file() and (part := copies.read_record(folder).get("part")):
            known.add(part)
    if len(known) == 1:
        return list(known)
    if not known and all(_holds_both(library, name) for name in names):
        return list(STAGES)
    raise SettingsError(f"of which stage {' and '.join(names)} are is not clear: give --stage {' or '.join(STAGES)}.")


def check_stage(asked: str | None) -> None:
    """Refuse what is no stage with a language model. Raises SettingsError."""
    if asked is not None and asked not in STAGES:
        raise SettingsError(f"--stage {asked}: expected {' or '.join(STAGES)}.")


def check_cache(asked: str) -> None:
    """Refuse what is no format of keys and values. Raises SettingsError."""
    if asked not in (engines.AUTO, *CACHES):
        raise SettingsError(f"--cache {asked}: expected one of {engines.AUTO}, {', '.join(CACHES)}.")


def _holds_both(library: Library, name: str) -> bool:
    folder = Path(name).expanduser()
    return name in library.makers or all((folder / stage).is_dir() for stage in STAGES)


def compare_models(
    rows: Sequence[Row],
    model: ModelFolder,
    reference: ModelFolder,
    *,
    engine: str,
    device: torch.device,
    dtype: torch.dtype,
    emit: Emit,
    cache: str = engines.AUTO,
) -> Comparison:
    """Let both models read every row and compare them at each token that was chosen.

    cache: format of the model's keys and values; the reference has them as computed. Both are in memory together.
    Raises CheckpointError, EngineError.
    """
    both = ((model, cache), (reference, engines.AUTO))
    facts = [engines.describe(each.path, dtype=dtype, engine=engine, cache=form) for each, form in both]
    sizes = [each.vocabulary_size for each in facts]
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"{model.name} knows {sizes[0]} ids, {reference.name} {sizes[1]}; only copies of one model are compared."
        )
    highest = max(int(row.ids.max()) for row in rows)
    if highest >= sizes[0]:
        raise CheckpointError(
            f"the songs hold ids up to {highest}, {model.name} knows {sizes[0]}; it did not sing them."
        )
    length = max(len(row.ids) for row in rows)
    needed = sum(each.parameter_bytes + each.cache_bytes_per_token * length for each in facts)
    free = machine.free_bytes(device)
    if needed > free:
        raise EngineError(
            f"{model.name} and {reference.name} need {needed / 1e9:.1f} GB of memory together; "
            f"{machine.device_name(device)} has {free / 1e9:.1f} GB free. --device cpu may have more."
        )
    total, done, found = sum(row.chosen for row in rows), 0, Comparison()
    with ExitStack() as stack, machine.threads_for(facts[1].parameter_bytes):
        opened = []
        for each, form in both:
            opened.append(
                engines.open_engine(engine, each.path, rows=1, length=length, device=device, dtype=dtype, cache=form)
            )
            stack.callback(opened[-1].close)
        for row in rows:
            for part in _compare_row(row, opened[0], opened[1]):
                found += part
                done += part.tokens
                emit(Progress("eval", "", done, total, "tokens"))
    return found


def _compare_row(row: Row, model: Engine, reference: Engine) -> Iterator[Comparison]:
    # After the last id nothing was chosen.
    ours, theirs = (each.follow(row.ids[:-1], row.start) for each in (model, reference))
    at = 0
    for left, right in _paired(ours, theirs):
        kinds = row.kinds[at : at + len(left)]
        tokens = torch.from_numpy(row.ids[row.start + 1 + at :][: len(left)])
        for kind in np.unique(kinds[kinds != _GIVEN]):
            places = torch.from_numpy(np.flatnonzero(kinds == kind))
            there = places.to(left.device)
            yield compare(left[there], right[there], tokens[places], row.allowed[kind])
        at += len(left)


def _paired(ours: Iterator[Tensor], theirs: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut two streams of logits so that their pieces cover the same positions."""
    left = right = None
    while True:
        left = next(ours, None) if left is None or not len(left) else left
        right = next(theirs, None) if right is None or not len(right) else right
        if left is None or right is None:
            return
        count = min(len(left), len(right))
        yield left[:count], right[:count]
        left, right = left[count:], right[count:]
