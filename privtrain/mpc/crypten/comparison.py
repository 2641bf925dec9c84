"""Which additively shared integers are negative: an adder's carries, packed into words.

CrypTen 0.4.1 keeps a word of 64 bits for each integer throughout its adder and opens 216 bytes for
each between two parties. Only the carry into the highest bit is asked for: at each level of the
tree half of the bits are left over, and two words become one. That opens 16 bytes for each and
1,512 for each 64 that are begun, 40 a value where there are many, in as many rounds between two
parties and in nine rounds rather than 15 among three.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

_BITS = 64
_LEVELS = 6


class Gates(Protocol):
    """What the parties do together. All call the same methods in the same order."""

    @property
    def rank(self) -> int:
        """Own rank."""
        ...

    @property
    def count(self) -> int:
        """How many parties there are."""
        ...

    def conjunction(self, left: Tensor, right: Tensor) -> Tensor:
        """Own XOR share of the bitwise AND of two values of which this party has XOR shares.

        Args:
            left: int64; its shape is broadcast to that of `right`.
            right: int64, any shape.
        """
        ...

    def open(self, share: Tensor) -> Tensor:
        """The value of which this party has an XOR share, at every party."""
        ...

    def random_bits(self, count: int) -> tuple[Tensor, Tensor]:
        """Own additive shares, and XOR shares in the lowest bit, of bits that no party knows."""
        ...


@dataclass(frozen=True)
class CrypTenGates:
    """Gates by the triples of CrypTen's provider.

    Args:
        provider: Deals triples and random bits.
        channel: The communicator.
        xor: The operation by which it reduces XOR shares.
    """

    provider: Any
    channel: Any
    xor: Any

    @property
    def rank(self) -> int:
        return int(self.channel.get_rank())

    @property
    def count(self) -> int:
        return int(self.channel.get_world_size())

    def conjunction(self, left: Tensor, right: Tensor) -> Tensor:
        # Beaver 1991: x y = c + e b + a d + e d, where e = x - a and d = y - b are opened and
        # c = a b; here over bits.
        triple = self.provider.generate_binary_triple(left.size(), right.size())
        a_share, b_share, c_share = (value.share for value in triple)
        masked_left, masked_right = self.channel.all_reduce(
            [left ^ a_share, right ^ b_share], op=self.xor, batched=True
        )
        if self.rank == 0:
            b_share = b_share ^ masked_right
        share: Tensor = c_share ^ (a_share & masked_right) ^ (masked_left & b_share)
        return share

    def open(self, share: Tensor) -> Tensor:
        opened: Tensor = self.channel.all_reduce(share, op=self.xor)
        return opened

    def random_bits(self, count: int) -> tuple[Tensor, Tensor]:
        additive, binary = self.provider.B2A_rng(torch.Size([count]))
        return additive.share, binary.share


def negative(share: Tensor, gates: Gates) -> Tensor:
    """Own additive share of 1 where an integer is negative and 0 elsewhere.

    Args:
        share: Own additive share of the integers, int64, any shape.
        gates: Joins the parties.

    Returns:
        int64, same shape.
    """
    left, right = _two_summands(share.reshape(-1), gates)
    propagate = left ^ right
    carries = _carries(gates.conjunction(left, right), propagate, gates)
    additive, binary = gates.random_bits(propagate.numel())
    # The bit is opened masked by a random one, and flipped back where that was 1.
    sign = _pack((propagate >> (_BITS - 1)) ^ binary)
    masked = _unpack(gates.open(carries ^ sign), propagate.numel())
    bits = additive * (1 - 2 * masked)
    if gates.rank == 0:
        bits += masked
    return bits.view(share.shape)


def _two_summands(own: Tensor, gates: Gates) -> list[Tensor]:
    """XOR shares of two integers whose sum is that of all parties' additive shares."""
    # What one party knows is an XOR sharing as it is, where the other shares are zero: nothing of
    # it is opened but under the masks of a triple.
    nothing = torch.zeros_like(own)
    summands = [own if rank == gates.rank else nothing for rank in range(gates.count)]
    while len(summands) > 2:
        # A carry-save adder: two bits of x, y and z that are 1 make a carry.
        x, y, z, *rest = summands
        carries = gates.conjunction(x ^ z, y ^ z) ^ z
        summands = [x ^ y ^ z, carries << 1, *rest]
    return summands


def _carries(generate: Tensor, propagate: Tensor, gates: Gates) -> Tensor:
    """XOR shares of the carries into the highest bit, packed.

    Args:
        generate: Where both bits are 1, shape `(integers,)`.
        propagate: Where one of the bits is 1.
        gates: Joins the parties.

    Returns:
        Shape `(words,)`, in the order of `_unpack`.

    Source: Damgard et al. 2006, section 6.3 (set, propagate and kill).
    """
    # What the highest bits do themselves does not matter; the place shifted in carries nothing.
    both = torch.stack([_rows(generate << 1), _rows(propagate << 1)])
    for level in range(_LEVELS):
        high, low = _halves(both, level)
        if level == _LEVELS - 1:
            low = low[:1]
        # Two neighbours carry if the higher one does, or passes on what the lower one carries, and
        # pass on if both do.
        products = gates.conjunction(high[1], low)
        products[0] ^= high[0]
        both = products
    return both[0, 0]


def _halves(words: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """The higher and the lower one of all neighbours, of two words in one.

    Args:
        words: Shape `(..., rows, words)`; an integer's bits lie `2**level` places apart.
        level: How often they have been halved.

    Returns:
        Both of shape `(..., rows / 2, words)`.
    """
    shift, high = 1 << level, _HIGH[level]
    upper, lower = words.chunk(2, dim=-2)
    return (
        (upper & high) | ((lower >> shift) & ~high),
        ((upper << shift) & high) | (lower & ~high),
    )


def _mask(level: int) -> int:
    """The places whose number has a certain bit, as a signed integer of 64 bits."""
    mask = sum(1 << place for place in range(_BITS) if place >> level & 1)
    return mask - (1 << _BITS)


_HIGH = [_mask(level) for level in range(_LEVELS)]

# The upper rows go to the higher places at each level, the first of which parts single bits: so
# the place of a row in a word is the number of rows that come after it, with its bits reversed.
_PLACES = torch.tensor([[int(f"{_BITS - 1 - row:06b}"[::-1], 2)] for row in range(_BITS)])


def _rows(values: Tensor) -> Tensor:
    """Values in 64 rows, filled by zeros: shape `(64, words)`."""
    padded = torch.nn.functional.pad(values, (0, -values.numel() % _BITS))
    return padded.view(_BITS, padded.numel() // _BITS)


def _pack(values: Tensor) -> Tensor:
    """The lowest bits of values, 64 in a word, shape `(words,)`."""
    return ((_rows(values) & 1) << _PLACES).sum(0)


def _unpack(words: Tensor, count: int) -> Tensor:
    """The bits that were packed, shape `(count,)`."""
    return ((words >> _PLACES) & 1).reshape(-1)[:count]
