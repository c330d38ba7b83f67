"""`yue plan`: what `yue run` would do, and what it needs."""

from yue_cli.commands import options
from yue_cli.commands.fulfil import fulfil
from yue_cli.commands.request import Request, reference


def plan(
    folders: options.OptionalFolders = None,
    genre: options.Genre = None,
    lyrics: options.LyricsSource = None,
    takes: options.Takes = None,
    segments: options.Segments = None,
    seed: options.Seed = None,
    preset: options.PresetName = None,
    assignments: options.Assignments = None,
    audio: options.Audio = None,
    vocal: options.Vocal = None,
    instrumental: options.Instrumental = None,
    start: options.Start = None,
    end: options.End = None,
    crop: options.Crop = False,
    no_reference: options.NoReference = False,
    format: options.Format = None,
    force: options.Force = False,
    language: options.Language = None,
    offline: options.Offline = False,
    device: options.Device = None,
    engine: options.EngineName = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Say what `yue run` would make and why, and the memory, disk and download that it needs."""
    fulfil(
        Request(
            folders=folders or [],
            takes=takes,
            genre=genre,
            lyrics=lyrics,
            preset=preset,
            assignments=assignments or [],
            reference=reference(audio, vocal, instrumental, start, end, crop),
            no_reference=no_reference,
            flags={
                "segments": segments,
                "seed": seed,
                "decode.format": format,
                "execution.device": device,
                "execution.engine": engine,
            },
            force=force,
            language=language,
            offline=offline,
            dry_run=True,
            json=json,
            quiet=quiet,
            verbose=verbose,
        )
    )
