"""Optimizers, the gradients they are given, and one step."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from privtrain.core.parameters import wide_type
from privtrain.core.task import Loss
from privtrain.gradients.gradients import check_losses, outputs_of

OptimizerFactory = Callable[..., Optimizer]
"""Called as `factory(parameters, lr=learning_rate)`."""


def make_optimizer(
    optimizer: str | OptimizerFactory, parameters: list[nn.Parameter], learning_rate: float
) -> Optimizer:
    """Any of torch's optimizers for some parameters.

    Args:
        optimizer: Name of a class in `torch.optim`, or a factory such as
            `functools.partial(torch.optim.SGD, momentum=0.9)`.
        parameters: What it updates.
        learning_rate: Its learning rate; positive.

    Returns:
        The optimizer.

    Raises:
        ValueError: If there is no optimizer of that name.
    """
    if not isinstance(optimizer, str):
        return optimizer(parameters, lr=learning_rate)
    factory = getattr(torch.optim, optimizer, None)
    if not (isinstance(factory, type) and issubclass(factory, Optimizer)):
        raise ValueError(
            f"Expected optimizer={optimizer!r} to be the name of a class in torch.optim, "
            "such as 'SGD' or 'Adam', or a factory."
        )
    return make_optimizer(factory, parameters, learning_rate)


def descend(
    model: nn.Module, optimizer: Optimizer, loss: Loss, inputs: Tensor, targets: Tensor
) -> Tensor:
    """One step on the mean loss of a batch.

    Args:
        model: The model, in training mode.
        optimizer: Steps its parameters.
        loss: Loss of each example.
        inputs: Shape `(batch, ...)`, on the model's device.
        targets: Shape `(batch, ...)`, on the model's device.

    Returns:
        The mean loss before the step, detached.

    Raises:
        DataError: If the loss is not one value for each example.
    """
    # As `optimizer.zero_grad()`, without its profiling, which costs a tenth of a small step.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    # Outputs `(batch, 1)` against targets `(batch,)` become a table of all pairs, whose mean trains
    # towards the mean target without a word.
    value = check_losses(loss(outputs_of(model, inputs), targets), inputs).mean()
    # mypy: torch leaves `backward` untyped.
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value.detach()


class GradientVector:
    """One vector whose pieces are the gradients of parameters.

    Args:
        parameters: The parameters, on one device.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        self._sizes = [parameter.numel() for parameter in parameters]
        like = parameters[0] if parameters else torch.zeros(0)
        # In the type of sums: a parameter of a coarser one rounds its own part only.
        dtype = wide_type(parameters)
        self._vector = torch.zeros(sum(self._sizes), dtype=dtype, device=like.device)
        # Views of one vector: a step writes it once, instead of once for each parameter.
        self._views = [
            piece.view(parameter.shape)
            for parameter, piece in zip(
                parameters, torch.split(self._vector, self._sizes), strict=True
            )
        ]

    def set(self, gradient: Tensor, divisor: float = 1.0) -> None:
        """Writes a vector, divided by a number, into the gradients of the parameters.

        Args:
            gradient: As many values as all parameters hold, shape `(parameters,)`.
            divisor: Not zero.

        Raises:
            ValueError: If the number of values differs.
        """
        if gradient.shape != self._vector.shape:
            raise ValueError(
                f"Expected gradient.shape={tuple(gradient.shape)} to be ({sum(self._sizes)},)."
            )
        torch.div(gradient, divisor, out=self._vector)
        for parameter, view in zip(self._parameters, self._views, strict=True):
            # Only where it is not there already: an optimizer may have dropped it, and a parameter
            # of another type needs a copy in each step.
            if parameter.grad is not view:
                parameter.grad = view.to(parameter.dtype)
