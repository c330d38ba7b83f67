"""A step whose positions lie on the device, so that it can be recorded: PyTorch's own operations alone.

It computes what `Llama.forward` does. Nothing here depends on a number that the host would have to ask for.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from yue_cli.engines.native import attention
from yue_cli.engines.native.model import Llama
from yue_cli.engines.native.quantized import Matrix

# How many places attention may have to look at grows from here by doubling: each number is recorded anew.
_SMALLEST_EXTENT = 2048


class PositionedStep:
    """Reads n ids in each row, n small, and gives the logits after the last."""

    def __init__(self, model: Llama, *, length: int) -> None:
        self._model, self._length = model, length

    def extent(self, needed: int) -> int:
        """Tell how many places to look at where `needed` are filled."""
        extent = _SMALLEST_EXTENT
        while extent < needed:
            extent *= 2
        return min(extent, self._length)

    def logits(self, ids: Tensor, filled: Tensor, extent: int, head: Matrix) -> Tensor:
        """Compute float32 [R, columns] for ids [R, n] behind `filled`, int64 [R], ids of each row."""
        model, count = self._model, ids.shape[1]
        device = ids.device
        positions = filled[:, None] + torch.arange(count, device=device)  # [R, n]
        rotation = model.cosine[positions][:, None], model.sine[positions][:, None]  # [R, 1, n, size / 2]
        visible = torch.arange(extent, device=device) <= positions[..., None]  # [R, n, extent]
        flash = attention.Flash((filled + count).int())
        rows = slice(len(ids))
        x = F.embedding(ids, model.weights.embedding)
        for layer, cache in zip(model.weights.layers, model.caches, strict=True):
            q, k, v = model.queries_keys_values(x, layer, rotation)
            cache.write_at(positions, k, v)
            known = cache.read(rows, extent)
            if model.can_flash:
                attended = flash(q, *known)
            else:
                # Not cuDNN, which makes a plan for every shape while it is recorded.
                with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
                    attended = attention.masked(q, *known, visible)
            x = x + model.linear(attended.flatten(2), layer.output)
            x = x + model.feed_forward(x, layer)
        return model.linear(model.norm(x[:, -1], model.weights.norm), head).float()
