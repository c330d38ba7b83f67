import pytest
import torch

from xcodec_mini_infer import CodecError
from xcodec_mini_infer.quantizer import Quantizer


@pytest.fixture
def quantizer() -> Quantizer:
    """Entry e of codebook k is [10^k * e, -10^k * e]."""
    quantizer = Quantizer(codebooks=3, codebook_size=4, dimension=2)
    for k, book in enumerate(quantizer.codebooks):
        book.data = torch.arange(4.0)[:, None] * torch.tensor([10.0**k, -(10.0**k)])
    return quantizer.requires_grad_(False)


def test_an_embedding_is_the_sum_of_one_entry_a_codebook(quantizer: Quantizer) -> None:
    codes = torch.tensor([[[1, 3], [2, 0], [3, 1]]])
    assert quantizer(codes).tolist() == [[[321.0, 103.0], [-321.0, -103.0]]]


def test_fewer_codebooks_are_a_coarser_embedding(quantizer: Quantizer) -> None:
    assert quantizer(torch.tensor([[[1, 3]]]))[0, 0].tolist() == [1.0, 3.0]


def test_codes_are_the_nearest_entries_of_what_is_left_over(quantizer: Quantizer) -> None:
    # 19 is nearest to 3 of entries 0 to 3; 16 is left, nearest to 20; then -4, nearest to 0.
    embedding = torch.tensor([[[19.0, 1.2], [-19.0, -1.2]]])
    assert quantizer.encode(embedding).tolist() == [[[3, 1], [2, 0], [0, 0]]]


def test_embeddings_of_codes_give_the_codes_back() -> None:
    books = Quantizer(codebooks=4, codebook_size=32, dimension=16).requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for number, book in enumerate(books.codebooks):
        book.data = torch.randn(book.shape, generator=generator) * 0.1**number
    codes = torch.randint(0, 32, (2, 4, 50), generator=generator)
    assert torch.equal(books.encode(books(codes)), codes)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_codes_of_any_integer_type_are_read(quantizer: Quantizer, dtype: torch.dtype) -> None:
    assert quantizer(torch.tensor([[[2]]], dtype=dtype))[0, 0].tolist() == [2.0]


def test_the_sum_leaves_the_codebooks_alone(quantizer: Quantizer) -> None:
    before = quantizer.codebooks[0].clone()
    quantizer(torch.tensor([[[1], [2]]]))
    assert torch.equal(quantizer.codebooks[0], before)


@pytest.mark.parametrize("shape", [(1, 3, 0), (1, 4, 2), (1, 0, 2), (3, 2)])
def test_codes_of_another_shape_are_refused(quantizer: Quantizer, shape: tuple[int, ...]) -> None:
    with pytest.raises(CodecError) as error:
        quantizer(torch.zeros(shape, dtype=torch.int64))
    assert str(error.value) == f"codes have shape {list(shape)}; expected [B, K, T], K from 1 to 3, T > 0."


@pytest.mark.parametrize(("codes", "span"), [([0, 4], "0 to 4"), ([-1, 2], "-1 to 2")])
def test_a_code_out_of_range_is_refused(quantizer: Quantizer, codes: list[int], span: str) -> None:
    with pytest.raises(CodecError) as error:
        quantizer(torch.tensor([[codes]]))
    assert str(error.value) == f"codes go from {span}; expected 0 to 3."
