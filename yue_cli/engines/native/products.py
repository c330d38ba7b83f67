"""Products of a few rows with a weight in any form, and what comes before and after them, by Triton kernels.

Whoever has no kernel, and many rows, are PyTorch's business.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from yue_cli.engines.native import chain, gluon_modules, kernels, tiles, unpacking_kernels
from yue_cli.engines.native.formats import GROUP
from yue_cli.engines.native.model import linear
from yue_cli.engines.native.quantized import Int4Weight, Int8Weight, Matrix, QuantizedWeight

_FEW = "few_kernels"  # needed only for 4 bits


@dataclass(frozen=True)
class Norm:
    """An RMSNorm: one weight for each column."""

    weight: Tensor
    epsilon: float
    dtype: torch.dtype | None = None  # of what the product after it reads, if not that of what is normalized


@dataclass
class Residual:
    """What layers add to, and, where the last product has left it, what the norm that follows needs."""

    x: Tensor  # [tokens, width]
    scaled: Tensor | None = None  # x times the weights of that norm, as the product after it reads it
    squares: Tensor | None = None  # float32 [parts, tokens]: they add up to the sum of x's squares
    counters: Tensor | None = None  # int32, zeros: of programs that share a product; None: made for each

    def last(self, count: int) -> "Residual":
        """Take the last of every `count` tokens."""
        if count == 1:
            return self
        x, scaled, squares = self.x[count - 1 :: count], None, None
        if self.scaled is not None and self.squares is not None:
            scaled, squares = self.scaled[count - 1 :: count], self.squares[:, count - 1 :: count].contiguous()
        return Residual(x.contiguous(), None if scaled is None else scaled.contiguous(), squares, self.counters)


def read_dtype(weight: Matrix, dtype: torch.dtype) -> torch.dtype:
    """Tell as what a product reads numbers of a dtype: those with quantized weights take float16 for bfloat16.

    Weights of few bits become float16 by fewer operations, and are exact in it.
    """
    is_quantized = isinstance(weight, Int8Weight | Int4Weight)
    return torch.float16 if is_quantized and dtype == torch.bfloat16 else dtype


def project_normed(
    residual: Residual, norm: Norm, weight: Matrix, *, gated: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """Normalize what is there [tokens, in] and multiply it by weight [out, in].

    gated: the weight holds gates and others, one under the other; the answer is silu(gate) * other, half as wide.
    dtype: of the answer, else that of what is there.
    """
    x, tile = residual.x, find_tile(residual.x, weight, gated)
    if tile is None:
        y = linear(F.rms_norm(x, x.shape[-1:], norm.weight, norm.epsilon), weight, unpack)
        if gated:
            gate, other = y.chunk(2, dim=-1)
            y = F.silu(gate) * other
        return y.to(dtype or y.dtype)
    y = x.new_empty(len(x), len(weight) // 2 if gated else len(weight), dtype=dtype or x.dtype)
    if residual.scaled is None:
        normal = normalize(x, norm, read_dtype(weight, x.dtype))
        _multiply(residual, normal, weight, y, tile, gated=gated)
    else:
        _multiply(residual, residual.scaled, weight, y, tile, epsilon=norm.epsilon, gated=gated)
    return y


def add_product(residual: Residual, x: Tensor, weight: Matrix, following: Norm) -> None:
    """Add the product of x [tokens, in] and weight [out, in]. following: the norm that comes next."""
    tile, y = find_tile(x, weight), residual.x
    residual.scaled = residual.squares = None
    if tile is not None:
        if y.dtype != torch.float16:  # which may be too narrow for what is not normalized
            residual.scaled = torch.empty_like(y, dtype=following.dtype)
            residual.squares = y.new_empty(tile.programs(y.shape[1]), len(y), dtype=torch.float32)
        _multiply(residual, x, weight, y, tile, following=following)
    elif isinstance(weight, Tensor):
        y.addmm_(x, weight.T)
    else:
        y.add_(linear(x.to(y.dtype), weight, unpack))


def normalize(x: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
    """Normalize the rows of x [tokens, in] and scale them."""
    tokens, inner = x.shape
    y = torch.empty_like(x, dtype=dtype)
    kernels.normalize[tokens,](
        x,
        norm.weight,
        y,
        norm.epsilon,
        INS=inner,
        COLUMNS=tiles.padded(inner, 1),
        num_warps=8,
        **chain.link(x.device),
    )
    return y


def unpack(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """Turn quantized weights into numbers [out, in] of a dtype: what `dequantize` gives, rounded to it."""
    values, facts, bits = _parts(weight)
    rows, columns = weight.shape
    y = values.new_empty(rows, columns, dtype=dtype)
    unpacking_kernels.unpack[rows,](
        values,
        facts,
        1 if facts is None else facts.stride(0),
        y,
        INS=columns,
        COLUMNS=tiles.padded(columns, GROUP),
        GROUP=GROUP,
        BITS=bits,
        num_warps=8,
        enable_fp_fusion=False,  # as PyTorch rounds
    )
    return y


def find_tile(x: Tensor, weight: Matrix, gated: bool = False) -> tiles.Tile | tiles.FewRows | None:
    """Choose how x [tokens, in] is multiplied by weight [out, in]; None where that is PyTorch's business."""
    outs = len(weight) // 2 if gated else len(weight)
    knows_few = isinstance(weight, Int4Weight) and x.dtype != torch.float32 and gluon_modules.find(_FEW) is not None
    multiprocessors = chain.multiprocessors(x.device)
    return tiles.find(type(weight), outs, x.shape[1], len(x), gated, multiprocessors, knows_few)


def _multiply(
    residual: Residual,
    x: Tensor,
    weight: Matrix,
    y: Tensor,
    tile: tiles.Tile | tiles.FewRows,
    *,
    epsilon: float = 0.0,
    gated: bool = False,
    following: Norm | None = None,
) -> None:
    """Write a product into y.

    x: what is scaled in the residual, to be normalized by its squares, or anything. following: add to y, which is the
    residual's, and prepare it for this norm.
    """
    squares = residual.squares if x is residual.scaled else None
    prepared = residual if following is not None else None
    tokens, inner = x.shape
    outs = y.shape[1]
    values, facts, bits = _parts(weight)
    given = (
        x,
        values,
        facts,
        1 if facts is None else facts.stride(0),
        y,
        squares,
        epsilon,
        None if following is None else following.weight,
        None if prepared is None else prepared.scaled,
        None if prepared is None else prepared.squares,
    )
    wanted = {
        "INS": inner,
        "BLOCK_OUT": tile.out,
        "PARTS": 0 if squares is None else len(squares),
        "GATED": gated,
        "ADD": prepared is not None,
        "PREPARED": prepared is not None and prepared.scaled is not None,
    }
    if isinstance(tile, tiles.FewRows):
        few = gluon_modules.find(_FEW)
        assert few is not None and tokens <= tiles.FEW_ROWS
        few.product[tile.programs(outs),](
            *given,
            tokens,
            outs,
            **wanted,
            WARPS=tile.warps,
            STAGES=tile.stages,
            PADDED_GROUPS=tile.padded_groups(inner),
            PADDED_PARTS=tiles.padded(wanted["PARTS"], 1),
            LATE=tile.is_late,
            num_warps=tile.warps,
            **chain.link(x.device),
        )
        return
    padded = tiles.padded(tokens, tiles.LEAST_ROWS[bits])
    programs, columns = tile.programs(outs), tile.shares(inner)
    shares = counters = None
    if len(columns) > 1:
        shares = y.new_empty(len(columns), outs, padded, dtype=torch.float32)
        counters = y.new_zeros(programs, dtype=torch.int32) if residual.counters is None else residual.counters
    kernels.product[programs, len(columns)](
        *given,
        shares,
        counters,
        tokens,
        outs,
        **wanted,
        TAKEN=tile.taken,
        ROWS=padded,
        BLOCK_IN=tile.inner,
        GROUP=GROUP,
        BITS=bits,
        STAGES=tile.stages,
        SHARE=columns[0],
        AHEAD=tile.fetched(inner, bits),
        num_warps=tile.warps,
        num_stages=tile.stages,
        **chain.link(x.device, tile.is_chained),
    )


def _parts(weight: Matrix) -> tuple[Tensor, Tensor | None, int]:
    """Take a weight apart: its values, its scales (and zeros), the bits of a value."""
    if isinstance(weight, Int8Weight):
        return weight.values, weight.scales, 8
    if isinstance(weight, Int4Weight):
        return weight.values, weight.facts, 4
    assert isinstance(weight, Tensor), "tiles are for weights that have a kernel"
    return weight, None, 16
