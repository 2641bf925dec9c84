"""A step of training in float64, with the largest integer that each operation would be on shares.

The step is that of the computing parties: one text for values, for their bounds and for shares.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from privtrain.mpc.dense import Gradients, Learned, SharedLayer
from privtrain.mpc.engine import Engine
from privtrain.mpc.layers import Node, SharedNode
from privtrain.mpc.ranges import LARGEST_OUTPUT
from privtrain.mpc.ring64.session import HALF_RANGE, is_wide, rounded_factor
from privtrain.mpc.ring64.sigmoid import REACH
from privtrain.mpc.ring64.tensors import WIDEST
from privtrain.mpc.sharing import PRECISION_BITS

LOSS = "the loss"


@dataclass(frozen=True)
class Operation:
    """The largest integer of an operation on shares.

    Args:
        layer: Name of the layer that it belongs to, or `LOSS`.
        name: What is computed.
        largest: Its largest magnitude in the units of the rows.
        bits: Bits of the integer after the binary point.
        limit: What the integer has to stay below.
    """

    layer: str
    name: str
    largest: float
    bits: int
    limit: float

    @property
    def integer(self) -> float:
        """The magnitude of the integer."""
        return self.largest * 2.0**self.bits

    @property
    def lacks(self) -> int:
        """How many bits more it would have to have; 0 where it fits."""
        if self.integer < self.limit:
            return 0
        # Of infinity and NaN nobody knows how many.
        ratio = min(self.integer / self.limit, 2.0**1000)
        return math.frexp(ratio)[1] if ratio >= 1 else 1000

    @property
    def used(self) -> float:
        """The bits of the integer, its logarithm; 0 for one below 1."""
        return math.log2(max(self.integer, 1.0))

    @property
    def available(self) -> float:
        """The bits that it has."""
        return math.log2(self.limit)

    def __str__(self) -> str:
        where = self.layer if self.layer == LOSS else f"layer {self.layer!r}"
        return f"{self.name} ({where})"


@dataclass(frozen=True)
class Room:
    """What an engine has for integers.

    Args:
        limit: What every integer has to stay below.
        at_least: Bits after the point with which integers of fewer count.
    """

    limit: float
    at_least: int

    @staticmethod
    def of(engine: Engine) -> "Room":
        """The room of an engine."""
        if engine.exact_truncation:
            return Room(2.0**HALF_RANGE, 0)
        # The larger a product, the likelier its truncation goes wrong: everything counts as one.
        return Room(LARGEST_OUTPUT * 2.0**WIDEST, WIDEST)


class Numbers(Protocol):
    """What stands for a value on shares: the value itself, or a bound on its magnitude."""

    @property
    def rows(self) -> int:
        """For how many rows of a batch each row stands."""
        ...

    def less(self, left: Tensor, right: Tensor) -> Tensor:
        """A difference."""
        ...

    def relu(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The larger of each value and zero, and where it is above zero."""
        ...

    def probabilities(self, logits: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """A softmax or a sigmoid."""
        ...

    def truncated(self, values: Tensor) -> Tensor:
        """Values after a truncation to `PRECISION_BITS`."""
        ...

    def scaled(self, values: Tensor, factor: float, shift: int) -> Tensor:
        """Values times a public number that is rounded to so many bits after the point."""
        ...

    def within(self, values: Tensor, layer: str, *, forward: bool) -> Tensor:
        """What a layer computes or hands back, under what is stated of it."""
        ...


@dataclass(eq=False)
class Recorded:
    """A value of a step.

    Args:
        values: What stands for it, float64.
        session: The session.
        bits: Bits after the point on shares.
        by_row: Whether the first dimension is that of the rows of a batch.
    """

    values: Tensor = field(repr=False)
    session: "RecordingSession" = field(repr=False)
    bits: int = PRECISION_BITS
    by_row: bool = False

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return float(self.values.abs().max()) if self.values.numel() else 0.0

    def _with(self, values: Tensor) -> "Recorded":
        return Recorded(values, self.session, self.bits, self.by_row)

    def __add__(self, other: "Recorded") -> "Recorded":
        return self.session.sum(self, other, self.values + other.values)

    def __sub__(self, other: "Recorded") -> "Recorded":
        difference = self.session.numbers.less(self.values, other.values)
        return self.session.sum(self, other, difference, "weights after the step")

    def __mul__(self, other: "Recorded") -> "Recorded":
        return self.session.product(torch.mul, self, other, self.by_row)

    def matmul(self, other: "Recorded") -> "Recorded":
        return self.session.bilinear(torch.matmul, self, other)

    def t(self) -> "Recorded":
        return self._with(self.values.t())

    def reshape(self, *shape: int) -> "Recorded":
        return self._with(self.values.reshape(shape))

    def size(self, dim: int) -> int:
        return self.values.shape[dim]

    def sum(self, dim: int) -> "Recorded":
        result = self._with(self.values.sum(dim))
        if dim == 0 and self.by_row:
            result.values, result.by_row = result.values * self.session.numbers.rows, False
        return self.session.noted(result, "gradient of the bias")


@dataclass
class RecordingSession:
    """As much of a `Session` as a step uses, with notes of how large integers would be.

    Args:
        numbers: What stands for values.
        room: What the engine has.
        note: Told of each operation, in the order in which they run.
    """

    numbers: Numbers
    room: Room
    note: Callable[[Operation], None]
    layer: str = field(default=LOSS, init=False)
    forward: bool = field(default=True, init=False)

    @contextmanager
    def at(self, layer: str, *, forward: bool) -> Iterator[None]:
        """Names the layer that runs."""
        self.layer, self.forward = layer, forward
        yield
        # After the last layer comes the loss. After a layer's gradient it may be added to another.
        self.layer = LOSS if forward else layer

    def within(self, value: Recorded) -> Recorded:
        """What the layer computes or hands back, under what is stated of it."""
        values = self.numbers.within(value.values, self.layer, forward=self.forward)
        return Recorded(values, self, value.bits, value.by_row)

    def noted(self, value: Recorded, name: str) -> Recorded:
        """Notes the operation that a value is the result of."""
        bits = max(value.bits, self.room.at_least)
        self.note(Operation(self.layer, name, value.largest, bits, self.room.limit))
        return value

    def public(self, values: Tensor) -> Recorded:
        return Recorded(values.double().cpu(), self)

    def sum(
        self, left: Recorded, right: Recorded, values: Tensor, of_weights: str = "momentum"
    ) -> Recorded:
        """Notes a sum or a difference.

        Args:
            left: Its first term.
            right: Its second term.
            values: The result.
            of_weights: What it is where it is none of rows.
        """
        result = Recorded(values, self, max(left.bits, right.bits), left.by_row or right.by_row)
        if self.layer == LOSS:
            return self.noted(result, "probabilities less targets")
        if self.forward:
            return self.noted(self.within(result), "outputs")
        return self.noted(result, "sum of gradients" if result.by_row else of_weights)

    def bilinear(
        self, function: Callable[[Tensor, Tensor], Tensor], left: Recorded, right: Recorded
    ) -> Recorded:
        # Of two values that both have a row for each of the batch, it is a sum over rows.
        return self.product(function, left, right, left.by_row != right.by_row)

    def product(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        left: Recorded,
        right: Recorded,
        by_row: bool,
    ) -> Recorded:
        """Notes a bilinear function of two values.

        Args:
            function: The function.
            left: Its first argument.
            right: Its second argument.
            by_row: Whether the result has a row for each of the batch.
        """
        if left.bits + right.bits > WIDEST:
            left, right = self._narrow(left), self._narrow(right)
        values = function(left.values, right.values)
        result = Recorded(values, self, left.bits + right.bits, by_row)
        if by_row:
            name = "product" if self.forward else "gradient of the inputs"
            result = self.noted(self.within(result), name)
        else:
            result.values = values * self.numbers.rows
            self.noted(result, "gradient of the weights")
        return result

    def _narrow(self, value: Recorded) -> Recorded:
        if value.bits <= PRECISION_BITS:
            return value
        values = self.numbers.truncated(value.values)
        return Recorded(values, self, PRECISION_BITS, value.by_row)

    def linear(self, function: Callable[[Tensor], Tensor], value: Recorded) -> Recorded:
        result = Recorded(function(value.values), self, value.bits, value.by_row)
        return self.noted(result, "sums of windows" if self.forward else "gradient of the inputs")

    def scale(self, value: Recorded, factor: float) -> Recorded:
        whole, shift = rounded_factor(factor)
        if is_wide(value.bits, whole):
            value = self._narrow(value)
        rounded = abs(whole) / 2.0**shift
        name = "division" if value.by_row else "learning rate, momentum"
        largest, bits = value.largest * rounded, value.bits + shift
        self.note(Operation(self.layer, name, largest, bits, self.room.limit))
        values = self.numbers.scaled(value.values, factor, shift_of(factor))
        return Recorded(values, self, min(bits, PRECISION_BITS), value.by_row)

    def relu(self, value: Recorded) -> tuple[Recorded, Recorded]:
        values, above = self.numbers.relu(value.values)
        result = self.within(Recorded(values, self, value.bits, value.by_row))
        return self.noted(result, "outputs"), Recorded(above, self, 0, value.by_row)

    def sigmoid(self, logits: Recorded) -> Recorded:
        # Right up to that magnitude itself.
        limit = math.nextafter(REACH, math.inf) * 2.0**logits.bits
        self.note(Operation(self.layer, "sigmoid", logits.largest, logits.bits, limit))
        return self._probabilities(logits, torch.sigmoid, WIDEST)

    def softmax(self, logits: Recorded) -> Recorded:
        return self._probabilities(logits, lambda values: values.softmax(-1), PRECISION_BITS)

    def _probabilities(
        self, logits: Recorded, function: Callable[[Tensor], Tensor], bits: int
    ) -> Recorded:
        values = self.numbers.probabilities(logits.values, function)
        return Recorded(values, self, bits, by_row=True)


def shift_of(factor: float) -> int:
    """Bits after the point that engines keep of a public factor: 16 significant ones, 44 at most.

    Args:
        factor: Not zero.
    """
    return max(0, min(PRECISION_BITS - 1 - math.floor(math.log2(abs(factor))), 44))


@dataclass
class WatchedLayer:
    """A layer that says when it runs.

    Args:
        layer: The layer on values of a `RecordingSession`.
        name: Its name.
    """

    layer: SharedLayer
    name: str

    def forward(self, session: Any, *inputs: Any) -> Any:
        with session.at(self.name, forward=True):
            return session.within(self.layer.forward(session, *inputs))

    def backward(
        self, session: Any, gradient: Any, descent: Any, needed: tuple[bool, ...]
    ) -> Gradients:
        with session.at(self.name, forward=False):
            back: Any = self.layer.backward(session, gradient, descent, needed)
            return tuple(None if part is None else session.within(part) for part in back)

    def weights(self) -> Any:
        return self.layer.weights()

    def learned(self) -> list[Learned]:
        return self.layer.learned()


def watched(node: Node, session: Any) -> SharedNode:
    """A layer in its place, open on a `RecordingSession`."""
    return SharedNode(node, WatchedLayer(node.layer.open(session), node.name))
