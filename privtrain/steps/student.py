"""How a student of PATE learns: the protocol, and the public rows that it learns from."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from privtrain.core.runtime import Draws, Seen
from privtrain.core.seeding import Seeds
from privtrain.core.task import Rows, Task
from privtrain.steps.features import Features, frozen, mapped


@dataclass(frozen=True)
class PublicInputs:
    """All public rows, asked about or not; nobody knows their true labels.

    Args:
        inputs: Shape `(rows, ...)`.
        features: The public map by which they may be compared; None for the inputs as they are.
    """

    inputs: Tensor
    features: Features | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @cached_property
    def mapped(self) -> Tensor:
        """The features of all rows, shape `(rows, ...)`; mapped when they are first needed."""
        return mapped(frozen(self.features), self.inputs)


class StudentSteps(Protocol):
    """How a student chooses what to ask, and learns from answers and from public rows."""

    @property
    def reads_features(self) -> bool:
        """Whether its model reads features where there is a map of them, or the rows themselves."""
        ...

    def wanted(self, queries: int) -> int:
        """How many public rows it would learn from, beside so many that it asks about."""
        ...

    def choose(self, public: PublicInputs, queries: int, seeds: Seeds) -> Tensor:
        """Which public rows are asked about, and in which order.

        Args:
            public: All public rows.
            queries: How many are asked about at most.
            seeds: Public streams.

        Returns:
            Indices, each once, shape `(queries,)`, or of all rows where there are fewer.
        """
        ...

    def learn(
        self, model: nn.Module, task: Task, answered: Rows, public: PublicInputs, draws: Draws
    ) -> Seen:
        """Improves the model in place.

        Args:
            model: The model, on the device of the draws, in training mode.
            task: What is learned.
            answered: Public rows and the answers to them, at least one: class numbers, or
                probabilities of shape `(rows, classes)`. They are among the public rows.
            public: All public rows.
            draws: What its order, dropout and augmentation are drawn from.

        Returns:
            What was seen: `training_loss`, and notes on what turned out.
        """
        ...

    def check(self, task: Task, model: nn.Module) -> None:
        """Refuses beforehand what it cannot train; the model's values may be changed."""
        ...

    def check_public(self, inputs: Tensor, features: Features | None) -> None:
        """Refuses beforehand public rows that it cannot use.

        Args:
            inputs: A few of them, shape `(rows, ...)`.
            features: The map of features, if there is one.
        """
        ...


def by_chance(rows: int, queries: int, seeds: Seeds) -> Tensor:
    """Indices of rows to ask about, drawn without replacement, shape `(queries,)` at most."""
    return torch.randperm(rows, generator=seeds["queries", 0, ""].torch())[:queries]
