"""The Triton kernels against the eager path, piece by piece and as whole steps.

On a GPU they run as they are. Without one, `TRITON_INTERPRET=1 pytest tests/test_kernels.py` runs them in Triton's
interpreter, which computes wrongly in bfloat16 and, in Triton 3.6, wants a numpy before 2.4. Without that variable
`test_compiling.py` compiles them.
"""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.agreement import SHAPES
from benchmarks.random_exl2 import write_model
from tests.exl2_stand_in import ExtensionStandIn
from tests.tiny_llama import CONFIG, write_checkpoint, write_quantized
from yue_cli.engines import open_engine
from yue_cli.engines.exl2 import extension
from yue_cli.models import EIGHT_BIT, FOUR_BIT

triton = pytest.importorskip("triton")

from yue_cli.engines.native import attention, chain, kernels, tiles  # noqa: E402
from yue_cli.engines.native.cache import make  # noqa: E402
from yue_cli.engines.native.fused import FusedStep  # noqa: E402
from yue_cli.engines.native.model import Llama, Weights, linear, rotate  # noqa: E402
from yue_cli.engines.native.products import Norm, Residual, add_product, project_normed, read_dtype, unpack  # noqa: E402
from yue_cli.engines.native.quantized import Int4Weight, Int8Weight  # noqa: E402

DEVICE = torch.device("cpu" if kernels.INTERPRETED else "cuda")
DTYPES = (torch.float32, torch.float16) if kernels.INTERPRETED else (torch.float16, torch.bfloat16)
MULTIPROCESSORS = chain.multiprocessors(DEVICE)

needs_device = pytest.mark.skipif(
    not kernels.INTERPRETED and not torch.cuda.is_available(), reason="needs a GPU, or TRITON_INTERPRET=1"
)

# How far a sum of some hundred products near 1 may be from its twin in float32: one rounding of the result.
CLOSE = {torch.float32: 1e-4, torch.float16: 8e-3, torch.bfloat16: 6e-2}
# How far logits (about ±8) may be from the eager path's in the same dtype; see test_engines.py.
LOGITS_CLOSE = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
# With keys and values in bytes a rounding that falls the other way is a step of 1 in 127, or in 31 or 7.
CACHES_CLOSE = {
    "auto": LOGITS_CLOSE,
    "int8": {torch.float32: 0.05, torch.float16: 0.2, torch.bfloat16: 0.3},
    "int6": {torch.float32: 0.05, torch.float16: 0.2, torch.bfloat16: 0.6},
    "int4": {torch.float32: 0.1, torch.float16: 0.4, torch.bfloat16: 1.2},
}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


def draw(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


EPSILON = 1e-5


def normed(x: Tensor, norm: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x.float(), x.shape[-1:], norm.float(), EPSILON)


def gate(y: Tensor) -> Tensor:
    gates, others = y.chunk(2, dim=-1)
    return torch.nn.functional.silu(gates) * others


@needs_device
@pytest.mark.parametrize("rows", [1, 20, 64])
@pytest.mark.parametrize("gated", [False, True])
def test_products_of_what_is_normalized(dtype: torch.dtype, rows: int, gated: bool) -> None:
    x, weight = draw(rows, 384, dtype=dtype), draw(128, 384, scale=384**-0.5, dtype=dtype)
    norm = Norm(1 + draw(384, scale=0.1, dtype=dtype), EPSILON)
    expected = normed(x, norm.weight) @ weight.float().T
    expected = gate(expected) if gated else expected
    assert tiles.find(Tensor, expected.shape[1], 384, rows, gated, MULTIPROCESSORS) is not None
    found = project_normed(Residual(x), norm, weight, gated=gated)
    torch.testing.assert_close(found.float(), expected, atol=CLOSE[dtype], rtol=0)


@needs_device
@pytest.mark.parametrize("rows", [1, 20, 64])
@pytest.mark.parametrize("gated", [False, True])
def test_products_that_are_added_and_normalized_by_the_next(dtype: torch.dtype, rows: int, gated: bool) -> None:
    before, x, weight = (
        draw(rows, 128, dtype=dtype),
        draw(rows, 384, dtype=dtype),
        draw(128, 384, scale=0.05, dtype=dtype),
    )
    norm, following = Norm(1 + draw(128, scale=0.1, dtype=dtype), EPSILON), draw(256, 128, scale=0.1, dtype=dtype)
    after = (before.float() + x.float() @ weight.float().T).to(dtype)
    residual = Residual(before)
    add_product(residual, x, weight, norm)
    assert residual.x is before
    torch.testing.assert_close(before.float(), after.float(), atol=CLOSE[dtype], rtol=0)
    assert (residual.scaled is None) == (dtype == torch.float16)
    expected = normed(before, norm.weight) @ following.float().T
    found = project_normed(residual, norm, following, gated=gated)
    torch.testing.assert_close(found.float(), gate(expected) if gated else expected, atol=CLOSE[dtype], rtol=0)
    only_last = project_normed(residual.last(rows), norm, following, gated=gated)
    torch.testing.assert_close(only_last, found[-1:], atol=CLOSE[dtype], rtol=0)


@needs_device
@pytest.mark.parametrize("kind", [Int8Weight, Int4Weight])
@pytest.mark.parametrize("rows", [2, 20, 64])
@pytest.mark.parametrize("shape", ["plain", "gated", "added"])
@pytest.mark.parametrize("inner", [384, 1024])
def test_products_with_quantized_weights(dtype: torch.dtype, kind: type, rows: int, shape: str, inner: int) -> None:
    """Against the weights that the values stand for, in float32."""
    x, weight = draw(rows, inner, scale=3, dtype=dtype), kind.quantize(draw(128, inner, scale=inner**-0.5))
    norm = Norm(1 + draw(inner, scale=0.1, dtype=dtype), EPSILON)
    outs = 64 if shape == "gated" else 128
    assert tiles.find(kind, outs, inner, rows, shape == "gated", MULTIPROCESSORS) is not None
    close = max(CLOSE[dtype], 5e-4)
    if shape == "added":
        before, x = draw(rows, 128, dtype=dtype), x.to(read_dtype(weight, dtype))
        expected = before.float() + x.float() @ weight.dequantize().T
        add_product(Residual(before), x, weight, norm)
        torch.testing.assert_close(before.float(), expected, atol=2 * close, rtol=0)
        return
    expected = normed(x, norm.weight) @ weight.dequantize().T
    found = project_normed(Residual(x), norm, weight, gated=shape == "gated")
    torch.testing.assert_close(found.float(), gate(expected) if shape == "gated" else expected, atol=close, rtol=0)


@needs_device
@pytest.mark.parametrize("kind", [Tensor, Int8Weight, Int4Weight], ids=["plain", "8 bits", "4 bits"])
@pytest.mark.parametrize("shape", ["plain", "gated", "added"])
@pytest.mark.parametrize(("out", "taken", "rows"), [(16, 14, 3), (32, 20, 3), (32, 31, 20)])
def test_products_whose_programs_take_a_part_of_their_tile(
    dtype: torch.dtype, kind: type, shape: str, out: int, taken: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of them takes less, and the last block of inputs is cut, too. What is not their own is not written."""
    inner, outs = 384, 112
    blocks = 256  # columns of x; with fewer bits each of two warps has half of them
    tile = tiles.Tile(out, blocks, warps=4, stages=2, columns=taken)
    monkeypatch.setattr(tiles, "find", lambda *asked: tile)
    x, numbers = draw(rows, inner, dtype=dtype), draw(outs * (2 if shape == "gated" else 1), inner, scale=inner**-0.5)
    weight = with_nothing_behind(numbers.to(dtype)) if kind is Tensor else kind.quantize(numbers)
    wide = weight.float() if kind is Tensor else weight.dequantize()
    if shape != "added":
        norm = Norm(1 + draw(inner, scale=0.1, dtype=dtype), EPSILON)
        expected = normed(x, norm.weight) @ wide.T
        expected = gate(expected) if shape == "gated" else expected
        found = project_normed(Residual(x), norm, weight, gated=shape == "gated")
        torch.testing.assert_close(found.float(), expected, atol=CLOSE[dtype], rtol=0)
        return
    norm, x = Norm(1 + draw(outs, scale=0.1, dtype=dtype), EPSILON), x.to(read_dtype(weight, dtype))
    around = torch.full((rows + 2, outs), 7.0, dtype=dtype, device=DEVICE)
    residual = Residual(around[1:-1])
    add_product(residual, x, weight, norm)
    torch.testing.assert_close(residual.x.float() - 7, x.float() @ wide.T, atol=4 * CLOSE[dtype], rtol=0)
    assert (around[[0, -1]] == 7).all()
    if dtype != torch.float16:  # which is normalized before it is multiplied
        assert residual.squares is not None and residual.scaled is not None
        assert residual.squares.shape == (-(-outs // taken), rows)
        torch.testing.assert_close(residual.squares.sum(0), residual.x.float().square().sum(1))
        expected = residual.x.float() * norm.weight.float()
        torch.testing.assert_close(residual.scaled.float(), expected, atol=8 * CLOSE[dtype], rtol=0)


def with_nothing_behind(numbers: Tensor) -> Tensor:
    """Put a tensor where what follows it in memory is no number."""
    around = torch.full((2 * len(numbers), numbers.shape[1]), math.nan, dtype=numbers.dtype, device=numbers.device)
    around[: len(numbers)] = numbers
    return around[: len(numbers)]


@needs_device
@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("split", [2, 3])
def test_products_whose_columns_are_shared(
    dtype: torch.dtype, rows: int, split: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several blocks of columns, the last of them cut; twice, for counters have to be zeros again."""
    tile = tiles.Tile(16, 32, warps=4, stages=2, split=split)
    monkeypatch.setattr(tiles, "find", lambda *asked: tile)
    x, weight = draw(rows, 704, dtype=dtype), draw(128, 704, scale=704**-0.5, dtype=dtype)
    norm = Norm(1 + draw(128, scale=0.1, dtype=dtype), EPSILON)
    counters = torch.zeros(8, dtype=torch.int32, device=DEVICE)
    for _ in range(2):
        residual = Residual(torch.zeros(rows, 128, dtype=dtype, device=DEVICE), counters=counters)
        add_product(residual, x, weight, norm)
        torch.testing.assert_close(residual.x.float(), x.float() @ weight.float().T, atol=CLOSE[dtype], rtol=0)
        assert not counters.any()
    if dtype != torch.float16:  # which is normalized before it is multiplied
        assert residual.squares is not None and residual.scaled is not None
        wide = residual.x.float()
        torch.testing.assert_close(residual.squares.sum(0), wide.square().sum(1))
        torch.testing.assert_close(residual.scaled.float(), wide * norm.weight.float(), atol=CLOSE[dtype], rtol=0)
    following = draw(64, 128, scale=0.1, dtype=dtype)
    found = project_normed(residual, norm, following)
    expected = normed(residual.x, norm.weight) @ following.float().T
    torch.testing.assert_close(found.float(), expected, atol=CLOSE[dtype], rtol=0)
    assert not counters.any()


@needs_device
@pytest.mark.parametrize("kind", [Int8Weight, Int4Weight])
@pytest.mark.parametrize("columns", [384, 1024])
def test_quantized_weights_become_the_same_numbers(dtype: torch.dtype, kind: type, columns: int) -> None:
    weight = kind.quantize(draw(96, columns))
    for part in (weight, weight[16:32]):
        assert torch.equal(unpack(part, dtype), part.dequantize().to(dtype))
    x = draw(70, columns, dtype=dtype)
    torch.testing.assert_close(linear(x, weight, unpack), linear(x, weight))


@needs_device
def test_float16_is_normalized_before_it_could_overflow() -> None:
    x = torch.full((2, 64), 50_000.0, device=DEVICE, dtype=torch.float16)
    weight, norm = draw(64, 64, dtype=torch.float16), torch.full((64,), 2.0, device=DEVICE, dtype=torch.float16)
    expected = 2 * weight.float().sum(1).expand(2, 64)
    residual = Residual(x)
    add_product(residual, torch.zeros_like(x), weight, Norm(norm, EPSILON))
    found = project_normed(residual, Norm(norm, EPSILON), weight, dtype=torch.float32)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


@needs_device
def test_rows_of_zeros_stay_zeros(dtype: torch.dtype) -> None:
    weight, zeros = Int8Weight.quantize(draw(64, 128)), torch.zeros(2, 128, device=DEVICE, dtype=dtype)
    found = project_normed(Residual(zeros), Norm(torch.ones_like(zeros[0]), EPSILON), weight)
    assert torch.equal(found.float().cpu(), torch.zeros(2, 64))


@needs_device
def test_many_rows_and_odd_shapes_are_left_to_pytorch(dtype: torch.dtype) -> None:
    for rows, outs in ((65, 64), (2, 1025)):
        assert tiles.find(Tensor, outs, 64, rows, False, MULTIPROCESSORS) is None
        x, weight = draw(rows, 64, dtype=dtype), draw(outs, 64, scale=0.1, dtype=dtype)
        norm = Norm(draw(64, dtype=dtype), EPSILON)
        expected = normed(x, norm.weight) @ weight.float().T
        found = project_normed(Residual(x), norm, weight, dtype=torch.float32)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=CLOSE[dtype], rtol=0)
        residual = Residual(torch.zeros(rows, outs, device=DEVICE, dtype=dtype))
        add_product(residual, x, weight, norm)
        torch.testing.assert_close(residual.x.float(), x.float() @ weight.float().T, atol=CLOSE[dtype], rtol=0)


HEADS = [(4, 2, 64), (4, 4, 64), (8, 1, 64), (8, 1, 128)]  # the last, in 16 bits on a GPU: grouped_kernels.py


@pytest.fixture(scope="module", params=HEADS, ids=lambda heads: "{}over{}of{}".format(*heads))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    heads, shared, size = request.param
    config = CONFIG | {"num_attention_heads": heads, "num_key_value_heads": shared, "head_dim": size}
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), config)


@needs_device
@pytest.mark.parametrize("cache", CACHES_CLOSE)
def test_steps(dtype: torch.dtype, cache: str, checkpoint: Path) -> None:
    """Rows of one key, of a chunk's last and first, and of several chunks; one id at a time and two."""
    compare_steps(checkpoint, dtype, cache, CACHES_CLOSE[cache][dtype])


@needs_device
@pytest.mark.parametrize("form", [EIGHT_BIT, FOUR_BIT])
def test_steps_with_quantized_weights(dtype: torch.dtype, form: str, tmp_path: Path) -> None:
    """The eager path rounds quantized weights to the dtype it computes in; the kernels do not."""
    write_quantized(tmp_path, form)
    compare_steps(tmp_path, dtype, "auto", max(LOGITS_CLOSE[dtype], 2e-3))


def compare_steps(checkpoint: Path, dtype: torch.dtype, cache: str, close: float) -> None:

    def random_ids(count: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, CONFIG["vocab_size"], count)

    prompts = [random_ids(length, length) for length in (1, 127, 256)]
    engines = [
        open_engine("native", checkpoint, rows=3, length=260, device=DEVICE, dtype=dtype, cache=cache, mode=mode)
        for mode in ("eager", "kernels")
    ]
    for engine in engines:
        engine.prefill(prompts)
    for count in (2, 1):
        ids = torch.from_numpy(np.stack([random_ids(count, row) for row in range(3)])).to(DEVICE)
        eager, fast = (engine.step(ids) for engine in engines)
        torch.testing.assert_close(fast, eager, atol=close, rtol=0)


@needs_device
@pytest.mark.parametrize(("heads", "shared"), [(2, 2), (8, 1)])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("spread", [0.1, 2.0], ids=["alike", "unlike"])
@pytest.mark.parametrize("form", ["int8", "int6", "int4"])
@pytest.mark.parametrize("size", [32, 128, 256])
def test_attention_over_bytes_is_nearly_exact(
    heads: int, shared: int, count: int, spread: float, form: str, size: int
) -> None:
    """Against float64 and what the cache holds, with values whose sizes differ little or much."""
    config = replace(SHAPES["stage2"], hidden=heads * size, heads=heads, key_value_heads=shared, layers=1)
    config = replace(config, head_size=size)
    length, filled = 400, torch.tensor([3, 390], device=DEVICE)
    like = torch.zeros(1, device=DEVICE)
    [cache] = make(form, config, rows=2, length=length, like=like)
    values = draw(2, shared, length, size) * torch.exp(spread * draw(2, shared, length, 1))
    cache.write(slice(2), 0, draw(2, shared, length, size, scale=2), values)
    model = Llama(config, Weights(like.expand(1, config.hidden), [], like, like), [cache], length=length)
    qkv = draw(2, count, heads + 2 * shared, size, scale=2, dtype=torch.float16)
    found = FusedStep(model, length=length)._attend(qkv.view(2 * count, -1), cache, filled, count, torch.float32)
    positions = filled[:, None] + torch.arange(count, device=DEVICE)
    turned = rotate(qkv.transpose(1, 2), model.cosine[positions][:, None], model.sine[positions][:, None])
    q, known = turned[:, :heads].transpose(1, 2).double(), [kept.double() for kept in cache.read(slice(2), length)]
    visible = torch.arange(length, device=DEVICE) <= positions[..., None]
    expected = attention.masked(q, *known, visible).flatten(0, 1).flatten(1)
    torch.testing.assert_close(found.double(), expected, atol=2e-4 * float(expected.abs().max()), rtol=0)


@needs_device
def test_what_lies_behind_a_row_does_not_matter(dtype: torch.dtype, checkpoint: Path) -> None:
    rows = [np.arange(20), np.arange(250)]
    engine = open_engine("native", checkpoint, rows=2, length=260, device=DEVICE, dtype=dtype, mode="kernels")
    ids = torch.tensor([[3], [4]], device=DEVICE)
    engine.prefill(rows)
    fresh = engine.step(ids)
    engine.prefill([rows[1][::-1].copy(), rows[0]])
    engine.step(ids)
    engine.prefill(rows)
    assert torch.equal(engine.step(ids), fresh)


@pytest.mark.skipif(not kernels.INTERPRETED, reason="needs TRITON_INTERPRET=1; test_exl2_engine.py has GPUs")
def test_matrices_that_multiply_themselves_go_with_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path, CONFIG, 5.3, 6, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(extension, "reason", lambda: None)
    monkeypatch.setattr(extension, "load", lambda emit: ExtensionStandIn())
    monkeypatch.setattr(extension, "DEVICE", "cpu")
    opened = [
        open_engine("exl2", tmp_path, rows=2, length=64, device=DEVICE, dtype=torch.float16, mode=mode)
        for mode in ("kernels", "eager")
    ]
    prompts = [np.arange(30), np.arange(7)]
    known = [torch.tensor([[5], [6]]), torch.tensor([[7, 8], [9, 1]])]
    fast, plain = ([engine.prefill(prompts)] + [engine.step(ids) for ids in known] for engine in opened)
    for found, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(found, expected, atol=LOGITS_CLOSE[torch.float16], rtol=0)


@pytest.mark.parametrize(
    ("number", "capability", "shared_kb", "expected"),
    [(90, (9, 0), 228, 132), (120, (12, 0), 100, 0), (80, (8, 0), 164, 0)],
)
def test_tiles_for_hopper_want_its_shared_memory(
    number: int, capability: tuple[int, int], shared_kb: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(multi_processor_count=132, shared_memory_per_multiprocessor=1024 * shared_kb)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    assert chain.multiprocessors(torch.device("cuda", number)) == expected
