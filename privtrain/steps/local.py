"""How one data holder improves a model: the protocol."""

from typing import Protocol

from torch import nn

from privtrain.core.runtime import Party, Seen
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import PrivacyPlan


class LocalSteps(Protocol):
    """How a party improves the model it was sent."""

    def __call__(self, model: nn.Module, task: Task, party: Party) -> Seen:
        """Improves the model in place; returns what was seen of the rows, unprotected."""
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
