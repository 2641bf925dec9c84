"""An open session of the ring engine: products, truncation and opening, one text for all roles."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from privtrain.mpc.ring64.comparison import coarse_bits
from privtrain.mpc.ring64.rectifier import positive, relu
from privtrain.mpc.ring64.ring import RING_BITS, shifted_right, top_bit
from privtrain.mpc.ring64.sigmoid import BITS as SIGMOID_BITS
from privtrain.mpc.ring64.sigmoid import LARGEST as SIGMOID_LARGEST
from privtrain.mpc.ring64.sigmoid import sigmoid
from privtrain.mpc.ring64.softmax import (
    NUMERATOR_BITS,
    RECIPROCAL_BITS,
    largest,
    maximum,
    softmax_parts,
)
from privtrain.mpc.ring64.tensors import WIDEST, WIDEST_PRODUCT, Ring64Tensor, Share
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
    precision_bits: ClassVar[int] = PRECISION_BITS
    settled_bits: ClassVar[int] = PRECISION_BITS
    widest: ClassVar[int] = WIDEST
    widest_product: ClassVar[int] = WIDEST_PRODUCT
    half_range: ClassVar[int] = HALF_RANGE
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

    def open(self, shares: Sequence[Share]) -> list[Tensor]:
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

    def shifted(self, share: Tensor, integers: Tensor) -> Tensor:
        """A share of a value plus public integers."""
        # One party only, or it would be added once a party.
        return share + (integers if self.leader else torch.zeros_like(integers))

    def beside(self, shares: Sequence[Tensor], dim: int) -> Tensor:
        """Shares of values side by side."""
        return torch.cat(list(shares), dim)

    def finish(self) -> None:
        """Truncates all that waits for it, in one message."""
        if self._due:
            self.open([])

    open_bytes = open

    def masked(self, value: Ring64Tensor) -> tuple[Tensor, Share]:
        """A value under its mask, opened once, and this role's share of that mask."""
        return self.masked_all([value])[0]

    def masked_all(self, values: Sequence[Ring64Tensor]) -> list[tuple[Tensor, Share]]:
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
        self,
        function: Bilinear,
        left: Ring64Tensor,
        right: Ring64Tensor,
        *,
        widest: int | None = None,
    ) -> Ring64Tensor:
        """A bilinear function of shared values, with the bits after the point of both.

        With masked x + r and y + s: xy = (x + r)(y + s) - (x + r) s - r (y + s) + rs, where the
        first term is public and rs is dealt (Turbospeedz, Section 3).

        Args:
            function: The function.
            left: Its first argument.
            right: Its second argument.
            widest: Bits after the point that the product may have, `self.widest` where it is None;
                factors are truncated before if it had more.
        """
        left, right, largest = self.fitting(function, left, right, widest)
        bits = left.bits + right.bits
        product = partial(left.derived, bits=bits, largest=largest)
        # Public factors need no opening.
        if right.public is not None:
            return product(function(left.share, right.public))
        if left.public is not None:
            return product(function(left.public, right.share))
        (masked_x, r), (masked_y, s) = self.masked_all([left, right])
        if self.deals:
            both = function(r, s)
            return product(self.dealt(lambda: both, both.shape))
        if self.leader:
            local = function(masked_x, masked_y - s) - function(r, masked_y)
        else:
            local = -function(masked_x, s) - function(r, masked_y)
        return product(local + self.dealt(lambda: local, local.shape))

    def fitting(
        self, function: Bilinear, left: Ring64Tensor, right: Ring64Tensor, widest: int | None
    ) -> tuple[Ring64Tensor, Ring64Tensor, int | None]:
        """Factors whose product fits, truncated if need be, and its largest magnitude if known."""
        widest = self.widest if widest is None else widest
        largest = _largest_product(function, left, right)
        fits = largest is not None and largest < 1 << self.half_range
        if left.bits + right.bits > (max(widest, self.widest_product) if fits else widest):
            left, right = self.settled([left, right])
            largest = _largest_product(function, left, right)
        return left, right, largest

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
        # No wrap where the top bit is one; several times faster than `masked_fill`.
        share = (wrap & ~(masked >> RING_BITS - 1)) - high
        if self.leader:
            share += shifted_right(masked, cut.drop) - (1 << (HALF_RANGE - cut.drop))
        return share

    def settled(self, values: Sequence[Ring64Tensor]) -> list[Ring64Tensor]:
        """Values with `settled_bits` bits at most; truncated in one message if need be."""
        wide = _distinct([value.root for value in values if value.settled() is None])
        if wide:
            cuts = [Cut(value, value.bits - self.precision_bits) for value in wide]
            for value, narrow in zip(wide, self.truncated(cuts), strict=True):
                value.settle(narrow)
        found = [value.settled() for value in values]
        return [value for value in found if value is not None]

    # The session as every engine offers it.

    def take(
        self, share: Tensor, *, largest: float | None = None, proof: Tensor | None = None
    ) -> Ring64Tensor:
        bound = None if largest is None else math.ceil(largest * 2**PRECISION_BITS)
        return Ring64Tensor(share, self, whole=True, largest=bound)

    def take_all(
        self,
        shares: Sequence[Tensor],
        *,
        proofs: Sequence[Tensor | None],
        largest: float | None = None,
    ) -> list[Ring64Tensor]:
        return [self.take(share, largest=largest) for share in shares]

    def own(
        self,
        integers: Tensor | None,
        shape: tuple[int, ...],
        owner: int,
        *,
        largest: float | None = None,
    ) -> Ring64Tensor:
        self.check_owned(integers, largest)
        return self.take(self.wires.own(integers, shape, owner), largest=largest)

    def check_owned(self, integers: Tensor | None, largest: float | None) -> None:
        """Raises `ValueError` where an owner's integers exceed what is stated of them."""
        if integers is not None and largest is not None and integers.numel():
            reached = int(integers.abs().max())
            # A value at the bound may have been rounded up.
            if reached > math.ceil(largest * 2**PRECISION_BITS):
                raise ValueError(
                    f"Expected the integers, up to {reached / 2**PRECISION_BITS:g}, within "
                    f"{largest=:g}."
                )

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
        whole, shift = rounded_factor(factor)
        wide = is_wide(value.bits, whole, self.settled_bits, self.widest)
        if wide and not self._fits(value, whole, value.bits + shift):
            (value,) = self.settled([value])
        drop = value.bits + shift - self.precision_bits
        if drop <= 0:
            return value.derived(value.share * whole, value.bits + shift)
        # Not now: the weights of all layers can be truncated in one message.
        cut = Cut(value.derived(value.share), drop, whole)
        result = value.awaited(value.shape, None, self.precision_bits)
        self._due.append((cut, result))
        return result

    def _fits(self, value: Ring64Tensor, factor: int, bits: int) -> bool:
        """Whether a value times a factor, of so many bits, can be truncated at once."""
        known = value.largest is not None and value.largest * abs(factor) < 1 << self.half_range
        return known and bits - self.precision_bits < self.half_range

    def bilinear(self, function: Bilinear, left: Any, right: Any) -> Ring64Tensor:
        return self.product(function, left, right)

    def linear(self, function: Callable[[Tensor], Tensor], shared: Any) -> Ring64Tensor:
        # Linear in the mask, too: what was opened stays opened.
        result: Ring64Tensor = shared.narrow().viewed(function, linked=False)
        result.largest = None
        return result

    def positive(self, shared: Any) -> Ring64Tensor:
        bit = positive(self.wires, *self.masked(shared), largest=shared.largest)
        return shared.derived(bit, 0, largest=1)  # type: ignore[no-any-return]

    def relu(self, shared: Any) -> tuple[Ring64Tensor, Ring64Tensor]:
        value: Ring64Tensor = shared
        larger, bit = relu(
            self.wires,
            value.share,
            *self.masked(value),
            coarse=coarse_bits(value.bits),
            largest=value.largest,
        )
        return value.derived(larger, largest=value.largest), value.derived(bit, 0, largest=1)

    def sigmoid(self, logits: Any) -> Ring64Tensor:
        """1 / (1 + e^-x) for values up to `sigmoid.REACH` in magnitude; see there for others."""
        value: Ring64Tensor = logits.narrow()
        share = sigmoid(self.wires, *self.masked(value), value.bits)
        return value.derived(share, SIGMOID_BITS, largest=SIGMOID_LARGEST)

    def softmax(self, logits: Any) -> Ring64Tensor:
        value: Ring64Tensor = logits.narrow()
        if value.bits < PRECISION_BITS:  # such as whole numbers: gaps are read to the last bit
            lifted = value.share << (PRECISION_BITS - value.bits)
            limit = value.magnitude(PRECISION_BITS)
            value = value.derived(lifted, PRECISION_BITS, largest=limit)
        parts = softmax_parts(
            self.wires, value.share, *self.masked(value), value.bits, limit=value.largest
        )
        numerators = value.derived(parts[0], NUMERATOR_BITS)
        inverse = value.derived(parts[1], RECIPROCAL_BITS)
        # Wider than other products: no factor reaches 2, hence it stays far below 2^62.
        widest = NUMERATOR_BITS + RECIPROCAL_BITS
        return self.settled([self.product(torch.mul, numerators, inverse, widest=widest)])[0]

    def largest(self, shared: Any) -> Ring64Tensor:
        one_hot = largest(self.wires, *self.masked(shared), limit=shared.largest)
        return shared.derived(one_hot, 0, largest=1)  # type: ignore[no-any-return]

    def maximum(self, shared: Any) -> Ring64Tensor:
        value: Ring64Tensor = shared
        share = maximum(self.wires, value.share, *self.masked(value), limit=value.largest)
        return value.derived(share, largest=value.largest)

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


def rounded_factor(factor: float) -> tuple[int, int]:
    """A public factor as an odd integer of at most 16 bits, or 0, and its bits after the point.

    Args:
        factor: Not zero; one of 2^16 and more is rounded to a whole number.
    """
    # factor * 2^shift lies in [2^15, 2^16); smaller ones than 2^-29 keep fewer bits.
    shift = max(0, min(PRECISION_BITS - 1 - math.floor(math.log2(abs(factor))), 44))
    whole = round(factor * 2**shift)
    while shift and whole % 2 == 0:
        whole, shift = whole // 2, shift - 1
    return whole, shift


def is_wide(bits: int, whole: int, precision: int = PRECISION_BITS, widest: int = WIDEST) -> bool:
    """Whether a value of so many bits after the point is truncated before it is multiplied.

    With the bits of the factor a product of more than 2^14 would wrap around. A power of two has
    none, and is divided by in the truncation that the value needs anyway.

    Args:
        bits: The value's.
        whole: The factor as an integer.
        precision: Bits after the point that a truncation leaves.
        widest: Bits that a product of two truncated values has.
    """
    return bits > precision and abs(whole) << bits > 1 << widest


def _largest_product(function: Bilinear, left: Ring64Tensor, right: Ring64Tensor) -> int | None:
    """The largest magnitude of a product's integers; None where it is unknown."""
    if left.largest is None or right.largest is None:
        return None
    if function is torch.matmul:
        return left.largest * right.largest * left.shape[-1]
    return left.largest * right.largest if function is torch.mul else None


def _distinct(values: Sequence[Ring64Tensor]) -> list[Ring64Tensor]:
    return list({id(value): value for value in values}.values())
