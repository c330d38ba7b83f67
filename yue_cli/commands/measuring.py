"""What `eval` and `quantize` share: two models compared on songs, as facts and in words."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yue_cli.events import Emit
    from yue_cli.weights import Library


def measure(
    library: "Library",
    stage: str,
    model: str,
    against: str,
    folders: list[Path],
    limit: int | None,
    device: str | None,
    emit: "Emit",
    cache: str = "auto",
) -> dict[str, Any]:
    """Compare two models on one stage of some songs. Raises YueError."""
    from yue_cli import machine, replay

    library.fetch([(name, stage) for name in (model, against)])
    ours, theirs = (library.locate(name, stage) for name in (model, against))
    chosen = machine.choose_device(device or "auto")
    rows = replay.read_rows(stage, folders, theirs, library.home, emit, limit)
    dtype = machine.choose_dtype("auto", chosen)
    found = replay.compare_models(rows, ours, theirs, engine="auto", device=chosen, dtype=dtype, emit=emit, cache=cache)
    return {
        "stage": stage,
        "tokens": found.tokens,
        "kl_allowed": found.kl_allowed,
        "kl": found.kl,
        "agreement": found.agreement,
        "perplexity": found.perplexity,
        "perplexity_against": found.perplexity_reference,
        "device": str(chosen),
        "dtype": str(dtype).removeprefix("torch."),
        "cache": cache,
    }


def describe(row: dict[str, Any]) -> str:
    """Say in one line what was measured of a stage."""
    cache = "" if row["cache"] == "auto" else f"cache {row['cache']} · "
    return (
        f"{row['stage']}  {row['tokens']:,} tokens · {cache}"
        f"KL {row['kl_allowed']:.2e} over the ids that may be picked, {row['kl']:.2e} over all · "
        f"same first choice {100 * row['agreement']:.2f} % · "
        f"perplexity {row['perplexity']:.4g}, of the other {row['perplexity_against']:.4g}"
    )
