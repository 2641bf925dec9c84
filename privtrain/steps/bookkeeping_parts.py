"""Per-example gradients of one parameter: their norms, and their weighted sum.

A norm is an upper bound of what the weighted sum adds for an example, rounding included: where a
gradient is formed once more for the sum, the norm grows by what two roundings can make of it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from privtrain.steps.bookkeeping_room import Room

CHUNK = 2**19
"""Values that are worked on at a time: what fits into a processor's cache."""


Measure = tuple[Tensor, Tensor | None]
"""Squared norms, never below the true ones, and errors or None for none: `(batch,)`, float64."""


class Part(Protocol):
    """The gradients of each example of a batch with respect to one use of one parameter."""

    def measure(self) -> Measure:
        """Squared norms, and how far what `add` forms may lie from what was measured."""
        ...

    def each(self, start: int, stop: int) -> Tensor:
        """The gradients of some examples, shape `(stop - start, parameters)`."""
        ...

    def add(self, out: Tensor, factors: Tensor) -> None:
        """Adds the weighted sum over examples to a tensor of the parameter's shape."""
        ...

    def take(self, index: Tensor) -> "Part":
        """The part of some examples."""
        ...


def unit(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


def row_norms(values: Tensor) -> Tensor:
    """Upper bounds of the norms along the last dimension, float64.

    Squares are added in the type of the values; n of them are off by a factor of at most
    1 + n x unit, and each may have vanished below the smallest number.
    """
    length, info = values.shape[-1], torch.finfo(values.dtype)
    norms: Tensor = torch.linalg.vector_norm(values, dim=-1).double()
    return norms * (1 + (length / 2 + 4) * unit(values.dtype)) + math.sqrt(length * info.tiny)


def formed_squares(gradients: Tensor) -> Tensor:
    """Upper bounds of the squared norms of gradients, `(batch, ...)`, shape `(batch,)`."""
    return row_norms(gradients).square().reshape(len(gradients), -1).sum(dim=1)


def _weights(values: Tensor, factors: Tensor) -> Tensor:
    """Factors in the type of values, `(batch, 1, ...)`."""
    return factors.to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))


@dataclass(frozen=True)
class Formed:
    """Gradients that are formed once, measured and added as they are.

    Args:
        gradients: Shape `(batch, ...)`.
        squares: Their squared norms, where they were measured as they were formed.
    """

    gradients: Tensor
    squares: Tensor | None = None

    def measure(self) -> Measure:
        """Squared norms; without an error, since the measured values are those that are added."""
        return formed_squares(self.gradients) if self.squares is None else self.squares, None

    def each(self, start: int, stop: int) -> Tensor:
        """The gradients of some examples."""
        return self.gradients[start:stop].reshape(stop - start, -1)

    def add(self, out: Tensor, factors: Tensor) -> None:
        """Adds the weighted sum."""
        flat = self.gradients.reshape(len(factors), -1)
        out.view(-1).addmv_(flat.t(), factors.to(flat.dtype))

    def take(self, index: Tensor) -> "Formed":
        """The part of some examples."""
        return Formed(self.gradients[index])


@dataclass(frozen=True)
class Single:
    """Outer products of one activation and one output gradient: a linear layer without time.

    Args:
        inputs: Activations, shape `(batch, in)`.
        outputs: Output gradients, shape `(batch, out)`.
    """

    inputs: Tensor
    outputs: Tensor

    def measure(self) -> Measure:
        """The norm of an outer product is the product of the norms.

        There is no error beyond the slack of every factor: nothing is added up within an example.
        """
        return (row_norms(self.inputs) * row_norms(self.outputs)).square(), None

    def each(self, start: int, stop: int) -> Tensor:
        """The gradients of some examples."""
        products = self.outputs[start:stop].unsqueeze(2) * self.inputs[start:stop].unsqueeze(1)
        return products.reshape(stop - start, -1)

    def add(self, out: Tensor, factors: Tensor) -> None:
        """Adds the weighted sum, as one matrix product."""
        weighted = self.outputs * _weights(self.outputs, factors)
        out.addmm_(weighted.t(), self.inputs)

    def take(self, index: Tensor) -> "Single":
        """The part of some examples."""
        return Single(self.inputs[index], self.outputs[index])


@dataclass(frozen=True)
class Sequence:
    """Sums over time of outer products, which are measured without being kept.

    Args:
        inputs: Activations, shape `(batch, time, in)`.
        outputs: Output gradients, shape `(batch, time, out)`.
    """

    inputs: Tensor
    outputs: Tensor

    def measure(self) -> Measure:
        """Squared norms by the cheaper form, and what two orders of summation may differ by."""
        return over_chunks(self._chunks())

    def each(self, start: int, stop: int) -> Tensor:
        """The gradients of some examples."""
        products = torch.bmm(self.outputs[start:stop].transpose(1, 2), self.inputs[start:stop])
        return products.reshape(stop - start, -1)

    def add(self, out: Tensor, factors: Tensor) -> None:
        """Adds the weighted sum, as one matrix product over examples and time."""
        weighted = (self.outputs * _weights(self.outputs, factors)).flatten(0, 1)
        out.addmm_(weighted.t(), self.inputs.flatten(0, 1))

    def take(self, index: Tensor) -> "Sequence":
        """The part of some examples."""
        return Sequence(self.inputs[index], self.outputs[index])

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        _, time, width = self.inputs.shape
        rows = chunk_rows(time * (time + width + self.outputs.shape[2]))
        yield from zip(torch.split(self.inputs, rows), torch.split(self.outputs, rows), strict=True)


@dataclass(frozen=True)
class Lookups:
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

    def measure(self) -> Measure:
        """Squared norms, without an error; different rows of the table do not meet."""
        squares = row_norms(self.gradients).square()
        zero = torch.zeros(self.size, dtype=torch.float64, device=squares.device)
        return zero.index_add_(0, self.owners, squares), None

    def each(self, start: int, stop: int) -> Tensor:
        """The gradients of some examples."""
        chosen = (self.owners >= start) & (self.owners < stop)
        width = self.gradients.shape[1]
        dense = self.gradients.new_zeros(stop - start, self.table, width)
        dense[self.owners[chosen] - start, self.tokens[chosen]] = self.gradients[chosen]
        return dense.reshape(stop - start, -1)

    def add(self, out: Tensor, factors: Tensor) -> None:
        """Adds the weighted sum."""
        weights = _weights(self.gradients, factors[self.owners])
        out.index_add_(0, self.tokens, self.gradients * weights)

    def take(self, index: Tensor) -> "Lookups":
        """The part of some examples."""
        place = torch.full((self.size,), -1, dtype=torch.long, device=index.device)
        place[index] = torch.arange(len(index), device=index.device)
        owners = place[self.owners]
        kept = owners >= 0
        return Lookups(
            len(index), owners[kept], self.tokens[kept], self.gradients[kept], self.table
        )


@dataclass(frozen=True)
class Several:
    """Several uses of one parameter, whose gradients add up before they are measured.

    Args:
        parts: At least one; of the same examples.
        size: How many examples there are.
        parameter: The parameter.
    """

    parts: tuple[Part, ...]
    size: int
    parameter: Tensor

    def measure(self) -> Measure:
        """Squared norms of the sums, which are formed for a few examples at a time.

        The error holds the parts' own, and what rounding their sum may add.
        """
        rows, found = chunk_rows(self.parameter.numel()), []
        for start in range(0, self.size, rows):
            found.append(formed_squares(self.each(start, min(start + rows, self.size))))
        measured = [part.measure() for part in self.parts]
        magnitudes = torch.stack([squares.sqrt() for squares, _ in measured]).sum(dim=0)
        error = 2 * len(self.parts) * unit(self.parameter.dtype) * magnitudes
        for _, own in measured:
            error = error if own is None else error + own
        return torch.cat(found), error

    def each(self, start: int, stop: int) -> Tensor:
        """The gradients of some examples."""
        total = self.parts[0].each(start, stop)
        for part in self.parts[1:]:
            total = total + part.each(start, stop)
        return total

    def add(self, out: Tensor, factors: Tensor) -> None:
        """Adds the weighted sums, one use after the other."""
        for part in self.parts:
            part.add(out, factors)

    def take(self, index: Tensor) -> "Several":
        """The part of some examples."""
        return Several(tuple(part.take(index) for part in self.parts), len(index), self.parameter)


def together(parts: list[Part], size: int, parameter: Tensor, room: Room) -> Part:
    """All uses of one parameter as one part; uses of linear layers are strung along time.

    Args:
        parts: The uses; at least one.
        size: How many examples there are.
        parameter: The parameter.
        room: How much may be formed.
    """
    if len(parts) == 1:
        return parts[0]
    pairs = [(p.inputs, p.outputs) for p in parts if isinstance(p, (Single, Sequence))]
    if len(pairs) < len(parts):
        return Several(tuple(parts), size, parameter)
    inputs, outputs = (
        torch.cat([use if use.dim() == 3 else use.unsqueeze(1) for use in uses], dim=1)
        for uses in zip(*pairs, strict=True)
    )
    return over_time(inputs, outputs, room)


def over_time(inputs: Tensor, outputs: Tensor, room: Room) -> Part:
    """The weight of a linear layer over time.

    Args:
        inputs: Activations, shape `(batch, time, in)`.
        outputs: Output gradients, shape `(batch, time, out)`.
        room: How much may be formed.
    """
    if inputs.shape[1] == 1:
        return Single(inputs[:, 0], outputs[:, 0])
    width, height = inputs.shape[2], outputs.shape[2]
    if room.admits(width * height, inputs.shape[1] * (width + height)):
        formed = room.workspace.take(inputs, (len(inputs), height, width))
        rows, squares = chunk_rows(width * height), []
        for start in range(0, len(inputs), rows):
            chosen = slice(start, start + rows)
            torch.bmm(outputs[chosen].transpose(1, 2), inputs[chosen], out=formed[chosen])
            squares.append(formed_squares(formed[chosen]))  # while the cache holds them
        return Formed(formed, torch.cat(squares))
    return Sequence(inputs, outputs)


def chunk_rows(values: int) -> int:
    """How many examples to work on at a time, if each takes so many values."""
    return max(1, CHUNK // max(1, values))


def outer_squares(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Squared norms of sums over time of outer products, by the cheaper form.

    Gram matrices are formed in float64. What they may have lost by cancellation is added; where
    that is more than a small part of the result, the gradient itself is formed and measured.

    Args:
        inputs: Activations, shape `(batch, time, in)`.
        outputs: Output gradients, shape `(batch, time, out)`.

    Returns:
        Shape `(batch,)`, float64.
    """
    time, width, height = inputs.shape[1], inputs.shape[2], outputs.shape[2]
    if 2 * time**2 >= width * height:
        return formed_squares(torch.bmm(outputs.transpose(1, 2), inputs))
    a, b = inputs.double(), outputs.double()
    products = torch.bmm(a, a.transpose(1, 2)).mul_(torch.bmm(b, b.transpose(1, 2)))
    squares = products.sum(dim=(1, 2))
    lost = (width + height + 32) * unit(torch.float64) * _magnitudes(a, b).square()
    tolerance = 1e-10 if inputs.dtype is torch.float64 else 1e-5
    doubtful = ~(lost <= tolerance * squares)
    squares = squares.clamp_min(0) + lost
    if bool(doubtful.any()):
        few = torch.bmm(outputs[doubtful].transpose(1, 2), inputs[doubtful])
        squares[doubtful] = formed_squares(few)
    return squares


def over_chunks(chunks: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Squared norms and errors of sums over time of outer products, a few examples at a time."""
    squares, errors = [], []
    for inputs, outputs in chunks:
        squares.append(outer_squares(inputs, outputs))
        errors.append(rounding(inputs, outputs))
    return torch.cat(squares), torch.cat(errors)


def rounding(inputs: Tensor, outputs: Tensor) -> Tensor:
    """By how much two sums over time of outer products may differ, whatever their order.

    Args:
        inputs: Activations, shape `(batch, time, in)`.
        outputs: Output gradients, shape `(batch, time, out)`.

    Returns:
        A bound on the L2 norm of the difference, shape `(batch,)`, float64.

    Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.5.
    """
    return 2 * (inputs.shape[1] + 2) * unit(inputs.dtype) * _magnitudes(inputs, outputs)


def _magnitudes(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Sums over time of the norms of the outer products: what cancellation is measured against."""
    return (row_norms(inputs) * row_norms(outputs)).sum(dim=1)
