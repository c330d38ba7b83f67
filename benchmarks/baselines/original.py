"""How long the loops of YuE's infer.py take: transformers' `generate`, driven as that program drives it.

    pip install -e '.[bench]'
    python -m benchmarks.baselines.original [--stage stage1] [--device cuda] [--layers 32] [--contexts 1000 4000 7000]

The sizes are the published ones, the weights random, which takes the same time. Stage 1: guidance as `generate`
does it, a second forward with a cache of its own. Stage 2: for every frame the whole window is read again, then seven
tokens are generated; in batches of four windows, that program's default.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from yue_cli.machine import choose_device, choose_dtype
from yue_cli.models import SIZES
from yue_cli.vocab import CODEBOOKS, WINDOW_FRAMES, Vocabulary

VOCABULARY = Vocabulary()
FINE = CODEBOOKS - 1
PLACES = (0, WINDOW_FRAMES // 2, WINDOW_FRAMES - 1)  # frames of a window that are filled before the one that is timed
BATCH = 4  # windows of stage 2 that go together
LAST_CODEC_ID = 83_734  # one past it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=["stage1", "stage2", "all"], default="all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1000, 4000, 7000])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--batch", type=int, default=BATCH)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    dtype = choose_dtype("auto", device)
    for stage in ["stage1", "stage2"] if arguments.stage == "all" else [arguments.stage]:
        model = build(SIZES[stage] | {"num_hidden_layers": arguments.layers}, device, dtype)
        if stage == "stage1":
            sing(model, random_codes((1, 16), device), 8)  # the first run of anything takes longer
            for context in arguments.contexts:
                taken = seconds_a_token(model, context, arguments.tokens)
                print(f"stage 1 after {context}: {1000 * taken:.2f} ms a token", flush=True)
        else:
            seconds_a_frame(model, BATCH, 0)
            times = [seconds_a_frame(model, arguments.windows, frame, arguments.batch) for frame in PLACES]
            mean = sum(times) / len(times)
            shown = ", ".join(f"{taken:.3f}" for taken in times)
            print(f"stage 2, {arguments.windows} windows: {shown} s a frame at start, middle, end of a window")
            print(f"  {mean * WINDOW_FRAMES:.0f} s for {WINDOW_FRAMES} frames (computed)", flush=True)
        del model


class Blocked(LogitsProcessor):
    """Forbid a range of ids, held as a list as that program holds it."""

    def __init__(self, start: int, stop: int) -> None:
        self.ids = list(range(start, stop))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self.ids] = -torch.inf
        return scores


def build(sizes: dict[str, Any], device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """Make a model with random weights; `sizes` is what a config.json holds."""
    config = LlamaConfig(**sizes, bos_token_id=1, eos_token_id=2)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


@torch.inference_mode()
def sing(model: LlamaForCausalLM, prompt: Tensor, tokens: int) -> Tensor:
    """Generate exactly so many tokens of stage 1 with guidance. prompt: int64 [1, n]."""
    end = VOCABULARY.end_of_audio
    return model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=True,
        top_k=50,
        top_p=0.93,
        temperature=1.0,
        repetition_penalty=1.1,
        guidance_scale=1.5,
        eos_token_id=end,
        pad_token_id=end,
        logits_processor=LogitsProcessorList([Blocked(0, end), Blocked(32016, 32016)]),
    )


@torch.inference_mode()
def fill_frame(model: LlamaForCausalLM, ids: Tensor, given: Tensor) -> Tensor:
    """Add one frame of stage 2 to windows: int64 [R, n], its known ids [R, 1] → [R, n + 8]."""
    ids = torch.cat([ids, given], dim=1)
    before, after = VOCABULARY.codebook(1).start, VOCABULARY.codebook(CODEBOOKS).start
    end = VOCABULARY.end_of_audio
    return model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=FINE,
        max_new_tokens=FINE,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
        logits_processor=LogitsProcessorList([Blocked(0, before), Blocked(after, LAST_CODEC_ID)]),
    )


def seconds_a_token(model: LlamaForCausalLM, context: int, tokens: int, repeats: int = 1) -> float:
    """Time stage 1 after a prompt of `context` ids; the prompt's own time is taken off."""
    prompt = random_codes((1, context), model.device)
    short = min(seconds_taken(lambda: sing(model, prompt, 1), model.device) for _ in range(repeats))
    long = min(seconds_taken(lambda: sing(model, prompt, 1 + tokens), model.device) for _ in range(repeats))
    return (long - short) / tokens


def seconds_a_frame(model: LlamaForCausalLM, windows: int, frame: int, batch: int = BATCH, repeats: int = 1) -> float:
    """Time one frame of so many windows of which `frame` frames are filled."""
    given = random_codes((windows, WINDOW_FRAMES), model.device)
    opening = given.new_tensor([VOCABULARY.start_of_audio, VOCABULARY.stage_1]).expand(windows, 2)
    closing = given.new_full((windows, 1), VOCABULARY.stage_2)
    filled = random_codes((windows, CODEBOOKS * frame), model.device)
    ids = torch.cat([opening, given, closing, filled], dim=1)

    def work() -> None:
        for first in range(0, windows, batch):
            rows = slice(first, first + batch)
            fill_frame(model, ids[rows], given[rows, frame : frame + 1])

    return min(seconds_taken(work, model.device) for _ in range(repeats))


def random_codes(shape: tuple[int, ...], device: torch.device) -> Tensor:
    coarse = VOCABULARY.codebook(0)
    return torch.randint(coarse.start, coarse.stop, shape, device=device)


def seconds_taken(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
