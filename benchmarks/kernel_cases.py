"""What the kernels of a step are timed with: products and attention at the published shapes, with made-up values."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

from benchmarks.agreement import SHAPES
from yue_cli.engines.native import attention, fused, tiles
from yue_cli.engines.native.cache import Cache, EightBitCache, make
from yue_cli.engines.native.model import Llama, Weights
from yue_cli.engines.native.products import Norm, Residual, add_product, find_tile, project_normed, read_dtype
from yue_cli.engines.native.quantized import CLASSES
from yue_cli.models import EIGHT_BIT, FOUR_BIT
from yue_cli.settings import CACHES

CUDA = torch.device("cuda")
BF16 = torch.bfloat16
KINDS = ("plain", EIGHT_BIT, FOUR_BIT)
PRODUCTS = ("qkv", "output", "gate_up", "down")
ROWS = (("stage1", 2), ("stage2", 20), ("stage2", 40), ("stage1", 32))  # a step of stage 2 reads one id a row, or two


@dataclass(frozen=True)
class Prepared:
    """Something to time, on the GPU."""

    launch: Callable[[Any], object]  # through every copy, with a Tile, FewRows, Cut or GroupedCut; None: the table's
    read_bytes: int  # by one copy
    table: Any  # the Tile, FewRows, Cut or GroupedCut that the table has for it; None where PyTorch does it
    library: str
    by_library: Callable[[], object] | None  # the same, at least nearly, by PyTorch


@dataclass(frozen=True)
class Product:
    """A product of a layer for some rows, with weights in some form."""

    name: str
    stage: str
    rows: int
    kind: str

    @property
    def shape(self) -> tuple[int, int, bool]:
        """Columns of the result, columns of x, and whether half of the weight's rows are gates."""
        config = SHAPES[self.stage]
        heads, shared = config.heads * config.head_size, config.key_value_heads * config.head_size
        return {
            "qkv": (heads + 2 * shared, config.hidden, False),
            "output": (config.hidden, heads, False),
            "gate_up": (config.inner, config.hidden, True),
            "down": (config.hidden, config.inner, False),
        }[self.name]

    @property
    def adds(self) -> bool:
        return self.name in ("output", "down")

    def prepare(self, copies: int) -> Prepared:
        """Make up so many weights."""
        outs, inner, gated = self.shape
        wide = 2 * outs if gated else outs
        weights = [torch.randn(wide, inner, device=CUDA, dtype=BF16) * inner**-0.5 for _ in range(copies)]
        is_plain = self.kind == "plain"
        matrices: list[Any] = weights if is_plain else [CLASSES[self.kind].quantize(weight) for weight in weights]
        x = torch.randn(self.rows, inner, device=CUDA, dtype=BF16)
        read = x.to(read_dtype(matrices[0], BF16))
        norm = Norm(torch.ones(outs if self.adds else inner, device=CUDA, dtype=BF16), 1e-5)
        sum_ = torch.zeros(self.rows, outs, device=CUDA, dtype=BF16)
        squares = torch.full((64, self.rows), inner / 64, device=CUDA)

        def launch(tile: tiles.Tile | tiles.FewRows | None) -> None:
            with patch.object(tiles, "find", tiles.find if tile is None else lambda *_: tile):
                for matrix in matrices:
                    if self.adds:
                        add_product(Residual(sum_), read, matrix, norm)
                    else:
                        project_normed(Residual(x, read, squares), norm, matrix, gated=gated)

        return Prepared(
            launch,
            matrices[0].nbytes,
            find_tile(x, matrices[0], gated),
            "cuBLAS",
            (lambda: [F.linear(x, weight) for weight in weights]) if is_plain else None,
        )


@dataclass(frozen=True)
class Attention:
    """Attention of a layer: so many keys are there in each row, and so many ids are new."""

    stage: str
    length: int
    filled: tuple[int, ...]
    count: int
    cache: str

    @property
    def groups(self) -> int:
        """Heads that share a key."""
        return SHAPES[self.stage].heads // SHAPES[self.stage].key_value_heads

    def prepare(self, copies: int) -> Prepared:
        """Make up so many caches."""
        config, rows = replace(SHAPES[self.stage], layers=copies), len(self.filled)
        like = torch.zeros(1, device=CUDA, dtype=BF16)
        caches = make(self.cache, config, rows=rows, length=self.length, like=like)
        for cache in caches:
            fill(cache)
        model = Llama(config, Weights(like.expand(1, config.hidden), [], like, like), caches, length=self.length)
        step = fused.FusedStep(model, length=self.length)
        columns = (config.heads + 2 * config.key_value_heads) * config.head_size
        qkv = torch.randn(rows * self.count, columns, device=CUDA, dtype=BF16)
        used = torch.tensor(self.filled, device=CUDA)
        before = used - self.count
        q = qkv.view(rows, self.count, -1, config.head_size)[:, :, : config.heads]
        table = fused.find_cut(caches[0], BF16, self.groups, self.count)

        def launch(cut: tiles.Cut | tiles.GroupedCut | None) -> None:
            with patch.object(fused, "find_cut", lambda *_: cut or table):
                for cache in caches:
                    step._attend(qkv, cache, before, self.count, BF16)

        def by_library() -> None:
            flash = attention.Flash(used.int())
            for cache in caches:
                flash(q, *cache.read(slice(rows), self.length))

        read = sum(self.filled) * caches[0].nbytes // (rows * self.length)
        return Prepared(launch, read, table, "FlashAttention-2", by_library if self.cache == "auto" else None)


def fill(cache: Cache) -> None:
    """Put something into a cache: what a song puts there is not zeros, which a GPU may move more cheaply."""
    for kept in (cache.keys, cache.values):
        kept.normal_() if kept.is_floating_point() else kept.view(torch.uint8).random_(256)
    if isinstance(cache, EightBitCache):
        for scales in (cache.key_scales, cache.value_scales):
            scales.uniform_(0.01, 0.03)


def product_cases(kinds: Iterable[str], rows: Iterable[int]) -> list[Product]:
    """List the products of both stages, the most important first."""
    some = [(stage, count) for stage, count in ROWS if count in rows]
    return [Product(name, *pair, kind) for pair, kind, name in itertools.product(some, kinds, PRODUCTS)]


def attention_cases() -> list[Attention]:
    """List guided songs, one and several, and windows of stage 2, with one new id in each row and two."""
    cases = [
        ("stage1", 16_384, (4_000, 1_500), 1),
        ("stage1", 16_384, (16_000, 3_000), 1),
        ("stage1", 8_192, (4_000,) * 16 + (1_500,) * 16, 1),
        ("stage2", 2_703, (1_503,) * 20, 1),
        ("stage2", 2_703, (2_700,) * 20, 1),
        ("stage2", 2_703, (2_700,) * 20, 2),
    ]
    return [Attention(*case, cache) for case in cases for cache in ("auto", *CACHES)]


def facts(case: Product | Attention) -> dict[str, Any]:
    """Describe a case on a line."""
    if isinstance(case, Product):
        return asdict(case)
    known = {"attention": case.stage, "rows": len(case.filled), "filled": case.filled[0]}
    return known | {"queries": case.count, "cache": case.cache}
