"""Clipped sums of per-example gradients: what every way to compute them offers."""

from collections.abc import Sized
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.parameters import trainable
from privtrain.core.task import Loss, Rows


@dataclass(frozen=True)
class ClippedSum:
    """The sum of clipped per-example gradients, with diagnostics of the simulation.

    Args:
        value: Shape `(parameters,)`.
        norms: Gradient norms before clipping, shape `(batch,)`; unprotected.
        losses: Losses, shape `(batch,)`; unprotected.
    """

    value: Tensor
    norms: Tensor
    losses: Tensor

    @property
    def non_finite(self) -> int:
        """How many examples had no finite loss or gradient, and counted as zero."""
        return int((~torch.isfinite(self.norms)).sum())


class GradientEngine(Protocol):
    """A way to compute the clipped sum of per-example gradients of one model."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader of a result should know of how gradients were computed."""
        ...

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the sensitivity of the sums assumes, as far as it is known by now."""
        ...

    def try_on(self, rows: Rows) -> None:
        """Tries before training, on rows that are not private, what else the first batch decides.

        Args:
            rows: Public or synthetic rows, on the model's device, about as many as a batch has;
                their targets may all be zero, of the training targets' type and shape.

        Raises:
            UnsupportedError: If examples influence one another, or the model cannot be taken.
        """
        ...

    def clipped_sum(self, rows: Rows, clipping_norm: float) -> ClippedSum:
        """The sum over a batch of gradients, each clipped to an L2 norm.

        Where `try_on` settled nothing, the first batch that can tell is tried instead, and a
        refusal names itself unprotected.
        """
        ...

    def close(self) -> None:
        """Takes the engine off the model, which is then as it was before."""
        ...


class Gradients(Protocol):
    """A setting: what computes per-example gradients, such as `BookKeeping()` or `Opacus()`."""

    def engine(self, model: nn.Module, loss: Loss) -> GradientEngine:
        """Prepares a model; the engine is closed when it is no longer needed."""
        ...


def empty_sum(model: nn.Module) -> ClippedSum:
    """The clipped sum of an empty batch, as Poisson sampling draws it now and then."""
    parameters = trainable(model)
    like = parameters[0] if parameters else torch.zeros(0)
    zero = like.new_zeros(sum(parameter.numel() for parameter in parameters))
    return ClippedSum(zero, zero[:0], zero[:0])


def check_precision(model: nn.Module) -> None:
    """Refuses models in float16, whose smallest numbers round clipping factors up.

    Raises:
        UnsupportedError: With the parameter, and what to use in its place.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype is torch.float16 and parameter.requires_grad:
            raise UnsupportedError(
                f"The parameter {name!r} is of type float16, which rounds clipping factors below "
                "6e-5 so coarsely that contributions exceed the clipping norm. Use "
                "model.bfloat16(), or float32."
            )


def nan_where_not_finite(norms: Tensor, losses: Tensor) -> Tensor:
    """Norms of examples, not a number where the loss is not finite: these count as zero.

    A loss can be infinite and have a finite gradient.

    Args:
        norms: Shape `(..., batch)`.
        losses: Shape `(batch,)`.

    Returns:
        Shape `(..., batch)`.
    """
    # Zero times what is not finite is not a number.
    return norms.add(losses.detach(), alpha=0)


def one_loss_each(model: nn.Module, loss: Loss, rows: Rows) -> Tensor:
    """Losses of a batch, shape `(batch,)`; a loss that has averaged already is refused."""
    # Copies: what writes into its rows would be given others by the next engine that tries.
    outputs = model(rows.inputs.clone())
    return check_losses(loss(outputs, rows.labels.clone()), rows)


def check_losses(losses: Tensor, rows: Sized) -> Tensor:
    """Refuses losses that are not one for each example.

    Args:
        losses: What a task's loss returned.
        rows: The batch, or its inputs.

    Returns:
        The losses, shape `(batch,)`.

    Raises:
        DataError: With their shape, and the way out.
    """
    if losses.shape == (len(rows),):
        return losses
    way_out = "Do not average in it."
    if losses.dim() > 1:
        # As outputs (rows, 1) and targets (rows,) give by broadcasting: (rows, rows).
        way_out = (
            f"Give outputs and targets one shape, as outputs.squeeze(1) does for targets of shape "
            f"({len(rows)},), and average over what belongs to one example: "
            "losses.flatten(1).mean(dim=1)."
        )
    # One of our own: any other error of a loss would look like a party that was lost.
    raise DataError(
        f"Expected the task's loss to return one value for each example, of shape "
        f"({len(rows)},); it returned shape {tuple(losses.shape)}. {way_out}"
    )
