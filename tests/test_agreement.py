"""The tool that tells how far fast ways are from float32: that it sees what is there, and nothing else."""

import pytest
import torch

from benchmarks.agreement import SHAPES, Way, compare
from yue_cli.models import EIGHT_BIT, FOUR_BIT

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("is_stage2", [False, True])
def test_the_definition_agrees_with_itself_and_coarser_ways_less_and_less(is_stage2: bool) -> None:
    ways = [
        Way("plain", "auto", torch.float32),
        Way("plain", "int8", torch.float32),
        Way(EIGHT_BIT, "auto", torch.float32),
        Way(FOUR_BIT, "auto", torch.float32),
    ]
    found = compare(SHAPES["tiny"], CPU, is_stage2=is_stage2, mode="graphs", prompt=20, steps=14, rows=2, ways=ways)
    errors = [way["relative_error_of_logits"] for way in found]
    assert errors[0] < 1e-5
    assert 1e-3 < errors[1] < errors[3]
    assert 1e-3 < errors[2] < errors[3] < 0.5
    same = found[0]
    assert same["kl_divergence_nats"]["highest"] < 1e-6
    assert same["same_most_likely_id"] == 1
    assert same["picks_before_the_first_flip"] == [14] * (2 if is_stage2 else 1)
    assert found[3]["total_variation"] > same["total_variation"]
