"""The Triton kernels are compiled at the shapes of the published models, as far as a GPU would; none is needed."""

import pytest
from torch import Tensor

triton = pytest.importorskip("triton")

from yue_cli import sampling_kernels  # noqa: E402
from yue_cli.engines.native import attention_kernels, gluon_modules, kernels, tiles  # noqa: E402
from yue_cli.engines.native.formats import GROUP  # noqa: E402
from yue_cli.engines.native.quantized import Int4Weight, Int8Weight  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(kernels.INTERPRETED, reason="Triton interprets: nothing is compiled"),
]

# Bytes of shared memory that a program may use on every GPU since sm_80, and on Hopper.
LARGEST_SHARED = {80: 99 * 1024, 90: 227 * 1024}
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


def compiled(
    kernel,
    capability: int,
    types: dict[str, str],
    constants: dict,
    tile: tiles.Tile | tiles.FewRows | tiles.Cut | tiles.GroupedCut,
    language: type = triton.compiler.ASTSource,
):
    from triton.backends.compiler import GPUTarget

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name == "places"
    }
    absent = {name: None for name in kernel.arg_names if name not in types and name not in constants}
    source = language(kernel, signature=signature, constexprs=constants | absent, attrs=aligned)
    options = {"num_warps": tile.warps, "maxnreg": getattr(tile, "registers", None)}
    options |= {"num_stages": tile.stages} if hasattr(tile, "stages") else {}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("rows", [2, 20, 64])
@pytest.mark.parametrize("kind", [Tensor, Int8Weight, Int4Weight])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_compile(name: str, kind: type, rows: int, capability: int) -> None:
    outs, inner, gated = PRODUCTS[name]
    tile = tiles.find(kind, outs, inner, rows, gated, 132 if capability >= 90 else 0)
    assert tile is not None
    added, normalized = name.endswith(("output", "down")), name.endswith(("qkv", "up", "head"))
    bits, values, facts = {
        Tensor: (16, "*bf16", None),
        Int8Weight: (8, "*i8", "*fp32"),
        Int4Weight: (4, "*u8", "*i32"),
    }[kind]
    read = "*bf16" if bits == 16 else "*fp16"
    types = {"x": read, "weight": values, "y": read if gated else "*bf16", "epsilon": "fp32"}
    types |= dict.fromkeys(("rows", "outs", "facts_stride"), "i32") | ({"facts": facts} if facts else {})
    types |= {"norm": "*bf16", "scaled": read, "new_squares": "*fp32"} if added else {}
    types |= {"squares": "*fp32"} if normalized else {}
    types |= {"shares": "*fp32", "arrived": "*i32"} if tile.split > 1 else {}
    constants = {
        "INS": inner,
        "ROWS": tiles.padded(rows, tiles.LEAST_ROWS[bits]),
        "BLOCK_OUT": tile.out,
        "TAKEN": tile.taken,
        "BLOCK_IN": tile.inner,
        "GROUP": GROUP,
        "BITS": bits,
        "STAGES": tile.stages,
        "PARTS": 64 if normalized else 0,
        "GATED": gated,
        "ADD": added,
        "PREPARED": added,
        "SHARE": tile.shares(inner)[0],
        "AHEAD": tile.fetched(inner, bits),
        "CHAINED": capability >= 90,
    }
    made = compiled(kernels.product, capability, types, constants, tile)
    assert made.metadata.shared <= LARGEST_SHARED[capability]


@pytest.mark.skipif(gluon_modules.find("few_kernels") is None, reason="needs Triton 3.6 to 3.9")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_few_rows_compile(name: str, capability: int) -> None:
    from triton.experimental.gluon._runtime import GluonASTSource

    outs, inner, gated = PRODUCTS[name]
    tile = tiles.find(Int4Weight, outs, inner, 2, gated, 132, knows_few=True)
    assert isinstance(tile, tiles.FewRows)
    added, normalized = name.endswith(("output", "down")), name.endswith(("qkv", "up", "head"))
    types = {"x": "*fp16", "weight": "*u8", "facts": "*i32", "y": "*fp16" if gated else "*bf16", "epsilon": "fp32"}
    types |= dict.fromkeys(("rows", "outs", "facts_stride"), "i32")
    types |= {"norm": "*bf16", "scaled": "*fp16", "new_squares": "*fp32"} if added else {}
    types |= {"squares": "*fp32"} if normalized else {}
    constants = {
        "INS": inner,
        "BLOCK_OUT": tile.out,
        "WARPS": tile.warps,
        "STAGES": tile.stages,
        "PADDED_GROUPS": tile.padded_groups(inner),
        "PARTS": 64 if normalized else 0,
        "PADDED_PARTS": 64,
        "GATED": gated,
        "ADD": added,
        "PREPARED": added,
        "LATE": tile.is_late,
        "CHAINED": capability >= 90,
    }
    made = compiled(gluon_modules.find("few_kernels").product, capability, types, constants, tile, GluonASTSource)
    assert made.metadata.shared <= LARGEST_SHARED[capability]


@pytest.mark.parametrize("capability", [80, 90])
def test_norms_compile(capability: int) -> None:
    constants = {"INS": 4096, "COLUMNS": 4096, "CHAINED": capability >= 90}
    types = dict.fromkeys(("x", "norm", "y"), "*bf16") | {"epsilon": "fp32"}
    compiled(kernels.normalize, capability, types, constants, tiles.Tile(0, 0, 8, 1))


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("is_guided", "top_k", "top_p"), [(True, 50, 0.93), (False, 0, 0.93), (True, 50, 1.0)])
def test_the_choice_of_an_id_compiles(is_guided: bool, top_k: int, top_p: float, capability: int) -> None:
    count, parts = 1025, 41
    constants = {"COUNT": count, "COLUMNS": 2048, "PARTS": parts, "PARTS_ROUNDED": 64, "STEPS": 64}
    constants |= {"IS_GUIDED": is_guided, "HAS_TOP_K": top_k > 0, "HAS_TOP_P": top_p < 1}
    types = dict.fromkeys(("logits", "noise", "strength"), "*fp32") | dict.fromkeys(("is_end", "seen"), "*u8")
    types |= dict.fromkeys(("ids", "step", "minimum", "answer"), "*i64") | ({"sums": "*fp32"} if is_guided else {})
    types |= dict.fromkeys(("columns", "songs", "top_k"), "i32")
    types |= dict.fromkeys(("penalty", "temperature", "top_p"), "fp32")
    compiled(sampling_kernels.choose, capability, types, constants, tiles.Tile(0, 0, 4, 1))
    types = {"logits": "*fp32", "sums": "*fp32", "columns": "i32"}
    compiled(
        sampling_kernels.sum_exponentials, capability, types, {"PARTS": parts, "PART": 2048}, tiles.Tile(0, 0, 4, 1)
    )


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("bits", [16, 8, 6, 4])
@pytest.mark.parametrize(
    ("heads", "shared", "rows", "count"), [(32, 4, 2, 1), (32, 4, 32, 1), (16, 16, 20, 1), (16, 16, 20, 2)]
)
def test_attention_compiles(heads: int, shared: int, rows: int, count: int, bits: int, capability: int) -> None:
    compile_attention(heads, shared, rows, count, 128, bits, capability)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize(("shared", "size"), [(4, 32), (2, 64), (4, 256)])
def test_attention_over_bytes_compiles_for_other_heads(shared: int, size: int, bits: int, capability: int) -> None:
    compile_attention(4, shared, 2, 1, size, bits, capability)


def compile_attention(heads: int, shared: int, rows: int, count: int, size: int, bits: int, capability: int) -> None:
    groups = heads // shared
    cut = tiles.attention_cut(groups, bits)
    types = attention_types({16: "*bf16", 8: "*i8"}.get(bits, "*u8"))
    types |= dict.fromkeys(("key_scales", "value_scales"), "*fp32") if bits <= 8 else {}
    constants = {
        "COUNT": count,
        "GROUPS": groups,
        "SHARED": shared,
        "SIZE": size,
        "QUERIES": tiles.padded_queries(groups * count, bits),
        "CHUNKS": cut.chunks,
        "BLOCK": cut.block,
        "WARPS": cut.warps,
        "BITS": bits,
        "CHAINED": capability >= 90,
    }
    made = compiled(attention_kernels.attend, capability, types, constants, cut)
    assert made.metadata.shared <= LARGEST_SHARED[capability]


@pytest.mark.skipif(gluon_modules.find("grouped_kernels") is None, reason="needs Triton 3.6 to 3.9")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("rows", [2, 32])
@pytest.mark.parametrize(("kind", "read"), [("*bf16", "*bf16"), ("*bf16", "*fp16"), ("*fp16", "*fp16")])
def test_attention_of_grouped_heads_compiles(kind: str, read: str, rows: int, capability: int) -> None:
    """read: by the product after it."""
    from triton.experimental.gluon._runtime import GluonASTSource

    cut = tiles.grouped_cut(4 * rows, 132 if capability >= 90 else 0)
    constants = {"SHARED": 4, "CHUNKS": cut.chunks, "BLOCK": cut.block, "WARPS": cut.warps, "BUFFERS": cut.buffers}
    constants |= {"CHAINED": capability >= 90}
    types = attention_types(kind) | {"qkv": kind, "y": read}
    made = compiled(gluon_modules.find("grouped_kernels").attend, capability, types, constants, cut, GluonASTSource)
    assert made.metadata.shared <= LARGEST_SHARED[capability]


def attention_types(kept: str) -> dict[str, str]:
    """List the types of what attention is given. kept: of keys and values in the cache."""
    types = dict.fromkeys(("keys", "values"), kept) | dict.fromkeys(("qkv", "y"), "*bf16")
    types |= dict.fromkeys(("cosine", "sine", "sums", "peaks"), "*fp32") | {"filled": "*i64", "arrived": "*i32"}
    return types | {"places": "i32", "sharpness": "fp32"}
