"""From what was learned to a checkpoint folder of the product."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.language.model import LanguageModel
from yue_cli.tokenizer import TOKENIZER_FILE
from yue_cli.vocab import CODEBOOKS, VOCABULARY_FILE, Vocabulary

STAGES = ("stage1", "stage2")


def write_model(folder: Path, stage: str, model: LanguageModel, text: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json, the weights and the text files of one stage.

    text: the folder of tokenizer.model and vocabulary.json.
    """
    vocabulary = Vocabulary.read(text)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (TOKENIZER_FILE, VOCABULARY_FILE):
        shutil.copyfile(text / name, folder / name)
    tensors = {name: tensor.detach().float().cpu().clone() for name, tensor in model.state_dict().items()}
    embedding, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    read, answered = _used(stage, vocabulary, len(embedding))
    # Rows that nothing reads or answers hold noise; made equal they take no room in an archive. The head's become
    # their mean instead of zero, so that they keep about their share of a softmax over all ids.
    embedding[~read] = 0
    head[~answered] = head[~answered].mean(dim=0)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    config = model.size.config(len(embedding)) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read what `write_model` wrote, float32; rows that nothing reads or answers are as they were written."""
    return {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}


def _used(stage: str, vocabulary: Vocabulary, rows: int) -> tuple[Tensor, Tensor]:
    """Mark the ids that a stage reads and those that it answers: bool [rows] each."""
    read, answered = torch.zeros(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.bool)
    books = [vocabulary.codebook(book) for book in range(CODEBOOKS)]
    if stage == "stage1":
        read[: books[0].stop] = True
        answered[vocabulary.end_of_audio] = True
        answered[books[0].start : books[0].stop] = True
    else:
        read[[vocabulary.start_of_audio, vocabulary.stage_1, vocabulary.stage_2]] = True
        read[books[0].start : books[-1].stop] = True
        answered[books[1].start : books[-1].stop] = True
    return read, answered
