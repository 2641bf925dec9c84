"""Softmax and the first maximum on shares against float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from privtrain.core.errors import UnsupportedError
from privtrain.mpc.ring64.softmax import RECIPROCAL_BITS, CutValues, reciprocal
from tests.mpc.ring64.functions import UNIT, dealt_bytes, ran_on

ERROR = 1e-4


def logits() -> Tensor:
    """Integers with 16 bits after the point, `(rows, 10)`: quiet, wild, tied, extreme rows."""
    torch.manual_seed(0)
    rows = [
        torch.randn(60, 10).double(),
        torch.randn(60, 10).double() * 12,
        torch.zeros(1, 10).double(),
        torch.full((1, 10), -(2.0**12)).double(),
        torch.arange(10).double().mul(2).expand(1, 10),
        torch.tensor([[-(2.0**40)] * 9 + [2.0**40], [2.0**40] * 9 + [-(2.0**40)]]).double(),
        # Around the depth where a value no longer counts.
        torch.tensor([0, -16, -16 + UNIT, -16 - UNIT, -15.5, -16.5, -31, -32, -33, -48]).double()[
            None
        ],
    ]
    return (torch.cat(rows) * 2**16).round().long()


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("bits", [16, 32])
def test_softmax_against_float64(count: int, bits: int) -> None:
    integers = logits()
    values = integers.double() / 2**16
    lifted = integers.clamp(-(2**45), 2**45) << (bits - 16)
    _, (result,) = ran_on(lambda session, v: (session.softmax(v),), lifted, count, bits=bits)
    assert float((result - torch.softmax(values, -1)).abs().max()) < ERROR


@pytest.mark.parametrize("bits", [0, 1, 3, 4])
def test_softmax_of_coarse_values(bits: int) -> None:
    """Such as whole numbers, and bits of a comparison."""
    integers = logits() >> (16 - bits)
    _, (result,) = ran_on(lambda session, v: (session.softmax(v),), integers, bits=bits)
    expected = torch.softmax(integers.double() / 2**bits, -1)
    assert float((result - expected).abs().max()) < ERROR


@pytest.mark.parametrize("bits", [0, 16, 32])
@pytest.mark.parametrize("largest", [1, 7.5, 16, 2.0**12])
def test_a_known_magnitude_changes_no_result(largest: float, bits: int) -> None:
    torch.manual_seed(0)
    values = (torch.rand(300, 10, dtype=torch.float64) * 2 - 1) * largest
    ends = torch.tensor([largest, -largest] * 5, dtype=torch.float64)
    low = torch.tensor([-largest] * 9 + [largest], dtype=torch.float64)
    integers = (torch.cat([values, ends[None], low[None], 0 * low[None]]) * 2.0**bits).long()
    limit = int(largest * 2.0**bits)
    _, (result, one_hot) = ran_on(
        lambda session, v: (session.softmax(v), session.largest(v)),
        integers,
        bits=bits,
        largest=limit,
    )
    expected = torch.softmax(integers.double() / 2.0**bits, -1)
    assert float((result - expected).abs().max()) < ERROR
    torch.testing.assert_close(one_hot, first_largest(integers), rtol=0, atol=0)


def test_a_magnitude_that_is_too_small_is_wrong() -> None:
    """So that the test before this one could fail."""
    integers = torch.tensor([[1 << 12, -(1 << 12), 0]]) << 16
    _, (result,) = ran_on(lambda session, v: (session.softmax(v),), integers, largest=1 << 16)
    assert float((result - torch.tensor([1.0, 0, 0])).abs().max()) > 0.1


@pytest.mark.parametrize("classes", [1, 2, 3, 11, 40, 255])
def test_other_numbers_of_classes(classes: int) -> None:
    torch.manual_seed(classes)
    integers = (torch.randn(3, classes) * 3 * 2**16).long()
    integers[0] = 0
    _, (result,) = ran_on(lambda session, v: (session.softmax(v),), integers)
    expected = torch.softmax(integers.double() / 2**16, -1)
    assert float((result - expected).abs().max()) < ERROR


@dataclass
class InClear:
    """Wires on which everything that is dealt is one party's share."""

    deals: bool = False

    def dealt(self, compute: Callable[[], Tensor], shape: Sequence[int]) -> Tensor:
        value = compute()
        assert tuple(value.shape) == tuple(shape)
        return value


@pytest.mark.parametrize("classes", [2, 10, 30])
def test_one_over_a_sum_under_any_mask(classes: int) -> None:
    generator = np.random.default_rng(classes)
    ends = [1 << 20, (1 << 20) + 1, (classes << 20) - 1, classes << 20]
    sums = np.concatenate([ends, generator.integers(1 << 20, (classes << 20) + 1, 5000)])
    mask = generator.integers(0, 1 << 28, len(sums))
    masked = torch.from_numpy((sums + mask) & ((1 << 28) - 1))
    wires: Any = InClear()
    share = reciprocal(wires, CutValues(torch.empty(0), masked, torch.from_numpy(mask)), classes)
    error = share.double() / 2**RECIPROCAL_BITS - torch.from_numpy(2.0**20 / sums)
    assert float(error.abs().max()) < 8e-6


def test_too_many_classes_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="classes=256 <= 255"):
        ran_on(lambda session, v: (session.softmax(v),), torch.zeros(1, 256).long())


def test_near_ties_of_products_do_not_go_in_a_circle() -> None:
    """Values within the bits that comparisons leave out: some one is the largest of each row."""
    torch.manual_seed(0)
    integers = torch.randint(0, 3 << 14, (3000, 10))
    _, (result,) = ran_on(lambda session, v: (session.softmax(v),), integers, bits=32)
    assert float((result - 0.1).abs().max()) < ERROR


@pytest.mark.parametrize(
    ("bits", "largest", "pair", "gap"),
    [(16, None, 272, 272), (32, None, 144, 208), (16, 4095 << 16, 96, 176)],
)
def test_rounds_bytes_and_material_of_softmax(
    bits: int, largest: int | None, pair: int, gap: int
) -> None:
    integers = (torch.randn(200, 10).double() * 2**bits).long()
    ran, _ = ran_on(lambda session, v: (session.softmax(v),), integers, bits=bits, largest=largest)
    assert ran.rounds() == 10
    # A row: ten values, 45 pairs with two bytes and a bit, ten bits, ten gaps with four bytes and
    # three bits, ten values to cut, ten exponentials and their inverse sum, ten products to cut.
    row = 80 + 45 * (2 + 1 / 8) + 10 / 8 + 80 + 10 * (4 + 3 / 8) + 80 + 88 + 80
    assert ran.bytes() == pytest.approx(200 * row, abs=3)
    # For a value 64 bytes for its bits and 16 to choose it, then its exponential; twice 13 to cut,
    # 8 for its product, and five tables of 64 entries for the inverse.
    assert dealt_bytes(ran) == pytest.approx(
        200 * (45 * pair + 10 * (64 + 16 + gap + 2 * 13 + 8) + 5 * 64 * 8), rel=1e-3
    )


def first_largest(integers: Tensor) -> Tensor:
    result = torch.zeros(integers.shape, dtype=torch.float64)
    for row, one_hot in zip(integers.tolist(), result, strict=True):
        one_hot[row.index(max(row))] = 1
    return result


@pytest.mark.parametrize("count", [2, 3, 5])
def test_first_largest_with_ties_and_extremes(count: int) -> None:
    torch.manual_seed(count)
    top = 2**61
    rows = torch.cat(
        [
            logits(),
            # Ties and differences of one unit, which no truncation may hide.
            torch.randint(-1, 2, (500, 10)),
            torch.tensor([[top, -top] * 5, [-top] * 10, [top - 1] * 9 + [top]]),
        ]
    )
    _, (result,) = ran_on(lambda session, v: (session.largest(v),), rows, count)
    torch.testing.assert_close(result, first_largest(rows), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("largest", [None, 2**45])
def test_maximum_is_exact(largest: int | None, bits: int) -> None:
    torch.manual_seed(0)
    integers = torch.cat([logits().clamp(-(2**45), 2**45), torch.randint(-1, 2, (100, 10))])
    cube = integers[:60].reshape(3, 20, 10)
    for values in (integers, cube, integers[5], integers[:, :1]):
        ran, (result,) = ran_on(
            lambda session, v: (session.maximum(v),), values, bits=bits, largest=largest
        )
        torch.testing.assert_close(
            result, values.max(-1).values.double() / 2.0**bits, rtol=0, atol=0
        )
        assert ran.rounds() == (4 if values.shape[-1] > 1 else 1)


@pytest.mark.parametrize(("values", "rounds"), [(1, 1), (2, 4), (10, 4), (11, 5), (30, 5)])
def test_largest_of_a_vector_and_its_rounds(values: int, rounds: int) -> None:
    vector = torch.from_numpy(np.random.default_rng(values).integers(0, 4, values) << 16)
    ran, (result,) = ran_on(lambda session, v: (session.largest(v),), vector)
    torch.testing.assert_close(result[None], first_largest(vector[None]), rtol=0, atol=0)
    assert ran.rounds() == rounds
