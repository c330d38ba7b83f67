"""Train a language model: `python -m training.language stage1 --codes FOLDER --codec FOLDER --run FOLDER`.

The same command goes on where it was stopped. RUN/checkpoint holds both stages as the product reads them, written at
the end of every command. Songs may still be made while a stage learns from those that are there.
"""

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from training.corpus.compose import compose, is_held_out
from training.language.export import STAGES, read_weights, write_model
from training.language.lessons import FillingLessons, SingingLessons
from training.language.presets import PRESETS, Preset
from training.language.rows import CURRICULUM_STEPS, Noise
from training.language.songs import CodedSong, Shelf
from training.language.students import Filler, LanguageStudent, Singer
from training.language.text import learn
from training.loop import has_state, train
from xcodec_mini_infer import checkpoint
from yue_cli.tokenizer import TOKENIZER_FILE

LOOKED_AT = 16  # held-out songs that are measured during training
TEXTS = 600  # songs from which the tokenizer learns
NEIGHBOURS = 8  # codes that one may be mistaken for
# Stage 2 will be given stage 1's codes, which err in runs, and reads its own answers.
GIVEN_MISTAKES, LONGEST_MISTAKE, OWN_MISTAKES = 0.06, 4, 0.05


def main(
    stage: Annotated[str, typer.Argument(help="text, stage1 or stage2; a stage makes the text part if it must.")],
    codes: Annotated[Path, typer.Option(help="Folder that training.language.codes made, or makes.")] = Path("codes"),
    codec: Annotated[Path, typer.Option(help="Folder of the codec that made the codes.")] = Path("codec"),
    run: Annotated[Path, typer.Option(help="Folder of states, logs and the checkpoint.")] = Path("run"),
    preset: Annotated[str, typer.Option(help="cpu or gpu: sizes and recipe.")] = "cpu",
    minutes: Annotated[float, typer.Option(help="Stop after so long; the same command goes on.")] = float("inf"),
    within: Annotated[float, typer.Option(help="Minutes in all, after which rates have fallen.")] = float("inf"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 1,
    processes: Annotated[int, typer.Option(help="Processes that draw batches; 0 draws them in between.")] = 0,
    enough: Annotated[float, typer.Option(help="Begin when there are so many hours of songs.")] = 1.0,
    begin: Annotated[
        Path | None, typer.Option(help="Folder of an earlier checkpoint of the stage, to start at.")
    ] = None,
) -> None:
    """Train one stage and write its checkpoint."""
    if stage not in ("text", *STAGES) or preset not in PRESETS:
        raise typer.BadParameter(f"{stage} {preset}: expected {' or '.join(STAGES)} and {' or '.join(PRESETS)}.")
    began = time.monotonic()
    torch.manual_seed(seed)
    text = run / "text" if begin is None else begin
    if not (text / TOKENIZER_FILE).is_file():
        learn(corpus_texts(TEXTS), text)
    if stage == "text":
        return
    Shelf(codes, "train", books=1).wait(enough)
    held_out = Shelf(codes, "held-out").wait(0)[:LOOKED_AT]
    student = make_student(
        stage,
        PRESETS[preset],
        text,
        codes,
        held_out,
        nearest_codes(codec),
        bf16=bf16,
        seed=seed,
        processes=processes,
        begun=CURRICULUM_STEPS if begin is not None else 0,
    )
    if begin is not None and not has_state(run / stage):
        student.model.load_state_dict(read_weights(begin))
    student.to(device)
    recipe = PRESETS[preset].singing if stage == "stage1" else PRESETS[preset].filling
    waited = (time.monotonic() - began) / 60
    reached = train(student, recipe, run / stage, minutes - waited, within=within - waited)
    write_model(run / "checkpoint" / stage, stage, student.model, text, torch.float16)
    typer.echo(f"{stage}: step {reached}; {run / 'checkpoint' / stage}", err=True)


def corpus_texts(count: int) -> list[str]:
    """Write down what the first songs that are not held out say."""
    songs = [compose(seed) for seed in range(count) if not is_held_out(seed)]
    return [f"[Genre] {song.genre}\n{song.lyrics}" for song in songs]


def make_student(
    stage: str,
    preset: Preset,
    text: Path,
    codes: Path,
    held_out: list[CodedSong],
    neighbours: np.ndarray,
    *,
    bf16: bool,
    seed: int,
    processes: int = 0,
    begun: int = 0,
) -> LanguageStudent:
    """Make a stage's model, fresh, and what it learns from.

    text: the folder of tokenizer and vocabulary. begun: steps that an earlier run took.
    """
    if stage == "stage1":
        noise = Noise(neighbours)
        lessons = SingingLessons(codes, text, noise, preset.singing.batch, preset.singer.length, seed, begun)
        return Singer(preset.singer, lessons, held_out, bf16=bf16, processes=processes)
    noise = Noise(neighbours, replaced=GIVEN_MISTAKES, longest=LONGEST_MISTAKE)
    filling = FillingLessons(codes, text, noise, preset.filling.batch, preset.filler.length, seed, OWN_MISTAKES)
    return Filler(preset.filler, filling, held_out, bf16=bf16, processes=processes)


def nearest_codes(codec: Path) -> np.ndarray:
    """Find, for each code of codebook 0, those whose vectors are nearest: int64 [size, NEIGHBOURS]."""
    table = checkpoint.load_codec(codec).quantizer.codebooks[0].detach().double()
    distances = torch.cdist(table, table).fill_diagonal_(torch.inf)
    return distances.topk(NEIGHBOURS, largest=False).indices.numpy()


if __name__ == "__main__":
    typer.run(main)
