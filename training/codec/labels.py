"""What a frame should tell: linear heads that read the score's labels from features. They are not shipped.

1,024 coarse codes are few for all that may sound, so that pitch weighs most.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from training.codec.songs import INSTRUMENTAL, VOCAL


@dataclass(frozen=True)
class Label:
    """One question about a frame of a track; the mix is asked everything. Class 0 is none: a rest, no drum."""

    name: str
    classes: int
    track: int
    weight: float


class Heads(nn.Module):
    """One linear map for each label."""

    def __init__(self, width: int, labels: tuple[Label, ...]) -> None:
        super().__init__()
        self.labels = labels
        self.maps = nn.ModuleDict({label.name: nn.Linear(width, label.classes) for label in labels})

    def forward(
        self, features: Tensor, truth: Mapping[str, Tensor], tracks: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted loss of features [B, T, width], and how often the heads are right where something is.

        truth: by name, int64 [B, T]. tracks: [B], on the CPU, which track each row is of.
        """
        total = features.new_zeros(())
        right: dict[str, Tensor] = {}
        for label in self.labels:
            other = INSTRUMENTAL if label.track == VOCAL else VOCAL
            if not (tracks != other).any():
                continue
            asked = (tracks != other).to(features.device, non_blocking=True)[:, None].expand(-1, features.shape[1])
            answers = self.maps[label.name](features)
            wanted = truth[label.name]
            losses = functional.cross_entropy(answers.flatten(0, 1), wanted.flatten(), reduction="none")
            total = total + label.weight * (losses * asked.flatten()).sum() / asked.sum()
            there = asked & (wanted > 0)
            is_right = (answers.argmax(-1) == wanted) & there
            right[label.name] = is_right.sum() / there.sum().clamp(min=1)
        return total, right
