"""The Triton kernels against the eager path, piece by piece and as whole steps.

On a GPU they run as they are. Without one, `TRITON_INTERPRET=1 pytest tests/test_kernels.py` runs them in Triton's
interpreter, which computes wrongly in bfloat16; and without that variable they are compiled, as far as a GPU would.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.random_exl2 import write_model
from tests.exl2_stand_in import ExtensionStandIn
from tests.tiny_llama import CONFIG, write_checkpoint, write_quantized
from yue_cli.engines import open_engine
from yue_cli.engines.exl2 import extension
from yue_cli.models import EIGHT_BIT, FOUR_BIT

triton = pytest.importorskip("triton")

from yue_cli.engines.native import chain, kernels, quantized_kernels, tiles  # noqa: E402
from yue_cli.engines.native.formats import GROUP  # noqa: E402
from yue_cli.engines.native.products import project  # noqa: E402
from yue_cli.engines.native.quantized import Int4Weight, Int8Weight  # noqa: E402

DEVICE = torch.device("cpu" if kernels.INTERPRETED else "cuda")
DTYPES = (torch.float32, torch.float16) if kernels.INTERPRETED else (torch.float16, torch.bfloat16)
HOPPER = chain.is_hopper(DEVICE)
# Bytes of shared memory that a program may use on every GPU since sm_80, and on Hopper.
LARGEST_SHARED = {80: 99 * 1024, 90: 227 * 1024}

needs_device = pytest.mark.skipif(
    not kernels.INTERPRETED and not torch.cuda.is_available(), reason="needs a GPU, or TRITON_INTERPRET=1"
)
needs_compiler = pytest.mark.skipif(kernels.INTERPRETED, reason="Triton interprets: nothing is compiled")

# How far a sum of some hundred products near 1 may be from its twin in float32: one rounding of the result.
CLOSE = {torch.float32: 1e-4, torch.float16: 8e-3, torch.bfloat16: 6e-2}
# How far logits (about ±8) may be from the eager path's in the same dtype; see test_engines.py.
LOGITS_CLOSE = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
# With keys and values in bytes a rounding that falls the other way is a step of 1 in 127.
BYTES_CLOSE = {torch.float32: 0.05, torch.float16: 0.2, torch.bfloat16: 0.3}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


def draw(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


@needs_device
@pytest.mark.parametrize("rows", [1, 20, 64])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("shape", ["plain", "gated", "added"])
def test_products(dtype: torch.dtype, rows: int, normalized: bool, shape: str) -> None:
    x, weight = draw(rows, 384, dtype=dtype), draw(128, 384, scale=384**-0.5, dtype=dtype)
    norm = 1 + draw(384, scale=0.1, dtype=dtype) if normalized else None
    wide = x.float()
    if norm is not None:
        wide = torch.nn.functional.rms_norm(wide, (384,), norm.float(), 1e-5)
    expected = wide @ weight.float().T
    before = draw(rows, 128, dtype=dtype) if shape == "added" else None
    if shape == "gated":
        expected = torch.nn.functional.silu(expected[:, :64]) * expected[:, 64:]
    elif before is not None:
        expected = expected + before.float()
    assert tiles.find(Tensor, expected.shape[1], 384, rows, shape == "gated", HOPPER) is not None
    found = project(x, weight, norm=norm, epsilon=1e-5, gated=shape == "gated", add_to=before)
    torch.testing.assert_close(found.float(), expected, atol=CLOSE[dtype], rtol=0)
    assert before is None or found is before


@needs_device
@pytest.mark.parametrize("kind", [Int8Weight, Int4Weight])
@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("shape", ["plain", "gated", "added"])
def test_products_with_quantized_weights(dtype: torch.dtype, kind: type, rows: int, shape: str) -> None:
    """Against the weights that the values stand for, in float32: the activations keep about 15 bits of each group."""
    x, weight = draw(rows, 384, scale=3, dtype=dtype), kind.quantize(draw(128, 384, scale=384**-0.5))
    norm = 1 + draw(384, scale=0.1, dtype=dtype)
    expected = torch.nn.functional.rms_norm(x.float(), (384,), norm.float(), 1e-5) @ weight.dequantize().T
    before = draw(rows, 128, dtype=dtype) if shape == "added" else None
    if shape == "gated":
        expected = torch.nn.functional.silu(expected[:, :64]) * expected[:, 64:]
    elif before is not None:
        expected = expected + before.float()
    assert tiles.find(kind, expected.shape[1], 384, rows, shape == "gated", HOPPER) is not None
    found = project(x, weight, norm=norm, epsilon=1e-5, gated=shape == "gated", add_to=before)
    torch.testing.assert_close(found.float(), expected, atol=max(CLOSE[dtype], 5e-4), rtol=0)


@needs_device
def test_float16_is_normalized_before_it_could_overflow() -> None:
    x = torch.full((2, 64), 50_000.0, device=DEVICE, dtype=torch.float16)
    weight, norm = draw(64, 64, dtype=torch.float16), torch.full((64,), 2.0, device=DEVICE, dtype=torch.float16)
    expected = 2 * weight.float().sum(1).expand(2, 64)
    found = project(x, weight, norm=norm, epsilon=1e-5, dtype=torch.float32)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


@needs_device
def test_rows_of_zeros_stay_zeros(dtype: torch.dtype) -> None:
    weight = Int8Weight.quantize(draw(64, 128))
    assert torch.equal(
        project(torch.zeros(2, 128, device=DEVICE, dtype=dtype), weight).float().cpu(), torch.zeros(2, 64)
    )


@needs_device
def test_many_rows_and_odd_shapes_are_left_to_pytorch(dtype: torch.dtype) -> None:
    for rows, outs in ((65, 64), (2, 1025)):
        assert tiles.find(Tensor, outs, 64, rows, False, HOPPER) is None
        x, weight, norm = draw(rows, 64, dtype=dtype), draw(outs, 64, scale=0.1, dtype=dtype), draw(64, dtype=dtype)
        found = project(x, weight, norm=norm, epsilon=1e-5, dtype=torch.float32)
        wide = torch.nn.functional.rms_norm(x.float(), (64,), norm.float(), 1e-5)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wide @ weight.float().T, atol=CLOSE[dtype], rtol=0)


@pytest.fixture(scope="module", params=[(4, 2), (4, 4), (8, 1)], ids=lambda heads: f"{heads[0]}over{heads[1]}")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    heads, shared = request.param
    config = CONFIG | {"num_attention_heads": heads, "num_key_value_heads": shared, "head_dim": 64}
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), config)


@needs_device
@pytest.mark.parametrize("cache", ["auto", "int8"])
def test_steps(dtype: torch.dtype, cache: str, checkpoint: Path) -> None:
    """Rows of one key, of a chunk's last and first, and of several chunks; one id at a time and two."""
    compare_steps(checkpoint, dtype, cache, (BYTES_CLOSE if cache == "int8" else LOGITS_CLOSE)[dtype])


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


# Compiling

PRODUCTS = {  # of the published models: columns of the result, inputs, gated
    "stage 1 qkv": (5120, 4096, False),
    "stage 1 output": (4096, 4096, False),
    "stage 1 gate and up": (11008, 4096, True),
    "stage 1 down": (4096, 11008, False),
    "stage 1 head": (83968, 4096, False),
    "stage 2 qkv": (6144, 2048, False),
    "stage 2 output": (2048, 2048, False),
    "stage 2 gate and up": (5504, 2048, True),
    "stage 2 down": (2048, 5504, False),
    "stage 2 head": (1024, 2048, False),
}


def compiled(kernel, capability: int, types: dict[str, str], constants: dict, tile: tiles.Tile | None = None):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages} if tile else {}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("rows", [2, 20, 64])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_compile(name: str, rows: int, capability: int) -> None:
    outs, inner, gated = PRODUCTS[name]
    tile = tiles.find(Tensor, outs, inner, rows, gated, capability >= 90)
    if tile is None:  # left to PyTorch
        assert name == "stage 2 down" and capability == 90
        return
    types = dict.fromkeys(("x", "weight", "norm", "y"), "*bf16") | {"rows": "i32", "outs": "i32", "epsilon": "fp32"}
    chained = {"CHAINED": capability >= 90}
    constants = chained | {
        "INS": inner,
        "ROWS": tiles.padded(rows),
        "BLOCK_OUT": tile.out,
        "BLOCK_IN": tile.inner,
        "GATED": gated,
        "ADD": name.endswith(("output", "down")),
        "AHEAD": tiles.ahead(2 * inner),
    }
    made = compiled(kernels.product, capability, types, constants, tile)
    assert made.metadata.shared <= LARGEST_SHARED[capability]
    constants = chained | {"INS": inner, "COLUMNS": tiles.padded(inner)}
    compiled(kernels.normalize, capability, types, constants, tiles.Tile(0, 0, 8, 1))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("rows", [2, 20, 64])
@pytest.mark.parametrize("kind", [Int8Weight, Int4Weight])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_quantized_weights_compile(name: str, kind: type, rows: int, capability: int) -> None:
    outs, inner, gated = PRODUCTS[name]
    tile = tiles.find(kind, outs, inner, rows, gated, capability >= 90)
    assert tile is not None
    fixed = {"bytes_": "*i8", "scales": "*fp32", "sums": "*fp32", "rows": "i32"}
    sizes = {"INS": inner, "CHAINED": capability >= 90}
    constants = {"GROUPS": tiles.padded(inner // GROUP, 1), "NORM": name.endswith(("qkv", "up", "head"))}
    constants |= sizes | {"GROUP": GROUP}
    types = fixed | {"x": "*bf16", "norm": "*bf16", "epsilon": "fp32"}
    compiled(quantized_kernels.to_fixed, capability, types, constants, tiles.Tile(0, 0, 8, 1))
    is_four = kind is Int4Weight
    scale = "*bf16" if is_four else "*fp32"
    types = fixed | {"weight": "*u8" if is_four else "*i8", "weight_scales": scale, "weight_zeros": scale}
    types |= {"y": "*bf16", "outs": "i32"}
    added = name.endswith(("output", "down"))
    constants = sizes | {
        "ROWS": tiles.padded(rows, 8),
        "BLOCK_OUT": tile.out,
        "BLOCK_IN": tile.inner,
        "AHEAD": tiles.ahead(inner // 2 if is_four else inner),
        "FOUR_BIT": is_four,
        "GATED": gated,
        "ADD": added,
    }
    made = compiled(quantized_kernels.fixed_product, capability, types, constants, tile)
    assert made.metadata.shared <= LARGEST_SHARED[capability]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("is_bytes", [False, True])
@pytest.mark.parametrize(("heads", "shared", "count"), [(32, 4, 1), (16, 16, 1), (16, 16, 2)])
def test_attention_compiles(heads: int, shared: int, count: int, is_bytes: bool, capability: int) -> None:
    kept, scale = ("*u8", "*fp32") if is_bytes else ("*bf16", "*bf16")
    caches = {"keys": kept, "values": kept, "key_scales": scale, "value_scales": scale, "filled": "*i64"}
    chained = {"CHAINED": capability >= 90}
    sizes = chained | {"COUNT": count, "SHARED": shared, "EIGHT_BIT": is_bytes}
    types = caches | {"qkv": "*bf16", "cosine": "*fp32", "sine": "*fp32", "length": "i32"}
    compiled(kernels.rotate_and_write, capability, types, sizes | {"HEADS": heads, "HALF": 64})
    groups, cut = heads // shared, tiles.attention_cut(2 if heads > shared else 20, capability >= 90)
    types = caches | {"qkv": "*bf16", "sums": "*fp32", "peaks": "*fp32", "length": "i32", "sharpness": "fp32"}
    parts = {"GROUPS": groups, "SIZE": 128, "CHUNK": cut.chunk}
    queries = tiles.padded(groups * count)
    constants = sizes | parts | {"QUERIES": queries, "BLOCK": cut.block}
    tile = tiles.Tile(0, 0, cut.warps, cut.stages)
    made = compiled(kernels.attend, capability, types, constants, tile)
    assert made.metadata.shared <= LARGEST_SHARED[capability]
    types = {"sums": "*fp32", "peaks": "*fp32", "filled": "*i64", "y": "*bf16"}
    constants = chained | parts | {"COUNT": count, "SHARED": shared, "CHUNKS": 128, "BLOCK": tiles.COMBINED}
    compiled(kernels.combine, capability, types, constants)


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
