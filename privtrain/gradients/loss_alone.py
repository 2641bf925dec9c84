"""Whether a loss treats each row alone, whatever targets and outputs stand beside it.

A loss may look at which targets its batch holds, and batches of two classes nearly always hold
both. So the loss alone is computed, on the outputs of one forward pass, in batches of one target,
of one row that differs from all others, and of copies. That costs next to nothing.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from privtrain.core.task import Loss, Rows
from privtrain.gradients.companions import extremes, flattened, fractions
from privtrain.gradients.draws import HeldDraws
from privtrain.gradients.gradients import check_losses
from privtrain.gradients.passes import Precision, precise, precise_rows

_SEED = 20201015

_LOUD, _VALUES, _NUMBERS = 10.0, 6, 2**24
"""How many times as large made-up outputs are, how many targets are put in place of all others at
most, and how many numbers of outputs are used: of a large vocabulary those of fewer rows."""

ERRORS = (
    *(RuntimeError, ValueError, TypeError, IndexError, KeyError, ArithmeticError),
    *(AssertionError, AttributeError),
)
"""What a model or a loss raises that cannot be run in float64, or on a batch that nobody gave."""


@dataclass(frozen=True)
class LossTrial:
    """The losses of fixed outputs beside other targets, and beside other outputs.

    Args:
        model: The model, in whose precision the loss is computed.
        loss: Loss of each row.
        outputs: Of one forward pass, without their graph.
        rows: Its rows; at least two.
        precision: In which type it was made.
        seed: Of what the loss draws.
    """

    model: nn.Module
    loss: Loss
    outputs: Any
    rows: Rows
    precision: Precision
    seed: int

    def differs(self) -> str:
        """Beside what the loss or the gradient of a row is another one; "" for nothing."""
        rows = precise_rows(self.rows, self.precision)
        outputs, own = _few(self.outputs, rows.labels)
        pair = _two(own)
        first = self._tried(outputs, own)
        if first is None:
            # Such as a loss that takes from the model what only its forward pass leaves there.
            return ""
        batches, results = [own], [first]
        for table in tables(own, outputs, pair)[1:]:
            result = self._tried(outputs, table)
            if result is not None:
                batches.append(table)
                results.append(result)
        for index in mixtures(len(own), len(batches), pair):
            after = self._tried(outputs, _of_each(batches, index))
            if after is not None and self._far(_of_each(results, index), after):
                return "other targets"
        both, doubled = _opposite_too(outputs, len(own)), torch.cat([own, own])
        for index, kept in companions(len(own), pair):
            taken = _taken(both, index, len(doubled))
            after = self._tried(taken, doubled[index.to(own.device)])
            if after is not None and self._far(first[kept], after[kept]):
                return "other outputs and targets"
        return ""

    def _tried(self, outputs: Any, targets: Tensor) -> Tensor | None:
        try:
            return self._computed(outputs, targets)
        except ERRORS:
            return None

    def _computed(self, outputs: Any, targets: Tensor) -> Tensor:
        """Of each row the loss, and its gradient's projection and norm; `(batch, 3)`, float64."""
        count = len(targets)
        given = _mapped(_leaf, outputs)
        leaves = [each for each in tree_leaves(given) if _by_row(each, count)]
        leaves = [each for each in leaves if each.requires_grad]
        # Of both signs, so that what rows do to one another's gradients does not cancel.
        weights = torch.where(torch.arange(count) % 3 == 0, -1.5, 1.0)
        gradients: tuple[Tensor | None, ...] = ()
        # A loss may write to what it is given.
        copied = _mapped(Tensor.clone, given), targets.clone()
        with precise(self.model, self.precision), HeldDraws(range(count), self.seed) as held:
            losses = check_losses(self.loss(*copied), targets)
            held.end_of_forward()
            if losses.requires_grad and leaves:
                gradients = torch.autograd.grad(
                    losses, leaves, weights.to(losses), allow_unused=True
                )
        projection = torch.zeros(count, dtype=torch.float64)
        square = torch.zeros(count, dtype=torch.float64)
        for number, gradient in enumerate(gradients):
            if gradient is not None:
                flat = gradient.detach().double().reshape(count, -1)
                generator = torch.Generator(flat.device).manual_seed(_SEED + number)
                direction = torch.randn(
                    flat.shape[1], generator=generator, dtype=flat.dtype, device=flat.device
                )
                projection = projection + (flat @ direction).cpu()
                square = square + flat.square().sum(dim=1).cpu()
        return torch.stack([losses.detach().double().cpu(), projection, square.sqrt()], dim=1)

    def _far(self, before: Tensor, after: Tensor) -> bool:
        """Whether a row that has a finite loss has another one, or another gradient."""
        # Written so that not a number differs from every number.
        usual = before[:, 0].abs().nanmedian().nan_to_num(posinf=0.0)
        room = self.precision.losses * (before[:, 0].abs() + usual + 1e-3)
        same = (after[:, 0] - before[:, 0]).abs() <= room
        room = self.precision.sums * (before[:, 2] + 1e-6)
        same &= ((after[:, 1] - before[:, 1]).abs() <= room) | ~before[:, 2].isfinite()
        return bool((before[:, 0].isfinite() & ~same).any())


def tables(targets: Tensor, outputs: Any, pair: tuple[int, int]) -> list[Tensor]:
    """The targets of a batch, and others that its rows may have: mostly one target for all.

    Args:
        targets: Of the batch, `(batch, ...)`.
        outputs: Of the model.
        pair: Places of two rows.

    Returns:
        At least one, of the same shape and type, without repetition; the batch's own first.
    """
    least, most = extremes(targets)
    some = [targets[pair[0]], targets[pair[1]], least, most]
    numbers, classes = [], 0
    if targets.numel() and not targets.is_complex():
        low, high = float(least.double().min()), float(most.double().max())
        numbers = [0.0, 1.0] if low >= 0 and high <= 1 else []
        classes = _classes(outputs, targets) if low >= 0 else 0
        classes = classes if high < classes else 0
    if targets.is_floating_point() and (targets.device.type == "cpu" or fractions(targets).all()):
        # Of a regression on public rows nobody knows the targets. An index that is none, as class
        # -10 would be, is an error on the CPU alone; elsewhere it ends the process.
        numbers += [10.0, -10.0]
    if classes:
        numbers += torch.linspace(0, classes - 1, min(classes, _VALUES)).round().tolist()
    some += [torch.full_like(least, number) for number in numbers]
    chosen = [targets]
    for table in (value.expand(targets.shape) for value in some):
        if len(chosen) <= _VALUES and not any(torch.equal(table, other) for other in chosen):
            chosen.append(table)
    if classes > 2:
        # All classes, each of which may be one that nobody else has.
        each = torch.arange(len(targets), device=targets.device) % classes
        each = each.view(-1, *[1] * (targets.dim() - 1)).expand(targets.shape)
        chosen.insert(2, each.to(targets.dtype))
    return chosen


def mixtures(count: int, batches: int, pair: tuple[int, int]) -> Iterator[Tensor]:
    """Which of some batches each row comes from: one row among others, and all in turn.

    Args:
        count: How many rows there are.
        batches: How many batches there are.
        pair: Places of the rows that are put among others.

    Yields:
        Index of a batch for each row, `(count,)`.
    """
    if batches < 2:
        return
    for most in range(batches):
        index = torch.full((count,), most)
        index[pair[most % 2]] = (most + 1) % batches
        yield index
    yield torch.arange(count) % batches


def companions(count: int, pair: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of a batch beside copies of themselves, of another row, and of their opposites.

    Yields:
        Index of the rows, `(count,)`, beyond the count of opposites, and places of those that are
        where they were.
    """
    places = torch.arange(count)
    one, other = pair
    yield torch.full((count,), one), places[one : one + 1]
    yield torch.where(places == other, other, one), places[other : other + 1]
    half = places % 2 == 0
    yield torch.where(half, places, places + count), places[half]


def _two(targets: Tensor) -> tuple[int, int]:
    """Places of two rows, whose targets differ if any do."""
    flat = flattened(targets)
    return 0, max(1, int((flat != flat[:1]).any(dim=1).int().argmax()))


def _classes(outputs: Any, targets: Tensor) -> int:
    """How many classes outputs tell apart; 0 where that does not show."""
    if not isinstance(outputs, Tensor) or outputs.dim() != targets.dim() + 1:
        return 0
    found = []
    if outputs.shape[2:] == targets.shape[1:]:
        found.append(outputs.shape[1])
    if outputs.shape[1:-1] == targets.shape[1:]:
        found.append(outputs.shape[-1])
    return min(found, default=0)


def _mapped(function: Callable[[Tensor], Tensor], outputs: Any) -> Any:
    """A function of each tensor in outputs."""
    if isinstance(outputs, Tensor):
        return function(outputs)
    return tree_map_only(Tensor, function, outputs)


def _leaf(output: Tensor) -> Tensor:
    """The same values, as where a gradient ends."""
    return output.detach().requires_grad_(output.is_floating_point())


def _by_row(output: Any, count: int) -> bool:
    return isinstance(output, Tensor) and output.dim() > 0 and len(output) == count


def _taken(outputs: Any, index: Tensor, count: int) -> Any:
    """The rows at an index, of what has rows."""

    def take(output: Tensor) -> Tensor:
        return output[index.to(output.device)] if _by_row(output, count) else output

    return _mapped(take, outputs)


def _opposite_too(outputs: Any, count: int) -> Any:
    """Outputs, and behind them as many that tell the opposite: probabilities stay what they are."""

    def with_opposite(output: Tensor) -> Tensor:
        if not (_by_row(output, count) and output.is_floating_point()):
            return torch.cat([output, output]) if _by_row(output, count) else output
        chances = bool(((output >= 0) & (output <= 1)).all())
        return torch.cat([output, 1 - output if chances else -_LOUD * output])

    return _mapped(with_opposite, outputs)


def _few(outputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
    """Outputs and targets, or those of the first rows where they are very large."""
    count = len(targets)
    numbers = sum(each.numel() for each in tree_leaves(outputs) if _by_row(each, count))
    few = max(16, math.floor(_NUMBERS * count / max(1, numbers)))
    if few >= count:
        return outputs, targets
    index = torch.arange(few)
    return _taken(outputs, index, count), targets[:few]


def _of_each(batches: list[Tensor], index: Tensor) -> Tensor:
    """Row by row that of the batch at an index."""
    places = torch.arange(len(index))
    device = batches[0].device
    return torch.stack(batches)[index.to(device), places.to(device)]
