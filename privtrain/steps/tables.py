"""Batches and weights of many models side by side, and products of the one with the other."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_ALIGNED = 16
"""Numbers, and rows, to whose multiples each model's part is filled up: 64 bytes at least. The same
product of values that lie otherwise may be rounded otherwise."""


class Table:
    """The batches of all models in one step, one after the other.

    Args:
        sizes: Rows in each model's batch; zero where a model takes no step.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self._filled = [-(-size // _ALIGNED) * _ALIGNED for size in sizes]
        self._is_full = self._filled == list(sizes)
        self._shares: Tensor | None = None

    def index(self, batches: Sequence[Tensor]) -> Tensor:
        """Numbers of the rows, shape `(table,)`, of each batch, `(batch,)`, filled up by its first.

        Of batches without a row there is nothing. What a model makes of zeros may not be finite.
        """
        if self._is_full:
            return torch.cat(list(batches))
        filled = [size for size in self._filled if size]
        pairs = zip(batches, filled, strict=True)
        return torch.cat([p for b, f in pairs for p in (b, b[:1].expand(f - len(b)))])

    def split(self, values: Tensor) -> Sequence[Tensor]:
        """The part of each model, without what fills it up; `values` has shape `(table, ...)`."""
        parts = values.split_with_sizes(self._filled)
        if self._is_full:
            return parts
        return [part[:size] for part, size in zip(parts, self.sizes, strict=True)]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The table of the parts of the models, what fills them up being zero."""
        if self._is_full:
            return torch.cat(list(parts))
        pairs = zip(parts, self._filled, self.sizes, strict=True)
        return torch.cat([p for b, f, s in pairs for p in (b, b.new_zeros(f - s, *b.shape[1:]))])

    def shares(self, like: Tensor) -> Tensor:
        """What each row counts in the mean over its batch, shape `(table,)`."""
        if self._shares is None:
            whole = [like.new_full((size,), 1.0).div_(max(1, size)) for size in self.sizes]
            self._shares = self.joined(whole)
        return self._shares


class Weight:
    """One weight of all models, whose values lie side by side.

    Args:
        values: Of each model, of one shape.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        first = values[0]
        size = first.numel()
        filled = -(-size // _ALIGNED) * _ALIGNED
        self.shape = first.shape
        self.store = nn.Parameter(first.new_zeros(len(values), filled))
        self.gradient = torch.zeros_like(self.store)
        # Made once: to make a view takes as long as a small product.
        self.each, self.gradients = (
            [row[:size].view(first.shape) for row in whole.detach().unbind(0)]
            for whole in (self.store, self.gradient)
        )
        for own, value in zip(self.each, values, strict=True):
            own.copy_(value)
        self.turned = [own.t() for own in self.each] if first.dim() == 2 else []

    def views(self) -> list[Tensor]:
        """The weight of each model, by which gradients reach the store."""
        size = self.shape.numel()
        return [row[:size].view(self.shape) for row in self.store.unbind(0)]


class Products(torch.autograd.Function):
    """A linear layer of each model on its batch.

    The gradient of a weight is written where it lies from step to step.
    """

    @staticmethod
    def forward(
        context: Any,
        value: Tensor,
        store: Tensor,
        weight: Weight,
        bias: Weight | None,
        table: Table,
    ) -> Tensor:
        context.save_for_backward(value)
        context.of = (weight, bias, table)
        # What fills batches up stays finite.
        made = value.new_zeros(len(value), weight.shape[0])
        parts = zip(table.sizes, table.split(value), table.split(made), strict=True)
        for number, (size, part, out) in enumerate(parts):
            if not size:
                continue
            if bias is None:
                torch.mm(part, weight.turned[number], out=out)
            else:
                torch.addmm(bias.each[number], part, weight.turned[number], out=out)
        return made

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        (value,) = context.saved_tensors
        weight, bias, table = context.of
        by_value = torch.zeros_like(value) if context.needs_input_grad[0] else None
        into = [None] * len(table.sizes) if by_value is None else table.split(by_value)
        wanted, values, made = (
            context.needs_input_grad[1],
            table.split(value),
            gradient.contiguous(),
        )
        parts = zip(table.sizes, values, table.split(made), into, strict=True)
        for number, (size, part, own, out) in enumerate(parts):
            if size and wanted:
                torch.mm(own.t(), part, out=weight.gradients[number])
                if bias is not None:
                    torch.sum(own, 0, out=bias.gradients[number])
            if size and out is not None:
                torch.mm(own, weight.each[number], out=out)
        for each in (weight, bias) if wanted else ():
            if each is not None:
                each.store.grad = each.gradient
        return by_value, None, None, None, None
