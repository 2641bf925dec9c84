"""Norms of pieces, held against norms in float64."""

import pytest
import torch

from privtrain.gradients.bookkeeping.example_gradients import Formed, OuterProduct, squared_norms
from privtrain.gradients.bookkeeping.norms import piece_norms

LENGTHS = [1, 255, 256, 257, 509, 784, 1009, 12_288, 65_537, 140_000]


def values(length: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(3, length, generator=generator)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pieces_have_the_norms_of_their_rows(length: int, dtype: torch.dtype) -> None:
    given = values(length).to(dtype)
    short = piece_norms(given)
    assert short.shape[1] <= 256
    torch.testing.assert_close(short.norm(dim=1), given.norm(dim=1))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e12])
def test_norms_are_upper_bounds_and_close(length: int, scale: float) -> None:
    given, other = values(length, scale), values(7, seed=1)
    found = squared_norms(
        [Formed(given), OuterProduct(given, other), Formed(other)], 7 * length
    ).sqrt()
    first, second = given.double().norm(dim=1), other.double().norm(dim=1)
    for bound, true in zip(found, (first, first * second, second), strict=True):
        assert bool((bound >= true).all())
        assert bool((bound <= true * (1 + 1e-4) + 1e-14).all())


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_a_broken_value_breaks_its_own_row_only(broken: float) -> None:
    given = values(1009)
    given[1, 1000] = broken
    found = squared_norms([Formed(given)], 1009)[0]
    assert torch.isfinite(found).tolist() == [True, False, True]


def test_the_coarsest_type_decides_how_much_is_added() -> None:
    given = values(784)
    alone = squared_norms([Formed(given)], 784)
    beside = squared_norms([Formed(given), Formed(given.double())], 784)
    assert torch.equal(alone[0], beside[0])


def test_an_outer_product_measures_itself() -> None:
    gradients = OuterProduct(values(300), values(7, seed=1))
    squares, error = gradients.measure()
    true = gradients.each(0, 3).double().norm(dim=1).square()
    assert error is None
    assert bool((squares >= true).all())
    torch.testing.assert_close(squares, true, rtol=1e-3, atol=0)
