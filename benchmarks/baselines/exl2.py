"""How long the loops of YuE-exllamav2 take on exllamav2, in float16, with random weights of the published sizes.

    pip install -e '.[bench]' exllamav2
    python -m benchmarks.baselines.exl2 [--stage stage1] [--contexts 1000 4000 7000] [--rows 20] [--flash]

Needs a CUDA GPU. Stage 1: one batch of two rows that are fed the same ids, the second with the
prompt masked out and its positions moved, and exllamav2's own sampler on the CPU. Stage 2: windows in a batch, eight
forwards a frame. `--flash` gives exllamav2 the FlashAttention-2 inside PyTorch where the package flash-attn is not
installed; without it, stage 2 attends by a slower way.
"""

import argparse
import importlib.machinery
import json
import random
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from yue_cli.models import SIZES
from yue_cli.vocab import CODEBOOKS, WINDOW_FRAMES, Vocabulary

VOCABULARY = Vocabulary()
LENGTH = 16384  # ids that the cache of stage 1 has room for
TOKENS, WARM_UP = 200, 20
PLACES = (0, WINDOW_FRAMES // 2, WINDOW_FRAMES)  # frames of a window that are filled before some are timed
GUIDANCE, TOP_P, PENALTY = 1.5, 0.93, 1.1
ALLOWED = 11_388  # ids from codebook 0 on that stage 1 may pick, beside end-of-audio
HIDDEN_KEY = -65504.0  # added to the score of a key that must not be seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=["stage1", "stage2", "all"], default="all")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1000, 4000, 7000])
    parser.add_argument("--rows", type=int, default=20, help="windows of stage 2 in a batch")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of stage 1 that are timed")
    parser.add_argument("--frames", type=int, default=WINDOW_FRAMES, help="of stage 2 that are timed")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--flash", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("exllamav2 needs a CUDA GPU, and PyTorch sees none")
    if arguments.flash:
        lend_flash_attention()
    import exllamav2  # compiles its extension when it is imported for the first time

    print(f"{torch.cuda.get_device_name()} · torch {torch.__version__} · exllamav2 {exllamav2.__version__}")
    for stage in ["stage1", "stage2"] if arguments.stage == "all" else [arguments.stage]:
        model = make(stage, arguments.layers)
        if stage == "stage1":
            for context in arguments.contexts:
                taken = seconds_a_token(model, context, arguments.tokens)
                print(f"stage 1 after {context}: {1000 * taken:.2f} ms a token", flush=True)
        else:
            taken = seconds_a_window(model, arguments.rows, arguments.frames) / WINDOW_FRAMES
            print(f"stage 2, {arguments.rows} windows: {1000 * taken:.2f} ms a frame", flush=True)
        model.unload()


def make(stage: str, layers: int) -> Any:
    """Open a model of a stage's published size, but for its layers, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), SIZES[stage] | {"num_hidden_layers": layers})
        return load(folder, no_sdpa=stage == "stage1")


@torch.inference_mode()
def seconds_a_token(model: Any, context: int, tokens: int = TOKENS) -> float:
    """Time stage 1 with guidance after a prompt of `context` ids."""
    from exllamav2 import ExLlamaV2Cache
    from exllamav2.generator import ExLlamaV2Sampler

    cache = ExLlamaV2Cache(model, batch_size=2, max_seq_len=LENGTH)
    size, end, first = model.config.vocab_size, VOCABULARY.end_of_audio, VOCABULARY.codebook_start
    # The published repositories have no tokenizer that exllamav2 reads; its sampler asks for no more than this.
    tokenizer = types.SimpleNamespace(config=model.config, eos_token_id=end, get_vocab_size=lambda: size)
    settings = ExLlamaV2Sampler.Settings(top_k=0, top_p=TOP_P, token_repetition_penalty=PENALTY, temperature=1.0)
    settings.allow_tokens(tokenizer, [end, *range(first, first + ALLOWED)])
    ids = codes((1, context)).cpu().repeat(2, 1)
    hidden = context - 1  # of the second row: all but the last id of the prompt
    mask = torch.zeros((2, LENGTH), dtype=torch.half, device="cuda")
    mask[1, :hidden] = HIDDEN_KEY
    offsets = torch.tensor([[0], [-hidden]], dtype=torch.int)
    numbers = random.Random(0)
    logits = model.forward(
        ids, cache=cache, input_mask=mask[:, : ids.shape[1]], position_offsets=offsets, last_id_only=True
    )
    began = 0.0
    for step in range(WARM_UP + tokens):
        if step == WARM_UP:
            torch.cuda.synchronize()
            began = time.perf_counter()
        scores = F.log_softmax(logits.float(), dim=-1)
        guided = (GUIDANCE * scores[0] + (1 - GUIDANCE) * scores[1])[None].cpu()
        picked, *_ = ExLlamaV2Sampler.sample(guided, settings, ids[:1], numbers.random(), tokenizer)
        picked = picked.repeat(2, 1)
        ids = torch.cat((ids, picked), dim=-1)
        logits = model.forward(picked, cache=cache, input_mask=mask[:, : ids.shape[1]], position_offsets=offsets)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / tokens


@torch.inference_mode()
def seconds_a_window(model: Any, rows: int, frames: int = WINDOW_FRAMES) -> float:
    """Time stage 2 for all frames of so many windows.

    frames: that are really timed; of fewer than all, at the start, in the middle and at the end of the windows.
    """
    from exllamav2 import ExLlamaV2Cache

    given = codes((rows, WINDOW_FRAMES))
    opening = given.new_tensor([VOCABULARY.start_of_audio, VOCABULARY.stage_1]).expand(rows, 2)
    prompt = torch.cat([opening, given, given.new_full((rows, 1), VOCABULARY.stage_2)], dim=1)
    fine = slice(VOCABULARY.codebook(1).start, VOCABULARY.codebook(CODEBOOKS).start)
    cache = ExLlamaV2Cache(model, batch_size=rows, max_seq_len=prompt.shape[1] + CODEBOOKS * WINDOW_FRAMES)

    def fill(numbers: range) -> None:
        for number in numbers:
            logits = model.forward(given[:, number : number + 1], cache=cache, last_id_only=True)
            for _ in range(CODEBOOKS - 1):
                picked = logits[:, :, fine].argmax(dim=-1) + fine.start
                logits = model.forward(picked, cache=cache)

    def read() -> None:
        cache.current_seq_len = 0
        model.forward(prompt, cache=cache, preprocess_only=True)

    read()
    cache.current_seq_len = prompt.shape[1]
    fill(range(1))  # kernels are chosen
    read_s = seconds_taken(read)
    if frames >= WINDOW_FRAMES:
        return read_s + seconds_taken(lambda: fill(range(WINDOW_FRAMES)))
    times = []
    for filled in PLACES:
        # What the cache holds takes no other time.
        cache.current_seq_len = prompt.shape[1] + CODEBOOKS * min(filled, WINDOW_FRAMES - frames)
        times.append(seconds_taken(lambda: fill(range(frames))) / frames)
    return read_s + WINDOW_FRAMES * sum(times) / len(times)


def write_checkpoint(folder: Path, sizes: dict[str, Any]) -> None:
    """Write random weights in float16 as transformers would."""
    from benchmarks.baselines import original

    model = original.build(sizes, torch.device("cuda"), torch.float16)
    model.config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    # exllamav2 looks for the rotary setting where older versions of transformers wrote it, and for the class's name,
    # which the newest leave out.
    path = folder / "config.json"
    more = {"rope_theta": sizes["rope_theta"], "architectures": ["LlamaForCausalLM"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    del model
    torch.cuda.empty_cache()


def load(folder: str, no_sdpa: bool) -> Any:
    from exllamav2 import ExLlamaV2, ExLlamaV2Config

    config = ExLlamaV2Config(folder)
    config.no_sdpa = no_sdpa  # the mask of guidance needs it
    model = ExLlamaV2(config)
    model.load()
    if not no_sdpa:
        # YuE-exllamav2 moves the embedding to the GPU: ids never leave it.
        model.modules[0].device_idx = model.modules[1].device_idx
        model.modules[0].reload()
    return model


def lend_flash_attention() -> None:
    """Give exllamav2 a module `flash_attn` over the FlashAttention-2 kernels of PyTorch."""

    def attend(
        q: Tensor, k: Tensor, v: Tensor, causal: bool = False, softmax_scale: float | None = None, **_: Any
    ) -> Tensor:
        is_causal = causal and q.shape[1] > 1
        found: Tensor = torch.ops.aten._flash_attention_forward(
            q, k, v, None, None, q.shape[1], k.shape[1], 0.0, is_causal, False, scale=softmax_scale
        )[0]
        return found

    def missing(*_: Any, **__: Any) -> Tensor:
        raise NotImplementedError

    module: Any = types.ModuleType("flash_attn")
    module.__version__ = "2.6.0"
    module.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    module.flash_attn_func, module.flash_attn_varlen_func, module.flash_attn_with_kvcache = attend, missing, missing
    sys.modules["flash_attn"] = module
    sys.modules["flash_attn_2_cuda"] = types.ModuleType("flash_attn_2_cuda")


def codes(shape: tuple[int, ...]) -> Tensor:
    coarse = VOCABULARY.codebook(0)
    return torch.randint(coarse.start, coarse.stop, shape, device="cuda")


def seconds_taken(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
