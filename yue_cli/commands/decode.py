"""`yue decode`: codes to sound."""

from yue_cli.commands import options
from yue_cli.commands.fulfil import fulfil
from yue_cli.commands.request import Request


def decode(
    folders: options.Folders,
    preset: options.PresetName = None,
    assignments: options.Assignments = None,
    format: options.Format = None,
    model: options.Model = None,
    force: options.Force = False,
    offline: options.Offline = False,
    device: options.Device = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Turn the tokens of FOLDER/stage2 into sound: FOLDER/audio."""
    fulfil(
        Request(
            stages=("audio",),
            folders=folders,
            preset=preset,
            assignments=assignments or [],
            flags={"decode.codec": model, "decode.format": format, "execution.device": device},
            force=force,
            offline=offline,
            json=json,
            quiet=quiet,
            verbose=verbose,
        )
    )
