"""Guided attention: two heads of stage 1 are told, in training, which words they should look at.

A low one looks for the syllable sung last, which can be heard in the codes; a higher one for the syllable sung now.
What the higher one reads there must tell, through a linear map that only training has, which code is sung: the codes
before tell that too well for words to be missed. What is shipped is a plain LLaMA.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

WEIGHT, WEIGHT_STEPS = 0.1, 1000  # of the guided heads' losses, beside that of the answers, and when it is reached
SLOTS = 128  # syllables that are told apart; a row seldom has more, and the next one with the same slot is far away
_LEAST = 1e-5  # attention below which a head is not blamed much more


def watched_layers(layers: int) -> tuple[int, int]:
    """Choose the layers whose first heads look for the last syllable and for the one sung now."""
    return layers // 4, layers // 2


def weight(step: int) -> float:
    """Weigh the guided heads' loss: from the start it would make all codes alike before they mean anything."""
    return WEIGHT * min(step / WEIGHT_STEPS, 1.0)


def mark(written: Tensor, head_size: int, dtype: torch.dtype) -> Tensor:
    """Mark ids with the syllables that they write: [n, SLOTS / head size, head size], a one for each.

    written: integers [n, 2], first and last.
    """
    first, last = written.long().unsqueeze(-1).unbind(1)  # [n, 1]
    slots = torch.arange(SLOTS, device=written.device)
    marks = ((slots - first) % SLOTS <= last - first) & (first >= 0)
    return marks.to(dtype).unflatten(1, (-1, head_size))


def blame(looks: Sequence[Tensor], sung: Tensor) -> Tensor:
    """Compute how little the heads look where they should: the mean of minus the logarithm of their attention there.

    looks: [n, SLOTS / head size + 1, head size], as `Attention.look` gives them. sung: integers [n, heads].
    """
    losses = []
    for look, syllables in zip(looks, sung.unbind(1), strict=True):
        share, wanted = _shares(look, syllables)[0], syllables >= 0
        losses.append(torch.where(wanted, -(share + _LEAST).log(), 0).sum() / wanted.sum().clamp(min=1))
    return torch.stack(losses).mean()


def hits(looks: Sequence[Tensor], sung: Tensor) -> Tensor:
    """Count, for each head, where nothing written gets more attention than what should, and all places: [heads, 2]."""
    counts = []
    for look, syllables in zip(looks, sung.unbind(1), strict=True):
        share, most = _shares(look, syllables)
        wanted = syllables >= 0
        counts.append(torch.stack([(wanted & (share > 0) & (share >= most)).sum(), wanted.sum()]))
    return torch.stack(counts)


def _shares(look: Tensor, syllables: Tensor) -> tuple[Tensor, Tensor]:
    """Read the attention on the syllables asked for, and on those that have most of it: float32 [n] each."""
    shares = look[:, :-1].flatten(1).float()
    return shares.gather(1, syllables.long()[:, None] % SLOTS).squeeze(1), shares.amax(dim=1)
