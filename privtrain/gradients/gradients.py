"""Clipped sums of per-example gradients: what every way to compute them offers."""

from collections.abc import Iterable, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.parameters import trainable, wide_type
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


NARROW_ROWS = 256
"""Rows whose gradients are added up in float32 at most; those of larger batches are in float64.

What rounding adds to the reach of one row grows faster than the batch, whose sum it is a part of.
"""

MOST_ROWS = 2**22
"""Rows of one batch at most, for which float64 keeps rounding below 2^-8 clipping norms."""


def sum_type(parameters: Iterable[Tensor], rows: int) -> torch.dtype:
    """The type in which clipped gradients of a batch are added up; they have `wide_type`.

    Norms and factors never follow from the number of rows: one row more would change all of them.

    Two sums of n terms, with and without a row, lie at most 2 n^2 u clipping norms from where they
    would without rounding, u the unit of the type: 2^-8 in float64 up to `MOST_ROWS`, in float32
    up to 181 rows, and 2^-7 up to `NARROW_ROWS`. The two of a batch of that size and one row more
    have other types, so that nothing of their rounding cancels: where all rows agree one row was
    seen to move them by 2^-10.6 at most, and by 2^-6.3 with a `NARROW_ROWS` of 1,024.

    Args:
        parameters: What is trained.
        rows: Examples in the batch.

    Raises:
        UnsupportedError: If the batch is larger than float64 can add up.

    Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, section 4.2.
    """
    if rows > MOST_ROWS:
        raise UnsupportedError(
            f"A batch of {rows} rows is too large: rounding of its clipped sum is bounded for "
            f"{MOST_ROWS} at most. Use a smaller expected_batch or sampling_rate."
        )
    return torch.float64 if rows > NARROW_ROWS else wide_type(parameters)


def rounding_of(*types: torch.dtype) -> float:
    """By how much two ways to a gradient may differ, relative to the sum of its examples' norms.

    Args:
        types: What is rounded to on either way.
    """
    return max(1e-3, *(8 * torch.finfo(dtype).eps for dtype in types))


def empty_sum(model: nn.Module) -> ClippedSum:
    """The clipped sum of an empty batch, as Poisson sampling draws it now and then."""
    parameters = trainable(model)
    like = parameters[0] if parameters else torch.zeros(0)
    values = sum(parameter.numel() for parameter in parameters)
    zero = like.new_zeros(values, dtype=sum_type(parameters, 0))
    return ClippedSum(zero, zero[:0], zero[:0])


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
    outputs = outputs_of(model, rows.inputs.clone())
    return check_losses(loss(outputs, rows.labels.clone()), rows)


def outputs_of(model: nn.Module, inputs: Tensor) -> Any:
    """What a model makes of inputs, `(batch, ...)`; an error names the types that it met.

    Raises:
        UnsupportedError: If the model fails, and inputs and parameters are not of one type.
    """
    try:
        return model(inputs)
    except RuntimeError as error:
        types = {parameter.dtype for parameter in model.parameters()} | {inputs.dtype}
        if len(types) == 1 or not inputs.is_floating_point():
            raise
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
        raise UnsupportedError(
            f"The model failed on rows of type {inputs.dtype}: {error}. Inputs and parameters are "
            f"of several types ({names}); give the data the type of the first layer, or convert "
            "where types meet in forward."
        ) from error


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
