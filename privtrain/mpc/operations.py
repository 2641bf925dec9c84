"""A step of training in float64, with the largest integer that each operation would be on shares.

The step is that of the computing parties: one text for values, for their bounds and for shares.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from privtrain.mpc.dense import Gradients, Learned, SharedLayer
from privtrain.mpc.engine import Engine
from privtrain.mpc.layers import Node, SharedNode
from privtrain.mpc.ranges import LARGEST_OUTPUT
from privtrain.mpc.ring64.session import is_wide, rounded_factor
from privtrain.mpc.ring64.sigmoid import REACH
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
        row_bits: Bits after the point of rows and targets.
        weight_bits: Bits after the point of weights.
        gradient_bits: Bits after the point that a truncation leaves.
    """

    limit: float
    at_least: int
    row_bits: int = PRECISION_BITS
    weight_bits: int = PRECISION_BITS
    gradient_bits: int = PRECISION_BITS

    @property
    def settled_bits(self) -> int:
        """Bits after the point with which a value is not truncated."""
        return max(self.row_bits, self.weight_bits)

    @property
    def widest(self) -> int:
        """Bits after the point beyond which a value is truncated before sums or products."""
        return 2 * self.settled_bits

    @staticmethod
    def of(engine: Engine) -> "Room":
        """The room of an engine."""
        bits = engine.row_bits, engine.weight_bits, engine.gradient_bits
        room = Room(2.0**engine.range_bits, 0, *bits)
        if engine.exact_truncation:
            return room
        # The larger a product, the likelier its truncation goes wrong: everything counts as one.
        return replace(room, limit=LARGEST_OUTPUT * 2.0**room.widest, at_least=room.widest)


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

    def truncated(self, values: Tensor, bits: int) -> Tensor:
        """Values after a truncation to so many bits after the point."""
        ...

    def scaled(self, values: Tensor, factor: float, shift: int, bits: int) -> Tensor:
        """Values times a public number, truncated.

        Args:
            values: The values.
            factor: The number.
            shift: To how many bits after the point it is rounded.
            bits: To how many bits the product is truncated.
        """
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
    bits: int
    by_row: bool = False

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return float(self.values.abs().max()) if self.values.numel() else 0.0

    def derived(self, values: Tensor) -> "Recorded":
        """Other values of the same kind."""
        return replace(self, values=values)

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
        return self.derived(self.values.t())

    def reshape(self, *shape: int) -> "Recorded":
        return self.derived(self.values.reshape(shape))

    def size(self, dim: int) -> int:
        return self.values.shape[dim]

    def sum(self, dim: int) -> "Recorded":
        result = self.derived(self.values.sum(dim))
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
        return value.derived(self.numbers.within(value.values, self.layer, forward=self.forward))

    def noted(self, value: Recorded, name: str) -> Recorded:
        """Notes the operation that a value is the result of."""
        bits = max(value.bits, self.room.at_least)
        self.note(Operation(self.layer, name, value.largest, bits, self.room.limit))
        return value

    def public(self, values: Tensor) -> Recorded:
        return Recorded(values.double().cpu(), self, self.room.weight_bits)

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
        if left.bits + right.bits > self.room.widest:
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
        if value.bits <= self.room.settled_bits:
            return value
        bits = self.room.gradient_bits
        return replace(value, values=self.numbers.truncated(value.values, bits), bits=bits)

    def linear(self, function: Callable[[Tensor], Tensor], value: Recorded) -> Recorded:
        result = value.derived(function(value.values))
        return self.noted(result, "sums of windows" if self.forward else "gradient of the inputs")

    def scale(self, value: Recorded, factor: float) -> Recorded:
        whole, shift = rounded_factor(factor)
        if is_wide(value.bits, whole, self.room.settled_bits, self.room.widest):
            value = self._narrow(value)
        rounded = abs(whole) / 2.0**shift
        name = "division" if value.by_row else "learning rate, momentum"
        largest, bits = value.largest * rounded, value.bits + shift
        self.note(Operation(self.layer, name, largest, bits, self.room.limit))
        left = min(bits, self.room.gradient_bits)
        values = self.numbers.scaled(value.values, factor, shift_of(factor), left)
        return Recorded(values, self, left, value.by_row)

    def relu(self, value: Recorded) -> tuple[Recorded, Recorded]:
        values, above = self.numbers.relu(value.values)
        result = self.within(value.derived(values))
        return self.noted(result, "outputs"), Recorded(above, self, 0, value.by_row)

    def sigmoid(self, logits: Recorded) -> Recorded:
        # Right up to that magnitude itself.
        limit = math.nextafter(REACH, math.inf) * 2.0**logits.bits
        self.note(Operation(self.layer, "sigmoid", logits.largest, logits.bits, limit))
        room = self.room
        # Where truncations leave fewer bits than rows have, it is truncated before it is used.
        short = room.gradient_bits < room.settled_bits
        bits = room.gradient_bits if short else room.widest
        return self._probabilities(logits, torch.sigmoid, bits)

    def softmax(self, logits: Recorded) -> Recorded:
        bits = self.room.gradient_bits
        return self._probabilities(logits, lambda values: values.softmax(-1), bits)

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
