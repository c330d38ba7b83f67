"""`yue stage1`: lyrics to coarse codes."""

from yue_cli.commands import options
from yue_cli.commands.fulfil import fulfil
from yue_cli.commands.request import Request, reference


def stage1(
    folders: options.Folders,
    genre: options.Genre = None,
    lyrics: options.LyricsSource = None,
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
    model: options.Model = None,
    from_segment: options.FromSegment = None,
    force: options.Force = False,
    language: options.Language = None,
    offline: options.Offline = False,
    device: options.Device = None,
    engine: options.EngineName = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Sing the lyrics into coarse tokens: FOLDER/stage1."""
    fulfil(
        Request(
            stages=("stage1",),
            folders=folders,
            genre=genre,
            lyrics=lyrics,
            preset=preset,
            assignments=assignments or [],
            reference=reference(audio, vocal, instrumental, start, end, crop),
            no_reference=no_reference,
            flags={
                "segments": segments,
                "seed": seed,
                "stage1.model": model,
                "execution.device": device,
                "execution.engine": engine,
            },
            from_segment=from_segment,
            force=force,
            language=language,
            offline=offline,
            json=json,
            quiet=quiet,
            verbose=verbose,
        )
    )
