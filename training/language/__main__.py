"""Train a language model: `python -m training.language stage1 --codes FOLDER --codec FOLDER --run FOLDER`.

The same command goes on where it was stopped. RUN/checkpoint holds both stages as the product reads them, written at
the end of every command.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from training.language import codes as coded
from training.language.export import STAGES, write_model
from training.language.presets import PRESETS, Preset
from training.language.rows import CodedSong, Noise
from training.language.students import Filler, LanguageStudent, Singer
from training.language.text import BrokenTokenizer, learn
from training.loop import train
from xcodec_mini_infer import checkpoint
from yue_cli.tokenizer import TOKENIZER_FILE, Tokenizer
from yue_cli.vocab import Vocabulary

LOOKED_AT = 16  # held-out songs that are measured during training
NEIGHBOURS = 8  # codes that one may be mistaken for
# Stage 2 will be given stage 1's codes, which err in runs, and reads its own answers.
GIVEN_MISTAKES, LONGEST_MISTAKE, OWN_MISTAKES = 0.06, 4, 0.05


def main(
    stage: Annotated[str, typer.Argument(help="stage1 or stage2.")],
    codes: Annotated[Path, typer.Option(help="Folder that training.language.codes made.")] = Path("codes"),
    codec: Annotated[Path, typer.Option(help="Folder of the codec that made the codes.")] = Path("codec"),
    run: Annotated[Path, typer.Option(help="Folder of states, logs and the checkpoint.")] = Path("run"),
    preset: Annotated[str, typer.Option(help="cpu or gpu: sizes and recipe.")] = "cpu",
    minutes: Annotated[float, typer.Option(help="Stop after so long; the same command goes on.")] = float("inf"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 1,
) -> None:
    """Train one stage and write its checkpoint."""
    if stage not in STAGES or preset not in PRESETS:
        raise typer.BadParameter(f"{stage} {preset}: expected {' or '.join(STAGES)} and {' or '.join(PRESETS)}.")
    torch.manual_seed(seed)
    songs, held_out = coded.load(codes, "train"), coded.load(codes, "held-out")[:LOOKED_AT]
    text = run / "text"
    if not (text / TOKENIZER_FILE).is_file():
        learn([f"[Genre] {song.genre}\n" + "\n".join(s.prompt_text for s in song.sections) for song in songs], text)
    student = make_student(stage, PRESETS[preset], text, songs, held_out, nearest_codes(codec), bf16, seed).to(device)
    recipe = PRESETS[preset].singing if stage == "stage1" else PRESETS[preset].filling
    reached = train(student, recipe, run / stage, minutes)
    write_model(run / "checkpoint" / stage, stage, student.model, text)
    typer.echo(f"{stage}: step {reached}; {run / 'checkpoint' / stage}", err=True)


def make_student(
    stage: str,
    preset: Preset,
    text: Path,
    songs: list[CodedSong],
    held_out: list[CodedSong],
    neighbours: np.ndarray,
    bf16: bool,
    seed: int,
) -> LanguageStudent:
    """Make a stage's model, fresh, and what it learns from. text: the folder of tokenizer and vocabulary."""
    vocabulary = Vocabulary.read(text)
    if stage == "stage1":
        return Singer(
            preset.singer,
            vocabulary,
            Tokenizer(text / TOKENIZER_FILE, vocabulary),
            BrokenTokenizer(text / TOKENIZER_FILE, vocabulary),
            songs,
            held_out,
            Noise(neighbours),
            preset.singing.batch,
            seed=seed,
            bf16=bf16,
        )
    noise = Noise(neighbours, replaced=GIVEN_MISTAKES, longest=LONGEST_MISTAKE)
    return Filler(
        preset.filler, vocabulary, songs, held_out, noise, OWN_MISTAKES, preset.filling.batch, seed=seed, bf16=bf16
    )


def nearest_codes(codec: Path) -> np.ndarray:
    """Find, for each code of codebook 0, those whose vectors are nearest: int64 [size, NEIGHBOURS]."""
    table = checkpoint.load_codec(codec).quantizer.codebooks[0].detach().double()
    distances = torch.cdist(table, table).fill_diagonal_(torch.inf)
    return distances.topk(NEIGHBOURS, largest=False).indices.numpy()


if __name__ == "__main__":
    typer.run(main)
