"""Secret-shared values of the ring engine: a share, its binary point, and what was opened of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from privtrain.mpc.engine import Index, Operand
from privtrain.mpc.sharing import PRECISION_BITS, encode

Share = Any
"""A role's share: an int64 tensor, or what adds, is viewed and multiplied by public integers as one
does, such as `privtrain.mpc.spdz2k.forms.Form`."""

View = Callable[[Share], Share]
"""Picks or orders elements; works on a share, a masked value and a mask alike."""

WIDEST = 2 * PRECISION_BITS
"""Bits after the point that a value may have beyond which it is truncated before sums or products:
a product of two values as they are shared or opened. 30 bits are left before the point."""

WIDEST_PRODUCT = 3 * PRECISION_BITS
"""Bits of a product whose largest magnitude is known to fit. It is compared, opened for products,
scaled or truncated as it is, and truncated before sums."""


class Arithmetic(Protocol):
    """What a value asks of its session."""

    @property
    def widest(self) -> int:
        """Bits after the point beyond which a value is truncated before sums or products."""
        ...

    @property
    def settled_bits(self) -> int:
        """Bits after the point of a value that is not truncated any more."""
        ...

    def shifted(self, share: Share, integers: Tensor) -> Share:
        """A share of a value plus public integers."""
        ...

    def beside(self, shares: Sequence[Share], dim: int) -> Share:
        """Shares of values side by side."""
        ...

    def product(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        left: "Ring64Tensor",
        right: "Ring64Tensor",
    ) -> "Ring64Tensor":
        """A bilinear function of two values."""
        ...

    def settled(self, values: "Sequence[Ring64Tensor]") -> "list[Ring64Tensor]":
        """Values with `settled_bits` bits at most."""
        ...

    def scale(self, shared: "Ring64Tensor", factor: float) -> "Ring64Tensor":
        """The product of a value and a public number, rounded once."""
        ...

    def finish(self) -> None:
        """Truncates all that waits for it, in one message."""
        ...

    def positive(self, shared: "Ring64Tensor") -> "Ring64Tensor":
        """1 where a value is above zero, else 0."""
        ...


@dataclass(frozen=True)
class Later:
    """A share that waits.

    Args:
        shape: Its shape.
        compute: Called once what it waits for is there; None where it is what is truncated.
    """

    shape: torch.Size
    compute: Callable[[], Share] | None


@dataclass(eq=False)
class Ring64Tensor:
    """One role's share of a tensor of integers, each with some bits after the binary point.

    A product has the bits of both factors and keeps them until they no longer fit, so that what
    reads it (a comparison, a sum, a truncation that also scales) can do without a truncation.

    What was scaled is truncated with the next message of any kind, or once its share is asked for;
    until then sums with it wait as well.

    Args:
        _share: int64; zeros at the dealer; None where it waits for a truncation.
        session: The open session.
        bits: Bits after the point.
        public: The integers, where everybody knows them.
        whole: Whether views of it are opened by opening it as a whole: inputs, which every batch
            picks rows of.
        source: What this is a view of, if that is what gets opened, and the view.
        largest: A magnitude that no integer exceeds, as everybody knows; None where none is known.
    """

    _share: Share | None = field(repr=False)
    session: "Arithmetic" = field(repr=False)
    bits: int = PRECISION_BITS
    public: Tensor | None = field(default=None, repr=False)
    whole: bool = False
    source: tuple["Ring64Tensor", View] | None = field(default=None, repr=False)
    largest: int | None = None
    _opening: tuple[Tensor, Share] | None = field(default=None, init=False, repr=False)
    _settled: "Ring64Tensor | None" = field(default=None, init=False, repr=False)
    _later: Later | None = field(default=None, init=False, repr=False)

    @property
    def share(self) -> Share:
        """The share; truncates what it waits for."""
        if self._share is None:
            self.session.finish()
        if self._share is None and self._later is not None and self._later.compute:
            self._share = self._later.compute()
        if self._share is None:
            raise RuntimeError("Expected a value that was scaled to be truncated by now.")
        self._later = None
        return self._share

    @property
    def shape(self) -> torch.Size:
        """The shape of the value; takes no message."""
        waits = self._share is None and self._later is not None
        shape: torch.Size = self._later.shape if waits and self._later else self.share.shape
        return shape

    @property
    def waits(self) -> bool:
        """Whether the share waits for a truncation."""
        return self._share is None

    def arrive(self, share: Share) -> None:
        """Ends the wait."""
        self._share = share

    def awaited(
        self, shape: torch.Size, compute: Callable[[], Share] | None, bits: int
    ) -> "Ring64Tensor":
        """Another value of the same session, whose share is computed once it is asked for."""
        result = Ring64Tensor(None, self.session, bits)
        result._later = Later(shape, compute)
        return result

    def derived(
        self, share: Share, bits: int | None = None, *, largest: int | None = None
    ) -> "Ring64Tensor":
        """Another value of the same session."""
        bits = self.bits if bits is None else bits
        return Ring64Tensor(share, self.session, bits, largest=largest)

    # What was opened of a value, and what it was truncated to, hold for its views as well.

    @property
    def root(self) -> "Ring64Tensor":
        """The value that is opened or truncated where this one is to be."""
        if self._opening is not None or self.source is None:
            return self
        return self.source[0].root

    def opening(self) -> tuple[Tensor, Share] | None:
        """The masked value and this role's share of the mask, if they are known by now."""
        if self._opening is None and self.public is not None:
            self._opening = (self.public, self.share * 0)
        if self._opening is None and self.source is not None:
            parent, view = self.source
            known = parent.opening()
            if known is not None:
                self._opening = (view(known[0]), view(known[1]))
        return self._opening

    def remember(self, masked: Tensor, mask: Share) -> None:
        """Keeps what was opened, so that no value is opened twice."""
        self._opening = (masked, mask)

    def settled(self) -> "Ring64Tensor | None":
        """This value with no more than `settled_bits` bits, if that is known by now."""
        if self.bits <= self.session.settled_bits:
            return self
        if self._settled is None and self.source is not None:
            parent = self.source[0].settled()
            self._settled = None if parent is None else parent.viewed(self.source[1], linked=True)
        return self._settled

    def settle(self, truncated: "Ring64Tensor") -> None:
        """Keeps what this value was truncated to."""
        self._settled = truncated

    def viewed(self, view: View, *, linked: bool) -> "Ring64Tensor":
        """A view of this value.

        Args:
            view: The view.
            linked: Whether opening it shall open this value.
        """
        public = None if self.public is None else view(self.public)
        linked = linked or self.whole
        source = (self, view) if linked else None
        result = Ring64Tensor(
            view(self.share), self.session, self.bits, public, self.whole, source, self.largest
        )
        known = None if linked else self.opening()
        if known is not None:
            result.remember(view(known[0]), view(known[1]))
        return result

    def __getitem__(self, index: Index) -> "Ring64Tensor":
        return self.viewed(lambda tensor: tensor[index], linked=False)

    def t(self) -> "Ring64Tensor":
        return self.viewed(lambda tensor: tensor.t(), linked=True)

    def transpose(self, first: int, second: int) -> "Ring64Tensor":
        """With two dimensions exchanged."""
        return self.viewed(lambda tensor: tensor.transpose(first, second), linked=True)

    def reshape(self, *shape: int) -> "Ring64Tensor":
        return self.viewed(lambda tensor: tensor.reshape(shape), linked=True)

    def size(self, dim: int) -> int:
        return self.shape[dim]

    # Sums.

    def lifted(self, bits: int) -> Share:
        """The share with more bits after the point."""
        return self.share if bits == self.bits else self.share << (bits - self.bits)

    def magnitude(self, bits: int) -> int | None:
        """The largest magnitude of integers with more bits after the point."""
        return None if self.largest is None else self.largest << (bits - self.bits)

    def narrow(self) -> "Ring64Tensor":
        """This value with no more than `widest` bits; truncated if need be."""
        return self if self.bits <= self.session.widest else self.session.settled([self])[0]

    def _added(self, other: Operand, sign: int) -> "Ring64Tensor":
        if isinstance(other, Ring64Tensor):
            left, right = self.narrow(), other.narrow()
            bits = max(left.bits, right.bits)

            largest = _total(left.magnitude(bits), right.magnitude(bits))

            def both() -> Share:
                shares = left.lifted(bits), right.lifted(bits)
                return shares[0] + shares[1] if sign > 0 else shares[0] - shares[1]

            if (left.waits or right.waits) and left.shape == right.shape:
                return left.awaited(left.shape, both, bits)
            return left.derived(both(), bits, largest=largest)
        integers, bits = as_public(other)
        value = self.narrow()
        if bits > value.bits:
            value = value.derived(value.lifted(bits), bits)
        integers = sign * integers << (value.bits - bits)
        return value.derived(self.session.shifted(value.share, integers))

    def __add__(self, other: Operand) -> "Ring64Tensor":
        return self._added(other, 1)

    def __sub__(self, other: Operand) -> "Ring64Tensor":
        return self._added(other, -1)

    def __neg__(self) -> "Ring64Tensor":
        return self.derived(-self.share)

    def __rsub__(self, other: float) -> "Ring64Tensor":
        return -self + other

    def sum(self, dim: int, keepdim: bool = False) -> "Ring64Tensor":
        value = self.narrow()
        largest = None if value.largest is None else value.largest * value.size(dim)
        return value.derived(value.share.sum(dim, keepdim=keepdim), largest=largest)

    def mean(self, dim: int, keepdim: bool = False) -> "Ring64Tensor":
        return self.sum(dim, keepdim).div(self.size(dim))

    # Products.

    def __mul__(self, other: Operand) -> "Ring64Tensor":
        if isinstance(other, Ring64Tensor):
            return self.session.product(torch.mul, self, other)
        integers, bits = as_public(other)
        value = self.narrow()
        if bits and bits + self.bits > self.session.widest:
            (value,) = self.session.settled([value])
        return value.derived(value.share * integers, value.bits + bits)

    def matmul(self, other: Any) -> "Ring64Tensor":
        return self.session.product(torch.matmul, self, other)

    def square(self) -> "Ring64Tensor":
        return self.session.product(torch.mul, self, self)

    def div(self, divisor: int) -> "Ring64Tensor":
        return self.session.scale(self, 1 / divisor)

    def gt(self, other: float) -> "Ring64Tensor":
        return self.session.positive(self - other)

    def lt(self, other: float) -> "Ring64Tensor":
        return self.session.positive(other - self)

    @staticmethod
    def cat(tensors: Sequence[Any], dim: int) -> "Ring64Tensor":
        tensors = [tensor.narrow() for tensor in tensors]
        first: Ring64Tensor = tensors[0]
        bits = max(tensor.bits for tensor in tensors)
        shares = [tensor.lifted(bits) for tensor in tensors]
        result = first.derived(first.session.beside(shares, dim), bits)
        known_largest = [tensor.magnitude(bits) for tensor in tensors]
        if None not in known_largest:
            result.largest = max(filter(None, known_largest), default=0)
        result.whole = all(tensor.whole for tensor in tensors)
        openings = [tensor.opening() for tensor in tensors]
        known = [opening for opening in openings if opening is not None]
        if len(known) == len(tensors) and all(tensor.bits == bits for tensor in tensors):
            masked = torch.cat([opening[0] for opening in known], dim)
            masks = [opening[1] for opening in known]
            result.remember(masked, first.session.beside(masks, dim))
        return result


def _total(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def as_public(values: Operand) -> tuple[Tensor, int]:
    """Public values as integers, and their bits after the point: none for whole numbers.

    Raises:
        TypeError: If they are shared values of another engine.
    """
    if not isinstance(values, Tensor | float | int):
        raise TypeError(f"Expected public values or values of ring64; got {type(values)}.")
    if isinstance(values, int) or (isinstance(values, Tensor) and not values.is_floating_point()):
        return torch.as_tensor(values).long(), 0
    return encode(
        torch.as_tensor(values, dtype=torch.float64), name="public values"
    ), PRECISION_BITS
