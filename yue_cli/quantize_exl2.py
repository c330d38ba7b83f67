"""The making of an EXL2 copy of a model, fitted to the tokens of songs.

exllamav2's converter does the work (`engines/exl2/conversion.py`); this file knows folders, songs and records.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yue_cli import calibration, engines, hub, machine, quantize, replay
from yue_cli.artifacts import sha256_array
from yue_cli.calibration import Singer
from yue_cli.errors import ArtifactError, Interrupted, SettingsError, StorageError
from yue_cli.events import Warned
from yue_cli.quantize import EXL2, Original
from yue_cli.replay import Row
from yue_cli.weights import ModelFolder

_FEW_ROWS = 16


def check(output: Path | None) -> None:
    """Refuse a request that lacks what this format needs. Raises SettingsError."""
    if output is None:
        raise SettingsError(f"--format {EXL2}: say with -o FOLDER where the copy is to lie.")


def make(singer: Singer, songs: Sequence[Path], *, bits: float, head_bits: int | None) -> bool:
    """Convert a model into its copy's folder, going on with what an interrupted run left.

    songs: finished ones that the model sang, to whose tokens the weights are fitted; none: it sings some. Returns
    whether there was work. Raises YueError, Interrupted.
    """
    original, folder, emit = singer.original, singer.copy, singer.emit
    chosen = {"format": EXL2, "bits": bits, "head_bits": head_bits or engines.converter(EXL2).HEAD_BITS}
    if not songs:
        key = quantize.key_of(original, {"settings": chosen, "sung": singer.recipe})
        if quantize.is_finished(folder, key, emit):
            return False
        _check_room(original, folder, chosen, calibration.MOST_ROWS[singer.stage])
        rows = _read(singer, singer.sing())
        named = f"{calibration.SONGS[singer.stage]} of the example texts, sung by the original"
    else:
        rows, named = _read(singer, songs), ", ".join(song.name for song in songs)
    settings = {**chosen, "rows": len(rows), "length": rows.shape[1], "songs": named}
    if songs:
        key = quantize.key_of(original, {"settings": settings, "rows": sha256_array(rows)})
        if quantize.is_finished(folder, key, emit):
            return False
    _check_room(original, folder, chosen, len(rows))
    if len(rows) < _FEW_ROWS:
        emit(Warned(f"{len(rows)} rows of {rows.shape[1]} tokens are few to fit weights to; give more songs"))
    with quantize.built(folder) as building:
        began = time.perf_counter()
        work = building / "work"
        for other in (*building.glob("model*.safetensors"), building / quantize.PROGRESS_FILE):  # of another format
            other.unlink(missing_ok=True)
        try:
            engines.converter(EXL2).convert(
                original.path, building, work, rows, bits=bits, head_bits=chosen["head_bits"], emit=emit
            )
        except KeyboardInterrupt as error:
            raise Interrupted(f"what was done is kept in {work}. The same command goes on.") from error
        files = {path.name: quantize.facts_of(path) for path in sorted(building.glob("*.safetensors"))}
        device = machine.device_name(machine.choose_device("cuda"))
        quantize.write_record(building, original, settings, key, files, device, time.perf_counter() - began)
    return True


def _read(singer: Singer, songs: Sequence[Path]) -> np.ndarray:
    """Read the tokens of songs as rows to fit weights to."""
    model = ModelFolder(singer.original.name, singer.original.path)
    return cut(replay.read_rows(singer.stage, songs, model, singer.home, singer.emit))


def cut(rows: Sequence[Row]) -> np.ndarray:
    """Cut what songs are made of into pieces of one length: int64 [n, length], as many as help.

    Of each row the first piece begins half a piece before what was chosen, or earlier; an end that fills no piece is
    left out. Raises ArtifactError where there is too little for one.
    """
    converter, pieces = engines.converter(EXL2), list[np.ndarray]()
    length = converter.LENGTH
    for row in rows:
        begin = max(0, min(row.start + 1 - length // 2, len(row.ids) - length))
        pieces += [row.ids[place : place + length] for place in range(begin, len(row.ids) - length + 1, length)]
    if not pieces:
        longest = max((len(row.ids) for row in rows), default=0)
        raise ArtifactError(
            f"the songs to calibrate on are too short: expected rows of {length} tokens, the longest has {longest}. "
            "Name longer songs."
        )
    if len(pieces) > converter.MOST_ROWS:
        chosen = np.linspace(0, len(pieces) - 1, converter.MOST_ROWS).round().astype(int)
        pieces = [pieces[index] for index in chosen]
    return np.stack(pieces).astype(np.int64)


def _check_room(original: Original, folder: Path, chosen: Mapping[str, Any], rows: int) -> None:
    """Refuse where the disk has no room. Raises StorageError."""
    bits, head_bits = chosen["bits"], chosen["head_bits"]
    needed = engines.converter(EXL2).disk_bytes(original.path, bits=bits, head_bits=head_bits, rows=rows)
    free = hub.free_bytes(folder.parent)
    if free < needed:
        raise StorageError(
            f"no space left on {folder.parent}: needed {needed / 1e9:.1f} GB while it is made, free "
            f"{free / 1e9:.1f} GB. Free some space, or name a folder on another disk with -o."
        )
