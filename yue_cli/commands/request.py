"""What `run`, `encode`, `stage1`, `stage2`, `decode` and `demo` are asked: flags, and what lies in folders."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import platformdirs

from yue_cli import audio_prompt, models, plan, presets, song, takes
from yue_cli.artifacts import TRACKS
from yue_cli.audio_prompt import AudioPrompt
from yue_cli.commands.texts import read_genre, read_lyrics
from yue_cli.errors import LyricsError, SettingsError, StorageError, YueError
from yue_cli.lyrics import parse_genre, read_text
from yue_cli.project import STAGES, Project
from yue_cli.resources import expanded
from yue_cli.settings import (
    Flat,
    Layer,
    Settings,
    Value,
    combine,
    is_execution,
    parse_assignments,
    resolve,
)
from yue_cli.song import SONG_FILE, Song


@dataclass(frozen=True)
class Request:
    """The flags of one command line. A flag that was not given is None and says nothing."""

    folders: Sequence[Path]  # none: one is chosen
    flags: Mapping[str, Value]
    stages: tuple[str, ...] = STAGES
    genre: str | None = None
    lyrics: str | None = None
    preset: str | None = None
    assignments: list[str] = field(default_factory=list)
    reference: Mapping[str, Any] = field(default_factory=dict)  # flags by the fields of an AudioPrompt
    no_reference: bool = False
    fine: bool = False  # all codebooks of the reference, as stage 2
    takes: int | None = None  # how many takes are made of each song; None: the song itself
    from_segment: int | None = None
    force: bool = False
    dry_run: bool = False
    offline: bool = False
    language: str | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def several(self) -> bool:
        """Tell whether the answer is one of several songs."""
        return len(self.folders) > 1 or self.takes is not None

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


@dataclass(frozen=True)
class Asked:
    """One song of a command line."""

    project: Project
    wanted: plan.Request
    sources: Mapping[str, str]  # where its settings come from
    label: str = ""  # what it is called where there are several
    origin: Project | None = None  # the song that it is a take of


class Reader:
    """From the flags and what lies in folders to the songs that are wanted."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.preset = presets.find(request.preset) if request.preset else None
        self.lyrics, self.lyrics_name = None, "lyrics.txt"
        if request.lyrics is not None:
            self.lyrics, self.lyrics_name = read_lyrics(request.lyrics)
        self.genre = read_genre(request.genre) if request.genre is not None else None
        self.new_seed = request.new_seed
        self._seeds: dict[Path, int] = {}  # drawn by this command line, for reading twice gives the same
        if len(request.folders) > 1:
            self._check_flags()
        if request.no_reference and request.reference:
            given = next(iter(request.reference))
            raise SettingsError(f"--no-reference drops the reference audio, --{given} is about it; give one of both.")

    def folders(self) -> list[Path]:
        """List the folders that are named, or choose one. Raises StorageError, SettingsError."""
        request = self.request
        folders = list(request.folders) or [_choose_folder(self.settle, request.takes)]
        begins = request.stages in (STAGES, ("reference",)) or request.lyrics
        for folder in folders:
            if (not begins or len(folders) > 1) and not folder.is_dir():
                raise StorageError(f"{folder}: there is no such folder. `yue run {folder}` makes a song there.")
        places = [folder.resolve() for folder in folders]
        twice = next(
            (str(folder) for folder, place in zip(folders, places, strict=True) if places.count(place) > 1), ""
        )
        if twice:
            raise SettingsError(f"{twice} is named twice; name every song once.")
        return folders

    def read(self, folders: Sequence[Path]) -> list[Asked]:
        """Read what is wanted of every song. Raises YueError."""
        songs = []
        for folder in folders:
            song_asked = self._read_song(Project(folder), str(folder) if len(folders) > 1 else "")
            songs += [song_asked] if self.request.takes is None else self._takes(song_asked)
        return songs

    def projects(self, folders: Sequence[Path]) -> list[Project]:
        """List all folders that will be written: those of songs, and of their takes."""
        numbers = range(1, (self.request.takes or 0) + 1)
        return [Project(place) for folder in folders for place in (folder, *(takes.folder(folder, n) for n in numbers))]

    def store(self, folders: Sequence[Path]) -> None:
        """Keep what takes are made from, and give them the codes that it holds. Songs alone store themselves."""
        if self.request.takes is None:
            return
        for folder in folders:
            project = Project(folder)
            asked = self._read_song(project, "").wanted.song
            song.write_song(folder, asked)
            if asked.reference is None:
                project.archive("reference")
                continue
            for number in range(1, self.request.takes + 1):
                takes.bring_reference(project, Project(takes.folder(folder, number)))

    def new_seeds(self, songs: Sequence[Asked]) -> list[int | None]:
        """Name the seeds for what is redone by --force or --from-segment; None is drawn."""
        return [self.new_seed if each.origin is None else each.wanted.song.seed for each in songs]

    def settle(self, project: Project) -> tuple[Song, Settings, dict[str, str]]:
        """Put the flags over what a folder holds."""
        request, before = self.request, read_song(project)
        if self.lyrics is not None:
            before = replace(before, lyrics=self.lyrics)
        if self.genre is not None:
            before = replace(before, genre=self.genre)
        followed = None if request.no_reference else audio_prompt.combine(before.reference, request.reference)
        before = replace(before, reference=followed)
        values = request.values
        if request.language is not None:
            values["stage1.model"] = models.choose_stage1(request.language, before.reference is not None)
        asked, settings, sources = song.settle(before, self.preset, values)
        if asked.seed is not None and before.seed is None:
            seed = self._seeds.setdefault(project.root, asked.seed)
            asked, settings = replace(asked, seed=seed), replace(settings, seed=seed)
        return asked, settings, sources

    def _read_song(self, project: Project, label: str) -> Asked:
        request = self.request
        asked, settings, sources = self.settle(project)
        if request.takes is not None and request.force and not self._goes_on(project.root):
            seed = self._seeds.setdefault(
                project.root / takes.FOLDER, song.draw_seed() if self.new_seed is None else self.new_seed
            )
            asked, settings = replace(asked, seed=seed), replace(settings, seed=seed)
        wanted = plan.read_request(asked, resolve(settings), self._name(project))
        if "stage1" in request.stages:
            _need_texts(project, wanted, request.takes is not None)
        if "reference" in request.stages and wanted.song.reference is None:
            raise SettingsError(f"{project.root} has no reference audio yet: give {audio_prompt.FLAGS}.")
        if request.fine and set(wanted.song.reference.sources if wanted.song.reference else ()) != set(TRACKS):
            raise SettingsError("--fine copies voice and band: give --vocal FILE and --instrumental FILE.")
        if request.reference and wanted.song.reference is not None:
            audio_prompt.check_files(wanted.song.reference)
        return Asked(project, wanted, sources, label)

    def _takes(self, of: Asked) -> list[Asked]:
        """Read what is wanted of every take of a song."""
        codes = of.project.hashes("reference")
        execution = {key: value for key, value in self.request.values.items() if is_execution(key)}
        found = []
        for number in range(1, (self.request.takes or 0) + 1):
            project = Project(takes.folder(of.project.root, number))
            asked = takes.derive(of.wanted.song, number, read_song(project), codes)
            passing = self.preset if self.preset is not None and self.preset.is_execution else None
            asked, settings, _ = song.settle(asked, passing, execution)
            wanted = plan.read_request(asked, resolve(settings), self._name(of.project))
            label = f"{of.label} take {number}".strip()
            found.append(Asked(project, wanted, of.sources, label, of.project))
        return found

    def _goes_on(self, root: Path) -> bool:
        """Tell whether a forced run of takes was stopped before its end."""
        return any(read_song(Project(folder)).forced for folder in takes.find(root))

    def _name(self, project: Project) -> str:
        return f"{project.root}/lyrics.txt" if len(self.request.folders) > 1 else self.lyrics_name

    def _check_flags(self) -> None:
        """Refuse flags that are for one song where several are named."""
        request = self.request
        given = {"--lyrics": request.lyrics, "--genre": request.genre, "reference audio": request.reference or None}
        for flag, value in given.items():
            if value is not None:
                raise SettingsError(f"{flag} is for one song; of several, every folder holds its own. Name one folder.")


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


def _choose_folder(settle: Callable[[Project], tuple[Song, Settings, dict[str, str]]], count: int | None) -> Path:
    """Take up the unfinished song-NNN here with the same texts and settings, else the next free number.

    count: of takes that are wanted; None: the song itself.
    """
    numbered = sorted(Path().glob("song-[0-9][0-9][0-9]*"))
    for path in numbered:
        ends = [path] if count is None else [takes.folder(path, number) for number in range(1, count + 1)]
        is_finished = all((end / "audio" / "manifest.json").exists() for end in ends)
        if not (path / SONG_FILE).is_file() or is_finished or (count is None) == bool(takes.find(path)):
            continue
        project = Project(path)
        try:
            if settle(project)[0] == read_song(project):
                return path
        except YueError:  # another song that cannot be read is not the one that is wanted
            continue
    taken = [int(path.name[5:]) for path in numbered if path.name[5:].isdigit()]
    return Path(f"song-{max(taken, default=0) + 1:03d}")


def _need_texts(project: Project, wanted: plan.Request, anew: bool) -> None:
    """Refuse to sing without words or genre, unless the tokens are there already and nothing is sung anew."""
    if not anew and any((project.folder(stage) / "vocal.npy").exists() for stage in ("stage1", "stage2")):
        return
    for name, text in (("lyrics", wanted.song.lyrics), ("genre", wanted.song.genre)):
        if text is None:
            raise LyricsError(f"{project.root} has no {name}.txt yet: give --{name}.")
