"""`yue demo`: `yue run` with the demo preset and the example texts."""

from yue_cli.commands import options
from yue_cli.commands.fulfil import fulfil
from yue_cli.commands.request import Request
from yue_cli.resources import resource


def demo(
    folder: options.OptionalFolder = None,
    seed: options.Seed = None,
    assignments: options.Assignments = None,
    format: options.Format = None,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Make a short song from the example texts with a toy model: no download, no GPU."""
    fulfil(
        Request(
            folders=[] if folder is None else [folder],
            genre=str(resource("prompt_egs/genre.txt")),
            lyrics=str(resource("prompt_egs/lyrics.txt")),
            preset="demo",
            assignments=assignments or [],
            flags={"seed": seed, "decode.format": format},
            force=force,
            json=json,
            quiet=quiet,
            verbose=verbose,
        )
    )
