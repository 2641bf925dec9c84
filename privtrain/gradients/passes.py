"""One pass of a model over rows whose draws are held fixed: losses, and sums of gradients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from privtrain.core.task import Loss, Rows
from privtrain.gradients.double import in_double, widened
from privtrain.gradients.draws import HeldDraws
from privtrain.gradients.gradients import check_losses

_SEED = 20160701


@dataclass(frozen=True)
class Precision:
    """In which type a model is run, and what rounding may change then.

    Args:
        double: Whether it is run in float64.
        losses: By how much a loss may change, relative to it.
        sums: By how much a signed sum of gradients may change, relative to its norm.
    """

    double: bool
    losses: float
    sums: float


DOUBLE = Precision(True, 1e-6, 1e-6)
"""In float64, where a difference is no rounding."""

# In float32 some unit of a large batch always lies so near to zero that rounding tips it.
_OWN = Precision(False, 1e-3, 5e-2)


def own_precision(model: nn.Module) -> Precision:
    """The model's own type, for what cannot be run in float64."""
    if any(parameter.dtype is torch.bfloat16 for parameter in model.parameters()):
        return replace(_OWN, losses=0.1, sums=0.5)
    return _OWN


@dataclass(frozen=True)
class Pass:
    """What a pass over a batch gave.

    Args:
        losses: Shape `(batch,)`, float64.
        sums: For each vector of weights, the weighted sum of gradients: its projection onto one
            random direction, and its norm; shape `(vectors, 2)`, float64.
        classes: How many columns the outputs have; 0 where they are no table.
        outputs: The outputs, without their graph.
        unreached: Which trained parameters autograd did not reach, by name.
        held: What was drawn.
    """

    losses: Tensor
    sums: Tensor
    classes: int
    outputs: Any
    unreached: tuple[str, ...]
    held: HeldDraws


Weigh = Callable[[Tensor], Sequence[Tensor]]
"""Losses to vectors of weights, each `(batch,)`; a row of weight zero is left out of its sum."""


def run(
    model: nn.Module,
    loss: Loss,
    rows: Rows,
    identities: Sequence[int],
    precision: Precision,
    weigh: Weigh,
    seed: int = 0,
) -> Pass:
    """Runs a model forward, and backward once for each vector of weights.

    No row's gradient is formed; each sum is gone before the next one is computed.

    Args:
        model: The model.
        loss: Loss of each row.
        rows: The batch; at least one row.
        identities: Which row each is, for what it draws.
        precision: In which type it is run.
        weigh: Gives the weights.
        seed: Of what is drawn.

    Returns:
        Losses and sums.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parameters = [parameter for _, parameter in named]
    held = HeldDraws(identities, seed)
    given = precise_rows(rows, precision)
    sums, reached = [], [False] * len(named)
    with precise(model, precision), held:
        # Copies: a model or a loss may write to what it is given.
        outputs = model(given.inputs.clone())
        losses = check_losses(loss(outputs, given.labels.clone()), rows)
        held.end_of_forward()
        # Random numbers of the trial are none of the model's draws.
        with _disable_current_modes():
            vectors = weigh(losses.detach().double().cpu())
        for weights in vectors:
            gradients: Sequence[Tensor | None] = [None] * len(named)
            if losses.requires_grad and parameters:
                # Chosen before they are weighted: zero times infinity is not zero.
                chosen = weights.nonzero().squeeze(1).to(losses.device)
                weighted = losses[chosen] * weights.to(losses)[chosen]
                gradients = torch.autograd.grad(
                    weighted.sum(), parameters, retain_graph=True, allow_unused=True
                )
            with _disable_current_modes():
                sums.append(_projected(gradients))
            pairs = zip(reached, gradients, strict=True)
            reached = [before or gradient is not None for before, gradient in pairs]
    table = isinstance(outputs, Tensor) and outputs.dim() == 2
    return Pass(
        losses.detach().double().cpu(),
        torch.stack(sums) if sums else torch.zeros(0, 2, dtype=torch.float64),
        outputs.shape[1] if table else 0,
        tree_map_only(Tensor, Tensor.detach, outputs),
        tuple(name for (name, _), found in zip(named, reached, strict=True) if not found),
        held,
    )


@contextmanager
def precise(model: nn.Module, precision: Precision) -> Iterator[None]:
    """Computes in a precision within it."""
    if precision.double:
        with in_double(model):
            yield
    else:
        yield


def precise_rows(rows: Rows, precision: Precision) -> Rows:
    """Rows in a precision."""
    if not precision.double:
        return rows
    targets = None if rows.targets is None else widened(rows.targets)
    return replace(rows, inputs=widened(rows.inputs), targets=targets)


def _projected(gradients: Sequence[Tensor | None]) -> Tensor:
    """Projection onto a random direction, the same in each pass, and the norm."""
    projection, square = torch.zeros(2, dtype=torch.float64)
    for number, gradient in enumerate(gradients):
        if gradient is None:
            continue
        flat = gradient.detach().double().reshape(-1)
        # Drawn anew each time: a direction is as large as the model.
        generator = torch.Generator(flat.device).manual_seed(_SEED + number)
        direction = torch.randn(
            len(flat), generator=generator, dtype=flat.dtype, device=flat.device
        )
        projection = projection + (flat @ direction).cpu()
        square = square + flat.square().sum().cpu()
    return torch.stack([projection, square.sqrt()])
