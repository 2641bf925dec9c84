"""Tables of bits on plain words, and ANDs of masked bits on shares."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from privtrain.core.runtime import Party, Payload
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.tables import (
    MaskedBits,
    borrow_selector,
    compared,
    digits,
    entry,
    every,
    masked_bits,
    one_hot,
    packed,
    parity,
)
from tests.mpc.ring64.mesh import run

PUBLIC, SECRET = (axis.reshape(-1) for axis in np.meshgrid(np.arange(128), np.arange(128)))


def test_every_place_against_every_other() -> None:
    tables = one_hot(SECRET, 128)
    less, equal = compared(tables, PUBLIC)
    np.testing.assert_array_equal(less, PUBLIC < SECRET)
    np.testing.assert_array_equal(equal, PUBLIC == SECRET)
    np.testing.assert_array_equal(entry(tables, PUBLIC), PUBLIC == SECRET)


def test_comparison_is_linear_in_shares_of_tables() -> None:
    tables = one_hot(SECRET, 128)
    noise = np.random.default_rng(0).integers(0, 2**64, tables.shape, dtype=np.uint64)
    parts = zip(compared(noise, PUBLIC), compared(tables ^ noise, PUBLIC), strict=True)
    for (one, other), expected in zip(parts, (PUBLIC < SECRET, PUBLIC == SECRET), strict=True):
        np.testing.assert_array_equal(one ^ other, expected)


@pytest.mark.parametrize("size", [2, 16, 64, 512])
def test_small_and_large_tables(size: int) -> None:
    places = np.arange(size)
    for secret in (0, size // 2, size - 1):
        tables = one_hot(np.full(size, secret), size)
        np.testing.assert_array_equal(entry(tables, places), places == secret)


def test_digits_put_a_number_together_again() -> None:
    numbers = np.array([0, 1, -1, 2**62, -(2**63), 2**63 - 1, 0x0123456789ABCDEF])
    parts = digits(numbers, 0, 63)
    assert parts.shape == (9, len(numbers))
    weights = 128 ** np.arange(9).reshape(-1, 1)
    np.testing.assert_array_equal((parts * weights).sum(0), numbers & (2**63 - 1))
    assert digits(np.array([-1]), 36, 64)[:, 0].tolist() == [127] * 4
    assert digits(np.array([-1]), 0, 20)[:, 0].tolist() == [127, 127, 63]


def test_parity_and_packing() -> None:
    words = np.array([0, 1, 3, 2**63, 2**64 - 1, 2**63 + 2**31 + 1], dtype=np.uint64)
    assert parity(words).tolist() == [0, 1, 0, 1, 0, 1]
    assert packed(np.array([[1, 0], [0, 1], [1, 1]], np.uint8)).tolist() == [5, 6]


@pytest.mark.parametrize("count", [2, 3, 6, 9])
def test_selected_entries_are_those_of_the_digits_above(count: int) -> None:
    selector = borrow_selector(count)
    values = 1 << (count - 1)
    assert selector.same.shape == selector.less.shape == (max(1, 2 * values // 64), values)
    # Each of the tables has one entry for a value, and no two values of one prefix differ there.
    bits = np.unpackbits(selector.same.T.copy().view(np.uint8), axis=-1, bitorder="little")
    assert (bits.sum(1) == count - 1).all()
    start = 0
    for digit in range(count - 1):
        length = values >> digit
        part = bits[:, start : start + length]
        np.testing.assert_array_equal(part.argmax(1), np.arange(values) >> digit)
        start += length


@dataclass(frozen=True)
class Every:
    """Opens whether all bits of each column are one; bits are shared by party 0 alone."""

    bits: torch.Tensor

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            own = self.bits if session.leader else torch.zeros_like(self.bits)
            masked = masked_bits(session.wires, own.numpy())
            share = every(session.wires, masked)
            (result,) = session.wires.open([torch.from_numpy(share)], kind="result share")
            return {"result": result, "masked": torch.from_numpy(masked.masked)}


@pytest.mark.parametrize(("count", "rounds"), [(1, 1), (5, 1), (9, 1), (10, 2), (19, 2), (82, 3)])
def test_all_bits_at_once_or_in_groups(count: int, rounds: int) -> None:
    bits = torch.ones(count, 40, dtype=torch.uint8)
    # All ones; one zero at each place; the complement of that.
    for column in range(20):
        bits[column % count, column] = 0
    bits[:, 20:30] = torch.randint(0, 2, (count, 10)).byte()
    ran = run(Every(bits), 3)
    for rank in range(3):
        result = ran.payloads[f"computing-{rank}"]["result"]
        torch.testing.assert_close(result, bits.prod(0, dtype=torch.uint8))
    assert ran.rounds() == rounds


def test_masked_bits_are_coins() -> None:
    bits = torch.ones(1, 4000, dtype=torch.uint8)
    masked = run(Every(bits), 2).payloads["computing-0"]["masked"]
    # Six standard deviations; unmasked bits would be ones.
    assert abs(float(masked.double().mean()) - 0.5) < 3 / 4000**0.5


def test_complement_changes_the_masked_bit() -> None:
    bits = MaskedBits(np.array([0, 1], np.uint8), np.array([1, 1], np.uint8))
    assert ((~bits).masked ^ (~bits).mask).tolist() == [0, 1]
