"""What the operations of a training reach, measured on rows that anybody may read."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.core.task import SCALE_COLUMNS
from privtrain.core.validate import check_positive
from privtrain.mpc.bounds import Bounds
from privtrain.mpc.dense import Descent
from privtrain.mpc.engine import Engine
from privtrain.mpc.layers import Node, Probabilities, step, trained
from privtrain.mpc.operations import Operation, Recorded, RecordingSession, Room, watched

Batch = tuple[Tensor, Tensor, Descent]
"""Inputs as the model takes them and targets, float64, and the rule of a step."""

PROVES_NOTHING = (
    "This is what these rows did under these settings and this seed. It proves nothing for others."
)


@dataclass(frozen=True, kw_only=True)
class MeasuredRanges:
    """The largest magnitudes of a training: those of its rows, which prove nothing for others.

    Args:
        operations: Each operation of a step with its largest integer in any step, in the order in
            which they first ran.
        rows: The largest magnitude of an input.
        weights: The largest magnitude of a trained weight in any step.
        layers: Name of a layer to the largest magnitude that it computed.
        gradients: Name of a layer to the largest magnitude that it handed back.
        steps: How many steps there were.
    """

    operations: tuple[Operation, ...]
    rows: float
    weights: float
    layers: tuple[tuple[str, float], ...]
    gradients: tuple[tuple[str, float], ...]
    steps: int

    def bounds(self, factor: float = 2.0) -> Bounds:
        """Bounds that these rows stay within, with some room for others.

        Args:
            factor: What each magnitude is multiplied by; positive. A layer that computed nothing
                but zeros gets no bound.

        Raises:
            ValueError: If the factor is not positive, or fixed point does not hold the bounds.
        """
        check_positive(factor=factor)
        return Bounds(
            rows=self.rows * factor,
            weights=self.weights * factor,
            layers=[(name, value * factor) for name, value in self.layers if value],
            gradients=[(name, value * factor) for name, value in self.gradients if value],
        )

    def __str__(self) -> str:
        head = ("operation", "reached", "bits", "of", "")
        lines = [head] + [
            (
                str(each),
                f"{each.largest:.4g}",
                f"{each.used:.1f}",
                f"{each.available:.1f}",
                f"lacks {each.lacks}" if each.lacks else "",
            )
            for each in self.operations
        ]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        table = [
            "  ".join(
                [line[0].ljust(widths[0])]
                + [word.rjust(width) for word, width in zip(line[1:], widths[1:], strict=True)]
            ).rstrip()
            for line in lines
        ]
        said = f"{self.steps} steps; rows reach {self.rows:.4g}, weights {self.weights:.4g}."
        return "\n".join([*table, said, PROVES_NOTHING])


@dataclass
class Reals:
    """Stands for values by themselves, and keeps the largest ones.

    Args:
        layers: Name of a layer to the largest magnitude that it computed.
        gradients: Name of a layer to the largest magnitude that it handed back.
    """

    layers: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)
    rows: int = field(default=1, init=False)

    def less(self, left: Tensor, right: Tensor) -> Tensor:
        return left - right

    def relu(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values.clamp(min=0), (values > 0).double()

    def probabilities(self, logits: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(logits)

    def truncated(self, values: Tensor, bits: int) -> Tensor:
        return values

    def scaled(self, values: Tensor, factor: float, shift: int, bits: int) -> Tensor:
        return values * factor

    def within(self, values: Tensor, layer: str, *, forward: bool) -> Tensor:
        known = self.layers if forward else self.gradients
        known[layer] = max(known.get(layer, 0.0), float(values.abs().max()))
        return values


@torch.no_grad()
def measure(
    nodes: tuple[Node, ...], engine: Engine, batches: Iterable[Batch], probabilities: Probabilities
) -> MeasuredRanges:
    """Takes steps in float64 and keeps the largest magnitudes.

    Args:
        nodes: The model with its initial weights.
        engine: What would compute on shares.
        batches: What each step takes.
        probabilities: What the loss makes of outputs.

    Raises:
        DataError: If weights are no longer finite.
    """
    largest: dict[tuple[str, str], Operation] = {}

    def note(operation: Operation) -> None:
        key = (operation.layer, operation.name)
        known = largest.setdefault(key, operation)
        # Not a maximum: what is not a number is the largest.
        if not operation.integer / operation.limit <= known.integer / known.limit:
            largest[key] = operation

    numbers = Reals()
    room = Room.of(engine)
    session: Any = RecordingSession(numbers, room, note)
    layers = [watched(node, session) for node in nodes]
    rows, weights, steps = 0.0, _largest(layers), 0
    for inputs, targets, descent in batches:
        shared: Any = Recorded(inputs, session, room.row_bits, by_row=True)
        wanted: Any = Recorded(targets, session, room.row_bits, by_row=True)
        step(session, layers, shared, wanted, descent, probabilities)
        rows, steps = max(rows, shared.largest), steps + 1
        largest_weight = _largest(layers)
        if not isfinite(largest_weight):
            raise DataError(
                f"Training diverged on these rows, in plaintext, in step {steps}. Lower the "
                f"learning rate. {SCALE_COLUMNS}."
            )
        weights = max(weights, largest_weight)
    return MeasuredRanges(
        operations=tuple(largest.values()),
        rows=rows,
        weights=weights,
        layers=tuple(numbers.layers.items()),
        gradients=tuple(numbers.gradients.items()),
        steps=steps,
    )


def _largest(layers: Any) -> float:
    weights: list[Any] = trained(layers)
    # Of torch: Python's maximum may leave out what is not a number.
    return float(torch.tensor([weight.largest for weight in weights], dtype=torch.float64).max())
