"""How kernels that ran are dealt to the parts of a step."""

import pytest

from benchmarks.step_profile import Seen, parts_of_steps

LAYERS, STEPS = 3, 4
TIMES = {"qkv": 10.0, "attend": 6.0, "output": 8.0, "gate_up": 40.0, "down": 20.0, "head": 150.0}
NAMES = {"attend": "attend", "sum_exponentials": "sum_exponentials", "choose": "choose", "embed": "index_select"}
OTHERS = {"sum_exponentials": 4.0, "choose": 12.0, "embed": 3.0}


def one_step() -> list[str]:
    layers = [[*(["embed"] if number == 0 else []), *list(TIMES)[:-1]] for number in range(LAYERS)]
    return [part for layer in layers for part in layer] + ["head", "sum_exponentials", "choose"]


def played(parts: list[str]) -> list[Seen]:
    """Let each kernel begin 3 µs before the one before has ended."""
    kernels, now = [], 1000.0
    for part in parts:
        took = TIMES.get(part, OTHERS.get(part, 5.0))
        kernels.append(Seen(NAMES.get(part, "product" if part in TIMES else part), now - 3.0, now + took))
        now += took
    return kernels


def test_parts_add_up_to_the_step() -> None:
    prompt = ["embed", *["gemm", "flash", "gemm"] * LAYERS, "gemm", "sum_exponentials", "choose"]
    found = parts_of_steps(played([*prompt, *one_step() * (STEPS + 1)]), LAYERS, STEPS)
    assert found == pytest.approx(
        {
            "queries, keys, values": 10,
            "attention": 6,
            "output": 8,
            "gate and up": 40,
            "down": 20,
            "head": 150,
            "choice": 16,
            "the rest": 3,
        }
    )


def test_other_kernels_than_those_of_a_step_are_refused() -> None:
    with pytest.raises(ValueError, match="15 kernels of attention; expected 3 in each of more than 5 steps"):
        parts_of_steps(played(one_step() * (STEPS + 1)), LAYERS, STEPS + 1)
    with pytest.raises(ValueError, match="3 products before the attention of layer 1"):
        parts_of_steps(played([part for part in one_step() if part != "down"] * (STEPS + 1)), LAYERS, STEPS)
    longer = [again for part in one_step() for again in ([part, part] if part == "down" else [part])]
    with pytest.raises(ValueError, match="more than 4 products behind the attention of layer 0"):
        parts_of_steps(played(longer * (STEPS + 1)), LAYERS, STEPS)
