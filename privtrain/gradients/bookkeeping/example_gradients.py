"""Per-example gradients of one parameter: their norms, and their weighted sum.

A norm is an upper bound of what the weighted sum adds for an example, rounding included: where a
gradient is formed once more for the sum, the norm grows by what two roundings can make of it.

Sums over time of outer products are either formed, a few examples at a time, then measured and
added as they are; or measured by Gram matrices and added by one matrix product, without being
formed. Which is cheaper follows from their shape (`forming_pays`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from privtrain.gradients.bookkeeping.norms import (
    bounded_squares,
    chunk_rows,
    formed_squares,
    forming_pays,
    over_chunks,
    piece_norms,
    row_norms,
    unit,
    with_error,
)
from privtrain.gradients.bookkeeping.workspace import Workspace

Measure = tuple[Tensor, Tensor | None]
"""Squared norms, never below the true ones, and errors or None for none: `(batch,)`, float64."""


class ExampleGradients(Protocol):
    """The gradients of each example of a batch with respect to one parameter."""

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """Tensors `(batch, values)` whose row norms multiply to the norms of what `add` adds.

        Empty where it takes more to measure them: see `measure`.
        """
        ...

    def measure(self) -> Measure:
        """Squared norms, and how far what `add` forms may lie from what was measured."""
        ...

    def each(self, start: int, stop: int) -> Tensor:
        """The gradients of some examples, shape `(stop - start, parameters)`."""
        ...

    def add(self, out: Tensor, factors: Tensor, *, overwrite: bool) -> None:
        """Adds the weighted sum over examples.

        Args:
            out: What it is added to, shape `(parameters,)`.
            factors: Weights of the examples, shape `(batch,)`, of the type of `out`.
            overwrite: Whether `out` holds nothing yet, and is overwritten.
        """
        ...

    def take(self, index: Tensor) -> "ExampleGradients":
        """The gradients of chosen examples."""
        ...

    def to(self, dtype: torch.dtype) -> "ExampleGradients":
        """The gradients in a type, which sums of many rows take."""
        ...


def squared_norms(gradients: list[ExampleGradients], values: int) -> Tensor:
    """Upper bounds of the squared norms of the gradients of many parameters.

    Args:
        gradients: At least one; of the same examples.
        values: How many values a gradient has at most.

    Returns:
        Shape `(parameters, batch)`, float64.
    """
    given = [each.rows for each in gradients]
    # One bound for all of them: an operation on a few numbers costs as much as one on many. By
    # `id`, since the weight and the bias of a layer share their output gradients.
    tensors = {id(tensor): tensor for rows in given for tensor in rows}
    place, bounds = {key: place for place, key in enumerate(tensors)}, list[Tensor]()
    if tensors:
        short = [piece_norms(tensor) for tensor in tensors.values()]
        bounds = list(bounded_squares(short, values).unbind(0))
    squares = []
    for each, rows in zip(gradients, given, strict=True):
        own = [bounds[place[id(tensor)]] for tensor in rows]
        squares.append(math.prod(own[1:], start=own[0]) if own else with_error(*each.measure()))
    return torch.stack(squares)


def _weighted(values: Tensor, factors: Tensor) -> Tensor:
    """Values `(batch, ...)`, multiplied by the factors of their examples."""
    return values * factors.view(-1, *[1] * (values.dim() - 1))


@dataclass(frozen=True)
class Formed:
    """Gradients that are formed once, measured and added as they are.

    Args:
        gradients: Shape `(batch, ...)`.
        pieces: Norms of their pieces, `(batch, pieces)`, where they were measured as they were
            formed.
    """

    gradients: Tensor
    pieces: Tensor | None = None

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """The gradients, or what has their norms."""
        flat = self.gradients if self.gradients.dim() == 2 else self.gradients.flatten(1)
        return (flat if self.pieces is None else self.pieces,)

    def measure(self) -> Measure:
        # Without an error: the measured values are those that are added.
        return formed_squares(self.gradients), None

    def each(self, start: int, stop: int) -> Tensor:
        return self.gradients[start:stop].reshape(stop - start, -1)

    def add(self, out: Tensor, factors: Tensor, *, overwrite: bool) -> None:
        flat = self.gradients if self.gradients.dim() == 2 else self.gradients.flatten(1)
        out.addmv_(flat.t(), factors, beta=0 if overwrite else 1)

    def take(self, index: Tensor) -> "Formed":
        return Formed(self.gradients[index])

    def to(self, dtype: torch.dtype) -> "Formed":
        return Formed(self.gradients.to(dtype))


@dataclass(frozen=True)
class OuterProduct:
    """Outer products of one activation and one output gradient: a linear layer without time.

    Args:
        inputs: Activations, shape `(batch, in)`.
        outputs: Output gradients, shape `(batch, out)`.
    """

    inputs: Tensor
    outputs: Tensor

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """Both factors."""
        # The norm of an outer product is the product of the norms. There is no error beyond the
        # slack of every factor: nothing is added up within an example.
        return self.inputs, self.outputs

    def measure(self) -> Measure:
        return squared_norms([self], self.inputs.shape[1] * self.outputs.shape[1])[0], None

    def each(self, start: int, stop: int) -> Tensor:
        products = self.outputs[start:stop].unsqueeze(2) * self.inputs[start:stop].unsqueeze(1)
        return products.reshape(stop - start, -1)

    def add(self, out: Tensor, factors: Tensor, *, overwrite: bool) -> None:
        # The sum over examples of factor x output gradient x activation is one matrix product;
        # no example's outer product is ever formed (Bu et al. 2023).
        weighted = _weighted(self.outputs, factors).t()
        target = out.view(-1, self.inputs.shape[1])
        target.addmm_(weighted, self.inputs, beta=0 if overwrite else 1)

    def take(self, index: Tensor) -> "OuterProduct":
        return OuterProduct(self.inputs[index], self.outputs[index])

    def to(self, dtype: torch.dtype) -> "OuterProduct":
        return OuterProduct(self.inputs.to(dtype), self.outputs.to(dtype))


@dataclass(frozen=True)
class OuterProductSum:
    """Sums over time of outer products.

    Args:
        inputs: Activations, shape `(batch, time, in)`.
        outputs: Output gradients, shape `(batch, time, out)`.
    """

    inputs: Tensor
    outputs: Tensor
    rows: ClassVar[tuple[Tensor, ...]] = ()

    def measure(self) -> Measure:
        # With an error: `add` sums over examples and time in another order than was measured.
        return over_chunks(self._chunks())

    def each(self, start: int, stop: int) -> Tensor:
        products = torch.bmm(self.outputs[start:stop].transpose(1, 2), self.inputs[start:stop])
        return products.reshape(stop - start, -1)

    @property
    def values(self) -> int:
        """How many values the gradient of one example has."""
        return self.inputs.shape[2] * self.outputs.shape[2]

    @property
    def forming(self) -> bool:
        """Whether these gradients are better formed."""
        _, time, width = self.inputs.shape
        return forming_pays(self.values, time, width + self.outputs.shape[2])

    def form(self, start: int, stop: int, workspace: Workspace) -> Formed:
        """The gradients of some examples, measured while the cache holds them."""
        formed = workspace.take((stop - start, self.outputs.shape[2], self.inputs.shape[2]))
        pieces = []
        for chunk in torch.split(formed, chunk_rows(self.values)):
            chosen = slice(start, start + len(chunk))
            torch.bmm(self.outputs[chosen].transpose(1, 2), self.inputs[chosen], out=chunk)
            pieces.append(piece_norms(chunk.flatten(1)))
            start = chosen.stop
        return Formed(formed, torch.cat(pieces))

    def add(self, out: Tensor, factors: Tensor, *, overwrite: bool) -> None:
        # One matrix product, over examples and time at once.
        weighted = _weighted(self.outputs, factors).flatten(0, 1).t()
        target = out.view(-1, self.inputs.shape[2])
        target.addmm_(weighted, self.inputs.flatten(0, 1), beta=0 if overwrite else 1)

    def take(self, index: Tensor) -> "OuterProductSum":
        return OuterProductSum(self.inputs[index], self.outputs[index])

    def to(self, dtype: torch.dtype) -> "OuterProductSum":
        return OuterProductSum(self.inputs.to(dtype), self.outputs.to(dtype))

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        _, time, width = self.inputs.shape
        rows = chunk_rows(time * (time + width + self.outputs.shape[2]))
        yield from zip(torch.split(self.inputs, rows), torch.split(self.outputs, rows), strict=True)


@dataclass(frozen=True)
class EmbeddingRows:
    """Gradients of the rows of a table that each example looked up.

    Args:
        size: How many examples there are.
        owners: The example that each gradient belongs to, shape `(gradients,)`.
        tokens: The row of the table, shape `(gradients,)`; with an owner it occurs once.
        gradients: Shape `(gradients, width)`.
        table: Rows of the table.
    """

    size: int
    owners: Tensor
    tokens: Tensor
    gradients: Tensor
    table: int
    rows: ClassVar[tuple[Tensor, ...]] = ()

    def measure(self) -> Measure:
        # Tokens of an example are unique here, so that rows of the table add up as squares; without
        # an error, since `add` adds the very rows that were measured.
        squares = row_norms(self.gradients).square_()
        zero = torch.zeros(self.size, dtype=torch.float64, device=squares.device)
        return zero.index_add_(0, self.owners, squares), None

    def each(self, start: int, stop: int) -> Tensor:
        chosen = (self.owners >= start) & (self.owners < stop)
        width = self.gradients.shape[1]
        dense = self.gradients.new_zeros(stop - start, self.table, width)
        dense[self.owners[chosen] - start, self.tokens[chosen]] = self.gradients[chosen]
        return dense.reshape(stop - start, -1)

    def add(self, out: Tensor, factors: Tensor, *, overwrite: bool) -> None:
        target = (out.zero_() if overwrite else out).view(self.table, -1)
        target.index_add_(0, self.tokens, _weighted(self.gradients, factors[self.owners]))

    def take(self, index: Tensor) -> "EmbeddingRows":
        place = torch.full((self.size,), -1, dtype=torch.long, device=index.device)
        place[index] = torch.arange(len(index), device=index.device)
        owners = place[self.owners]
        left = owners >= 0
        return EmbeddingRows(
            len(index), owners[left], self.tokens[left], self.gradients[left], self.table
        )

    def to(self, dtype: torch.dtype) -> "EmbeddingRows":
        return replace(self, gradients=self.gradients.to(dtype))


@dataclass(frozen=True)
class SumOfCalls:
    """Several calls with one parameter, whose gradients add up before they are measured.

    Args:
        calls: The gradients of each call, at least one; of the same examples.
        size: How many examples there are.
        parameter: The parameter.
    """

    calls: tuple[ExampleGradients, ...]
    size: int
    parameter: Tensor
    rows: ClassVar[tuple[Tensor, ...]] = ()

    def measure(self) -> Measure:
        rows, squares = chunk_rows(self.parameter.numel()), []
        for start in range(0, self.size, rows):
            formed = self.each(start, min(start + rows, self.size))
            squares.append(formed_squares(formed))
        measured = [call.measure() for call in self.calls]
        magnitudes = torch.stack([of_call.sqrt() for of_call, _ in measured]).sum(dim=0)
        # `add` adds call by call: to the calls' own errors comes what rounding their sum may add,
        # measured against the norms before calls cancel.
        error = 2 * len(self.calls) * unit(formed.dtype) * magnitudes
        for _, own in measured:
            error = error if own is None else error + own
        return torch.cat(squares), error

    def each(self, start: int, stop: int) -> Tensor:
        total = self.calls[0].each(start, stop)
        for call in self.calls[1:]:
            total = total + call.each(start, stop)
        return total

    def add(self, out: Tensor, factors: Tensor, *, overwrite: bool) -> None:
        for call in self.calls:
            call.add(out, factors, overwrite=overwrite)
            overwrite = False

    def take(self, index: Tensor) -> "SumOfCalls":
        return SumOfCalls(
            tuple(call.take(index) for call in self.calls), len(index), self.parameter
        )

    def to(self, dtype: torch.dtype) -> "SumOfCalls":
        return replace(self, calls=tuple(call.to(dtype) for call in self.calls))


def merged(calls: list[ExampleGradients], size: int, parameter: Tensor) -> ExampleGradients:
    """The gradients of one parameter over all calls that it is used in.

    Args:
        calls: The gradients of each call; at least one.
        size: How many examples there are.
        parameter: The parameter.
    """
    if len(calls) == 1:
        return calls[0]
    # Calls of linear layers are strung along time: a sum over calls of sums over time is a sum
    # over time, for which Gram matrices need no gradient to be formed.
    pairs = [(c.inputs, c.outputs) for c in calls if isinstance(c, (OuterProduct, OuterProductSum))]
    if len(pairs) < len(calls):
        return SumOfCalls(tuple(calls), size, parameter)
    inputs, outputs = (
        torch.cat([each if each.dim() == 3 else each.unsqueeze(1) for each in factors], dim=1)
        for factors in zip(*pairs, strict=True)
    )
    return OuterProductSum(inputs, outputs)


def outer_products(inputs: Tensor, outputs: Tensor) -> ExampleGradients:
    """The weight of a linear layer over time.

    Args:
        inputs: Activations, shape `(batch, time, in)`.
        outputs: Output gradients, shape `(batch, time, out)`.
    """
    if inputs.shape[1] == 1:
        return OuterProduct(inputs[:, 0], outputs[:, 0])
    return OuterProductSum(inputs, outputs)
