"""Songs that a model sings itself, of the example texts: what a copy is fitted to and measured on where none are named.

They lie beside the copy until it is finished, so that an interrupted run goes on with what was sung.
"""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yue_cli import plan, song
from yue_cli.artifacts import sha256_json
from yue_cli.events import Emit, Note
from yue_cli.lyrics import parse_genre, read_text
from yue_cli.pipeline import Pipeline
from yue_cli.project import Project
from yue_cli.quantize import TOPIC, Original
from yue_cli.resources import resource
from yue_cli.settings import Flat, resolve
from yue_cli.workbench import Workbench

# Of two segments each. In stage 1 a segment gives one row of 2,048 tokens, in stage 2 every 6 s of a track do.
SONGS = {"stage1": 8, "stage2": 1}
MOST_ROWS = {"stage1": 16, "stage2": 20}
SETTINGS: Flat = {"stage1.min_new_tokens": 2000}  # 20 s a segment, so that each fills a row


@dataclass(frozen=True)
class Singer:
    """A model that is to be quantized, and where it sings. home: where other models are kept."""

    original: Original
    stage: str
    copy: Path  # the folder that the songs are for
    device: str
    home: Path
    offline: bool
    emit: Emit

    @property
    def recipe(self) -> Mapping[str, Any]:
        """All that decides the songs, the model and the machine apart."""
        texts = sha256_json([_text("lyrics"), _text("genre")])
        return {"texts": texts, "songs": SONGS[self.stage], "settings": dict(SETTINGS)}

    @property
    def place(self) -> Path:
        return self.copy.parent / f".{self.copy.name}.songs"

    def sing(self) -> list[Path]:
        """Make the songs, as far as they are not there. Returns their folders. Raises YueError, Interrupted."""
        count = SONGS[self.stage]
        self.emit(Note(TOPIC, f"no songs are named: {self.original.name} sings the example texts, {count} times"))
        folders = [self.place / f"song-{number}" for number in range(1, count + 1)]
        with ExitStack() as locks:
            for folder in folders:
                project = Project(folder)
                project.create()
                locks.enter_context(project.locked())
            benches = [self._bench(number, folder) for number, folder in enumerate(folders, 1)]
            Pipeline(benches).run(("stage1",) if self.stage == "stage1" else ("stage1", "stage2"))
        for bench in benches:
            if bench.failure is not None:
                raise bench.failure
        return folders

    def forget(self) -> None:
        """Remove the songs."""
        shutil.rmtree(self.place, ignore_errors=True)

    def _bench(self, number: int, folder: Path) -> Workbench:
        asked = replace(song.read_song(folder), lyrics=_text("lyrics"), genre=parse_genre(_text("genre")))
        flags = SETTINGS | {
            "seed": number,
            f"{self.stage}.model": str(self.original.path),
            "execution.device": self.device,
        }
        asked, settings, _ = song.settle(asked, None, flags)
        wanted = plan.read_request(asked, resolve(settings))
        return Workbench(
            Project(folder), wanted, self.home, self.emit, lambda topic, text: None, self.offline, f"song {number}"
        )


def _text(name: str) -> str:
    path = resource(f"prompt_egs/{name}.txt")
    return read_text(path.read_bytes(), str(path))
