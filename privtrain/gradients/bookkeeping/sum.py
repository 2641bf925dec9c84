"""From the parts of per-example gradients to their clipped sum."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from privtrain.gradients.bookkeeping.layers import Windows
from privtrain.gradients.bookkeeping.norms import unit
from privtrain.gradients.bookkeeping.parts import Part, Sequence, squared_norms
from privtrain.gradients.bookkeeping.workspace import Workspace
from privtrain.gradients.gradients import counted
from privtrain.mechanisms.clipping import Clipping

FORMED_VALUES = 2**22
"""Values of formed gradients that are held at a time, unless one example's are more."""

Weigh = Callable[[Tensor], Tensor]
"""Norms of groups, `(groups, batch)`, to their factors, `(groups, batch)`."""


@dataclass
class Slot:
    """One parameter, whose gradient is a part of the sum.

    Args:
        name: The parameter's name in the model.
        parameter: The parameter.
        group: The group that it is measured and weighted with.
    """

    name: str
    parameter: nn.Parameter
    group: int


Found = list[tuple[Slot, Part]]
"""Parts of the gradients, and where they belong."""


def slots_of(model: nn.Module, clipping: Clipping) -> list[Slot]:
    """The slots of the trained parameters, in the model's order."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = clipping.groups([name for name, _ in named])
    return [Slot(*one, group) for one, group in zip(named, groups, strict=True)]


def bounds(squares: Tensor, dtype: torch.dtype) -> Tensor:
    """Norms from their squares, with room for rounding the factors.

    Args:
        squares: Upper bounds of squared norms, float64.
        dtype: Type in which gradients are weighted.
    """
    return squares.sqrt().mul_(1 + 8 * unit(dtype))


def group_squares(found: Found, groups: int, values: int) -> Tensor:
    """Upper bounds of the squared norms over groups of parameters.

    Args:
        found: Parts of the gradients; at least one.
        groups: How many groups there are.
        values: How many values a gradient has at most.

    Returns:
        Shape `(groups, batch)`, float64; zero for a group of which there is no part.
    """
    squares = squared_norms([part for _, part in found], values)
    if groups == 1:
        return squares.sum(dim=0, keepdim=True)
    index = torch.tensor([slot.group for slot, _ in found], device=squares.device)
    return squares.new_zeros(groups, squares.shape[1]).index_add_(0, index, squares)


def total(norms: Tensor) -> Tensor:
    """Norms of whole gradients from those of their groups, `(batch,)`."""
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(norms, dim=0)


@torch.no_grad()
def weighted_sum(
    slots: list[Slot], parts: dict[int, Part], losses: Tensor, weigh: Weigh, workspace: Workspace
) -> tuple[Tensor, Tensor]:
    """Norms of per-example gradients, and their sum with weights that follow from the norms.

    Gradients that are better formed are formed for a few examples at a time, measured, weighted
    and added before the next ones take their place.

    Args:
        slots: Where each parameter's gradient stands; at least one.
        parts: Parts of the gradients by the `id` of their parameter.
        losses: Of each example, shape `(rows,)`; at least one. One that is not finite is left out,
            whatever its gradient.
        weigh: Gives the factors; an example with a factor of zero is left out.
        workspace: Where gradients are formed.

    Returns:
        The sum, shape `(parameters,)`, and upper bounds of norms, `(groups, rows)`, float64.
    """
    like, sizes = slots[0].parameter, [slot.parameter.numel() for slot in slots]
    value = like.new_empty(sum(sizes))
    unwritten = dict(zip([slot.name for slot in slots], torch.split(value, sizes), strict=True))
    into = dict(unwritten)
    groups = 1 + max(slot.group for slot in slots)
    found = [(slot, parts[id(slot.parameter)]) for slot in slots if id(slot.parameter) in parts]
    passing = [(slot, part) for slot, part in found if _better_formed(part)]
    lasting: Found = [(slot, part) for slot, part in found if not _better_formed(part)]
    rows = len(losses)
    if lasting:
        squares = group_squares(lasting, groups, value.numel())
    else:
        squares = torch.zeros(groups, rows, dtype=torch.float64, device=like.device)
    squares = counted(squares, losses)
    room = sum(part.values for _, part in passing)
    each = max(1, FORMED_VALUES // room) if room else rows
    norms, factors = [], []
    for start in range(0, rows, each):
        stop = min(start + each, rows)
        workspace.restart(like, room * (stop - start))
        formed: Found = [(slot, part.form(start, stop, workspace)) for slot, part in passing]
        measured = squares[:, start:stop]
        if formed:
            measured = measured + group_squares(formed, groups, value.numel())
        norms.append(bounds(measured, like.dtype))
        factors.append(weigh(norms[-1]).to(like.dtype))
        _add(into, formed, factors[-1], unwritten)
    _add(into, lasting, joined(factors), unwritten)
    for rest in unwritten.values():
        rest.zero_()
    return value, joined(norms)


def joined(pieces: list[Tensor]) -> Tensor:
    """Pieces `(groups, examples)` side by side."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _better_formed(part: Part) -> TypeGuard[Sequence | Windows]:
    return isinstance(part, (Sequence, Windows)) and part.forming


def _add(
    into: dict[str, Tensor], found: Found, factors: Tensor, unwritten: dict[str, Tensor]
) -> None:
    """Adds weighted parts; zero times infinity is not zero, so broken examples leave before."""
    if found and not bool(factors.all()):
        kept = (factors != 0).all(dim=0).nonzero().squeeze(1)
        if len(kept) == 0:
            return
        factors = factors[:, kept]
        found = [(slot, part.take(kept)) for slot, part in found]
    own = factors.unbind(0)
    for slot, part in found:
        anew = unwritten.pop(slot.name, None) is not None
        part.add(into[slot.name], own[slot.group], anew=anew)
