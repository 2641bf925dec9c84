"""An open session of the authenticated engine: what `ring64` computes, on shares with MACs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from privtrain.core.errors import UnsupportedError
from privtrain.mpc.ring64.session import Bilinear, Cut, Ring64Session
from privtrain.mpc.ring64.tensors import Ring64Tensor
from privtrain.mpc.ring64.wires import Compute
from privtrain.mpc.sharing import PRECISION_BITS, encode
from privtrain.mpc.spdz2k.comparison import (
    above_zero,
    chosen,
    coarse_bits,
    side_by_side,
    tournament,
    window_of,
)
from privtrain.mpc.spdz2k.forms import Form, Product, times
from privtrain.mpc.spdz2k.functions import sigmoid, softmax
from privtrain.mpc.spdz2k.inputs import take_all
from privtrain.mpc.spdz2k.ring import HALF_RANGE, low, payload, scaled_up, sign_bit
from privtrain.mpc.spdz2k.series import RESULT_BITS
from privtrain.mpc.spdz2k.wires import Wires

TRUNCATED_BITS = 14
"""Bits after the point of what was truncated: with 44 bits there is no room for more."""


@dataclass
class Spdz2kSession(Ring64Session):
    """A session at one role: a computing party, or the dealer.

    Rows and public weights have 16 bits after the point, and what was truncated 14. A product keeps
    the bits of both factors, 32 at most, which leaves it 10 before the point.

    Args:
        wires: The role's randomness and messages.
        shown: Seeds of proofs that this role revealed, in this session or an earlier one.
    """

    wires: Wires = field(repr=False)  # type: ignore[assignment]
    shown: set[bytes] = field(default_factory=set, repr=False)
    precision_bits: ClassVar[int] = TRUNCATED_BITS
    widest_product: ClassVar[int] = 2 * PRECISION_BITS
    half_range: ClassVar[int] = HALF_RANGE

    @property
    def leader(self) -> bool:
        return not self.deals and bool(self.wires.unit[0])

    def random(self, shape: Sequence[int]) -> Any:
        return self.wires.random(shape)

    def dealt(self, compute: Compute, shape: Sequence[int], *, bits: int = 64) -> Any:
        return self.wires.dealt(compute, shape)

    def shifted(self, share: Any, integers: Tensor) -> Any:
        form: Form = share
        return form.shifted(integers)

    def beside(self, shares: Sequence[Any], dim: int) -> Any:
        return side_by_side(shares, dim)

    # Products and truncation.

    def product(
        self,
        function: Bilinear,
        left: Ring64Tensor,
        right: Ring64Tensor,
        *,
        widest: int | None = None,
    ) -> Ring64Tensor:
        """A product of elements or matrices; opened values are used as they were opened."""
        matrices = function is torch.matmul
        if matrices and not len(left.shape) == len(right.shape) == 2:
            raise ValueError(
                f"Expected values of shapes {tuple(left.shape)} and {tuple(right.shape)} to be "
                "matrices: spdz2k multiplies no others. Use reshape."
            )
        left, right, largest = self.fitting(function, left, right, widest)
        product = partial(left.derived, bits=left.bits + right.bits, largest=largest)
        if right.public is not None:
            return product(left.share @ right.public if matrices else left.share * right.public)
        if left.public is not None:
            form = right.share
            return product(times(left.public, form) if matrices else form * left.public)
        (x, r), (y, s) = self.masked_all([left, right])
        sizes = (x.shape[0], y.shape[1]) if matrices else np.broadcast_shapes(x.shape, y.shape)
        both = self.wires.dealt(lambda: function(r.share, s.share), sizes)
        if not matrices:
            return product((both - s * x - r * y).shifted(x * y))
        if self.deals:
            return product(both)
        share = function(x, y - s.share if self.leader else -s.share) - function(r.share, y)
        return product(Product(share + both.share, (x, y), (r, s), both))

    def _begin(self, cut: Cut) -> Any:
        """As for `ring64`, of the low 44 bits."""
        form: Form = cut.value.share if cut.factor == 1 else cut.value.share * cut.factor
        rho = self.wires.random(form.shape)
        high = self.wires.dealt(lambda: low(rho.share) >> cut.drop, form.shape)
        wrap = self.wires.dealt(lambda: sign_bit(rho.share), form.shape)
        return form + rho, high, wrap

    def _end(self, cut: Cut, masked: Tensor, high: Any, wrap: Any) -> Any:
        # Public, so that it is added to what was opened; t + rho wrapped around where the top bit
        # of rho is one and that of the sum is zero.
        masked = masked + (1 << HALF_RANGE)
        wraps = (1 - sign_bit(masked)) << (HALF_RANGE + 2 - cut.drop)
        public = (low(masked) >> cut.drop) - (1 << (HALF_RANGE - cut.drop))
        return (wrap * wraps - high).shifted(public)

    # The session as every engine offers it.

    def take(
        self, share: Tensor, *, largest: float | None = None, proof: Tensor | None = None
    ) -> Ring64Tensor:
        return self.take_all([share], proofs=[proof], largest=largest)[0]

    def take_all(
        self,
        shares: Sequence[Tensor],
        *,
        proofs: Sequence[Tensor | None],
        largest: float | None = None,
    ) -> list[Ring64Tensor]:
        """Both parties put in their shares; proofs show whether they are those that were made."""
        taken = take_all(self.wires, self._rank, shares, proofs, self.shown)
        return [self._input(each.masked, each.mask, largest) for each in taken]

    @property
    def _rank(self) -> int | None:
        return None if self.deals else 1 - int(self.wires.unit[0])

    def own(
        self,
        integers: Tensor | None,
        shape: tuple[int, ...],
        owner: int,
        *,
        largest: float | None = None,
    ) -> Ring64Tensor:
        if owner not in (0, 1):
            raise ValueError(f"Expected {owner=} to be the rank of a computing party: 0 or 1.")
        self.check_owned(integers, largest)
        return self._input(*self.wires.own(integers, shape, owner), largest)

    def _input(self, masked: Tensor, mask: Form, largest: float | None) -> Ring64Tensor:
        """A value that is public under a mask from the start."""
        bound = None if largest is None else math.ceil(largest * 2**PRECISION_BITS)
        value = Ring64Tensor((-mask).shifted(masked), self, whole=True, largest=bound)
        value.remember(masked, mask)
        return value

    def public(self, values: Tensor) -> Ring64Tensor:
        integers = encode(values, name="public values")
        zeros = torch.zeros((len(self.wires.unit), *integers.shape), dtype=torch.int64)
        form = Form(zeros, self.wires.unit).shifted(integers)
        return Ring64Tensor(form, self, public=integers)

    def bilinear(self, function: Bilinear, left: Any, right: Any) -> Ring64Tensor:
        raise UnsupportedError(
            "spdz2k knows products of elements and of matrices alone. Use engine=pt.Ring64()."
        )

    def linear(self, function: Callable[[Tensor], Tensor], shared: Any) -> Ring64Tensor:
        raise UnsupportedError("spdz2k has no sums over windows. Use engine=pt.Ring64().")

    def positive(self, shared: Any) -> Ring64Tensor:
        value: Ring64Tensor = shared
        window = window_of(value.largest)
        bits = above_zero(self, *self.masked(value), window=window)
        return value.derived(bits.form, 0, largest=1)

    def relu(self, shared: Any) -> tuple[Ring64Tensor, Ring64Tensor]:
        value: Ring64Tensor = shared
        masked, mask = self.masked(value)
        coarse = coarse_bits(value.bits)
        window = window_of(None if value.largest is None else value.largest + (2 << coarse))
        bits = above_zero(self, masked, mask, window=window, coarse=coarse)
        larger = chosen(self, bits, masked, mask)
        positive = value.derived(bits.form, 0, largest=1)
        return value.derived(larger, largest=value.largest), positive

    def sigmoid(self, logits: Any) -> Ring64Tensor:
        """1 / (1 + e^-x) for values up to `SIGMOID_REACH` in magnitude; see there for others."""
        value: Ring64Tensor = logits.narrow()
        return value.derived(sigmoid(self, *self.masked(value), value.bits), RESULT_BITS)

    def softmax(self, logits: Any) -> Ring64Tensor:
        value: Ring64Tensor = logits.narrow()
        if value.bits < TRUNCATED_BITS:  # such as whole numbers: gaps are read to the last bit
            lifted = value.lifted(TRUNCATED_BITS)
            limit = value.magnitude(TRUNCATED_BITS)
            value = value.derived(lifted, TRUNCATED_BITS, largest=limit)
        return self.settled([softmax(self, value)])[0]

    def largest(self, shared: Any) -> Ring64Tensor:
        value: Ring64Tensor = shared
        shape, count = value.shape, value.shape[-1]
        columns = value.reshape(-1, count).t().share
        # Which value it is comes along as a one-hot vector, public at first.
        which = torch.eye(count, dtype=torch.int64).unsqueeze(-1)
        one_hot = (columns[:1] * 0).shifted(which.expand(count, count, columns.shape[1]))
        _, winner = tournament(self, columns, beside=one_hot, window=_gap_window(value))
        if winner is None:
            raise RuntimeError("Expected a winner of a tournament.")
        return value.derived(winner.t().reshape(shape), 0, largest=1)

    def maximum(self, shared: Any) -> Ring64Tensor:
        value: Ring64Tensor = shared
        columns = value.reshape(-1, value.shape[-1]).t().share
        highest, _ = tournament(self, columns, window=_gap_window(value))
        return value.derived(highest.reshape(value.shape[:-1]), largest=value.largest)

    def shares(self, values: Sequence[Any]) -> list[Tensor]:
        raise UnsupportedError(
            "spdz2k keeps no shares beyond a run: keys are new in the next. Use engine=pt.Ring64()."
        )

    def reveal(
        self, values: Sequence[Any], *, kind: str, readers: Sequence[int] | None = None
    ) -> list[Tensor]:
        if readers is not None and not {0, 1}.issuperset(readers):
            raise ValueError(f"Expected {readers=} to be ranks of computing parties: 0, 1 or both.")
        narrow = self.settled(values)
        if readers is not None and not readers:
            return []
        shares: list[Form] = [value.share for value in narrow]
        # Before anybody reads: what was computed from changed values could say anything.
        self.wires.check()
        # Bits above the payload say nothing of how it came about.
        shapes = [share.shape for share in shares]
        covers = [self.wires.random(shape) for shape in shapes]
        forms = [
            share + cover.like(scaled_up(cover.words))
            for share, cover in zip(shares, covers, strict=True)
        ]
        if readers is None or len({*readers}) == 2:
            opened = self.wires.open(forms, kind=kind)
            self.wires.check()
        else:
            (reader,) = {*readers}
            masks = [self.wires.known(shape, reader) for shape in shapes]
            masked = [form + mask for form, mask in zip(forms, masks, strict=True)]
            opened = self.wires.open(masked, kind=kind)
            self.wires.check()
            if not self.deals:
                if self._rank != reader:
                    return []
                opened = [each - mask.share for each, mask in zip(opened, masks, strict=True)]
        return [
            payload(integers).double() / 2.0**value.bits
            for integers, value in zip(opened, narrow, strict=True)
        ]


def _gap_window(value: Ring64Tensor) -> int:
    return window_of(None if value.largest is None else 2 * value.largest + 1)
