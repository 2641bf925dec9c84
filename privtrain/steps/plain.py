"""How one data holder improves a model without noise: epochs of minibatch gradient descent."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from privtrain.core.parameters import trainable
from privtrain.core.runtime import PartyRun
from privtrain.core.seeding import global_generator
from privtrain.core.task import FederatedData, Loss, Rows, Task
from privtrain.core.trainer import PrivacyPlan
from privtrain.core.validate import check_count, check_positive

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


def batches(
    rows: int, batch_size: int | None, epochs: int, generator: torch.Generator
) -> Iterator[Tensor | None]:
    """Indices of the batches of some epochs, each epoch in an order of its own.

    Args:
        rows: How many rows there are.
        batch_size: Rows in a batch; None, or at least `rows`, for all in their own order.
        epochs: How many epochs.
        generator: Where the orders come from.

    Yields:
        Indices, shape `(batch,)`; None stands for all rows as they are.
    """
    for _ in range(epochs):
        if batch_size is None or batch_size >= rows:
            yield None
        else:
            cuts = tuple(range(batch_size, rows, batch_size))
            yield from torch.randperm(rows, generator=generator).tensor_split(cuts)


def row_batches(
    rows: Rows, batch_size: int | None, epochs: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of the batches of some epochs; see `batches`.

    Yields:
        Inputs `(batch, ...)` and targets `(batch, ...)`, on the rows' device.
    """
    inputs, targets = rows.inputs, rows.labels
    for index in batches(len(rows), batch_size, epochs, generator):
        yield (inputs, targets) if index is None else (inputs[index], targets[index])


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
    """
    # As `optimizer.zero_grad()`, without its profiling, which costs a tenth of a small step.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    value = loss(model(inputs), targets).mean()
    # mypy: torch leaves `backward` untyped.
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value.detach()


class GradientVector:
    """One vector whose parts are the gradients of parameters.

    Args:
        parameters: The parameters, on one device.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        self._sizes = [parameter.numel() for parameter in parameters]
        like = parameters[0] if parameters else torch.zeros(0)
        self._vector = torch.zeros(sum(self._sizes), dtype=like.dtype, device=like.device)
        self._parts = [
            part.view(parameter.shape)
            for parameter, part in zip(
                parameters, torch.split(self._vector, self._sizes), strict=True
            )
        ]

    def set(self, gradient: Tensor, divisor: float = 1.0) -> None:
        """Makes a vector over a number the parameters' gradients.

        Args:
            gradient: As many values as the parameters hold together, shape `(parameters,)`.
            divisor: Not zero.

        Raises:
            ValueError: If the number of values differs.
        """
        if gradient.shape != self._vector.shape:
            raise ValueError(
                f"Expected gradient.shape={tuple(gradient.shape)} to be ({sum(self._sizes)},)."
            )
        torch.div(gradient, divisor, out=self._vector)
        for parameter, part in zip(self._parameters, self._parts, strict=True):
            if parameter.grad is not part:
                parameter.grad = part.to(parameter.dtype)


class LocalSteps(Protocol):
    """How a party improves the model it was sent."""

    def __call__(self, model: nn.Module, task: Task, party: PartyRun) -> dict[str, Tensor]:
        """Improves the model in place; returns unprotected diagnostics."""
        ...

    def settled(self, data: FederatedData) -> "LocalSteps":
        """The same steps with every public figure filled in, for parties to use."""
        ...

    def plans(self, data: FederatedData, rounds: int) -> tuple[PrivacyPlan, ...]:
        """What each observer learns of an example through these steps alone."""
        ...

    def with_scale(self, scale: float) -> "LocalSteps | None":
        """The same steps with another noise scale, or None where they draw no noise."""
        ...


@dataclass(frozen=True, kw_only=True)
class PlainSteps:
    """Epochs of minibatch gradient descent, without noise.

    Args:
        epochs: Passes over the party's rows in each round; at least 1.
        batch_size: Rows in a batch; None for all rows as one batch.
        learning_rate: Learning rate; positive.
        optimizer: Name of a class in `torch.optim`, or a factory. It starts anew in each round.
    """

    epochs: int = 1
    batch_size: int | None = 32
    learning_rate: float = 0.1
    optimizer: str | OptimizerFactory = "SGD"

    def __post_init__(self) -> None:
        check_count(epochs=self.epochs)
        check_positive(learning_rate=self.learning_rate)
        if self.batch_size is not None:
            check_count(batch_size=self.batch_size)

    def __call__(self, model: nn.Module, task: Task, party: PartyRun) -> dict[str, Tensor]:
        """Improves the model in place.

        Args:
            model: The model, on the party's device, in training mode.
            task: What is learned.
            party: Whose rows are used.

        Returns:
            The mean training loss, unprotected.
        """
        rows = party.rows.to(party.device)
        optimizer = make_optimizer(self.optimizer, trainable(model), self.learning_rate)
        order = party.seeds["order", party.round, party.party].torch()
        losses = []
        with global_generator(party.seeds["dropout", party.round, party.party]):
            for batch in row_batches(rows, self.batch_size, self.epochs, order):
                losses.append(descend(model, optimizer, task.loss, *batch))
        return {"training_loss": torch.stack(losses).mean().cpu()}

    def settled(self, data: FederatedData) -> "PlainSteps":
        """The steps themselves: there is nothing to fill in."""
        return self

    def plans(self, data: FederatedData, rounds: int) -> tuple[PrivacyPlan, ...]:
        """No plans: without noise these steps promise nothing."""
        return ()

    def with_scale(self, scale: float) -> None:
        """None: there is no noise to scale."""
        return
