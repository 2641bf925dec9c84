"""What a role holds of an authenticated value: a share of it, and shares of its MACs.

All of it is linear in values, so that a form is added, viewed and multiplied by public integers as
a tensor is. At the dealer a form holds the value itself where that follows from masks alone.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_COLUMNS = 4096
"""Entries of a check vector for each opened tensor at most."""


class Form:
    """Shares of a value and of its MACs under each key.

    Args:
        words: int64, `(1 + keys, *shape)`: the share, then those of the MACs; at the dealer
            `(1, *shape)`.
        unit: What stands for the public value 1, in the same order: 1 or 0, then shares of keys.
    """

    __slots__ = ("_words", "unit")

    def __init__(self, words: Tensor, unit: Tensor) -> None:
        self._words = words
        self.unit = unit

    @property
    def words(self) -> Tensor:
        """The share, then those of the MACs."""
        return self._words

    @property
    def share(self) -> Tensor:
        """The share of the value; at the dealer the value."""
        return self._words[0]

    @property
    def shape(self) -> torch.Size:
        """The shape of the value."""
        return self.share.shape

    def like(self, words: Tensor) -> "Form":
        """Another form of the same role."""
        return Form(words, self.unit)

    def shifted(self, integers: Tensor) -> "Form":
        """The form of the value plus public integers."""
        words, public = _aligned(self.words, integers.unsqueeze(0))
        return self.like(words + public * self.unit.view(-1, *[1] * (public.dim() - 1)))

    def __add__(self, other: "Form") -> "Form":
        one, two = _aligned(self.words, other.words)
        return self.like(one + two)

    def __sub__(self, other: "Form") -> "Form":
        one, two = _aligned(self.words, other.words)
        return self.like(one - two)

    def __neg__(self) -> "Form":
        return self.like(-self.words)

    def __mul__(self, factor: Tensor | int) -> "Form":
        """With public integers."""
        if isinstance(factor, int):
            return self.like(self.words * factor)
        words, public = _aligned(self.words, factor.unsqueeze(0))
        return self.like(words * public)

    def __lshift__(self, bits: int) -> "Form":
        return self.like(self.words << bits)

    # Views, as of a tensor of the value's shape.

    def __getitem__(self, index: Any) -> "Form":
        places = index if isinstance(index, tuple) else (index,)
        if sum(isinstance(place, Tensor | list) for place in places) > 1:
            # Several of them apart from each other move their dimension to the front.
            return self.like(torch.stack([words[places] for words in self.words]))
        return self.like(self.words[(slice(None), *places)])

    def t(self) -> "Form":
        """With the last two dimensions exchanged."""
        return self.like(self.words.transpose(-1, -2))

    def transpose(self, first: int, second: int) -> "Form":
        """With two dimensions exchanged."""
        return self.like(self.words.transpose(_behind(first), _behind(second)))

    def reshape(self, *shape: Any) -> "Form":
        """In another shape: sizes, or one tuple of them."""
        sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return self.like(self.words.reshape(len(self.words), *sizes))

    def sum(self, dim: int, keepdim: bool = False) -> "Form":
        """Along a dimension of the value."""
        return self.like(self.words.sum(_behind(dim), keepdim=keepdim))

    def __matmul__(self, public: Tensor) -> "Form":
        return self.like(self.words @ public)

    # The check: rows of random coefficients, one for each key.

    @property
    def rows(self) -> int:
        """How many coefficients a key needs: those of one column."""
        shape = self.shape
        columns = shape[1:].numel() if len(shape) > 1 else 1
        return shape[0] if len(shape) > 1 and columns <= MOST_COLUMNS else shape.numel()

    def contracted(self, coefficients: Tensor) -> Tensor:
        """Sums of MAC shares, each times its coefficient.

        Args:
            coefficients: `(keys, rows)`.

        Returns:
            `(keys, columns)`.
        """
        return contracted(self.words[1:], coefficients)


class Product(Form):
    """The product of two matrices that were opened under masks; its MACs are not computed.

    Rows of coefficients are multiplied through instead, as Freivalds checks a product: O(n^2).

    Args:
        share: Of the product.
        masked: X = x + r and Y = y + s, public.
        masks: Of r and s.
        both: Of rs.
        factor: What all of it is multiplied by.
        added: What is added then.
    """

    __slots__ = ("_share", "added", "both", "factor", "masked", "masks")

    def __init__(
        self,
        share: Tensor,
        masked: tuple[Tensor, Tensor],
        masks: tuple[Form, Form],
        both: Form,
        *,
        factor: int = 1,
        added: Form | None = None,
    ) -> None:
        self.unit = both.unit
        self._share, self.masked, self.masks, self.both = share, masked, masks, both
        self.factor, self.added = factor, added

    @property
    def words(self) -> Tensor:
        """As for every form; as many products of matrices as there are keys, twice."""
        (x, y), (r, s) = self.masked, self.masks
        macs = _scaled(self.unit[1:], x @ y) - x @ s.words[1:] - r.words[1:] @ y
        macs = (macs + self.both.words[1:]) * self.factor
        if self.added is not None:
            own, added = _aligned(macs, self.added.words[1:])
            macs = own + added
        return torch.cat([self._share.unsqueeze(0), macs])

    @property
    def share(self) -> Tensor:
        """The share of the product."""
        return self._share

    @property
    def rows(self) -> int:
        return self.shape[0]

    def _with(self, share: Tensor, factor: int, added: Form | None) -> "Product":
        return Product(share, self.masked, self.masks, self.both, factor=factor, added=added)

    def shifted(self, integers: Tensor) -> Form:
        zeros = torch.zeros(len(self.unit), *integers.shape, dtype=torch.int64)
        return self + Form(zeros, self.unit).shifted(integers)

    def __add__(self, other: Form) -> Form:
        # What is added must not make it larger.
        if isinstance(other, Product) or (self.share + other.share).shape != self.shape:
            return super().__add__(other)
        added = other if self.added is None else self.added + other
        return self._with(self._share + other.share, self.factor, added)

    def __sub__(self, other: Form) -> Form:
        return super().__sub__(other) if isinstance(other, Product) else self + -other

    def __neg__(self) -> Form:
        return self * -1

    def __mul__(self, factor: Tensor | int) -> Form:
        if not isinstance(factor, int):
            return super().__mul__(factor)
        added = None if self.added is None else self.added * factor
        return self._with(self._share * factor, self.factor * factor, added)

    def __lshift__(self, bits: int) -> Form:
        return self * (1 << bits)

    def contracted(self, coefficients: Tensor) -> Tensor:
        """As for every form; coefficients go through the factors."""
        (x, y), (r, s) = self.masked, self.masks
        keys = len(coefficients)
        xs, ys = x.expand(keys, *x.shape), y.expand(keys, *y.shape)
        ux, ur = contracted(xs, coefficients), contracted(r.words[1:], coefficients)
        macs = self.unit[1:].unsqueeze(1) * contracted(ys, ux) - contracted(s.words[1:], ux)
        macs = macs - contracted(ys, ur) + contracted(self.both.words[1:], coefficients)
        macs = macs * self.factor
        if self.added is not None:
            added = _lifted(self.added.words[1:], 1 + len(self.shape))
            macs = macs + contracted(added.expand(len(added), *self.shape), coefficients)
        return macs


def contracted(words: Tensor, coefficients: Tensor) -> Tensor:
    """Sums of words times coefficients, `(keys, columns)`.

    Args:
        words: `(keys, *shape)`.
        coefficients: `(keys, rows)`.
    """
    keys, rows = coefficients.shape
    columns = words[0].numel() // rows if rows else words.shape[2:].numel()
    table = words.reshape(keys, rows, columns)
    # A product of matrices in torch takes up to a hundred times as long where columns are few.
    return torch.from_numpy(np.einsum("kr,krc->kc", coefficients.numpy(), table.numpy()))


def times(public: Tensor, form: Form) -> Form:
    """A public matrix times that of a form."""
    return form.like(public @ form.words)


def _scaled(unit: Tensor, public: Tensor) -> Tensor:
    return unit.view(-1, *[1] * public.dim()) * public


def _behind(dim: int) -> int:
    return dim + 1 if dim >= 0 else dim


def _aligned(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Words whose values have equally many dimensions."""
    dims = max(one.dim(), two.dim())
    return _lifted(one, dims), _lifted(two, dims)


def _lifted(words: Tensor, dims: int) -> Tensor:
    missing = dims - words.dim()
    return words if missing == 0 else words.reshape(len(words), *[1] * missing, *words.shape[1:])
