"""ReLU and positive bits against plain tensors: exact, in three rounds."""

import pytest
import torch

from tests.mpc.ring64.functions import dealt_bytes, ran_on


def integers(bits: int) -> torch.Tensor:
    torch.manual_seed(0)
    edges = [0, 1, -1, 2**28, -(2**28), 2 ** (bits + 12), -(2 ** (bits + 12)), 2**61, -(2**61)]
    return torch.cat([torch.tensor(edges), (torch.randn(2000) * 2.0**bits).long()])


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("bits", [16, 32])
def test_relu_and_bit_are_exact(count: int, bits: int) -> None:
    values = integers(bits)
    _, (result, bit) = ran_on(lambda session, x: session.relu(x), values, count, bits=bits)
    torch.testing.assert_close(result, values.clamp(min=0).double() / 2.0**bits, rtol=0, atol=0)
    torch.testing.assert_close(bit, (values > 0).double(), rtol=0, atol=0)


def test_zero_is_not_positive_and_the_next_integer_is() -> None:
    values = torch.tensor([[-1, 0, 1]])
    _, (bit,) = ran_on(lambda session, x: (session.positive(x),), values)
    assert bit.tolist() == [[0, 0, 1]]


def test_gt_compares_with_a_public_number() -> None:
    values = torch.tensor([65535, 65536, 65537])
    _, (bit,) = ran_on(lambda session, x: (x.gt(1.0),), values)
    assert bit.tolist() == [0, 0, 1]


def test_rounds_bytes_and_material_of_relu() -> None:
    values = torch.arange(-500, 500)
    ran, _ = ran_on(lambda session, x: session.relu(x), values)
    assert ran.rounds() == 3
    assert ran.bytes() == 1000 * 10 + 125
    # 144 bytes for the digits, 128 for the borrow, 16 for the bit and its product.
    assert 288_000 <= dealt_bytes(ran) <= 288_200


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
