"""The worst case of a step of training on shares, from stated bounds: interval arithmetic.

An interval is kept as the magnitude that bounds it on both sides. All functions of a step have
non-negative factors, so that of magnitudes they give the magnitude of what they give.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.mpc.bounds import Bounds
from privtrain.mpc.dense import Descent, Linear
from privtrain.mpc.engine import Engine
from privtrain.mpc.layers import Node, Probabilities, step
from privtrain.mpc.operations import (
    Operation,
    Recorded,
    RecordingSession,
    Room,
    shift_of,
    watched,
)
from privtrain.mpc.pictures import Conv2d

PROBABILITY = 1 + 2.0**-10
"""No probability less a target exceeds it: softmax and sigmoid are within 2^-10 of 0..1."""


@dataclass(frozen=True)
class Magnitudes:
    """Stands for values by the largest magnitude that they may have.

    Args:
        bounds: What is stated of layers.
        rows: Rows of a batch, which are all bounded alike: one stands for them.
    """

    bounds: Bounds
    rows: int

    def less(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right

    def relu(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values, torch.ones_like(values)

    def probabilities(self, logits: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.full_like(logits, PROBABILITY)

    def truncated(self, values: Tensor, bits: int) -> Tensor:
        return values + unit(bits)

    def scaled(self, values: Tensor, factor: float, shift: int, bits: int) -> Tensor:
        # The rounded factor is at most half a unit larger.
        return values * (abs(factor) + 2.0**-shift) + unit(bits)

    def within(self, values: Tensor, layer: str, *, forward: bool) -> Tensor:
        stated = self.bounds.of_layer(layer) if forward else self.bounds.of_gradient(layer)
        return values.clamp(max=stated)


@dataclass(frozen=True)
class LongDescent:
    """Descent after any number of steps whose gradients are all bounded alike.

    Args:
        rate: Learning rate divided by the number of rows in the batch.
        momentum: Momentum in [0, 1).
    """

    rate: float
    momentum: float

    def __call__(
        self, session: RecordingSession, gradient: Recorded, previous: Recorded | None
    ) -> Recorded:
        """The largest step."""
        step = session.scale(gradient, self.rate)
        if self.momentum == 0:
            return step
        # A geometric series of steps and roundings. A momentum that is rounded to 1 has no limit.
        left = 1 - self.momentum - 2.0 ** -shift_of(self.momentum)
        bits = session.room.gradient_bits
        total = (step.values + unit(bits)) * (1 / left if left > 0 else inf)
        return session.scale(Recorded(total, session, bits), self.momentum) + step


@torch.no_grad()
def worst_case(
    bounds: Bounds,
    engine: Engine,
    nodes: Sequence[Node],
    row_shape: Sequence[int],
    batch: int,
    descent: Descent,
    probabilities: Probabilities,
) -> list[Operation]:
    """The largest integer of each operation in any step of a training within bounds.

    Args:
        bounds: What is stated of rows, weights and layers.
        engine: What computes on shares.
        nodes: The model; of frozen weights, the values count.
        row_shape: Shape of a row as the model takes it.
        batch: Rows in a batch.
        descent: The rule by which weights follow a gradient.
        probabilities: What the loss makes of outputs.

    Returns:
        The operations of one step, in the order in which they run.
    """
    operations: list[Operation] = []
    numbers = Magnitudes(bounds, batch)
    room = Room.of(engine)
    session: Any = RecordingSession(numbers, room, operations.append)
    layers = [watched(_bounded(node, bounds.weights, room.weight_bits), session) for node in nodes]
    rows = torch.full((1, *row_shape), bounds.rows, dtype=torch.float64)
    bits = room.row_bits
    inputs: Any = Recorded(_rounded_up(rows, bits), session, bits, by_row=True)
    # A probability less its target is within -1..1, as the probability is alone.
    targets: Any = Recorded(torch.zeros(1, 1, dtype=torch.float64), session, bits, by_row=True)
    long: Any = LongDescent(descent.rate, descent.momentum)
    step(session, layers, inputs, targets, long, probabilities)
    return operations


def check_worst_case(
    bounds: Bounds,
    engine: Engine,
    nodes: Sequence[Node],
    row_shape: Sequence[int],
    batch: int,
    descent: Descent,
    probabilities: Probabilities,
) -> None:
    """Refuses a training in which an operation may overflow within its bounds.

    Args:
        bounds: As for `worst_case`.
        engine: As for `worst_case`.
        nodes: As for `worst_case`.
        row_shape: As for `worst_case`.
        batch: As for `worst_case`.
        descent: As for `worst_case`.
        probabilities: As for `worst_case`.

    Raises:
        DataError: With the first such operation, its bits, and how many it lacks.
    """
    operations = worst_case(bounds, engine, nodes, row_shape, batch, descent, probabilities)
    first = next((operation for operation in operations if operation.lacks), None)
    if first is None:
        return
    what = "bit" if first.lacks == 1 else "bits"
    raise DataError(
        f"Within rows={bounds.rows!r}, weights={bounds.weights!r} and batches of {batch}, the "
        f"first operation on shares that may overflow is: {first}. It may reach "
        f"{first.largest:.3g}, an integer of {first.used:.1f} bits, where {engine.name} has "
        f"{first.available:.1f}: it lacks {first.lacks} {what}. Use smaller rows or batches, or "
        "state what layers reach, Bounds(layers={...}, gradients={...}), as pt.measured_ranges "
        "reports it of public or synthetic rows."
    )


def _bounded(node: Node, weights: float, bits: int) -> Node:
    """A layer whose trained weights are the bound, and whose frozen ones are magnitudes."""
    layer = node.layer
    if not isinstance(layer, Linear | Conv2d):
        return node
    values: dict[str, Tensor] = {}
    pairs = zip(("weight", "bias"), (layer.weight, layer.bias), layer.learned, strict=True)
    for name, weight, learned in pairs:
        if weight is not None:
            exact = weight.double().cpu().abs()
            largest = torch.full_like(exact, weights) if learned else exact
            values[name] = _rounded_up(largest, bits)
    return replace(node, layer=replace(layer, **values))  # type: ignore[arg-type]  # both have them


def unit(bits: int) -> float:
    """What a truncation to so many bits after the point is right to."""
    return 2.0**-bits


def _rounded_up(values: Tensor, bits: int) -> Tensor:
    """Magnitudes as fixed point of so many bits may round them."""
    return (values / unit(bits)).ceil() * unit(bits)
