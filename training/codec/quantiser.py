"""Codebooks that learn: the product's quantiser, its entries moving averages of what they stand for.

Source: VQ-VAE, arXiv 1711.00937, appendix A; residual as in SoundStream, arXiv 2107.03312.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from xcodec_mini_infer.precision import full_precision
from xcodec_mini_infer.quantizer import Quantizer, nearest

DECAY = 0.99
DEAD = 0.2  # of the mean use: an entry used less starts anew elsewhere
KMEANS_ROUNDS = 10


class LearningQuantizer(nn.Module):
    """Keeps, for each entry of a Quantizer, the moving count and sum of the vectors nearest to it."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        books = list(quantizer.codebooks)
        self.books = books  # the quantiser's own tensors, not a part of this module's state
        for book in books:
            book.requires_grad_(False)
        self.counts: Tensor
        self.sums: Tensor
        self.register_buffer("counts", torch.zeros(len(books), len(books[0])))
        self.register_buffer("sums", torch.zeros(len(books), *books[0].shape))

    @torch.no_grad()
    def initialise(self, vectors: Tensor, draw: np.random.Generator, step_vectors: int) -> None:
        """Place the entries by k-means on float32 [N, D] and, book by book, on what is left over.

        step_vectors: how many vectors a step will bring; the first averages weigh as much as the later ones.
        """
        rest = vectors
        for index, book in enumerate(self.books):
            book.copy_(rest[_choose(draw, len(rest), len(book)).to(rest.device)])
            for _ in range(KMEANS_ROUNDS):
                counts, sums = _totals(rest, _nearest(rest, book), len(book))
                book.copy_(torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], book))
            codes = _nearest(rest, book)
            used = _totals(rest, codes, len(book))[0] * (step_vectors / len(rest))
            self.counts[index] = used.clamp(min=1e-6)
            self.sums[index] = book * self.counts[index, :, None]
            rest = rest - functional.embedding(codes, book)

    @torch.no_grad()
    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Find the entries that add up to float32 [N, D].

        Returns codes int64 [K, N] and the sums of the first 1, 2, … K entries, [K, N, D].
        """
        total = torch.zeros_like(vectors)
        codes, sums = [], []
        for book in self.books:
            codes.append(_nearest(vectors - total, book))
            total = total + functional.embedding(codes[-1], book)
            sums.append(total)
        return torch.stack(codes), torch.stack(sums)

    @torch.no_grad()
    def learn(self, vectors: Tensor, codes: Tensor, draw: np.random.Generator) -> Tensor:
        """Move the entries towards the vectors [N, D] that chose them; returns how many dead entries started anew.

        Nothing waits for the device: each entry has a substitute at hand, whether it needs one or not.
        """
        restarted = vectors.new_zeros(())
        size = len(self.books[0])
        substitutes = torch.from_numpy(draw.integers(len(vectors), size=(len(self.books), size)))
        substitutes = substitutes.to(vectors.device, non_blocking=True)
        rest = vectors
        for index, book in enumerate(self.books):
            counts, sums = _totals(rest, codes[index], len(book))
            left_over = rest - functional.embedding(codes[index], book)
            self.counts[index].lerp_(counts, 1 - DECAY)
            self.sums[index].lerp_(sums, 1 - DECAY)
            usual = self.counts[index].mean()
            dead = self.counts[index] < DEAD * usual
            # Count and sum must follow the entry, or the next step would bring it back to where it died.
            self.sums[index] = torch.where(dead[:, None], usual * rest[substitutes[index]], self.sums[index])
            self.counts[index] = torch.where(dead, usual, self.counts[index])
            restarted = restarted + dead.sum()
            book.copy_(self.sums[index] / self.counts[index, :, None])
            rest = left_over
        return restarted


def _totals(vectors: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Count and add up the vectors [N, D] of each code: [size] and [size, D]."""
    counts = vectors.new_zeros(size).index_add_(0, codes, vectors.new_ones(len(codes)))
    sums = vectors.new_zeros(size, vectors.shape[1]).index_add_(0, codes, vectors)
    return counts, sums


def _nearest(vectors: Tensor, book: Tensor) -> Tensor:
    with full_precision():  # as in use
        return nearest(vectors, book)


def _choose(draw: np.random.Generator, among: int, number: int) -> Tensor:
    return torch.from_numpy(draw.choice(among, number, replace=number > among))
