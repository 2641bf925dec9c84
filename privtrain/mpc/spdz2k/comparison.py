"""Signs, rectifiers and maxima of authenticated values: two rounds each, with the opening.

With X = x + r public the sign of x is the highest bit of X - r modulo 2^w, an exclusive or of both
highest bits and of whether the low bits of X are below those of r. The last is a distributed
comparison function whose payload is the key of bits, so that the result has a tag.

Source: Boyle et al. 2020, eprint 2020/1392; Gupta et al., SHARK, IEEE S&P 2025.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from privtrain.mpc.spdz2k.forms import Form
from privtrain.mpc.spdz2k.ring import PAYLOAD_BITS, low
from privtrain.mpc.spdz2k.wires import Wires, Words

FINE_BITS = 16
"""Bits after the point beyond which a rectifier and a softmax do not tell values apart."""


class Opens(Protocol):
    """What a function asks of its session."""

    @property
    def wires(self) -> Wires:
        """The role's randomness and messages."""
        ...

    def open(self, shares: Sequence[Any]) -> list[Tensor]:
        """Opens masked values and bits in one message."""
        ...


@dataclass(frozen=True)
class Signs:
    """Bits that are about to be opened under masks.

    Args:
        words: Shares of the masked bits, flat.
        coins: Their masks at the dealer, of the values' shape.
    """

    words: Words = field(repr=False)
    coins: Tensor = field(repr=False)


@dataclass(frozen=True)
class Bits:
    """Secret bits: 0 or 1 under masks, and forms of the masks.

    Args:
        masked: Public.
        coins: The masks at the dealer.
        mask: Forms of them.
    """

    masked: Tensor = field(repr=False)
    coins: Tensor = field(repr=False)
    mask: Form = field(repr=False)

    @property
    def form(self) -> Form:
        """The bits as integers: b = m xor c = m + (1 - 2 m) c."""
        return (self.mask * (1 - 2 * self.masked)).shifted(self.masked)

    def __invert__(self) -> "Bits":
        return Bits(1 - self.masked, self.coins, self.mask)

    def __getitem__(self, index: int | slice) -> "Bits":
        return Bits(self.masked[index], self.coins[index], self.mask[index])


def window_of(largest: int | None) -> int:
    """How many low bits hold integers of at most this magnitude, and those less one."""
    return PAYLOAD_BITS if largest is None else min(PAYLOAD_BITS, max(largest, 1).bit_length() + 1)


def coarse_bits(bits: int) -> int:
    """How many low bits a comparison leaves out that is exact to `FINE_BITS` after the point."""
    return max(0, bits - FINE_BITS)


def below_zero(
    wires: Wires,
    masked: Tensor,
    mask: Tensor,
    *,
    window: int = PAYLOAD_BITS,
    coarse: int = 0,
) -> Signs:
    """Where a value is below zero.

    Args:
        wires: This role's.
        masked: x + r, opened, any shape.
        mask: r at the dealer, anything of that shape elsewhere.
        window: Low bits that hold every value; for others the answer is wrong.
        coarse: Low bits that are left out: x is rounded to a multiple of 2^coarse, down or up.
    """
    top = min(window, PAYLOAD_BITS) - 1 - coarse
    coins = wires.coins(masked.shape)
    points, thresholds = low(masked).reshape(-1) >> coarse, low(mask).reshape(-1) >> coarse
    part = (1 << top) - 1
    flips = coins.reshape(-1) ^ (thresholds >> top & 1)
    words = wires.below(top, points & part, thresholds & part, flips, points >> top & 1)
    return Signs(words, coins)


def opened(session: Opens, signs: Sequence[Signs]) -> list[Bits]:
    """Bits of one message."""
    found = session.open([each.words for each in signs])
    return [_bits(session, each, masked) for each, masked in zip(signs, found, strict=True)]


def _bits(session: Opens, signs: Signs, masked: Tensor) -> Bits:
    shape = signs.coins.shape
    mask = session.wires.dealt(lambda: signs.coins, shape)
    return Bits(masked.view(shape), signs.coins, mask)


def above_zero(
    session: Opens, masked: Tensor, mask: Form, *, window: int = PAYLOAD_BITS, coarse: int = 0
) -> Bits:
    """Where x > 0: x >= 1, hence not x - 1 < 0. Coarse, x between 0 and 2^(1 + coarse) is either.

    Args:
        session: The open session.
        masked: x + r, opened.
        mask: r.
        window: As for `below_zero`, of x - 1.
        coarse: As for `below_zero`.
    """
    signs = below_zero(
        session.wires, masked - (1 << coarse), mask.share, window=window, coarse=coarse
    )
    return ~opened(session, [signs])[0]


def chosen(session: Opens, bits: Bits, masked: Tensor, mask: Form) -> Form:
    """The product b x, where x was opened under a mask; no round.

    With b = m + (1 - 2 m) c it is m (X - r) + (1 - 2 m) (c X - c r), where X = x + r is public and
    c r is dealt; what x was computed from, such as a product of matrices, does not come up again.

    Args:
        session: The open session.
        bits: b; its shape may lack dimensions that x has in front.
        masked: X.
        mask: r.
    """
    product = session.wires.dealt(lambda: bits.coins * mask.share, masked.shape)
    flipped = (bits.mask * masked - product) * (1 - 2 * bits.masked)
    return (flipped - mask * bits.masked).shifted(masked * bits.masked)


def tournament(
    session: Opens,
    values: Form,
    *,
    beside: Form | None = None,
    window: int = PAYLOAD_BITS,
    coarse: int = 0,
) -> tuple[Form, Form | None]:
    """The largest value of each column, in two rounds for each halving of their number.

    Args:
        session: The open session.
        values: `(values, columns)`, at least one.
        beside: What comes along with the winner, `(entries, values, columns)`.
        window: Low bits that hold every difference of two values less one.
        coarse: Low bits of differences that are left out.

    Returns:
        The largest, `(columns,)`, the first one where there are several and nothing is left out,
        and what came along with it, `(entries, columns)`.
    """
    wires = session.wires
    while values.shape[0] > 1:
        pairs = values.shape[0] // 2
        left, right, rest = values[: 2 * pairs : 2], values[1 : 2 * pairs : 2], values[2 * pairs :]
        gap = left - right
        carried: list[Form] = []
        if beside is not None:
            carried = [beside[:, : 2 * pairs : 2] - beside[:, 1 : 2 * pairs : 2]]
        forms = [gap, *carried]
        masks = [wires.random(form.shape) for form in forms]
        found = session.open([form + mask for form, mask in zip(forms, masks, strict=True)])
        # Not below zero: on a tie the left one, which comes first, wins.
        signs = below_zero(wires, found[0], masks[0].share, window=window, coarse=coarse)
        wins = ~opened(session, [signs])[0]
        best = [
            chosen(session, wins, masked, mask) for masked, mask in zip(found, masks, strict=True)
        ]
        values = side_by_side([right + best[0], rest], 0)
        if beside is not None:
            losers = beside[:, 1 : 2 * pairs : 2]
            beside = side_by_side([losers + best[1], beside[:, 2 * pairs :]], 1)
    return values[0], None if beside is None else beside[:, 0]


def side_by_side(forms: Sequence[Form], dim: int) -> Form:
    """Forms along a dimension of their values, from 0."""
    first = forms[0]
    return first.like(torch.cat([form.words for form in forms], dim + 1 if dim >= 0 else dim))
