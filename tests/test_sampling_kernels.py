"""The sampler's kernels against the sampler in PyTorch's operations: `TRITON_INTERPRET=1`, or a GPU."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from yue_cli.sampling import Noise, Sampler
from yue_cli.settings import Settings, resolve
from yue_cli.vocab import Vocabulary

pytest.importorskip("triton")

from yue_cli.engines.native import kernels
from yue_cli.sampling_kernels import KernelSampler
from yue_cli.stages.stage1 import allowed_ids, make_sampler

DEVICE = torch.device("cpu" if kernels.INTERPRETED else "cuda")
VOCABULARY = Vocabulary()
IDS = 46_400  # of the vocabulary, a few more than codebook 0 ends with
ALLOWED = (VOCABULARY.codebook(0), range(VOCABULARY.end_of_audio, VOCABULARY.end_of_audio + 1))
STEPS = 6

pytestmark = pytest.mark.skipif(
    not kernels.INTERPRETED and not torch.cuda.is_available(), reason="needs a GPU, or TRITON_INTERPRET=1"
)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("songs", [1, 3])
@pytest.mark.parametrize(("top_k", "top_p"), [(50, 0.93), (0, 0.93), (50, 1.0), (0, 1.0), (1, 1.0), (3000, 0.5)])
def test_picks(guided: bool, songs: int, top_k: int, top_p: float) -> None:
    """Every song for itself, with noise and without, seen ids and a minimum that ends while it picks."""
    settings = replace(resolve(Settings()).stage1, top_k=top_k, top_p=top_p, temperature=0.9, min_new_tokens=3)
    samplers = [
        kind(VOCABULARY, ALLOWED, settings, guided=guided, device=DEVICE, songs=songs)
        for kind in (Sampler, KernelSampler)
    ]
    dice = torch.Generator().manual_seed(top_k + songs)
    windows = [np.array(VOCABULARY.codebook(0))[song::7] for song in range(songs)]
    for sampler in samplers:
        noise = [None if song == 1 else Noise(song, 0) for song in range(songs)]
        sampler.begin(windows, strengths=[1.5 - 0.1 * song for song in range(songs)], noise=noise)
    for step in range(STEPS):
        columns = IDS if guided else len(ALLOWED[0]) + 1
        logits = 3 * torch.randn(2 * songs if guided else songs, columns, generator=dice)
        logits[:, VOCABULARY.end_of_audio if guided else -1] += 9  # it would end, if it were allowed
        for sampler in samplers:
            sampler.prepare(step)
        expected, found = (sampler.pick(logits.to(DEVICE)) for sampler in samplers)
        assert torch.equal(found, expected), f"step {step}"
    assert torch.equal(samplers[0]._seen, samplers[1]._seen)


def test_scores_that_are_the_same_on_the_edge_of_top_k_all_stay() -> None:
    settings = replace(resolve(Settings()).stage1, top_k=2, top_p=1.0, repetition_penalty=1.0)
    sampler = KernelSampler(VOCABULARY, ALLOWED, settings, guided=False, device=DEVICE)
    sampler.begin([np.array([0])], strengths=[1.0], noise=[None])
    logits = torch.full((1, len(ALLOWED[0]) + 1), -5.0, device=DEVICE)
    logits[0, 10], logits[0, 20:23] = 2.0, 1.0
    sampler._noise[0, 0, 22] = 1.5
    assert int(sampler.pick(logits)) == ALLOWED[0].start + 22


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_an_id_is_chosen_on_the_gpu_that_has_the_logits() -> None:
    settings, picked = resolve(Settings()).stage1, []
    logits = torch.randn(2, IDS, generator=torch.Generator().manual_seed(0))
    for device in ("cuda:0", "cuda:1"):
        sampler = KernelSampler(VOCABULARY, ALLOWED, settings, guided=True, device=torch.device(device))
        sampler.begin([np.array([0])], strengths=[1.5], noise=[Noise(1, 0)])
        sampler.prepare(0)
        assert torch.cuda.current_device() == 0
        picked.append(sampler.pick(logits.to(device)).tolist())
    assert picked[0] == picked[1]


@pytest.mark.parametrize(("rules", "kind"), [("yue", KernelSampler), ("original", Sampler), ("exl2", Sampler)])
def test_only_few_ids_are_chosen_from_by_kernels(rules: str, kind: type) -> None:
    engine = SimpleNamespace(has_kernels=True, device=DEVICE)
    allowed = allowed_ids(rules, VOCABULARY, 83_968)
    sampler = make_sampler(engine, VOCABULARY, allowed, resolve(Settings()).stage1, guided=True)
    assert type(sampler) is kind
