"""Clipped sums for models that cannot be booked: one gradient for each example, by torch.func."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.task import Loss, Rows
from privtrain.privacy.clipping import Clipping, FlatClipping
from privtrain.steps.bookkeeping_parts import Formed, Measure, unit
from privtrain.steps.gradients import ClippedSum, empty_sum

_VALUES = 2**23
"""Values of per-example gradients that are held at a time: 32 MB in float32."""


def groups_of(model: nn.Module, clipping: Clipping) -> dict[int, int]:
    """The group of each trained parameter, by the parameter's `id`."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = clipping.groups([name for name, _ in named])
    return {id(p): group for (_, p), group in zip(named, groups, strict=True)}


def group_norms(measured: list[tuple[int, Measure]], groups: int, dtype: torch.dtype) -> Tensor:
    """Upper bounds of the norms over groups of parameters, with room for rounding the factors.

    Args:
        measured: Of each parameter its group, the squared norms of its gradients, and what
            rounding may add to them.
        groups: How many groups there are.
        dtype: Type in which gradients are weighted.

    Returns:
        Shape `(groups, batch)`, float64; zero for a group of which nothing was measured.
    """
    squares = measured[0][1][0].new_zeros(groups, len(measured[0][1][0]))
    for group, (square, error) in measured:
        squares[group] += square if error is None else (square.sqrt() + error).square()
    return squares.sqrt_() * (1 + 8 * unit(dtype))


def total(norms: Tensor) -> Tensor:
    """Norms of whole gradients from those of their groups, `(batch,)`."""
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(norms, dim=0)


@dataclass
class PerExample:
    """Forms every example's gradient by `torch.func`, a few examples at a time.

    Args:
        model: The model.
        loss: Loss of each example.
        clipping: How the clipping norm is shared out among layers.
    """

    model: nn.Module
    loss: Loss
    clipping: Clipping = FlatClipping()

    def clipped_sum(self, rows: Rows, clipping_norm: float) -> ClippedSum:
        """The sum over a batch of gradients, each clipped to an L2 norm.

        Args:
            rows: The batch, on the model's device; may be empty.
            clipping_norm: Upper bound on each gradient's L2 norm; positive.

        Returns:
            The sum; an example without a finite gradient counts as zero.
        """
        if len(rows) == 0:
            return empty_sum(self.model)
        value = empty_sum(self.model).value
        groups = list(groups_of(self.model, self.clipping).values())
        size = max(1, _VALUES // max(1, value.numel()))
        norms, losses = [], []
        for index in torch.split(torch.arange(len(rows), device=rows.inputs.device), size):
            gradients, found = self._gradients(rows.take(index))
            measured = [(g, Formed(x).measure()) for g, x in zip(groups, gradients, strict=True)]
            of_groups = group_norms(measured, max(groups) + 1, value.dtype)
            factors = self.clipping.factors(of_groups, clipping_norm)
            self._add(value, gradients, factors[groups])
            norms.append(total(of_groups))
            losses.append(found)
        value *= self.clipping.scale(clipping_norm)
        return ClippedSum(value, torch.cat(norms), torch.cat(losses))

    def close(self) -> None:
        """Nothing was put on the model."""

    def _add(self, value: Tensor, gradients: list[Tensor], factors: Tensor) -> None:
        """Adds what is weighted by each parameter's factors, `(parameters, batch)`."""
        kept = (factors != 0).all(dim=0)
        start = 0
        for gradient, own in zip(gradients, factors, strict=True):
            flat = gradient.flatten(1)[kept]
            end = start + flat.shape[1]
            value[start:end].addmv_(flat.t(), own[kept].to(value.dtype))
            start = end

    def _gradients(self, rows: Rows) -> tuple[list[Tensor], Tensor]:
        """Gradients of each parameter, `(batch, ...)`, and the losses, `(batch,)`."""
        given = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        one: Callable[..., Any] = torch.func.grad(self._one, has_aux=True)
        each = torch.func.vmap(one, in_dims=(None, 0, 0), randomness="different")
        try:
            gradients, losses = each(given, rows.inputs, rows.labels)
        except (RuntimeError, NotImplementedError) as error:
            raise UnsupportedError(
                "This model has parameters that are used outside of the layers that can be "
                f"booked, and torch.func cannot take it one example at a time either: {error}. "
                "Use layers for all parameters, or Opacus(mode='hooks')."
            ) from error
        return [gradients[name] for name in given], losses

    def _one(self, given: dict[str, Tensor], row: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.func.functional_call(self.model, given, (row.unsqueeze(0),))
        losses = self.loss(logits, label.unsqueeze(0))
        return losses.sum(), losses.detach().sum()
