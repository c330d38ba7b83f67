"""From shares of single songs to figures with intervals, as JSON and as a table."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from training.language.measure_hearing import Hearing, Shares
from training.language.measure_prompts import Prompt

RESAMPLED = 1000


def share(hits: Sequence[tuple[float, float]]) -> dict[str, float]:
    """All hits of all songs over all that could be, with an interval of 95 %: songs drawn again and again."""
    pairs = np.array(hits, np.float64)
    drawn = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLED, len(pairs)))
    sums = pairs[drawn].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / np.maximum(sums[:, 1], 1e-9), [0.025, 0.975])
    total = pairs.sum(axis=0)
    values = {"share": total[0] / max(total[1], 1e-9), "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in values.items()} | {"songs": len(pairs), "of": int(total[1])}


def combine(songs: Sequence[Shares]) -> dict[str, dict[str, float]]:
    """Figures of several songs, by measure."""
    names = list(dict.fromkeys(name for shares in songs for name in shares))
    return {name: share([shares[name] for shares in songs if name in shares]) for name in names}


def confusion(hearings: Sequence[Hearing], prompts: Sequence[Prompt]) -> dict[str, dict[str, dict[str, int]]]:
    """What was heard, by kind and by what was asked for."""
    tables: dict[str, dict[str, dict[str, int]]] = {}
    for kind in prompts[0].truth:
        pairs = Counter((p.truth[kind], h.names[kind]) for p, h in zip(prompts, hearings, strict=True))
        asked = sorted({wanted for wanted, _ in pairs}, key=lambda name: (len(name), name))
        tables[kind] = {name: {heard: n for (wanted, heard), n in pairs.items() if wanted == name} for name in asked}
    return tables


def table(columns: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A table in Markdown: measures down, kinds of takes across."""
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    lines = ["| measure | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = [_cell(figures[name]) if name in figures else "–" for figures in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def confusion_table(kind: str, rows: Mapping[str, Mapping[str, int]]) -> str:
    """A table in Markdown: asked for down, heard across."""
    heard = sorted({name for row in rows.values() for name in row} | set(rows), key=lambda name: (len(name), name))
    lines = [f"| {kind}: asked \\ heard | " + " | ".join(heard) + " |", "|---" * (len(heard) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(str(row.get(h, "")) for h in heard) + " |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def _cell(figure: Mapping[str, float]) -> str:
    return f"{figure['share']:.1%} ({figure['low']:.0%}–{figure['high']:.0%})"
