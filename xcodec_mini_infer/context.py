"""Work in chunks: which frames to run with how much context, and how the context is dropped again.

Decoding is local in time, with zeros padded inside every layer at the two true ends of a song. So a chunk is run
with the frames around it, and nothing is added at a true end: padded activations are not those of zero input.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

from torch import Tensor

Step = Callable[[], None]  # called after each piece of work


def unwatched() -> None:
    """Take no notice of a step."""


@dataclass(frozen=True)
class Chunk:
    """Frames [start, stop) of a song, to be run together with `left` frames before and `right` frames after."""

    start: int
    stop: int
    left: int
    right: int

    @property
    def run(self) -> slice:
        """The frames to run."""
        return slice(self.start - self.left, self.stop + self.right)


def chunks(total: int, size: int, context: int) -> Iterator[Chunk]:
    """Cut `total` frames into chunks of at most `size` frames; context ends where the song does.

    They are as long as each other, if they can: libraries plan their work anew for every length.
    """
    length = ceil(total / ceil(total / size)) if total else size
    for start in range(0, total, length):
        stop = min(start + length, total)
        yield Chunk(start, stop, min(context, start), min(context, total - stop))


def trim(values: Tensor, left: int, right: int, keep: int) -> tuple[Tensor, int, int]:
    """Drop context from the last axis that later layers do not need; returns what is left of it on either side."""
    start, stop = max(left - keep, 0), values.shape[-1] - max(right - keep, 0)
    return values[..., start:stop], min(left, keep), min(right, keep)
