"""Residual codebooks: codes to embeddings and back. Source: X-Codec, arXiv 2408.17175, a residual vector quantiser."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from xcodec_mini_infer import CodecError


class Quantizer(nn.Module):
    """Codebooks that refine each other: the embedding of a frame is the sum of one entry of each."""

    def __init__(self, codebooks: int, codebook_size: int, dimension: int) -> None:
        super().__init__()
        self.codebooks = nn.ParameterList(torch.empty(codebook_size, dimension) for _ in range(codebooks))

    def forward(self, codes: Tensor) -> Tensor:
        """Sum the entries of the first K codebooks.

        codes: integers [B, K, T], on any device. Returns float32 [B, dimension, T].
        Raises CodecError if there are no frames, too many codebooks, or a code is out of range.
        """
        self.check(codes)
        books = list(self.codebooks)
        codes = codes.to(books[0].device, torch.int64)
        total = functional.embedding(codes[:, 0], books[0])
        for index in range(1, codes.shape[1]):
            total += functional.embedding(codes[:, index], books[index])
        return total.transpose(1, 2)

    @torch.inference_mode()
    def encode(self, embedding: Tensor) -> Tensor:
        """Find the nearest entry of each codebook to what the ones before it left over.

        embedding: float32 [B, dimension, T]. Returns int64 [B, codebooks, T].
        """
        rest = embedding.transpose(1, 2)
        found = []
        for book in self.codebooks:
            found.append(nearest(rest, book))
            rest = rest - functional.embedding(found[-1], book)
        return torch.stack(found, dim=1)

    def check(self, codes: Tensor) -> None:
        """Raise CodecError for codes of another shape or out of range."""
        count, size = len(self.codebooks), len(self.codebooks[0])
        if codes.ndim != 3 or not 1 <= codes.shape[1] <= count or codes.shape[2] == 0:
            raise CodecError(f"codes have shape {list(codes.shape)}; expected [B, K, T], K from 1 to {count}, T > 0.")
        low, high = (int(value) for value in codes.aminmax())
        if low < 0 or high >= size:
            raise CodecError(f"codes go from {low} to {high}; expected 0 to {size - 1}.")


def nearest(vectors: Tensor, book: Tensor) -> Tensor:
    """Find the entry of a codebook [N, D] that is nearest to each of float32 [..., D]: int64 [...]."""
    # |vector - entry|² less |vector|², which is the same for all entries, and turned round.
    return (2 * vectors @ book.T - book.square().sum(-1)).argmax(-1)
