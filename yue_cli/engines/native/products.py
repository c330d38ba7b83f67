"""Products of a few rows with a weight in any form, and what comes before and after them, by Triton kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from yue_cli.engines.native import chain, kernels, quantized_kernels, tiles
from yue_cli.engines.native.formats import GROUP
from yue_cli.engines.native.model import linear
from yue_cli.engines.native.quantized import Int4Weight, Int8Weight, Matrix


def project(
    x: Tensor,
    weight: Matrix,
    *,
    norm: Tensor | None = None,
    epsilon: float = 0.0,
    gated: bool = False,
    add_to: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Multiply x [tokens, in] by weight [out, in].

    norm: normalize x and scale it by this. gated: the weight holds gates and others, one under the other; returns
    silu(gate) * other, half as wide. add_to: add to this in place and return it. dtype: of the result, else x's.
    Whoever has no kernel, and many rows, are PyTorch's business.
    """
    tokens, inner = x.shape
    outs = len(weight) // 2 if gated else len(weight)
    tile = tiles.find(type(weight), outs, inner, tokens, gated, chain.is_hopper(x.device))
    if tile is None:
        return _by_pytorch(x, weight, norm, epsilon, gated, add_to, dtype)
    y = torch.empty(tokens, outs, dtype=dtype or x.dtype, device=x.device) if add_to is None else add_to
    if isinstance(weight, Int8Weight | Int4Weight):
        _in_whole_numbers(x, weight, norm, epsilon, gated, add_to is not None, y, tile)
        return y
    assert isinstance(weight, Tensor), "tiles are for weights that have a kernel"
    if norm is not None:
        x = normalize(x, norm, epsilon)
    kernels.product[outs // tile.out,](
        x,
        weight,
        y,
        tokens,
        outs,
        INS=inner,
        ROWS=tiles.padded(tokens),
        BLOCK_OUT=tile.out,
        BLOCK_IN=tile.inner,
        GATED=gated,
        ADD=add_to is not None,
        AHEAD=tiles.ahead(inner * x.itemsize),
        num_warps=tile.warps,
        num_stages=tile.stages,
        **chain.link(x.device),
    )
    return y


def normalize(x: Tensor, norm: Tensor, epsilon: float) -> Tensor:
    """Normalize the rows of x [tokens, in] and scale them: RMSNorm."""
    tokens, inner = x.shape
    y = torch.empty_like(x)
    kernels.normalize[tokens,](
        x,
        norm,
        y,
        epsilon,
        INS=inner,
        COLUMNS=tiles.padded(inner),
        num_warps=8,
        **chain.link(x.device),
    )
    return y


def _in_whole_numbers(
    x: Tensor,
    weight: Int8Weight | Int4Weight,
    norm: Tensor | None,
    epsilon: float,
    gated: bool,
    adds: bool,
    y: Tensor,
    tile: tiles.Tile,
) -> None:
    """Turn x into numbers of 16 bits, then multiply."""
    tokens, inner = x.shape
    groups = inner // GROUP
    bytes_ = torch.empty(2, tokens, inner, dtype=torch.int8, device=x.device)
    scales = torch.empty(tokens, dtype=torch.float32, device=x.device)
    sums = torch.empty(tokens, groups, dtype=torch.float32, device=x.device)
    quantized_kernels.to_fixed[tokens,](
        x,
        x if norm is None else norm,
        bytes_,
        scales,
        sums,
        tokens,
        epsilon,
        INS=inner,
        GROUPS=tiles.padded(groups, 1),
        GROUP=GROUP,
        NORM=norm is not None,
        num_warps=8,
        **chain.link(x.device),
    )
    quantized_kernels.fixed_product[y.shape[1] // tile.out,](
        bytes_,
        scales,
        sums,
        weight.values,
        weight.scales,
        weight.zeros if isinstance(weight, Int4Weight) else weight.scales,
        y,
        tokens,
        y.shape[1],
        INS=inner,
        ROWS=tiles.padded(tokens, 8),
        BLOCK_OUT=tile.out,
        BLOCK_IN=tile.inner,
        FOUR_BIT=isinstance(weight, Int4Weight),
        GATED=gated,
        ADD=adds,
        AHEAD=tiles.ahead(weight.values.shape[1]),
        num_warps=tile.warps,
        num_stages=tile.stages,
        **chain.link(x.device),
    )


def _by_pytorch(
    x: Tensor,
    weight: Matrix,
    norm: Tensor | None,
    epsilon: float,
    gated: bool,
    add_to: Tensor | None,
    dtype: torch.dtype | None,
) -> Tensor:
    if norm is not None:
        x = F.rms_norm(x, (x.shape[-1],), norm, epsilon)
    if add_to is not None and isinstance(weight, Tensor) and not gated:
        return add_to.addmm_(x, weight.T)
    y = linear(x, weight)
    if gated:
        gate, other = y.chunk(2, dim=-1)
        y = F.silu(gate) * other
    if add_to is not None:
        return add_to.add_(y)
    return y.to(dtype or y.dtype)
