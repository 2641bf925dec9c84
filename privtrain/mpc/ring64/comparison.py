"""Signs of secret values: three rounds with the opening of the value, exact for every value.

A value x is public under its mask, masked = x + r, so that its sign is the highest bit of
masked - r: an exclusive or of both highest bits and the borrow of the bits below. The borrow is
read from tables in two steps, digit by digit and then over all digits.

Source: one-time truth tables (Ishai et al., TCC 2013; TinyTable, Damgard et al., CRYPTO 2017).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from privtrain.core.errors import UnsupportedError
from privtrain.mpc.ring64.ring import RING_BITS
from privtrain.mpc.ring64.tables import (
    DIGIT_BITS,
    Bits,
    MaskedBits,
    Places,
    Words,
    blocks,
    borrow_selector,
    compared,
    dealt_words,
    digit_count,
    digits,
    masked_bits,
    one_hot,
    opened_octets,
    packed,
    parity,
    random_octets,
    selected,
)
from privtrain.mpc.ring64.wires import Wires

FINE_BITS = 18
"""Bits after the point beyond which a rectifier and a softmax do not tell values apart: what they
give is rounded to 16."""

WINDOWS = tuple(DIGIT_BITS * count + 1 for count in range(2, 10))
"""Numbers of low bits that can be compared: 64 for every value; w where -2^(w-1) <= x < 2^(w-1)."""


def window_of(largest: int | None) -> int:
    """The smallest window for integers of at most this magnitude, and for them less one.

    Args:
        largest: The magnitude; None where it is unknown.
    """
    if largest is None:
        return RING_BITS
    return next((window for window in WINDOWS if largest < 1 << (window - 1)), RING_BITS)


def coarse_bits(bits: int) -> int:
    """How many low bits a comparison leaves out that is exact to `FINE_BITS` after the point.

    Whole digits, so that fewer of them are dealt.

    Args:
        bits: Bits of the values after the point.
    """
    return max(0, bits - FINE_BITS) // DIGIT_BITS * DIGIT_BITS


def below_zero(
    wires: Wires, masked: Places, mask: Places, *, window: int = RING_BITS
) -> MaskedBits:
    """1 where a value is below zero, under a mask; two rounds, exact to the last bit.

    A comparison takes 272 bytes of material at a window of 64 bits, 144 at 50, 80 at 29.

    Args:
        wires: This role's.
        masked: x + r, public; shape `(values,)`.
        mask: r at the dealer, anything elsewhere.
        window: How many low bits hold every value, one of `WINDOWS`; for others the answer is
            wrong.

    Raises:
        UnsupportedError: If there is no such window.
    """
    if window not in WINDOWS:
        raise UnsupportedError(f"Expected window={window} to be one of {WINDOWS}.")
    top = window - 1
    tables = digit_tables(wires, mask, 0, top)
    less, equal = read_digits(wires, tables, masked, 0, top)
    borrow = Borrow.of(wires, less, equal)
    share = borrow.share(*opened_octets(wires, borrow.masked_shares()))
    bits = masked_bits(wires, share)
    # msb(x) = msb(masked) xor msb(r) xor borrow; msb(r) joins the mask that the dealer knows.
    high = ((masked >> top) & 1).astype(np.uint8)
    high_mask = ((mask >> top) & 1).astype(np.uint8) if wires.deals else np.zeros_like(high)
    return MaskedBits(bits.masked ^ high, bits.mask ^ high_mask)


def digit_tables(wires: Wires, mask: Places, first: int, last: int) -> Words:
    """Shares of a one-hot table for each digit of a mask, `(2, digits, values)`."""
    shape = (2, digit_count(last - first), *mask.shape)

    def tables() -> Words:
        result = np.empty(shape, np.uint64)
        for block in blocks(len(mask)):
            result[..., block] = one_hot(digits(mask[block], first, last), 1 << DIGIT_BITS)
        return result

    return dealt_words(wires, tables, shape)


def read_digits(
    wires: Wires, tables: Words, masked: Places, first: int, last: int
) -> tuple[Bits, Bits]:
    """Shares of whether digits of public values are less than, and equal to, those of masks."""
    less, equal = np.zeros((2, *tables.shape[1:]), np.uint8)
    if not wires.deals:
        for block in blocks(len(masked)):
            places = digits(masked[block], first, last)
            less[:, block], equal[:, block] = compared(tables[..., block], places)
    return less, equal


@dataclass(frozen=True)
class Borrow:
    """Whether a public number is less than a secret one, from less and equal of their digits.

    It is the exclusive or over digits j of less_j times equal_i for all i above j. Under the masks
    of both kinds of bits each of these terms is an entry of a dealt table.

    Args:
        wires: This role's.
        less: Shares by exclusive or, `(digits, values)`, lowest first.
        equal: Likewise.
        less_mask: Shares of the masks of `less` but the highest one, a byte a value.
        equal_mask: Shares of the masks of `equal` but the lowest one.
        tables: Shares of the products of equalities, and of those with the mask of less.
    """

    wires: Wires = field(repr=False)
    less: Bits = field(repr=False)
    equal: Bits = field(repr=False)
    less_mask: NDArray[np.uint8] = field(repr=False)
    equal_mask: NDArray[np.uint8] = field(repr=False)
    tables: Words = field(repr=False)

    @staticmethod
    def of(wires: Wires, less: Bits, equal: Bits) -> "Borrow":
        """Draws masks and reads tables; at least two and at most nine digits."""
        count, values = less.shape
        less_mask, equal_mask = random_octets(wires, (2, values))
        selector = borrow_selector(count)
        half = len(selector.same)
        shape = (2 * half, values)

        def tables() -> Words:
            # All equalities hold where the masked bits are the complements of their masks.
            result = np.empty(shape, np.uint64)
            for block in blocks(values):
                same = selected(selector.same, ~equal_mask[block])
                result[:half, block] = same
                result[half:, block] = same & selected(selector.less, less_mask[block])
            return result

        words = dealt_words(wires, tables, shape)
        return Borrow(wires, less, equal, less_mask, equal_mask, words)

    def masked_shares(self) -> list[NDArray[np.uint8]]:
        """What is opened: the bits of less, then those of equal; a byte each."""
        return [packed(self.less[:-1]) ^ self.less_mask, packed(self.equal[1:]) ^ self.equal_mask]

    def share(self, masked_less: NDArray[np.uint8], masked_equal: NDArray[np.uint8]) -> Bits:
        """A share by exclusive or of the borrow, `(values,)`.

        Args:
            masked_less: As opened.
            masked_equal: As opened.
        """
        share: Bits = self.less[-1].copy()
        if self.wires.deals:
            return share
        selector = borrow_selector(len(self.less))
        same, with_mask = np.split(self.tables, 2)
        for block in blocks(len(share)):
            terms = same[:, block] & selected(selector.less, masked_less[block])
            terms ^= with_mask[:, block]
            terms &= selected(selector.same, masked_equal[block])
            share[block] ^= parity(np.bitwise_xor.reduce(terms, axis=0))
        return share
