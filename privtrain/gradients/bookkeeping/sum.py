"""From the per-example gradients of each parameter to their clipped sum."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from privtrain.core.parameters import wide_type
from privtrain.gradients.bookkeeping.example_gradients import (
    ExampleGradients,
    OuterProductSum,
    squared_norms,
)
from privtrain.gradients.bookkeeping.layers import ConvolutionWeight
from privtrain.gradients.bookkeeping.norms import unit
from privtrain.gradients.bookkeeping.workspace import Workspace
from privtrain.gradients.gradients import nan_where_not_finite
from privtrain.mechanisms.clipping import Clipping

FORMED_VALUES = 2**22
"""Values of formed gradients that are held at a time, unless one example's are more."""

Weigh = Callable[[Tensor], Tensor]
"""Norms of groups, `(groups, batch)`, to their factors, `(groups, batch)`."""


@dataclass
class TrainedParameter:
    """One parameter, whose gradient has its place in the sum.

    Args:
        name: The parameter's name in the model.
        parameter: The parameter.
        group: The group that it is measured and weighted with.
    """

    name: str
    parameter: nn.Parameter
    group: int


OfParameters = list[tuple[TrainedParameter, ExampleGradients]]
"""Parameters, and the gradients of each example with respect to them."""


def trained_parameters(model: nn.Module, clipping: Clipping) -> list[TrainedParameter]:
    """The trained parameters, in the model's order, with their groups."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = clipping.groups([name for name, _ in named])
    return [TrainedParameter(*pair, group) for pair, group in zip(named, groups, strict=True)]


def bounds(squares: Tensor, dtype: torch.dtype) -> Tensor:
    """Norms from their squares, with room for rounding the factors.

    Args:
        squares: Upper bounds of squared norms, float64.
        dtype: Type in which gradients are weighted.
    """
    return squares.sqrt().mul_(1 + 8 * unit(dtype))


def group_squares(gradients: OfParameters, groups: int, values: int) -> Tensor:
    """Upper bounds of the squared norms over groups of parameters.

    Args:
        gradients: At least one.
        groups: How many groups there are.
        values: How many values a gradient has at most.

    Returns:
        Shape `(groups, batch)`, float64; zero for a group without a gradient.
    """
    squares = squared_norms([each for _, each in gradients], values)
    if groups == 1:
        return squares.sum(dim=0, keepdim=True)
    index = torch.tensor([trained.group for trained, _ in gradients], device=squares.device)
    return squares.new_zeros(groups, squares.shape[1]).index_add_(0, index, squares)


def total(norms: Tensor) -> Tensor:
    """Norms of whole gradients from those of their groups, `(batch,)`."""
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(norms, dim=0)


@torch.no_grad()
def weighted_sum(
    trained: list[TrainedParameter],
    gradients: dict[int, ExampleGradients],
    losses: Tensor,
    weigh: Weigh,
    workspace: Workspace,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Norms of per-example gradients, and their sum with weights that follow from the norms.

    Gradients that are better formed are formed for a few examples at a time, measured, weighted
    and added before the next ones take their place.

    Args:
        trained: Where each parameter's gradient stands; at least one.
        gradients: Per-example gradients by the `id` of their parameter.
        losses: Of each example, shape `(rows,)`; at least one. One that is not finite is left out,
            whatever its gradient.
        weigh: Gives the factors; an example with a factor of zero is left out.
        workspace: Where gradients are formed.
        dtype: Type of the sum, that of the gradients or a wider one.

    Returns:
        The sum, shape `(parameters,)`, and upper bounds of norms, `(groups, rows)`, float64.
    """
    sizes = [each.parameter.numel() for each in trained]
    own = wide_type(each.parameter for each in trained)
    value = trained[0].parameter.new_empty(sum(sizes), dtype=dtype)
    # What is added first overwrites; only what nothing was added to is set to zero in the end.
    # Zeroing all of it beforehand would be one more pass over the whole gradient.
    unwritten = dict(zip([each.name for each in trained], torch.split(value, sizes), strict=True))
    into = dict(unwritten)
    groups = 1 + max(each.group for each in trained)
    pairs = [(p, gradients[id(p.parameter)]) for p in trained if id(p.parameter) in gradients]
    in_turn = [(p, each) for p, each in pairs if _better_formed(each)]
    at_once: OfParameters = [(p, each) for p, each in pairs if not _better_formed(each)]
    rows = len(losses)
    # A norm is over all layers, so that what is never formed is measured before anything else.
    if at_once:
        squares = group_squares(at_once, groups, value.numel())
    else:
        squares = torch.zeros(groups, rows, dtype=torch.float64, device=value.device)
    squares = nan_where_not_finite(squares, losses)
    values = sum(each.values for _, each in in_turn)
    few = max(1, FORMED_VALUES // values) if values else rows
    norms, factors = [], []
    for start in range(0, rows, few):
        stop = min(start + few, rows)
        workspace.restart(value.new_empty(0, dtype=own), values * (stop - start))
        formed: OfParameters = [(p, each.form(start, stop, workspace)) for p, each in in_turn]
        measured = squares[:, start:stop]
        if formed:
            measured = measured + group_squares(formed, groups, value.numel())
        norms.append(bounds(measured, own))
        # Abadi et al. 2016, Algorithm 1, "Clip gradient": the factor 1 / max(1, norm / C), or that
        # of another style.
        factors.append(weigh(norms[-1]).to(own))
        _add(into, formed, factors[-1], unwritten)
    _add(into, at_once, joined(factors), unwritten)
    for rest in unwritten.values():
        rest.zero_()
    return value, joined(norms)


def joined(pieces: list[Tensor]) -> Tensor:
    """Pieces `(groups, examples)` side by side."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _better_formed(gradients: ExampleGradients) -> TypeGuard[OuterProductSum | ConvolutionWeight]:
    return isinstance(gradients, (OuterProductSum, ConvolutionWeight)) and gradients.forming


def _add(
    into: dict[str, Tensor],
    gradients: OfParameters,
    factors: Tensor,
    unwritten: dict[str, Tensor],
) -> None:
    """Adds weighted gradients to the places of their parameters."""
    # Zero times infinity is not zero, so examples without a finite norm leave before.
    if gradients and not bool(factors.all()):
        left = (factors != 0).all(dim=0).nonzero().squeeze(1)
        if len(left) == 0:
            return
        factors = factors[:, left]
        gradients = [(p, each.take(left)) for p, each in gradients]
    for trained, each in gradients:
        overwrite, out = unwritten.pop(trained.name, None) is not None, into[trained.name]
        each.to(out.dtype).add(out, factors[trained.group].to(out.dtype), overwrite=overwrite)
