"""Ways to let queries look at their keys. All give the same numbers but for rounding; the plain one is the definition.

Queries are [R, n, heads, size]; keys and values [R, shared, places, size], where heads that follow each other share.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from yue_cli.processor import is_intel

FLASH_CAPABILITY = 8.0  # compute capability that FlashAttention-2 needs
_FLASH_HEAD_SIZE = 256  # the largest that it takes
# Up to so many queries a key, an AMD EPYC reads keys and values faster in two plain products, by up to 1.5 times; an
# Intel Xeon does not.
_FEW_QUERIES = 2
_FLASH_DTYPES = (torch.float16, torch.bfloat16)


def can_flash(device: torch.device, dtype: torch.dtype, head_size: int, capability: float) -> bool:
    """Tell whether PyTorch's FlashAttention-2 can be used."""
    has_sizes = dtype in _FLASH_DTYPES and head_size <= _FLASH_HEAD_SIZE and head_size % 8 == 0
    if device.type != "cuda" or not has_sizes or capability < FLASH_CAPABILITY:
        return False
    if not torch.backends.cuda.is_flash_attention_available():
        return False
    # The lengths on the device are younger than the operator.
    schema = torch.ops.aten._flash_attention_forward.default._schema
    return any(argument.name == "seqused_k" for argument in schema.arguments)


def masked(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """Look at the keys that `visible`, bool [1 or R, n, places], marks; None: all. Returns [R, n, heads, size]."""
    rows, count, heads, size = q.shape
    shared = keys.shape[1]
    # The queries that share a key stand together as more positions of one head.
    grouped = q.transpose(1, 2).reshape(rows, shared, heads // shared * count, size)
    mask = None if visible is None else visible.repeat(1, heads // shared, 1)[:, None]
    if q.device.type == "cpu" and grouped.shape[2] <= _FEW_QUERIES and not is_intel():
        attended = _in_two_products(grouped, keys, values, mask)
    else:
        attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
    # Not `view`: on a GPU the answer may lie in another order.
    return attended.reshape(rows, heads, count, size).transpose(1, 2)


def _in_two_products(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """Attend as `scaled_dot_product_attention` does: [R, heads, n or places, size]; visible: bool [1, 1, n, places]."""
    scores = (keys @ (q * q.shape[-1] ** -0.5).transpose(-1, -2)).transpose(-1, -2)
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(-1) @ values


class Flash:
    """FlashAttention-2 for all layers of one call: what it is told beside queries, keys and values is made once."""

    def __init__(self, used: Tensor | None = None) -> None:
        """used: int32 [R] on the device, the keys that a row has; None: all that are given."""
        self._used = used
        self._told: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Let the last query of a row see all its keys, the one before it one less. Returns [R, n, heads, size]."""
        rows, count, heads, size = q.shape
        places, pitch = keys.shape[2], keys.stride(0) // size
        shape = rows, count, places, pitch
        if shape not in self._told:
            ends = torch.arange(rows + 1, dtype=torch.int32, device=q.device)
            used = self._used if self._used is not None else torch.full_like(ends[1:], places)
            self._told[shape] = ends * count, ends * pitch, used
        query_ends, key_ends, used = self._told[shape]
        attended = torch.ops.aten._flash_attention_forward(
            q.reshape(rows * count, heads, size),
            rows_in_line(keys),
            rows_in_line(values),
            query_ends,
            key_ends,
            count,
            places,
            0.0,
            count > 1,
            False,
            seqused_k=used,
        )[0]
        return attended.view(rows, count, heads, size)


def rows_in_line(cache: Tensor) -> Tensor:
    """See [R, shared, places, size] as [steps, shared, size]: row r begins at step r * stride(0) / size.

    Nothing is copied. What lies between the rows is other heads' and never looked at.
    """
    rows, shared, places, size = cache.shape
    assert cache.stride(2) == size and cache.stride(0) % size == 0, "places of a head must follow each other"
    steps = (rows - 1) * cache.stride(0) // size + places
    return cache.as_strided((steps, shared, size), (size, cache.stride(1), 1))
