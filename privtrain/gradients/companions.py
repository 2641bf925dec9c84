"""Batches in which rows have other companions, a row less, or other places."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from privtrain.core.task import Rows

_SEED = 20170806
_LOUD, _VERY_LOUD = 10.0, 1000.0


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
    # A bound that rows share, such as a largest norm, may lie far beyond those of one batch.
    loud = torch.where(fractions(rows.inputs), _VERY_LOUD * same.inputs, same.inputs)
    very = Rows(loud.to(same.inputs.dtype), same.labels)
    yield _beside(rows, very, few, None)
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


def made_up(rows: Rows, losses: Tensor) -> Change:
    """The batch with a small row, a large one, one padded behind and one padded in front.

    Rows that have their largest value, length or number of parts in common all keep it when one of
    them is removed or moved. These have others.
    """
    inputs, count = rows.inputs.detach(), len(rows)
    some = _small_and_large(inputs)
    zeros = inputs.device.type == "cpu" or bool(fractions(inputs).all())
    if zeros and inputs.dim() > 1 and inputs.shape[1] > 1:
        longest, half = inputs[_removed(rows, losses)[-1]], inputs.shape[1] // 2
        behind, in_front = longest.clone(), longest.clone()
        behind[half:], in_front[:-half] = 0, 0
        some += [behind, in_front]
    some = some[: count - 1]
    index, identities = torch.arange(count), torch.arange(count)
    places = identities[identities != shortest(rows)][: len(some)]
    index[places] = count + torch.arange(len(some))
    identities[places] += count
    changed = torch.cat([inputs, torch.stack(some)])[index.to(inputs.device)]
    return Change("other companions", Rows(changed, rows.labels), identities, None)


def _small_and_large(inputs: Tensor) -> list[Tensor]:
    if inputs.is_floating_point():
        # Of each column a value that it has, since it may be one of categories.
        return [*extremes(inputs)]
    # Rows as they are: where texts end follows from what stands in them.
    flat = flattened(inputs)
    size = (flat.abs() if inputs.is_complex() else flat).double().sum(dim=1)
    return [inputs[size.argmin()], inputs[size.argmax()]]


def copies(rows: Rows, place: int) -> Change:
    """One row among copies of itself."""
    count = len(rows)
    index = torch.full((count,), place)
    identities = torch.arange(count, 2 * count)
    identities[place] = place
    return Change("copies of itself", _take(rows, index), identities, None)


def shortest(rows: Rows) -> int:
    """Place of the row of which most is what it ends in, as padding is."""
    flat = flattened(rows.inputs.detach())
    return int((flat == flat[:, -1:]).sum(dim=1).argmax())


def _removed(rows: Rows, losses: Tensor) -> list[int]:
    """Places of the rows whose removal is tried: those that may matter most."""
    flat = flattened(rows.inputs.detach())
    size = (flat != flat[:, -1:]).sum(dim=1)
    if flat.is_floating_point():
        size = flat.double().square().sum(dim=1)
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
    """Zeros, other rows times 10, and times 0.1; of whole numbers the least, the most, others'."""
    inputs = inputs.detach()
    turned = inputs.roll(1, dims=0)
    of_row = torch.arange(len(inputs), device=inputs.device) % 3
    of_row = of_row.view(-1, *[1] * (inputs.dim() - 1))
    least, most = extremes(inputs)
    seen = torch.where(of_row == 0, least, torch.where(of_row == 1, most, turned))
    if not inputs.is_floating_point():
        return seen
    factors = torch.tensor([0.0, _LOUD, 0.1], dtype=inputs.dtype, device=inputs.device)
    return torch.where(fractions(inputs), turned * factors[of_row], seen)


def _other_targets(targets: Tensor, classes: int) -> Tensor:
    """Values: 1 less them. Classes: the next one. Else those of other rows."""
    if targets.is_floating_point():
        return 1 - targets
    turned = targets.roll(1, dims=0)
    if targets.dim() == 1 and int(targets.max()) < classes:
        return (turned + 1) % classes
    return turned


def flattened(column: Tensor) -> Tensor:
    """Values of each row side by side, `(batch, values)`."""
    return column.flatten(1) if column.dim() > 1 else column.unsqueeze(1)


def extremes(column: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value at each place of a row; two rows where none is the least."""
    try:
        return column.amin(dim=0), column.amax(dim=0)
    except RuntimeError:
        # Complex numbers, and types for which torch does not compute it.
        return column[0], column[-1]


def fractions(inputs: Tensor) -> Tensor:
    """Which columns hold more than whole numbers, which may be categories; shape of one row."""
    if not inputs.is_floating_point():
        return torch.zeros(inputs.shape[1:], dtype=torch.bool, device=inputs.device)
    return (inputs != inputs.round()).any(dim=0)
