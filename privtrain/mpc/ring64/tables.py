"""Truth tables of one-hot bits, shared by exclusive or and read at public places without messages.

A table that is one at a secret place and zero elsewhere says whether a public place equals it; the
parity of its entries behind a public place says whether that lies before the secret one. Reading
and parity are linear over bits, so that each party reads its share.

Source: one-time truth tables of Ishai et al. (TCC 2013).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from privtrain.mpc.ring64.wires import Wires

Bits = NDArray[np.uint8]
Words = NDArray[np.uint64]
Places = NDArray[np.int64]

WORD_BITS = 64
DIGIT_BITS = 7
"""Bits of a digit whose table has two words: tables double with each bit, and the number of what is
combined afterwards with each digit; at 63 bits, nine digits of seven need least material."""

_ONE = np.uint64(1)
_BLOCK = 1024


@dataclass(frozen=True)
class MaskedBits:
    """Secret bits b = masked xor mask.

    Args:
        masked: Public; uint8 in 0..1, any shape; zeros at the dealer.
        mask: Known to the dealer; zeros elsewhere.
    """

    masked: Bits = field(repr=False)
    mask: Bits = field(repr=False)

    def __invert__(self) -> "MaskedBits":
        return MaskedBits(self.masked ^ np.uint8(1), self.mask)


def one_hot(places: Places, size: int) -> Words:
    """Tables that are one at a place.

    Args:
        places: In 0..size-1, any shape.
        size: Entries of a table, a power of two.

    Returns:
        Shape `(max(1, size / 64), *places.shape)`; an entry's word comes first.
    """
    tables = np.empty((word_count(size), *places.shape), np.uint64)
    bits = _ONE << (places & (WORD_BITS - 1)).view(np.uint64)
    number = places >> 6
    for word, table in enumerate(tables):
        np.multiply(bits, number == word, out=table)
    return tables


def blocks(count: int) -> Iterator[slice]:
    """Slices that cover so many values, each small enough for what is made of it to stay in cache.

    Large temporary arrays are given back to the system each time, and fetching their pages again
    takes longer than what is computed.
    """
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))


def word_count(size: int) -> int:
    """Words of a table with `size` entries."""
    return max(1, size // WORD_BITS)


def entry(tables: Words, places: Places) -> Bits:
    """The entries at public places; tables `(words, *places.shape)`."""
    word: Words = tables[0]
    if len(tables) > 1:
        word = np.take_along_axis(tables, (places >> 6)[np.newaxis], 0)[0]
    bits: Words = (word >> (places & (WORD_BITS - 1)).astype(np.uint64)) & _ONE
    return bits.astype(np.uint8)


def compared(tables: Words, places: Places) -> tuple[Bits, Bits]:
    """Whether public places lie before the secret one, and whether they equal it.

    Args:
        tables: Shares of one-hot tables of 128 entries, `(2, *places.shape)`.
        places: In 0..127.

    Returns:
        Shares by exclusive or of both bits.
    """
    low, high = tables
    # All ones where a place is in the first word; numpy's `where` takes five times as long. In
    # place, so that what is computed stays in the nearest cache.
    first = ((places >> 6) - 1).view(np.uint64)
    word: Words = low ^ high
    word &= first
    word ^= high
    word >>= (places & (WORD_BITS - 1)).view(np.uint64)
    equal = word.astype(np.uint8) & np.uint8(1)
    word >>= _ONE
    first &= high
    word ^= first
    return parity(word), equal


def parity(words: Words) -> Bits:
    """The parity of each word's bits."""
    return np.bitwise_count(words) & np.uint8(1)


def digits(integers: Places, first: int, last: int) -> Places:
    """Digits of seven bits of the bits from `first` to before `last`, lowest first.

    Args:
        integers: Any shape, as 64 bits.
        first: The lowest bit.
        last: The bit behind the highest one; where the last digit is short, its high bits are zero.

    Returns:
        Shape `(digits, *integers.shape)`.
    """
    result = np.empty((digit_count(last - first), *integers.shape), np.int64)
    for number, start in enumerate(range(first, last, DIGIT_BITS)):
        np.right_shift(integers, start, out=result[number])
    result &= (1 << DIGIT_BITS) - 1
    result[-1] &= (1 << (last - start)) - 1
    return result


def digit_count(bits: int) -> int:
    """How many digits so many bits have."""
    return -(-bits // DIGIT_BITS)


def packed(bits: Bits) -> NDArray[np.uint8]:
    """Up to eight rows of bits as one byte a column; the first row is the lowest bit."""
    result: NDArray[np.uint8] = bits[0].copy()
    for number in range(1, len(bits)):
        result |= bits[number] << np.uint8(number)
    return result


def dealt_words(wires: Wires, compute: Callable[[], Words], shape: Sequence[int]) -> Words:
    """Shares by exclusive or of words that the dealer computes from masks; zeros at the dealer."""
    *front, last = shape
    octets = wires.dealt_bytes(
        lambda: torch.from_numpy(np.ascontiguousarray(compute()).view(np.uint8)),
        (*front, 8 * last),
    )
    return octets.contiguous().numpy().view(np.uint64)


def random_octets(wires: Wires, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Shares by exclusive or of uniform bytes; at the dealer the bytes."""
    octets: NDArray[np.uint8] = wires.random_bytes(shape).numpy()
    return octets


def opened_octets(wires: Wires, shares: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Opens masked bytes in one message."""
    opened = wires.open([torch.from_numpy(np.ascontiguousarray(share)) for share in shares])
    return [octets.numpy() for octets in opened]


def masked_bits(wires: Wires, share: Bits) -> MaskedBits:
    """Opens secret bits under fresh masks, eight in a byte; one round.

    Args:
        wires: This role's.
        share: A share by exclusive or, any shape.
    """
    mask = random_octets(wires, (-(-share.size // 8),))
    (opened,) = opened_octets(wires, [np.packbits(share) ^ mask])
    # What a party knows of the mask is noise to it.
    known = mask if wires.deals else np.zeros_like(mask)
    return MaskedBits(*(_unpacked(octets, share.shape) for octets in (opened, known)))


def _unpacked(octets: NDArray[np.uint8], shape: tuple[int, ...]) -> Bits:
    return np.unpackbits(octets, count=int(np.prod(shape))).reshape(shape)


def every(wires: Wires, bits: MaskedBits) -> Bits:
    """A share by exclusive or of whether all bits along the first dimension are one.

    Nine bits take a table of 64 bytes and no round; more are taken in groups, a round a level.

    Args:
        wires: This role's.
        bits: Shape `(bits, ...)`, at least one.
    """
    most = 9
    while len(bits.masked) > most:
        groups = -(-len(bits.masked) // most)
        width = -(-len(bits.masked) // groups)
        # What is missing in the last group is a public one.
        filler = np.ones((groups * width - len(bits.masked), *bits.masked.shape[1:]), np.uint8)
        full = MaskedBits(
            np.concatenate([bits.masked, filler]), np.concatenate([bits.mask, filler * 0])
        )
        shape = (groups, width, *bits.masked.shape[1:])
        grouped = MaskedBits(
            full.masked.reshape(shape).swapaxes(0, 1), full.mask.reshape(shape).swapaxes(0, 1)
        )
        bits = masked_bits(wires, _all_at_once(wires, grouped))
    return _all_at_once(wires, bits)


def _all_at_once(wires: Wires, bits: MaskedBits) -> Bits:
    return all_ones(wires, _number(bits.masked), _number(bits.mask), len(bits.masked))


def all_ones(wires: Wires, masked: Places, mask: Places, count: int) -> Bits:
    """A share by exclusive or of whether all bits of a number are one; no round.

    Args:
        wires: This role's.
        masked: The number under its mask, public.
        mask: Its mask at the dealer; anything elsewhere.
        count: Bits of the number, the lowest ones, at most nine.
    """
    size = 1 << count
    tables = dealt_words(
        wires, lambda: one_hot(~mask & (size - 1), size), (word_count(size), *masked.shape)
    )
    return entry(tables, masked & (size - 1))


def _number(bits: Bits) -> Places:
    result: Places = bits[0].astype(np.int64)
    for number in range(1, len(bits)):
        result |= bits[number].astype(np.int64) << number
    return result


@dataclass(frozen=True)
class Selector:
    """Which entries of a borrow's tables the public bits pick; see `borrow_selector`.

    Args:
        same: By the masked bits of equality: `(words, 2^(digits - 1))`.
        less: By the masked bits of less: likewise.
    """

    same: Words = field(repr=False)
    less: Words = field(repr=False)


def selected(columns: Words, octets: NDArray[np.uint8]) -> Words:
    """A column for each byte, of which only the bits that number columns count."""
    # Bytes are opened with all bits masked, so that what is opened is uniform.
    return np.take(columns, octets & np.uint8(columns.shape[1] - 1), axis=1)


@lru_cache(maxsize=16)
def borrow_selector(count: int) -> Selector:
    """The layout of the tables that combine `count` digits.

    For each digit j but the highest there is a table with an entry for each value of the equality
    bits of the digits above j: 2^(count - 1 - j) entries, one behind the other.
    """
    others = count - 1
    values = np.arange(1 << others)
    # At least a word; two entries are left over at the end.
    size = max(WORD_BITS, 2 << others)
    same, less = np.zeros((2, len(values), size), bool)
    start = 0
    for digit in range(others):
        same[values, start + (values >> digit)] = True
        length = 1 << (others - digit)
        less[:, start : start + length] = ((values >> digit) & 1)[:, np.newaxis]
        start += length
    return Selector(_as_words(same), _as_words(less))


def _as_words(bits: NDArray[np.bool_]) -> Words:
    octets = np.packbits(bits, axis=-1, bitorder="little")
    return np.ascontiguousarray(octets.view(np.uint64).T)
