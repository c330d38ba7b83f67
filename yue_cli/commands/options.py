"""The arguments and flags that commands share, each with one plain sentence of help."""

from pathlib import Path
from typing import Annotated

import typer

from yue_cli.commands import completion

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The song's folder.")]
OptionalFolder = Annotated[
    Path | None,
    typer.Argument(metavar="[FOLDER]", show_default=False, help="The song's folder; without one, a song-NNN here."),
]
Folders = Annotated[
    list[Path], typer.Argument(metavar="FOLDER...", help="The song's folder; several songs are made together.")
]
OptionalFolders = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[FOLDER]...",
        show_default=False,
        help="The song's folder; without one, a song-NNN here. Several that hold their texts are made together.",
    ),
]
Takes = Annotated[
    int | None,
    typer.Option(
        "--takes",
        metavar="N",
        min=1,
        max=999,
        help="Make N takes at once, in FOLDER/takes, each with a seed of its own.",
    ),
]
Genre = Annotated[
    str | None,
    typer.Option("--genre", metavar="FILE_OR_TEXT", help="Genre, instruments, mood, gender and timbre of the song."),
]
LyricsSource = Annotated[
    str | None, typer.Option("--lyrics", metavar="FILE_OR_-", help="A file with the lyrics; - reads standard input.")
]
Segments = Annotated[
    int | None, typer.Option("--segments", metavar="N", help="Sing only the first N sections of the lyrics.")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Number to draw from; drawn if not given.")]
PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME_OR_FILE",
        help="Settings by name (yue presets) or a YAML file.",
        autocompletion=completion.presets,
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One setting, such as stage1.temperature=0.9; may be repeated.",
        autocompletion=completion.assignments,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="M",
        help="This stage's model: a name (yue models), hub id or folder.",
        autocompletion=completion.stage_models,
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Fetch nothing: use only models that are on this machine.")]
Language = Annotated[
    str | None,
    typer.Option(
        "--language",
        metavar="NAME",
        help="Language of the lyrics, to choose the model: en, zh or jp-kr.",
        autocompletion=completion.languages,
    ),
]
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="NAME", help="wav, flac, ogg or mp3.", autocompletion=completion.formats),
]
Force = Annotated[bool, typer.Option("--force", help="Make anew what is current; the old is kept in history/.")]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.", autocompletion=completion.devices),
]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine", metavar="NAME", help="auto or the name of an engine.", autocompletion=completion.engine_names
    ),
]
Audio = Annotated[
    str | None,
    typer.Option("--audio", metavar="FILE", help="Sound that the song is to follow: wav, flac, ogg, opus or mp3."),
]
Vocal = Annotated[
    str | None,
    typer.Option(
        "--vocal", metavar="FILE", help="Instead of --audio, the voice alone; audio-separator splits a mix in two."
    ),
]
Instrumental = Annotated[
    str | None, typer.Option("--instrumental", metavar="FILE", help="The band alone, to be given with --vocal.")
]
Start = Annotated[
    float | None, typer.Option("--start", metavar="S", help="Follow the sound from this second on; the first is 0.")
]
End = Annotated[
    float | None, typer.Option("--end", metavar="S", help="Follow it up to this second; if not given, for 30 s.")
]
Crop = Annotated[
    bool, typer.Option("--crop", help="Encode these seconds alone, which gives other codes than the whole sound.")
]
NoReference = Annotated[
    bool, typer.Option("--no-reference", help="Follow no sound any more; the codes of the old are kept in history/.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="Also print timings, memory and where settings come from.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and stop.")]
FromSegment = Annotated[
    int | None,
    typer.Option("--from-segment", metavar="K", help="Keep the segments before K as they are and sing the rest anew."),
]
