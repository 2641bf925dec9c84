"""The functions on plain tensors, which have what they ask of shared ones."""

from typing import Any

import pytest
import torch
from torch import Tensor

from privtrain.mpc.crypten.functions import (
    DEEPEST,
    below_largest,
    exponential,
    levels,
    one_hot_argmax,
    reciprocal,
    softmax,
)


class Plain(Tensor):
    """A tensor with the method that CrypTen's have and torch's have not."""

    @staticmethod
    def cat(tensors: list[Tensor], dim: int) -> Tensor:
        return torch.cat(tensors, dim=dim)


def plain(values: Tensor) -> Any:
    return values.double().as_subclass(Plain)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 10])
def test_argmax_is_that_of_torch(count: int) -> None:
    values = torch.randint(0, 4, (50, count), generator=torch.Generator().manual_seed(count))
    is_first = (values == values.max(1, keepdim=True).values).int().cumsum(1) == 1
    first = is_first.int() * (values == values.max(1, keepdim=True).values).int()
    assert one_hot_argmax(plain(values)).tolist() == first.tolist(), "the first one of equal ones"


COUNTS = pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 10, 16, 17, 40])
# Wide ones lie wholly below any padding that a constant could be.
SCALES = pytest.mark.parametrize("scale", [1.0, 20.0, 170.0, 4_000.0, 1e8])


def some_logits(count: int, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return (torch.rand(60, count, generator=generator).double() - 2) * scale


@COUNTS
@SCALES
def test_gaps_are_exact_or_clamped(count: int, scale: float) -> None:
    logits = some_logits(count, scale)
    gaps = below_largest(plain(logits))
    true = logits - logits.max(1, keepdim=True).values
    exact = (gaps - true).abs() <= 1e-9 * scale
    assert bool((exact | ((true <= -DEEPEST) & (gaps <= -DEEPEST))).all())
    assert float(gaps.min()) >= -DEEPEST * levels(count), "the range that the exponential takes"
    # Ties, and a largest value that stands in every place.
    tied = below_largest(plain(torch.eye(count) * 200))
    assert bool((tied.diagonal() == 0).all())
    assert bool((below_largest(plain(torch.full((3, count), -9_000.0))) == 0).all())


class Counting(Plain):
    """Counts what is compared."""

    compared = 0

    def gt(self, other: float) -> Tensor:  # type: ignore[override]
        Counting.compared += self.numel()
        return super().gt(other)


def questions(count: int) -> int:
    """Pairs in groups of four and gaps to their largest; in the last group gaps of all pairs."""
    groups = [min(4, count - start) for start in range(0, count, 4)]
    pairs = sum(group * (group - 1) // 2 for group in groups)
    return 3 * pairs if len(groups) == 1 else pairs + count + questions(len(groups))


@COUNTS
def test_nothing_is_compared_with_what_fills_a_group(count: int) -> None:
    before = Counting.compared
    below_largest(some_logits(count, 1.0)[:1].as_subclass(Counting))  # type: ignore[arg-type]
    assert Counting.compared - before == questions(count)


class Encoded(Plain):
    """Products with whole numbers, of which CrypTen encodes a tensor in fixed point."""

    def __mul__(self, other: object) -> Tensor:  # type: ignore[override]
        if isinstance(other, Tensor) and not isinstance(other, Encoded):
            bits = bool(((self == 0) | (self == 1)).all())
            assert bits, "what has a binary point would be truncated, by chance far off"
        return super().__mul__(other)


@COUNTS
def test_no_gap_is_truncated(count: int) -> None:
    below_largest(some_logits(count, 1e6).as_subclass(Encoded))  # type: ignore[arg-type]


@COUNTS
@SCALES
def test_softmax_is_that_of_torch_whatever_the_gaps(count: int, scale: float) -> None:
    logits = some_logits(count, scale)
    assert float((softmax(plain(logits)) - logits.softmax(1)).abs().max()) < 1e-4


@pytest.mark.parametrize("steps", range(11))
def test_the_exponential_does_not_grow_within_its_range(steps: int) -> None:
    values = torch.linspace(-DEEPEST * steps, 0, 4_001, dtype=torch.float64)
    apart = exponential(plain(values), -DEEPEST * steps) - values.exp()
    assert float(apart.abs().max()) < 5e-5


def test_an_exponential_of_a_shorter_range_grows_outside_of_it() -> None:
    # What a softmax without the clamp returns: beyond the range it grows without a bound.
    far = torch.tensor([-174.0], dtype=torch.float64)
    assert float(exponential(plain(far), -2 * DEEPEST)) > 1e6


@pytest.mark.parametrize("largest", [1, 2, 10, 100])
def test_reciprocals_are_exact_to_the_last_bit_of_fixed_point(largest: int) -> None:
    values = torch.linspace(1, largest, 200, dtype=torch.float64)
    if largest == 1:
        values = torch.ones(3)
    error = (reciprocal(plain(values), largest) - 1 / values).abs().max()
    assert float(error) <= 2.0**-18
