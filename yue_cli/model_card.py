"""The card of a quantized model: what it is, of what it was made, how far it is from it. Words only."""

from collections.abc import Mapping
from typing import Any

from yue_cli.models import CATALOGUE

_TITLES = {"stage1": "stage 1", "stage2": "stage 2"}


def write(record: Mapping[str, Any]) -> str:
    """Write the README.md of a quantized folder from its record."""
    repository, revision, format = record["repository"], record["revision"], record["format"]
    is_of_hub, engine = revision is not None, "exl2" if format == "exl2" else "native"
    head = ["---", "library_name: yue"]
    head += ["license: apache-2.0"] if repository in {model.repository for model in CATALOGUE.values()} else []
    head += [f"base_model: {repository}", "base_model_relation: quantized"] if is_of_hub else []
    source = f"[{repository}](https://huggingface.co/{repository}) at `{revision}`" if is_of_hub else f"`{repository}`"
    total = sum(facts["bytes"] for facts in record["files"].values())
    lines = [
        *head,
        "---",
        "",
        f"# {repository.rpartition('/')[2]} in {format}",
        "",
        f"Weights of {source}, quantized by `yue` for its {engine} engine: {total / 1e9:.2f} GB. Activations, norms "
        "and the embedding are not quantized.",
        "",
        f"    yue run my-song --set {record['part'] or 'stage1'}.model=FOLDER",
        "",
        "## Settings",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in {**record["settings"], **record["made"]}.items()),
        "",
        "## Quality",
        "",
        *_quality(record["quality"]),
        "",
        "## Files",
        "",
        "| file | bytes | SHA-256 |",
        "|---|---|---|",
        *(_row(name, facts) for name, facts in record["files"].items()),
        *(_row(f"original: {name}", facts) for name, facts in record["sources"].items()),
        "",
    ]
    return "\n".join(lines)


def _quality(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["Not measured. `yue eval --model THIS --against ORIGINAL SONG…` compares both on finished songs."]
    return [
        "Both models read the tokens of the same songs; at each position their next-token distributions are compared.",
        "",
        "| stage | tokens | KL, allowed ids | KL, all ids | same first choice | perplexity | of the original |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {_TITLES[row['stage']]} | {row['tokens']} | {row['kl_allowed']:.2e} | {row['kl']:.2e} | "
            f"{100 * row['agreement']:.2f} % | {row['perplexity']:.4g} | {row['perplexity_against']:.4g} |"
            for row in rows
        ),
    ]


def _row(name: str, facts: Mapping[str, Any]) -> str:
    return f"| {name} | {facts['bytes']} | `{facts['sha256']}` |"
