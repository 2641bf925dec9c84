"""ReLU and positive bits against plain tensors, in three rounds."""

import pytest
import torch

from privtrain.mpc.ring64.comparison import coarse_bits
from tests.mpc.ring64.functions import dealt_bytes, ran_on


def integers(bits: int) -> torch.Tensor:
    torch.manual_seed(0)
    edges = [0, 1, -1, 2**28, -(2**28), 2 ** (bits + 12), -(2 ** (bits + 12)), 2**61, -(2**61)]
    return torch.cat([torch.tensor(edges), (torch.randn(2000) * 2.0**bits).long()])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_relu_and_bit_are_exact(count: int) -> None:
    values = integers(16)
    _, (result, bit) = ran_on(lambda session, x: session.relu(x), values, count)
    torch.testing.assert_close(result, values.clamp(min=0).double() / 2.0**16, rtol=0, atol=0)
    torch.testing.assert_close(bit, (values > 0).double(), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [32, 48])
def test_relu_of_products_is_exact_but_just_above_zero(bits: int) -> None:
    """Zero and less never count as positive, 2^-18 and more always do."""
    unit = 1 << coarse_bits(bits)
    assert unit <= 2 ** (bits - 18)
    near = torch.tensor([0, 1, -1, unit - 1, unit // 2, unit, unit + 1, -unit, 1 - unit])
    values = torch.cat([integers(bits), near.repeat(1000)])
    _, (result, bit) = ran_on(lambda session, x: session.relu(x), values, bits=bits)
    torch.testing.assert_close(result, values.double() * bit / 2.0**bits, rtol=0, atol=0)
    sure = (values <= 0) | (values >= unit)
    torch.testing.assert_close(bit[sure], (values > 0).double()[sure], rtol=0, atol=0)
    # Rounded at random: the larger a value, the more often up.
    assert 0.4 < float(bit[values == unit // 2].mean()) < 0.6


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("largest", [1, 2**14, 2**28 - 1, 2**28, 2**42, 2**49, 2**62])
def test_a_known_magnitude_changes_no_result(largest: int, bits: int) -> None:
    edges = torch.tensor([0, 1, -1, largest, -largest, largest - 1, 1 - largest])
    spread = (torch.rand(500, dtype=torch.float64) * 2 - 1) * largest
    values = torch.cat([edges.repeat(50), spread.long().clamp(-largest, largest)])
    _, (result, bit, above) = ran_on(
        lambda session, x: (*session.relu(x), session.positive(x)),
        values,
        bits=bits,
        largest=largest,
    )
    sure = (values <= 0) | (values >= 1 << coarse_bits(bits))
    torch.testing.assert_close(result, values.double() * bit / 2.0**bits, rtol=0, atol=0)
    torch.testing.assert_close(bit[sure], (values > 0).double()[sure], rtol=0, atol=0)
    torch.testing.assert_close(above, (values > 0).double(), rtol=0, atol=0)


def test_a_magnitude_that_is_too_small_is_wrong() -> None:
    """So that the test before this one could fail."""
    values = torch.tensor([2**28 + 1, 2**29 + 5])
    _, (_, bit) = ran_on(lambda session, x: session.relu(x), values, largest=2**27)
    assert bit.tolist() == [0, 1]


def test_zero_is_not_positive_and_the_next_integer_is() -> None:
    values = torch.tensor([[-1, 0, 1]])
    _, (bit,) = ran_on(lambda session, x: (session.positive(x),), values)
    assert bit.tolist() == [[0, 0, 1]]


def test_gt_compares_with_a_public_number() -> None:
    values = torch.tensor([65535, 65536, 65537])
    _, (bit,) = ran_on(lambda session, x: (x.gt(1.0),), values)
    assert bit.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("bits", "largest", "digits", "borrow"),
    [(16, None, 144, 128), (32, None, 112, 32), (16, 2**28 - 1, 64, 16), (32, 2**41, 64, 16)],
)
def test_rounds_bytes_and_material_of_relu(
    bits: int, largest: int | None, digits: int, borrow: int
) -> None:
    values = torch.arange(-500, 500)
    ran, _ = ran_on(lambda session, x: session.relu(x), values, bits=bits, largest=largest)
    assert ran.rounds() == 3
    assert ran.bytes() == 1000 * 10 + 125
    # For the digits, for the borrow, and 16 for the bit and its product.
    expected = 1000 * (digits + borrow + 16)
    assert expected <= dealt_bytes(ran) <= expected + 200


def test_a_value_that_was_opened_takes_two_rounds() -> None:
    def twice(session, x):  # type: ignore[no-untyped-def]
        session.masked(x)
        return session.relu(x)

    ran, _ = ran_on(twice, torch.arange(-500, 500))
    assert ran.rounds() == 3
    assert ran.bytes() == 1000 * 10 + 125


def test_the_bit_multiplies_what_comes_back() -> None:
    values = torch.tensor([-3, 5, 0, 7]) << 16

    def back(session, x):  # type: ignore[no-untyped-def]
        value, bit = session.relu(x)
        return (value * bit, (x + 1.0) * bit)

    _, (kept, gated) = ran_on(back, values)
    assert kept.tolist() == [0, 5, 0, 7]
    assert gated.tolist() == [0, 6, 0, 8]
