"""Our loops and those of YuE's infer.py on the same random weights, side by side, on a CPU.

    pip install -e '.[bench]'
    python -m benchmarks.cpu [--stage stage1] [--threads 2] [--repeats 3] [--json FILE]

A small LLaMA (hidden 512, 8 layers) with the published vocabularies, in float32. Stage 1: milliseconds a token, with
guidance and every row of the head. Stage 2: seconds for one frame of 20 windows at the start, in the middle and at the
end of a window, which are added up. Both sides are timed in turn at the same contexts: the best of several for
stage 1 and for the original, the median frame for our stage 2. Before that, both must compute the same logits.
"""

import argparse
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import LlamaForCausalLM

from benchmarks.baselines import original
from yue_cli import machine
from yue_cli.engines.native.config import LlamaConfig
from yue_cli.engines.native.engine import NativeEngine
from yue_cli.engines.native.model import Layer, Weights
from yue_cli.events import Event, Progress
from yue_cli.generation import fill_frames
from yue_cli.prompt import Prompts
from yue_cli.settings import Settings, resolve
from yue_cli.stages import stage1, stage2
from yue_cli.vocab import CODEBOOKS, WINDOW_FRAMES, Vocabulary

CPU = torch.device("cpu")
VOCABULARY = Vocabulary()
SIZES: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
# Stage 1 shares keys and values between groups of heads, stage 2 does not.
STAGE1 = SIZES | {"vocab_size": 83968, "num_key_value_heads": 1}
STAGE2 = SIZES | {"vocab_size": 83840, "num_key_value_heads": 8}
CONTEXT, TOKENS = 1000, 64
WINDOWS, FRAMES = 20, 4
POSITIONS = {"start": 0, "middle": WINDOW_FRAMES // 2, "end": WINDOW_FRAMES - FRAMES - 1}  # frames filled before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=["stage1", "stage2", "all"], default="all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": machine.hardware_name(CPU),
        "versions": machine.versions() | {"transformers": transformers.__version__},
        "sizes": SIZES,
    }
    print(f"{report['hardware']} · torch {torch.__version__} · transformers {transformers.__version__}")
    for stage in ["stage1", "stage2"] if arguments.stage == "all" else [arguments.stage]:
        report[stage] = (time_stage1 if stage == "stage1" else time_stage2)(arguments.repeats)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def time_stage1(repeats: int) -> dict[str, float]:
    model = original.build(STAGE1, CPU, torch.float32)
    engine = NativeEngine(*same_weights(model, STAGE1), rows=2, length=CONTEXT + TOKENS + 2)
    difference = check(model, engine)
    theirs, ours = [], []
    original.sing(model, original.random_codes((1, 16), CPU), 4)  # the first run of anything takes longer
    for _ in range(repeats):
        ours.append(1000 * our_token_s(engine))
        theirs.append(1000 * original.seconds_a_token(model, CONTEXT, TOKENS))
    found = {"original_ms": min(theirs), "ours_ms": min(ours), "ratio": min(theirs) / min(ours)}
    print(f"stage 1, {CONTEXT} tokens before, ms a token (logits differ by {difference:.1e}):")
    print(
        f"  original {found['original_ms']:.1f} · ours {found['ours_ms']:.1f} · {found['ratio']:.1f} times", flush=True
    )
    return found | {"context": CONTEXT, "tokens": TOKENS, "logits_differ_by": difference}


def time_stage2(repeats: int) -> dict[str, Any]:
    model = original.build(STAGE2, CPU, torch.float32)
    engine = NativeEngine(*same_weights(model, STAGE2), rows=WINDOWS, length=stage2.cache_length(WINDOW_FRAMES))
    difference = check(model, engine)
    places = {}
    print(f"stage 2, {WINDOWS} windows, s a frame (logits differ by {difference:.1e}):")
    for name, filled in POSITIONS.items():
        ours = our_frame_s(engine, filled, repeats)
        theirs = original.seconds_a_frame(model, WINDOWS, filled, repeats=repeats if filled == 0 else 1)
        places[name] = {"filled": filled, "original_s": theirs, "ours_s": ours}
        print(f"  {name:<8} original {theirs:.2f} · ours {ours:.3f} · {theirs / ours:.0f} times", flush=True)
    theirs, ours = (sum(place[side] for place in places.values()) for side in ("original_s", "ours_s"))
    print(f"  sum      original {theirs:.2f} · ours {ours:.3f} · {theirs / ours:.1f} times", flush=True)
    return {"places": places, "original_s": theirs, "ours_s": ours, "ratio": theirs / ours, "windows": WINDOWS}


def same_weights(model: LlamaForCausalLM, sizes: dict[str, Any]) -> tuple[LlamaConfig, Weights]:
    """Hold the weights of a transformers model as our engine does."""
    state = {name.removeprefix("model."): tensor.detach() for name, tensor in model.state_dict().items()}

    def joined(layer: int, *names: str) -> torch.Tensor:
        return torch.cat([state[f"layers.{layer}.{name}.weight"] for name in names])

    config = LlamaConfig(
        hidden=sizes["hidden_size"],
        inner=sizes["intermediate_size"],
        layers=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        key_value_heads=sizes["num_key_value_heads"],
        head_size=sizes["hidden_size"] // sizes["num_attention_heads"],
        vocabulary_size=sizes["vocab_size"],
        max_length=sizes["max_position_embeddings"],
        rope_theta=sizes["rope_theta"],
        norm_epsilon=sizes["rms_norm_eps"],
        tied=False,
    )
    layers = [
        Layer(
            attention_norm=state[f"layers.{layer}.input_layernorm.weight"],
            qkv=joined(layer, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            output=joined(layer, "self_attn.o_proj"),
            inner_norm=state[f"layers.{layer}.post_attention_layernorm.weight"],
            gate_up=joined(layer, "mlp.gate_proj", "mlp.up_proj"),
            down=joined(layer, "mlp.down_proj"),
        )
        for layer in range(config.layers)
    ]
    return config, Weights(state["embed_tokens.weight"], layers, state["norm.weight"], state["lm_head.weight"])


@torch.inference_mode()
def check(model: LlamaForCausalLM, engine: NativeEngine) -> float:
    """Compare the logits of both: the largest difference over the spread of them all."""
    ids = original.random_codes((1, 40), CPU)
    expected = model(ids).logits[:, -1]
    engine.prefill([ids[0, :-1].numpy()])
    found = engine.step(ids[:, -1:])
    difference = float((found - expected).abs().max() / expected.std())
    assert difference < 1e-3, f"logits differ by {difference}"
    return difference


def our_token_s(engine: NativeEngine) -> float:
    """Time stage 1 after a prompt; the first token, which waits for the prompt, is left out."""
    nothing = np.empty(0, dtype=np.int64)
    prompts = Prompts(
        head=original.random_codes((CONTEXT - 1,), CPU).numpy(),
        reference=nothing,
        segments=(np.array([VOCABULARY.separator]),),
        start_of_segment=nothing,
        end_of_segment=nothing,
        end_of_audio=VOCABULARY.end_of_audio,
    )
    count = TOKENS + 1
    settings = replace(resolve(Settings()).stage1, min_new_tokens=count, max_new_tokens=count)
    heard: list[tuple[int, float]] = []

    def hear(event: Event) -> None:
        if isinstance(event, Progress):
            heard.append((event.done, time.perf_counter()))

    task = stage1.Task(prompts, seeds=[0])
    next(stage1.generate(engine, VOCABULARY, [task], settings=settings, rules="yue", emit=hear))
    (first, began), (last, ended) = heard[0], heard[-1]
    return (ended - began) / (last - first)


def our_frame_s(engine: NativeEngine, filled: int, repeats: int) -> float:
    """Time frames of stage 2 in windows of which `filled` frames are filled, and their part of the prompt's time."""
    choices = stage2.frame_choices(engine, VOCABULARY, restrict_picks=True)
    coarse = original.random_codes((WINDOWS, WINDOW_FRAMES), CPU).numpy()
    known = original.random_codes((WINDOWS, CODEBOOKS * filled), CPU).numpy()
    prompts = np.concatenate([np.stack([stage2.window_prompt(VOCABULARY, row) for row in coarse]), known], axis=1)
    times, read = [], 0.0
    for _ in range(repeats if filled == 0 else 1):
        heard: list[tuple[int, float]] = []
        began = time.perf_counter()
        given = coarse[:, filled : filled + FRAMES + 1]
        fill_frames(
            engine, prompts, given, choices, heard=lambda done, to=heard: to.append((done, time.perf_counter()))
        )
        times += [after - before for (_, before), (_, after) in pairwise(heard)]
        if filled == 0:
            read = (heard[0][1] - began) / WINDOW_FRAMES  # once for all frames of a window
    return float(np.median(times)) + read


if __name__ == "__main__":
    main()
