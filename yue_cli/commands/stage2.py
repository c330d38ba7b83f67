"""`yue stage2`: coarse codes to all codes."""

from yue_cli.commands import options
from yue_cli.commands.fulfil import fulfil
from yue_cli.commands.request import Request


def stage2(
    folders: options.Folders,
    preset: options.PresetName = None,
    assignments: options.Assignments = None,
    model: options.Model = None,
    force: options.Force = False,
    offline: options.Offline = False,
    device: options.Device = None,
    engine: options.EngineName = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Fill in the fine tokens for FOLDER/stage1: FOLDER/stage2."""
    fulfil(
        Request(
            stages=("stage2",),
            folders=folders,
            preset=preset,
            assignments=assignments or [],
            flags={"stage2.model": model, "execution.device": device, "execution.engine": engine},
            force=force,
            offline=offline,
            json=json,
            quiet=quiet,
            verbose=verbose,
        )
    )
