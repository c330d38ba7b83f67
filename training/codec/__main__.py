"""Train the codec and its vocoders: `python -m training.codec STEP --corpus FOLDER --run FOLDER`.

The steps, in this order: semantic, autoencoder, decoder, vocal, instrumental. Each goes on where it was stopped, and
`export` writes what is there as a checkpoint folder of the product at any time: RUN/checkpoint. `all` does everything
`--within` so many minutes, and measures.
"""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from training.codec import runs, whole
from training.codec.presets import PRESETS, CropRun
from training.loop import train


class Step(StrEnum):
    semantic = "semantic"
    autoencoder = "autoencoder"
    decoder = "decoder"
    vocal = "vocal"
    instrumental = "instrumental"
    export = "export"
    all = "all"


def main(
    step: Step,
    corpus: Annotated[Path, typer.Option(help="Folder that training.corpus made.")] = Path("corpus"),
    run: Annotated[Path, typer.Option(help="Folder of all states, logs and the checkpoint.")] = Path("run"),
    preset: Annotated[str, typer.Option(help="cpu or gpu: sizes and recipe.")] = "cpu",
    steps: Annotated[int, typer.Option(help="Train up to this step instead of the preset's; 0 leaves it.")] = 0,
    minutes: Annotated[float, typer.Option(help="Stop after so long; the same command goes on.")] = float("inf"),
    within: Annotated[
        float, typer.Option(help="Minutes for the whole step, or for all: rates fall by the clock.")
    ] = float("inf"),
    fine_hours: Annotated[float, typer.Option(help="Of the corpus, for what comes after the codes.")] = float("inf"),
    hours: Annotated[float, typer.Option(help="Of the corpus, read at the first step.")] = float("inf"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    bf16: Annotated[bool, typer.Option(help="Networks in bfloat16, losses and codebooks in float32.")] = False,
    fuse: Annotated[bool, typer.Option(help="Compile the Snakes: a fifth faster, needs a C++ compiler.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 1,
) -> None:
    """Train one model, or export all."""
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = True  # codebooks and all encoding stay in full float32
    workplace = runs.Workplace(corpus, run, PRESETS[preset], torch.device(device), seed, bf16, fuse, hours, fine_hours)
    if step == Step.all:
        whole.train_all(workplace, preset, within, steps)
        return
    if step == Step.export:
        typer.echo(workplace.export())
        return
    student = workplace.student(step.value)
    recipe: CropRun = getattr(workplace.preset, step.value)
    reached = train(student, replace(recipe, steps=steps or recipe.steps), run / step.value, minutes, within=within)
    typer.echo(f"{step.value}: step {reached}", err=True)


if __name__ == "__main__":
    typer.run(main)
