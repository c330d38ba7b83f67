"""Tokens of the programs that yue follows: which songs a folder of theirs holds, and taking one into a project.

YuE infer.py writes `stage1/<long name>_vtrack.npy` and `..._itrack.npy`, YuE-exllamav2 `stage1/vtrack.npy` and
`itrack.npy`; both uint32, and `stage2/` alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yue_cli.artifacts import TRACKS, Tokens, encode_array, encode_json, read_array, read_tokens, storable
from yue_cli.errors import ArtifactError
from yue_cli.project import ORIGIN_FILE, ORIGIN_FORMAT, ORIGIN_VERSION, Project
from yue_cli.vocab import CODEBOOKS

TRACK_FILES = {"vocal": "vtrack.npy", "instrumental": "itrack.npy"}
_ROWS = {"stage1": 1, "stage2": CODEBOOKS}
_LISTED = 6  # songs that an error names
_REMEDY = "it was not written by YuE or YuE-exllamav2."


@dataclass(frozen=True)
class ForeignSong:
    """The token files of one song: folder → track → file. A killed run may have left one track of two."""

    name: str  # what stands before `_vtrack.npy`, else `vtrack`
    folders: Mapping[Path, Mapping[str, Path]]


@dataclass(frozen=True)
class ForeignStage:
    """Checked tokens of one stage and the files they came from."""

    stage: str
    tokens: Tokens
    files: Mapping[str, Path]  # track → file


def find_songs(source: Path) -> list[ForeignSong]:
    """List the songs in a tree with `stage1/` and `stage2/`, or in a folder that holds token files itself.

    Raises ArtifactError where there is none.
    """
    if not source.is_dir():
        what = "is a file" if source.exists() else "there is no such folder"
        raise ArtifactError(f"{source}: {what}; expected the output folder of YuE or of YuE-exllamav2.")
    inner = [source / stage for stage in _ROWS if (source / stage).is_dir()]
    songs: dict[str, dict[Path, dict[str, Path]]] = {}
    for folder in inner or [source]:
        for track, ending in TRACK_FILES.items():
            for path in sorted(folder.glob(f"*{ending}")):
                name = path.name.removesuffix(ending).rstrip("_") or "vtrack"
                songs.setdefault(name, {}).setdefault(folder, {})[track] = path
    if not songs:
        looked = " and ".join(f"{folder.name}/" for folder in inner) if inner else "it"
        raise ArtifactError(
            f"{source}: no token files in {looked}; expected vtrack.npy and itrack.npy, or names that end so, in "
            "stage1/ and stage2/."
        )
    return [ForeignSong(name, songs[name]) for name in sorted(songs)]


def choose(songs: Sequence[ForeignSong], part: str | None, source: Path) -> ForeignSong:
    """Pick the only song, or the one whose name holds `part`. Raises ArtifactError where that is not one song."""
    wanted = "" if part is None else part.casefold()
    found = [song for song in songs if wanted == song.name.casefold()] or [
        song for song in songs if wanted in song.name.casefold()
    ]
    if len(found) == 1:
        return found[0]
    listed = found or songs
    names = ", ".join(song.name for song in listed[:_LISTED])
    if len(listed) > _LISTED:
        names += f" and {len(listed) - _LISTED} more"
    if found:
        having = f" with `{part}` in their names" if part else ""
        raise ArtifactError(f"{source}: holds {len(found)} songs{having}; choose one by --name PART: {names}.")
    raise ArtifactError(f"{source}: no song has `{part}` in its name; there is {names}.")


def read_song(song: ForeignSong) -> tuple[list[ForeignStage], list[str]]:
    """Read the stages of a song that have both tracks, and say which were left out.

    Raises ArtifactError for a file that holds no codes, for unequal tracks, and where no stage is whole.
    """
    stages, warnings = [], []
    for folder, files in song.folders.items():
        missing = [track for track in TRACKS if track not in files]
        if missing:
            there = next(iter(files.values()))
            other = there.name.removesuffix(TRACK_FILES[next(iter(files))]) + TRACK_FILES[missing[0]]
            warnings.append(f"{folder / other} is missing, so {there.name} is left out: both tracks are needed")
        else:
            stages.append(_read_stage(folder, files))
    if not stages:
        raise ArtifactError(f"{warnings[0]}.")
    if len(stages) == 2 and not follows(stages[1].tokens, stages[0].tokens):
        warnings.append("the first codebook of stage 2 is not what stage 1 holds: they may be of two songs")
    return stages, warnings


def follows(fine: Tokens, coarse: Tokens) -> bool:
    """Tell whether stage 2 was made from these tokens of stage 1, which are its first codebook."""
    return all(np.array_equal(getattr(fine, track)[:1], getattr(coarse, track)) for track in TRACKS)


def part_strangers(project: Project, brought: Sequence[ForeignStage]) -> list[str]:
    """Look at the stage that is not brought: a stage 2 of other tokens goes to `history/`. Says what it found."""
    if len(brought) != 1:
        return []
    [found] = brought
    other = "stage2" if found.stage == "stage1" else "stage1"
    try:
        there = read_tokens(project.folder(other), _ROWS[other], "")
    except ArtifactError:
        return []  # not there, or not to be read: nobody will take it for this song's
    if other == "stage1":
        if follows(found.tokens, there):
            return []
        return [f"the stage 1 in {project.root} is of other tokens than this stage 2; it stays"]
    if follows(there, found.tokens):
        return []
    project.archive("stage2")
    return [f"the stage 2 in {project.root} was of other tokens: it is kept in history/"]


def take_in(project: Project, found: ForeignStage) -> bool:
    """Put a stage's tokens into a project, with a word on where they came from; what was there goes to `history/`.

    Returns whether something was there. Raises StorageError.
    """
    replaced = project.holds(found.stage)
    origin = {
        "format": ORIGIN_FORMAT,
        "version": ORIGIN_VERSION,
        "folder": str(found.files["vocal"].parent.resolve()),
        "files": {f"{track}.npy": path.name for track, path in found.files.items()},
    }
    content = {f"{track}.npy": encode_array(getattr(found.tokens, track)) for track in TRACKS}
    project.begin(found.stage, content | {ORIGIN_FILE: encode_json(origin)})
    return replaced


def _read_stage(folder: Path, files: Mapping[str, Path]) -> ForeignStage:
    stage = folder.name
    if stage not in _ROWS:  # a pair in a folder of another name: its rows tell
        rows = np.atleast_1d(read_array(files["vocal"], _REMEDY)).shape[0]
        stage = next((stage for stage, count in _ROWS.items() if count == rows), "")
    tracks = [_read_track(files[track], stage, folder) for track in TRACKS]
    lengths = [track.shape[1] for track in tracks]
    if lengths[0] != lengths[1]:
        raise ArtifactError(
            f"{folder}: the tracks differ in length: {files['vocal'].name} has {lengths[0]} frames, "
            f"{files['instrumental'].name} has {lengths[1]}; they are not of one song."
        )
    return ForeignStage(stage, Tokens(*tracks), files)


def _read_track(path: Path, stage: str, folder: Path) -> np.ndarray:
    array = read_array(path, _REMEDY)
    expected = f"[{_ROWS[stage]}, T]" if stage else f"[1, T] or [{CODEBOOKS}, T]"
    if array.ndim != 2 or array.shape[0] != _ROWS.get(stage) or array.shape[1] == 0:
        raise ArtifactError(f"{path}: expected codes {expected}, found {array.dtype} {list(array.shape)}; {_REMEDY}")
    if stage == "stage2":
        return storable(array, str(path), "bring stage 1 alone, by its folder, and `yue stage2` fills in the rest.")
    return storable(array, str(path), "stage 1 left its codebook, so these are no codes of a song; sing it again.")
