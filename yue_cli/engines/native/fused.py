"""A step of a few rows by Triton kernels: five launches a layer.

It computes what `Llama.forward` does.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from yue_cli.engines.native import attention_kernels, chain, gluon_modules, tiles
from yue_cli.engines.native.cache import BEHIND, Cache, EightBitCache
from yue_cli.engines.native.model import Llama
from yue_cli.engines.native.products import Norm, Residual, add_product, project_normed, read_dtype
from yue_cli.engines.native.quantized import Matrix

_GROUPED = "grouped_kernels"


class FusedStep:
    """Reads n ids in each row, n small, and gives the logits after the last. All rows of the cache can be read."""

    def __init__(self, model: Llama, *, length: int) -> None:
        self._model, self._length = model, length
        config, device, rows = model.config, model.cosine.device, len(model.caches[0].keys)
        self._arrived = torch.zeros(rows, config.key_value_heads, dtype=torch.int32, device=device)
        widest = max(config.hidden, (config.heads + 2 * config.key_value_heads) * config.head_size)
        self._counters = torch.zeros(widest // tiles.LEAST_COLUMNS, dtype=torch.int32, device=device)

    def extent(self, needed: int) -> int:
        """Tell how many places to look at: the kernels find out on the device what is filled."""
        return self._length

    def logits(self, ids: Tensor, filled: Tensor, extent: int, head: Matrix) -> Tensor:
        """Compute float32 [R, columns] for ids [R, n] behind `filled`, int64 [R], ids of each row."""
        model = self._model
        count = ids.shape[1]
        layers = model.weights.layers
        x = F.embedding(ids.view(-1), model.weights.embedding)  # [R n, hidden]
        residual = Residual(x, counters=self._counters)
        outer = [self._norm(layer.attention_norm, layer.qkv) for layer in layers]
        outer.append(self._norm(model.weights.norm, head))
        for norm, following, layer, cache in zip(outer, outer[1:], layers, model.caches, strict=False):
            qkv = project_normed(residual, norm, layer.qkv)
            inner_norm = self._norm(layer.inner_norm, layer.gate_up)
            attended = self._attend(qkv, cache, filled, count, read_dtype(layer.output, qkv.dtype))
            add_product(residual, attended, layer.output, inner_norm)
            dtype = read_dtype(layer.down, residual.x.dtype)
            inner = project_normed(residual, inner_norm, layer.gate_up, gated=True, dtype=dtype)
            add_product(residual, inner, layer.down, following)
        return project_normed(residual.last(count), outer[-1], head, dtype=torch.float32)

    def _norm(self, weight: Tensor, reader: Matrix) -> Norm:
        """Describe a norm. reader: the weight of the product after it."""
        return Norm(weight, self._model.config.norm_epsilon, read_dtype(reader, weight.dtype))

    def _attend(self, qkv: Tensor, cache: Cache, filled: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """Write keys and values of the new ids, and let their queries look at all.

        qkv: [R n, …]. dtype: of the answer, [R n, heads * size].
        """
        config, model = self._model.config, self._model
        heads, shared, size = config.heads, config.key_value_heads, config.head_size
        tokens, rows, groups = len(qkv), len(qkv) // count, heads // shared
        device = qkv.device
        cut = find_cut(cache, qkv.dtype, groups, count)
        assert cut.block <= BEHIND, f"blocks of {cut.block} keys end outside the cache"
        sums = torch.empty(rows, shared, cut.chunks, groups * count, size, dtype=torch.float32, device=device)
        peaks = torch.empty(rows, shared, cut.chunks, groups * count, 2, dtype=torch.float32, device=device)
        attended = torch.empty(tokens, heads * size, dtype=dtype, device=device)
        known = qkv, model.cosine, model.sine, cache.keys, cache.values
        places, sharpness = cache.keys.shape[2], math.log2(math.e) / math.sqrt(size)
        others = filled, sums, peaks, self._arrived, attended, places, sharpness
        wanted = {"SHARED": shared, "CHUNKS": cut.chunks, "BLOCK": cut.block, "WARPS": cut.warps}
        wanted |= {"num_warps": cut.warps, **chain.link(device)}
        if isinstance(cut, tiles.GroupedCut):
            grouped = gluon_modules.find(_GROUPED)
            assert grouped is not None, "a cut for a kernel that is not there"
            grouped.attend[cut.chunks, shared, rows](*known, *others, **wanted, BUFFERS=cut.buffers)
            return attended
        scales = (cache.key_scales, cache.value_scales) if isinstance(cache, EightBitCache) else (None, None)
        attention_kernels.attend[cut.chunks, shared, rows](
            *known,
            *scales,
            *others,
            **wanted,
            COUNT=count,
            GROUPS=groups,
            SIZE=size,
            QUERIES=tiles.padded_queries(groups * count, cache.bits),
            BITS=cache.bits,
            num_stages=cut.stages,
            maxnreg=cut.registers,
        )
        return attended


def find_cut(cache: Cache, dtype: torch.dtype, groups: int, count: int) -> tiles.Cut | tiles.GroupedCut:
    """Choose how attention cuts up the keys.

    dtype: of the queries. groups: heads that share a key. count: queries a row.
    """
    rows, shared, _, size = cache.keys.shape
    is_grouped = (groups, size, count) == (tiles.GROUPED, tiles.GROUPED_SIZE, 1)
    if is_grouped and cache.keys.dtype == dtype != torch.float32 and gluon_modules.find(_GROUPED) is not None:
        return tiles.grouped_cut(rows * shared, chain.multiprocessors(cache.keys.device))
    return tiles.attention_cut(groups, cache.bits)
