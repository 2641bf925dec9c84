"""An open session of the ring engine: products, truncation and opening, one text for all roles."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from privtrain.mpc.ring64.rectifier import positive, relu
from privtrain.mpc.ring64.ring import RING_BITS, shifted_right, top_bit
from privtrain.mpc.ring64.sigmoid import BITS as SIGMOID_BITS
from privtrain.mpc.ring64.sigmoid import sigmoid
from privtrain.mpc.ring64.softmax import (
    NUMERATOR_BITS,
    RECIPROCAL_BITS,
    largest,
    softmax_parts,
)
from privtrain.mpc.ring64.tensors import WIDEST, Ring64Tensor
from privtrain.mpc.ring64.wires import Compute, Wires
from privtrain.mpc.sharing import PRECISION_BITS, encode

Bilinear = Callable[[Tensor, Tensor], Tensor]
"""A public function of two int64 tensors, linear in each of them."""

HALF_RANGE = RING_BITS - 2
"""Values that are truncated stay below 2^62 in magnitude; added to them it makes them positive."""


@dataclass(frozen=True)
class Cut:
    """A truncation to come.

    Args:
        value: What is truncated.
        drop: Bits that are dropped, from 1 to 61.
        factor: An integer by which the value is multiplied before.
    """

    value: Ring64Tensor = field(repr=False)
    drop: int
    factor: int = 1


@dataclass
class Ring64Session:
    """A session at one role: a computing party, or the dealer, where shares are zeros.

    Args:
        wires: The role's randomness and messages.
    """

    wires: Wires = field(repr=False)
    _due: list[tuple[Cut, Ring64Tensor]] = field(default_factory=list, init=False, repr=False)

    @property
    def leader(self) -> bool:
        """Whether this role's share takes up public constants."""
        return self.wires.leader

    @property
    def deals(self) -> bool:
        """Whether this is the dealer."""
        return self.wires.deals

    # What functions are built on; see `Wires`.

    def random(self, shape: Sequence[int]) -> Tensor:
        """A party's share of a uniform mask; the dealer's mask."""
        return self.wires.random(shape)

    def dealt(self, compute: Compute, shape: Sequence[int], *, bits: int = RING_BITS) -> Tensor:
        """A share, modulo 2^bits, of int64 that the dealer computes from masks."""
        return self.wires.dealt(compute, shape, bits=bits)

    def dealt_bytes(self, compute: Compute, shape: Sequence[int]) -> Tensor:
        """A share by exclusive or of uint8 that the dealer computes from masks."""
        return self.wires.dealt_bytes(compute, shape)

    def open(self, shares: Sequence[Tensor]) -> list[Tensor]:
        """Opens masked values in one message: sums of int64, exclusive or of uint8.

        What waits for a truncation travels along.
        """
        due, self._due = self._due, []
        begun = [self._begin(cut) for cut, _ in due]
        opened = self.wires.open([*shares, *(masked_share for masked_share, _, _ in begun)])
        for (cut, result), masked, (_, high, wrap) in zip(
            due, opened[len(shares) :], begun, strict=True
        ):
            result.arrive(self._end(cut, masked, high, wrap))
        return opened[: len(shares)]

    def finish(self) -> None:
        """Truncates all that waits for it, in one message."""
        if self._due:
            self.open([])

    open_bytes = open

    def masked(self, value: Ring64Tensor) -> tuple[Tensor, Tensor]:
        """A value under its mask, opened once, and this role's share of that mask."""
        return self.masked_all([value])[0]

    def masked_all(self, values: Sequence[Ring64Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Values under their masks; what was not opened before is opened in one message.

        Args:
            values: Any; a view of a value that was opened is not opened again.

        Returns:
            For each the public masked value x + r, and this role's share of r.
        """
        closed = _distinct([value.root for value in values if value.opening() is None])
        if closed:
            shares = [value.share for value in closed]
            masks = [self.random(share.shape) for share in shares]
            masked_shares = [share + mask for share, mask in zip(shares, masks, strict=True)]
            for value, masked, mask in zip(closed, self.open(masked_shares), masks, strict=True):
                value.remember(masked, mask)
        openings = [value.opening() for value in values]
        return [opening for opening in openings if opening is not None]

    # Products and truncation.

    def product(
        self, function: Bilinear, left: Ring64Tensor, right: Ring64Tensor, *, widest: int = WIDEST
    ) -> Ring64Tensor:
        """A bilinear function of shared values, with the bits after the point of both.

        With masked x + r and y + s: xy = (x + r)(y + s) - (x + r) s - r (y + s) + rs, where the
        first term is public and rs is dealt (Turbospeedz, Section 3).

        Args:
            function: The function.
            left: Its first argument.
            right: Its second argument.
            widest: Bits after the point that the product may have; factors are truncated before if
                it had more.
        """
        if left.bits + right.bits > widest:
            left, right = self.settled([left, right])
        bits = left.bits + right.bits
        # Public factors need no opening.
        if right.public is not None:
            return left.derived(function(left.share, right.public), bits)
        if left.public is not None:
            return right.derived(function(left.public, right.share), bits)
        (masked_x, r), (masked_y, s) = self.masked_all([left, right])
        if self.deals:
            product = function(r, s)
            return left.derived(self.dealt(lambda: product, product.shape), bits)
        if self.leader:
            local = function(masked_x, masked_y - s) - function(r, masked_y)
        else:
            local = -function(masked_x, s) - function(r, masked_y)
        return left.derived(local + self.dealt(lambda: local, local.shape), bits)

    def truncated(self, cuts: Sequence[Cut]) -> list[Ring64Tensor]:
        """Values without their last bits, rounded up or down at random, all in one message.

        With t = z + 2^62 and masked t + rho: t >> f = (masked >> f) - (rho >> f), less one where
        the low bits borrow, plus 2^(64 - f) where t + rho wrapped around, which it did where the
        top bit of rho is one and that of the masked value is zero.

        Args:
            cuts: Values below 2^62 in magnitude as integers, after their factor.

        Returns:
            The quotients, to one unit in the last place; never a wrong wrap.

        Source: Boyle et al. 2020, eprint 2020/1392, Section 6 (fixed-point gates).
        """
        begun = [self._begin(cut) for cut in cuts]
        opened = self.open([masked_share for masked_share, _, _ in begun])
        return [
            cut.value.derived(self._end(cut, masked, high, wrap), cut.value.bits - cut.drop)
            for cut, masked, (_, high, wrap) in zip(cuts, opened, begun, strict=True)
        ]

    def _begin(self, cut: Cut) -> tuple[Tensor, Tensor, Tensor]:
        """The share of t + rho, and those of rho >> f and of what a wrap takes back."""
        share = cut.value.share if cut.factor == 1 else cut.value.share * cut.factor
        rho = self.random(share.shape)
        high = self.dealt(partial(shifted_right, rho, cut.drop), share.shape)
        # A multiple of 2^(64 - f) is shared modulo 2^64 by shares of the quotient modulo 2^f.
        wrap = self.dealt(partial(top_bit, rho), share.shape, bits=cut.drop)
        masked_share = share + rho
        if self.leader:
            masked_share += 1 << HALF_RANGE
        return masked_share, high, wrap << (RING_BITS - cut.drop)

    def _end(self, cut: Cut, masked: Tensor, high: Tensor, wrap: Tensor) -> Tensor:
        """The share of the quotient, from the opened t + rho."""
        share = wrap.masked_fill(masked < 0, 0) - high
        if self.leader:
            share += shifted_right(masked, cut.drop) - (1 << (HALF_RANGE - cut.drop))
        return share

    def settled(self, values: Sequence[Ring64Tensor]) -> list[Ring64Tensor]:
        """Values with `PRECISION_BITS` bits at most; truncated in one message if need be."""
        wide = _distinct([value.root for value in values if value.settled() is None])
        if wide:
            cuts = [Cut(value, value.bits - PRECISION_BITS) for value in wide]
            for value, narrow in zip(wide, self.truncated(cuts), strict=True):
                value.settle(narrow)
        found = [value.settled() for value in values]
        return [value for value in found if value is not None]

    # The session as every engine offers it.

    def take(self, share: Tensor) -> Ring64Tensor:
        return Ring64Tensor(share, self, whole=True)

    def own(self, integers: Tensor | None, shape: tuple[int, ...], owner: int) -> Ring64Tensor:
        return self.take(self.wires.own(integers, shape, owner))

    def announce(self, values: Tensor) -> list[Tensor]:
        return self.wires.announce(values)

    def join(self, values: Sequence[Any], *, dim: int) -> Ring64Tensor:
        return Ring64Tensor.cat(values, dim)

    def public(self, values: Tensor) -> Ring64Tensor:
        integers = encode(values, name="public values")
        share = integers if self.leader else torch.zeros_like(integers)
        return Ring64Tensor(share, self, public=integers)

    def scale(self, shared: Any, factor: float) -> Ring64Tensor:
        """The product of a shared value and a public number, of which 16 significant bits count.

        Values are below 2^30 in magnitude, such as a gradient that is summed over a batch.
        """
        if factor == 0:
            return shared.derived(shared.share * 0)  # type: ignore[no-any-return]
        value: Ring64Tensor = shared
        if value.bits > PRECISION_BITS:
            # With the bits of the factor a product of more than 2^14 would wrap around.
            (value,) = self.settled([value])
        # factor * 2^shift lies in [2^15, 2^16); smaller ones than 2^-29 keep fewer bits.
        shift = min(PRECISION_BITS - 1 - math.floor(math.log2(abs(factor))), 44)
        if shift <= 0:
            return value.derived(value.share * round(factor))
        drop, whole = value.bits + shift - PRECISION_BITS, round(factor * 2**shift)
        if drop <= 0:
            return value.derived(value.share * whole, value.bits + shift)
        # Not now: the weights of all layers can be truncated in one message.
        cut = Cut(value.derived(value.share), drop, whole)
        result = value.awaited(value.shape, None, PRECISION_BITS)
        self._due.append((cut, result))
        return result

    def bilinear(self, function: Bilinear, left: Any, right: Any) -> Ring64Tensor:
        return self.product(function, left, right)

    def linear(self, function: Callable[[Tensor], Tensor], shared: Any) -> Ring64Tensor:
        # Linear in the mask, too: what was opened stays opened.
        return shared.viewed(function, linked=False)  # type: ignore[no-any-return]

    def positive(self, shared: Any) -> Ring64Tensor:
        return shared.derived(positive(self.wires, *self.masked(shared)), 0)  # type: ignore[no-any-return]

    def relu(self, shared: Any) -> tuple[Ring64Tensor, Ring64Tensor]:
        larger, bit = relu(self.wires, shared.share, *self.masked(shared))
        return shared.derived(larger), shared.derived(bit, 0)

    def sigmoid(self, logits: Any) -> Ring64Tensor:
        """1 / (1 + e^-x) for values up to `sigmoid.REACH` in magnitude; see there for others."""
        value = self._narrow(logits)
        share = sigmoid(self.wires, *self.masked(value), value.bits)
        return value.derived(share, SIGMOID_BITS)

    def softmax(self, logits: Any) -> Ring64Tensor:
        value = self._narrow(logits)
        if value.bits < PRECISION_BITS:  # such as whole numbers: gaps are read to the last bit
            lifted = value.share << (PRECISION_BITS - value.bits)
            value = value.derived(lifted, PRECISION_BITS)
        parts = softmax_parts(self.wires, value.share, *self.masked(value), value.bits)
        numerators = value.derived(parts[0], NUMERATOR_BITS)
        inverse = value.derived(parts[1], RECIPROCAL_BITS)
        # Wider than other products: no factor reaches 2, hence it stays far below 2^62.
        widest = NUMERATOR_BITS + RECIPROCAL_BITS
        return self.settled([self.product(torch.mul, numerators, inverse, widest=widest)])[0]

    def largest(self, shared: Any) -> Ring64Tensor:
        return shared.derived(largest(self.wires, *self.masked(shared)), 0)  # type: ignore[no-any-return]

    def _narrow(self, value: Ring64Tensor) -> Ring64Tensor:
        return value if value.bits <= WIDEST else self.settled([value])[0]

    def shares(self, values: Sequence[Any]) -> list[Tensor]:
        return [value.lifted(PRECISION_BITS) for value in self.settled(values)]

    def reveal(
        self, values: Sequence[Any], *, kind: str, readers: Sequence[int] | None = None
    ) -> list[Tensor]:
        # Truncated first: the low bits of a product say more than its value.
        narrow = self.settled(values)
        opened = self.wires.open([value.share for value in narrow], kind=kind, readers=readers)
        # Nothing is opened at who does not read.
        pairs = zip(opened, narrow, strict=bool(opened))
        return [integers.double() / 2.0**value.bits for integers, value in pairs]


def _distinct(values: Sequence[Ring64Tensor]) -> list[Ring64Tensor]:
    return list({id(value): value for value in values}.values())
