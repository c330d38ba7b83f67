"""A LLaMA with a static key/value cache. Knows tensors only: no files, no sampling.

Source of the computation: LLaMA (arXiv 2302.13971) as `LlamaForCausalLM` of transformers defines it: rotary
embedding by halves, grouped queries (arXiv 2305.13245), RMSNorm in float32, SwiGLU.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from yue_cli.engines.native import attention
from yue_cli.engines.native.cache import Cache
from yue_cli.engines.native.config import LlamaConfig
from yue_cli.engines.native.quantized import Matrix, QuantizedWeight, Unpack
from yue_cli.processor import is_intel

_FEW_ROWS, _FEW_ROWS_ON_INTEL = range(1, 49), range(8, 49)


@dataclass(frozen=True)
class Layer:
    attention_norm: Tensor  # [hidden]
    qkv: Matrix  # queries, keys, values one under the other: [(heads + 2 key_value_heads) * head_size, hidden]
    output: Matrix  # [hidden, heads * head_size]
    inner_norm: Tensor  # [hidden]
    gate_up: Matrix  # [2 * inner, hidden]
    down: Matrix  # [hidden, inner]


@dataclass(frozen=True)
class Weights:
    embedding: Tensor  # [vocabulary, hidden]
    layers: list[Layer]
    norm: Tensor  # [hidden]
    head: Matrix  # [vocabulary, hidden]

    def tensors(self) -> list[Tensor]:
        """List every tensor once."""
        weights: list[Matrix] = [self.embedding, self.norm]
        if self.head is not self.embedding:
            weights.append(self.head)
        weights += [weight for layer in self.layers for weight in vars(layer).values()]
        return [tensor for weight in weights for tensor in _parts(weight)]


@dataclass(frozen=True)
class Span:
    """Rows of a batch that stand at the same position, and the cache slots that they own."""

    rows: slice  # of the batch
    slots: slice  # of the cache
    start: int  # ids already in the cache


class Llama:
    def __init__(
        self,
        config: LlamaConfig,
        weights: Weights,
        caches: list[Cache],
        *,
        length: int,
        can_flash: bool = False,
        unpack: Unpack | None = None,
    ) -> None:
        """caches: one a layer, with room for `length` ids. can_flash: attend by FlashAttention-2.

        unpack: a faster way to turn quantized weights into numbers.
        """
        self.config = config
        self.weights = weights
        self.caches = caches
        self.can_flash = can_flash
        self.unpack = unpack
        self.cosine, self.sine = _rotary_tables(config, length, weights.embedding.device)

    def forward(self, ids: Tensor, spans: list[Span]) -> Tensor:
        """Read n ids in each row, remember their keys and values, return the last position's hidden state.

        ids: int64 [R, n]. Returns [R, hidden], before the head.
        """
        return self.norm(self.read(ids, spans)[:, -1], self.weights.norm)

    def read(self, ids: Tensor, spans: list[Span]) -> Tensor:
        """Read as `forward` does; return every position's state after the last layer [R, n, hidden], not normed."""
        count = ids.shape[1]
        rotation = self._rotation(spans, count)
        masks = [None if self.can_flash else _mask(span.start, count, ids.device) for span in spans]
        flash = attention.Flash()
        x = F.embedding(ids, self.weights.embedding)  # [R, n, hidden]
        for layer, cache in zip(self.weights.layers, self.caches, strict=True):
            q, k, v = self.queries_keys_values(x, layer, rotation)
            attended = []
            for span, mask in zip(spans, masks, strict=True):
                cache.write(span.slots, span.start, k[span.rows], v[span.rows])
                known = cache.read(span.slots, span.start + count)
                if self.can_flash:
                    attended.append(flash(q[span.rows], *known))
                else:
                    attended.append(attention.masked(q[span.rows], *known, mask))
            together = attended[0] if len(attended) == 1 else torch.cat(attended)
            x = x + self.linear(together.flatten(2), layer.output)
            x = x + self.feed_forward(x, layer)
        return x

    def queries_keys_values(
        self, x: Tensor, layer: Layer, rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute rotated queries [R, n, heads, size] and rotated keys and values [R, shared, n, size] of x."""
        heads, shared, size = self.config.heads, self.config.key_value_heads, self.config.head_size
        rows, count, _ = x.shape
        qkv = self.linear(self.norm(x, layer.attention_norm), layer.qkv).view(rows, count, heads + 2 * shared, size)
        turned, v = qkv.transpose(1, 2).split([heads + shared, shared], dim=1)
        q, k = rotate(turned, *rotation).split([heads, shared], dim=1)
        return q.transpose(1, 2), k, v

    def feed_forward(self, x: Tensor, layer: Layer) -> Tensor:
        gate, up = self.linear(self.norm(x, layer.inner_norm), layer.gate_up).chunk(2, dim=-1)
        return self.linear(F.silu(gate) * up, layer.down)

    def linear(self, x: Tensor, weight: Matrix) -> Tensor:
        """Multiply x [..., in] by weight [out, in], quantized ones in this model's way: [..., out]."""
        return linear(x, weight, self.unpack)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        # In float32, and rounded before it is scaled, as transformers does.
        normal = F.rms_norm(x.float(), x.shape[-1:], eps=self.config.norm_epsilon)
        return normal.to(x.dtype) * weight

    def _rotation(self, spans: list[Span], count: int) -> tuple[Tensor, Tensor]:
        """Look up cosines and sines [R or 1, 1, n, size / 2] of every row's positions."""

        def look_up(table: Tensor) -> Tensor:
            parts = [table[span.start : span.start + count] for span in spans]
            if len(parts) == 1:
                return parts[0][None, None]
            sizes = [span.rows.stop - span.rows.start for span in spans]
            return torch.cat([part.expand(size, 1, -1, -1) for part, size in zip(parts, sizes, strict=True)])

        return look_up(self.cosine), look_up(self.sine)


def linear(x: Tensor, weight: Matrix, unpack: Unpack | None = None) -> Tensor:
    """Multiply x [..., in] by weight [out, in], in whichever order is faster: [..., out].

    Only shapes and the maker of the processor decide which. unpack: turns quantized weights into numbers; None: as
    `dequantize` does.
    """
    if isinstance(weight, QuantizedWeight):
        return weight.multiply(x, unpack)
    if not isinstance(weight, Tensor):
        return weight.multiply(x)
    rows = x.shape[:-1].numel()
    if x.device.type == "cpu" and x.dtype == torch.float32 and rows in _few_rows():
        return (weight @ x.reshape(rows, -1).T).T.reshape(*x.shape[:-1], -1)
    return F.linear(x, weight)


def _few_rows() -> range:
    """Tell for how many rows `weight @ x.T` beats `x @ weight.T` on a CPU in float32.

    On an AMD EPYC from the first on, by up to three times at 2 to 4 rows. On an Intel Xeon the other order is up to
    four times as fast for 2 to 6; for one row both take as long, for eight nearly, but for wide matrices.
    """
    return _FEW_ROWS_ON_INTEL if is_intel() else _FEW_ROWS


def _parts(weight: Matrix) -> list[Tensor]:
    return [weight] if isinstance(weight, Tensor) else list(weight.tensors().values())


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (first half, second half) of a head by its position's angle. x: [R, heads, n, size]."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(x.dtype)


def _mask(start: int, count: int, device: torch.device) -> Tensor | None:
    """Say which keys each of the new ids may see: bool [1, n, start + n]; None where all may."""
    if count == 1:
        return None
    return torch.ones(1, count, start + count, dtype=torch.bool, device=device).tril(start)


def _rotary_tables(config: LlamaConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines [length, head_size / 2], in float64 so that far positions are exact."""
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.float64) / config.head_size
    angles = torch.outer(torch.arange(length, dtype=torch.float64), config.rope_theta**-exponents)
    return angles.cos().float().to(device), angles.sin().float().to(device)
