"""What `run`, `encode`, `stage1`, `stage2`, `decode` and `demo` share: from flags to a song."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import platformdirs

from yue_cli import audio_prompt, models, plan, presets, song
from yue_cli.audio_prompt import AudioPrompt
from yue_cli.commands import dry_run
from yue_cli.commands.console import Console, answer, answer_json, clock, counted, duration, gigabytes
from yue_cli.commands.texts import read_genre, read_lyrics
from yue_cli.errors import LyricsError, SettingsError, StorageError, YueError
from yue_cli.events import Warned
from yue_cli.lyrics import parse_genre, read_text
from yue_cli.project import STAGES, Project
from yue_cli.resources import expanded
from yue_cli.settings import Flat, Layer, Settings, Value, combine, flatten, parse_assignments, resolve
from yue_cli.song import SONG_FILE, Song


@dataclass(frozen=True)
class Request:
    """The flags of one command line. A flag that was not given is None and says nothing."""

    folder: Path | None
    flags: Mapping[str, Value]
    stages: tuple[str, ...] = STAGES
    genre: str | None = None
    lyrics: str | None = None
    preset: str | None = None
    assignments: list[str] = field(default_factory=list)
    reference: Mapping[str, Any] = field(default_factory=dict)  # flags by the fields of an AudioPrompt
    no_reference: bool = False
    from_segment: int | None = None
    force: bool = False
    dry_run: bool = False
    offline: bool = False
    language: str | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def given(self) -> Flat:
        """The settings of this command line, flags over `--set`."""
        given = parse_assignments(self.assignments) | {
            key: value for key, value in self.flags.items() if value is not None
        }
        if self.language is not None:
            if self.language not in models.LANGUAGES:
                raise SettingsError(f"--language {self.language}: expected one of {', '.join(models.LANGUAGES)}.")
            if "stage1.model" in given:
                raise SettingsError("--language chooses the stage-1 model, which is named already; give one of both.")
        for key in plan.MODEL_KEYS.values():
            name = given.get(key)
            if isinstance(name, str) and ("/" in name or "\\" in name) and not _is_hub_id(name):
                # An absolute path, so that the song can be taken up again from another folder.
                given[key] = str(expanded(name).resolve())
        return given

    @property
    def values(self) -> Flat:
        """The settings that are for the whole song."""
        given = self.given
        if self.from_segment is not None:
            given.pop("seed", None)  # it is for the segments to be sung anew
        return given

    @property
    def new_seed(self) -> int | None:
        """The seed that was given for what is redone. Raises SettingsError."""
        settings, _ = combine([Layer("command line", self.given)])
        return settings.seed


def _is_hub_id(name: str) -> bool:
    """Tell `owner/model` from a folder: what is there is a folder."""
    return models.find_source(name) is not None and not expanded(name).exists()


def reference(
    audio: str | None, vocal: str | None, instrumental: str | None, start: float | None, end: float | None, crop: bool
) -> dict[str, Any]:
    """Collect the flags about reference audio; --crop can only be given, not denied."""
    flags = {"audio": audio, "vocal": vocal, "instrumental": instrumental, "start": start, "end": end}
    return {name: value for name, value in flags.items() if value is not None} | ({"crop": True} if crop else {})


def home() -> Path:
    """Tell where the converted codec and the toy are kept: `YUE_HOME`, or the user's cache folder."""
    return Path(os.environ.get("YUE_HOME") or platformdirs.user_cache_path("yue"))


def fulfil(request: Request) -> None:
    """Do what the command line asks, print the answer. Raises YueError."""
    console = Console(-1 if request.quiet else int(request.verbose))
    preset = presets.find(request.preset) if request.preset else None
    lyrics, lyrics_name = read_lyrics(request.lyrics) if request.lyrics is not None else (None, "lyrics.txt")
    genre = read_genre(request.genre) if request.genre is not None else None
    new_seed = request.new_seed
    if request.no_reference and request.reference:
        given = next(iter(request.reference))
        raise SettingsError(f"--no-reference drops the reference audio, --{given} is about it; give one of both.")

    def settle(project: Project) -> tuple[Song, Settings, dict[str, str]]:
        before = read_song(project)
        if lyrics is not None:
            before = replace(before, lyrics=lyrics)
        if genre is not None:
            before = replace(before, genre=genre)
        followed = None if request.no_reference else audio_prompt.combine(before.reference, request.reference)
        before = replace(before, reference=followed)
        values = request.values
        if request.language is not None:
            values["stage1.model"] = models.choose_stage1(request.language, before.reference is not None)
        return song.settle(before, preset, values)

    def read(project: Project) -> tuple[plan.Request, dict[str, str]]:
        asked, settings, sources = settle(project)
        wanted = plan.read_request(asked, resolve(settings), lyrics_name)
        if "stage1" in request.stages:
            _need_texts(project, wanted)
        if "reference" in request.stages and wanted.song.reference is None:
            raise SettingsError(f"{project.root} has no reference audio yet: give {audio_prompt.FLAGS}.")
        if request.reference and wanted.song.reference is not None:
            audio_prompt.check_files(wanted.song.reference)
        return wanted, sources

    project = Project(request.folder or _choose_folder(settle))
    begins = request.stages in (STAGES, ("reference",)) or request.lyrics
    if not begins and not project.root.is_dir():
        raise StorageError(f"{project.root}: there is no such folder. `yue run {project.root}` makes a song there.")
    # Every mistake in words and settings is found before the folder is made or locked.
    wanted, sources = read(project)
    stored = presets.find(wanted.song.preset) if wanted.song.preset else None
    for shown in [stored, preset] if preset != stored else [preset]:
        if shown is not None:
            console.line("preset", f"{shown.name} · {shown.description}" if shown.description else shown.name)
    if "stage1" in request.stages:
        _tell_lyrics(console, wanted, lyrics_name)
        _tell_misfits(console, wanted)
    for key, value in flatten(wanted.settings).items():
        if key in sources:
            console.detail("setting", f"{key} = {value} · {sources[key]}")
    if request.dry_run:
        if request.force:
            wanted = replace(wanted, song=replace(wanted.song, forced=request.stages))
        dry_run.tell(console, project, wanted, request.stages, home(), as_json=request.json)
        return
    project.create()
    with project.locked():
        wanted, _ = read(project)  # again: another process may have changed the folder until now
        from yue_cli.pipeline import Pipeline, Workbench  # loads torch

        with console.watching():
            pipeline = Pipeline(Workbench(project, wanted, home(), console.emit, console.detail, request.offline))
            result = pipeline.run(request.stages, request.force, request.from_segment, new_seed)
    for remark in result.remarks:
        console.line("note", remark)
    took = " · nothing to do"
    if result.made:
        took = f" in {duration(result.seconds)} ({result.seconds / result.music_s:.1f} × its length)"
        took += f" · peak memory {_peak(result.peak_memory)}"
    console.line("done", f"{clock(result.music_s)} of music{took} · seed {result.seed}")
    if request.json:
        answer_json(result.as_json(console.warnings))
    else:
        answer(str(result.answer))


def read_song(project: Project) -> Song:
    """Read what a folder holds of a request, its texts checked. Raises LyricsError, ArtifactError, SettingsError."""
    found = song.read_song(project.root) if project.root.is_dir() else Song()
    genre = _stored(project, "genre")
    reference, codes = found.reference, project.hashes("reference")
    if reference is None and codes:
        reference = AudioPrompt()  # whatever they were made from
    elif reference is not None and not reference.sources and not codes:
        reference = None
    return replace(
        found,
        lyrics=_stored(project, "lyrics"),
        genre=None if genre is None else parse_genre(genre),
        reference=reference,
    )


def _stored(project: Project, name: str) -> str | None:
    path = project.root / f"{name}.txt"
    return read_text(path.read_bytes(), str(path)) if path.is_file() else None


def _choose_folder(settle: Callable[[Project], tuple[Song, Settings, dict[str, str]]]) -> Path:
    """Take up the unfinished song-NNN here with the same texts and settings, else the next free number."""
    numbered = sorted(Path().glob("song-[0-9][0-9][0-9]*"))
    for path in numbered:
        if not (path / SONG_FILE).is_file() or (path / "audio" / "manifest.json").exists():
            continue
        project = Project(path)
        try:
            if settle(project)[0] == read_song(project):
                return path
        except YueError:  # another song that cannot be read is not the one that is wanted
            continue
    taken = [int(path.name[5:]) for path in numbered if path.name[5:].isdigit()]
    return Path(f"song-{max(taken, default=0) + 1:03d}")


def _need_texts(project: Project, wanted: plan.Request) -> None:
    """Refuse to sing without words or genre, unless the tokens are there already."""
    if any((project.folder(stage) / "vocal.npy").exists() for stage in ("stage1", "stage2")):
        return
    for name, text in (("lyrics", wanted.song.lyrics), ("genre", wanted.song.genre)):
        if text is None:
            raise LyricsError(f"{project.root} has no {name}.txt yet: give --{name}.")


def _tell_lyrics(console: Console, wanted: plan.Request, name: str) -> None:
    if wanted.lyrics is None:
        return
    sections = wanted.lyrics.sections[: wanted.segments]
    words, seconds = sum(section.words for section in sections), sum(section.seconds for section in sections)
    total = len(wanted.lyrics.sections)
    shown = counted(total, "section") if len(sections) == total else f"{len(sections)} of {counted(total, 'section')}"
    console.line("lyrics", f"{name} · {shown} · {counted(words, 'word')} · about {duration(seconds)}")
    for warning in wanted.lyrics.warnings_about(wanted.segments):
        console.emit(Warned(warning.text))


def _tell_misfits(console: Console, wanted: plan.Request) -> None:
    """Warn of a stage-1 model that was made for another language, or to follow a reference, or not to."""
    if wanted.lyrics is not None:
        has_reference = wanted.song.reference is not None
        name = wanted.settings.stage1.model or models.choose_stage1("en", has_reference)
        texts = [section.text for section in wanted.lyrics.sections[: wanted.segments]]
        for remark in models.remarks(name, texts, has_reference):
            console.emit(Warned(remark))


def _peak(peak: tuple[int, int]) -> str:
    main, gpu = peak
    return f"{gigabytes(gpu)} GPU, {gigabytes(main)} RAM" if gpu else gigabytes(main)
