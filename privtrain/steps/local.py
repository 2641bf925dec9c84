"""How one data holder improves a model: the protocol."""

from typing import Protocol

from torch import nn

from privtrain.core.runtime import Draws, Seen
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import PrivacyPlan


class LocalSteps(Protocol):
    """How whoever holds rows improves a model."""

    def __call__(self, model: nn.Module, task: Task, rows: Rows, draws: Draws) -> Seen:
        """Improves the model in place.

        Args:
            model: The model, on the device of the draws, in training mode.
            task: What is learned.
            rows: What it learns from, of one holder; on any device.
            draws: What its order, dropout, samples and noise are drawn from.

        Returns:
            What was seen of the rows: unprotected diagnostics, and no part of a message.
        """
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
