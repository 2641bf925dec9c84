"""Batches in which rows have other companions, a row less, or other places."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from privtrain.core.task import Rows

_SEED = 20170806
_LOUD = 10.0


@dataclass(frozen=True)
class Change:
    """The rows of a batch in another batch.

    Args:
        name: What became of the batch, for a message.
        rows: The other batch.
        identities: Of its rows: their places in the first batch, or whole numbers beyond it.
        group: Which rows' gradients are compared: see `groups`; None for losses alone.
    """

    name: str
    rows: Rows
    identities: Tensor
    group: int | None


def groups(rows: Rows, losses: Tensor) -> list[Tensor]:
    """Half of the rows, the other half, all of them, and those that are never removed.

    Returns:
        Boolean, `(batch,)` each.
    """
    chosen = _half(len(rows))
    stay = torch.ones(len(rows), dtype=torch.bool)
    stay[_removed(rows, losses)] = False
    return [chosen, ~chosen, chosen | ~chosen, stay]


def _half(count: int) -> Tensor:
    """Half of the rows, at random places; boolean, `(count,)`."""
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.randperm(count, generator=torch.Generator().manual_seed(_SEED))[: count // 2]] = 1
    return chosen


def changes(rows: Rows, losses: Tensor, classes: int) -> Iterator[Change]:
    """Batches in which no row may differ from what it is in the first batch.

    Args:
        rows: The first batch; at least two rows.
        losses: Its losses, `(batch,)`.
        classes: How many columns the model's outputs have; 0 where they are no table.

    Yields:
        The other batches.
    """
    count, chosen = len(rows), _half(len(rows))
    removed = _removed(rows, losses)
    # One row again and again: fills an expert, changes every count and every quantile.
    same = rows.take(torch.full((count,), removed[-1], device=rows.inputs.device))
    other = Rows(_quiet_and_loud(rows.inputs), _other_targets(rows.labels, classes))
    yield _beside(rows, same, chosen, 0)
    # Few of the rows: what is counted but for repetitions is another number, too.
    few = torch.zeros(count, dtype=torch.bool)
    few[chosen.nonzero().squeeze(1)[:3]] = True
    yield _beside(rows, same, few, None)
    yield _beside(rows, other, ~chosen, 1)
    if count == 2:
        yield _shuffled(rows, torch.tensor([1, 0]))
        return
    places = torch.arange(count)
    for number, place in enumerate(removed):
        left = places[places != place]
        if number == 0:
            yield Change("one row fewer", _take(rows, left), left, 3)
        else:
            generator = torch.Generator().manual_seed(_SEED + number)
            yield _shuffled(rows, left[torch.randperm(count - 1, generator=generator)])


def _removed(rows: Rows, losses: Tensor) -> list[int]:
    """Places of the rows whose removal is tried: those that may matter most."""
    size = torch.arange(len(rows))
    if rows.inputs.is_floating_point():
        size = rows.inputs.detach().double().flatten(1).square().sum(dim=1)
    return [int(losses.argmax()), int(size.argmax())]


def _beside(rows: Rows, others: Rows, chosen: Tensor, group: int | None) -> Change:
    """The chosen rows at their places, and others in the place of the rest."""
    count = len(rows)
    index = torch.where(chosen, torch.arange(count), torch.arange(count, 2 * count))
    targets = torch.cat([rows.labels, others.labels])
    both = Rows(torch.cat([rows.inputs, others.inputs]), targets)
    return Change("other companions", _take(both, index), index, group)


def _shuffled(rows: Rows, order: Tensor) -> Change:
    return Change("other places", _take(rows, order), order, 3)


def _take(rows: Rows, index: Tensor) -> Rows:
    return rows.take(index.to(rows.inputs.device))


def _quiet_and_loud(inputs: Tensor) -> Tensor:
    """Zeros, other rows times 10, and times 0.1, in turn; of tokens and categories other rows."""
    turned = inputs.detach().roll(1, dims=0)
    if not inputs.is_floating_point():
        return turned
    factors = torch.tensor([0.0, 10.0, 0.1], dtype=inputs.dtype, device=inputs.device)
    of_row = factors[torch.arange(len(inputs), device=inputs.device) % 3]
    # Whole numbers may be categories, of which there are only so many.
    scaled = (turned != turned.round()).any(dim=0)
    return torch.where(scaled, turned * of_row.view(-1, *[1] * (inputs.dim() - 1)), turned)


def _other_targets(targets: Tensor, classes: int) -> Tensor:
    """Values: 1 less them. Classes: the next one. Else those of other rows."""
    if targets.is_floating_point():
        return 1 - targets
    turned = targets.roll(1, dims=0)
    if targets.dim() == 1 and int(targets.max()) < classes:
        return (turned + 1) % classes
    return turned
