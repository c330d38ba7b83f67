"""How far one model's next-token distributions are from another's: sums over positions. Logits only, no models.

The sums can be added, so that a long song needs no more memory than a short one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Comparison:
    """Sums over `tokens` positions at which a model and the one that it is compared with predict the same next token.

    The divergence is KL(reference ‖ model), in nats: what is lost when the model stands for the reference.
    """

    tokens: int = 0
    divergence: float = 0.0  # over the whole vocabulary
    divergence_allowed: float = 0.0  # over the ids that may be picked, both distributions made whole there
    agreed: int = 0  # positions where both give the same allowed id the highest probability
    surprise: float = 0.0  # minus the log of the probability that the model gives the token, over the whole vocabulary
    surprise_reference: float = 0.0

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def kl(self) -> float:
        return self.divergence / self.tokens

    @property
    def kl_allowed(self) -> float:
        return self.divergence_allowed / self.tokens

    @property
    def agreement(self) -> float:
        return self.agreed / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.surprise / self.tokens)

    @property
    def perplexity_reference(self) -> float:
        return math.exp(self.surprise_reference / self.tokens)


def compare(model: Tensor, reference: Tensor, tokens: Tensor, allowed: Sequence[range]) -> Comparison:
    """Compare two models at n positions.

    model, reference: logits float32 [n, vocabulary], after the same ids. tokens: int64 [n], the ids that came next.
    allowed: the ids that might have come.
    """
    ours, theirs = _log_probabilities(model), _log_probabilities(reference)
    ids = torch.cat([torch.arange(part.start, part.stop, device=model.device) for part in allowed])
    ours_allowed, theirs_allowed = _log_probabilities(model[:, ids]), _log_probabilities(reference[:, ids])
    chosen = tokens.to(model.device)[:, None]
    return Comparison(
        tokens=len(tokens),
        divergence=_divergence(theirs, ours),
        divergence_allowed=_divergence(theirs_allowed, ours_allowed),
        agreed=int((ours_allowed.argmax(-1) == theirs_allowed.argmax(-1)).sum()),
        surprise=-float(ours.gather(1, chosen).sum()),
        surprise_reference=-float(theirs.gather(1, chosen).sum()),
    )


def _log_probabilities(logits: Tensor) -> Tensor:
    # In float64: near divergences are differences of numbers that are almost the same.
    return logits.double().log_softmax(-1)


def _divergence(reference: Tensor, model: Tensor) -> float:
    """Sum KL(reference ‖ model) over positions; both are logs of probabilities [n, ids]."""
    return float((reference.exp() * (reference - model)).sum())
