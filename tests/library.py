"""Stages in project folders, made without a model."""

import numpy as np

from yue_cli.artifacts import TRACKS, Manifest, Tokens, describe_files, write_tokens
from yue_cli.project import SEATS_FILE, Project, SegmentRecord, encode_seats
from yue_cli.seats import Seat

RECIPES = {
    "stage1": {"rules": "yue", "seed": "7"},
    "stage2": {"stage2.tail": "overlap"},
    "audio": {"decode.format": "wav"},
}
ROWS = {"stage1": 1, "stage2": 8}


def record(number: int, key: str = "key", value: int = 3, truncated: bool = False) -> SegmentRecord:
    """A segment of stage 1 with ids that tell it from others."""
    ids = np.array([value, number, 514], dtype=np.int32)
    return SegmentRecord(number, ids, key, "verse", seed=7, truncated=truncated)


def tokens(stage: str, value: int = 5, frames: int = 4) -> Tokens:
    codes = np.full((ROWS[stage], frames), value, np.int16)
    return Tokens(codes, codes + np.int16(1))


def make_stage(project: Project, stage: str, value: int = 5, recipe=None, inputs=None) -> None:
    """Make a whole stage as the pipeline does: folder, files, manifest last."""
    folder = project.begin(stage)
    if stage == "audio":
        names = [f"{name}.wav" for name in ("mix", *TRACKS)]
        for name in names:
            (folder / name).write_bytes(b"sound of %d" % value)
    else:
        names = [f"{name}.npy" for name in TRACKS]
        write_tokens(folder, tokens(stage, value))
    if stage == "stage1":
        project.save_segment(record(1, value=value))
    before = {"stage1": None, "stage2": "stage1", "audio": "stage2"}[stage]
    if inputs is None:
        inputs = project.hashes(before) if before else {}
    manifest = Manifest(
        stage=stage,
        recipe=RECIPES[stage] if recipe is None else recipe,
        inputs=inputs,
        files=describe_files(folder, names),
        music_s=0.08,
        seconds=1.0,
        seed=7,
    )
    project.finish(stage, manifest)


def begin_windows(project: Project, key: str = "key", count: int = 20) -> list[Seat]:
    """Begin a stage 2 as the pipeline does, and return its seats."""
    seats = [Seat(4, number % 4) for number in range(count)]
    project.begin("stage2", {SEATS_FILE: encode_seats(seats, key)})
    return seats


def make_song(project: Project, value: int = 5) -> None:
    """Make all three stages."""
    project.create()
    for stage in RECIPES:
        make_stage(project, stage, value)


def state(project: Project, stage: str, **changes):
    """Compare a stage with the recipe it was made by, changed where told."""
    before = {"stage1": None, "stage2": "stage1", "audio": "stage2"}[stage]
    recipe = RECIPES[stage] | {key.replace("__", "."): value for key, value in changes.items()}
    return project.state(stage, recipe, {} if before is None else project.hashes(before))
