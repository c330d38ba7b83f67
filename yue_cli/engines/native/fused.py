"""A step of a few rows by Triton kernels: nine launches a layer, eleven with quantized weights.

It computes what `Llama.forward` does.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from yue_cli.engines.native import chain, kernels, tiles
from yue_cli.engines.native.cache import Cache, EightBitCache
from yue_cli.engines.native.model import Llama
from yue_cli.engines.native.products import project
from yue_cli.engines.native.quantized import Matrix


class FusedStep:
    """Reads n ids in each row, n small, and gives the logits after the last. All rows of the cache can be read."""

    def __init__(self, model: Llama, *, length: int) -> None:
        self._model, self._length = model, length
        self.cut = tiles.attention_cut(len(model.caches[0].keys), chain.is_hopper(model.cosine.device))

    def extent(self, needed: int) -> int:
        """Tell how many places to look at: the kernels find out on the device what is filled."""
        return self._length

    def logits(self, ids: Tensor, filled: Tensor, extent: int, head: Matrix) -> Tensor:
        """Compute float32 [R, columns] for ids [R, n] behind `filled`, int64 [R], ids of each row."""
        model = self._model
        rows, count = ids.shape
        x = F.embedding(ids.view(-1), model.weights.embedding)  # [R n, hidden], changed in place from here on
        epsilon = model.config.norm_epsilon
        for layer, cache in zip(model.weights.layers, model.caches, strict=True):
            qkv = project(x, layer.qkv, norm=layer.attention_norm, epsilon=epsilon)
            attended = self._attend(qkv, cache, filled, count)
            project(attended, layer.output, add_to=x)
            inner = project(x, layer.gate_up, norm=layer.inner_norm, epsilon=epsilon, gated=True)
            project(inner, layer.down, add_to=x)
        last = x.view(rows, count, -1)[:, -1].contiguous()
        return project(last, head, norm=model.weights.norm, epsilon=epsilon, dtype=torch.float32)

    def _attend(self, qkv: Tensor, cache: Cache, filled: Tensor, count: int) -> Tensor:
        """Write keys and values of the new ids, and let their queries look at all. qkv: [R n, …]."""
        config, model = self._model.config, self._model
        heads, shared, size = config.heads, config.key_value_heads, config.head_size
        tokens, rows, groups = len(qkv), len(qkv) // count, heads // shared
        is_bytes = isinstance(cache, EightBitCache)
        key_scales, value_scales = (
            (cache.key_scales, cache.value_scales) if isinstance(cache, EightBitCache) else (cache.keys, cache.values)
        )
        link = chain.link(qkv.device)
        kernels.rotate_and_write[tokens, heads + 2 * shared](
            qkv,
            model.cosine,
            model.sine,
            filled,
            cache.keys,
            cache.values,
            key_scales,
            value_scales,
            self._length,
            COUNT=count,
            HEADS=heads,
            SHARED=shared,
            HALF=size // 2,
            EIGHT_BIT=is_bytes,
            num_warps=1,
            **link,
        )
        cut = self.cut
        chunks = math.ceil(self._length / cut.chunk)
        sums = torch.empty(rows, shared, chunks, groups * count, size, dtype=torch.float32, device=qkv.device)
        peaks = torch.empty(rows, shared, chunks, groups * count, 2, dtype=torch.float32, device=qkv.device)
        kernels.attend[chunks, shared, rows](
            qkv,
            cache.keys,
            cache.values,
            key_scales,
            value_scales,
            filled,
            sums,
            peaks,
            self._length,
            math.log2(math.e) / math.sqrt(size),
            COUNT=count,
            GROUPS=groups,
            SHARED=shared,
            SIZE=size,
            QUERIES=tiles.padded(groups * count),
            CHUNK=cut.chunk,
            BLOCK=cut.block,
            EIGHT_BIT=is_bytes,
            num_warps=cut.warps,
            num_stages=cut.stages,
            **link,
        )
        attended = torch.empty(tokens, heads * size, dtype=qkv.dtype, device=qkv.device)
        kernels.combine[tokens, heads](
            sums,
            peaks,
            filled,
            attended,
            COUNT=count,
            GROUPS=groups,
            SHARED=shared,
            SIZE=size,
            CHUNK=cut.chunk,
            CHUNKS=chunks,
            BLOCK=tiles.COMBINED,
            num_warps=4,
            **link,
        )
        return attended
