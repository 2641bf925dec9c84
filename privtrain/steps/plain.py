"""How one data holder improves a model without noise: epochs of minibatch gradient descent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from privtrain.core.errors import READS_ROWS, DataError
from privtrain.core.parameters import (
    STEPPED,
    ModelPredictor,
    check_types,
    initial_model,
    trainable,
)
from privtrain.core.runtime import Draws, Seen
from privtrain.core.seeding import Seeds, global_generator
from privtrain.core.task import FederatedData, Rows, Task, check_party_rows
from privtrain.core.trainer import PrivacyPlan
from privtrain.core.validate import check_count, check_positive
from privtrain.sampling.passes import row_batches
from privtrain.steps.features import Features, OnFeatures, features_of
from privtrain.steps.optimizers import (
    OptimizerFactory,
    check_factory,
    descend,
    make_optimizer,
    try_optimizer,
)
from privtrain.steps.student import PublicInputs, by_chance
from privtrain.steps.teaching import Teacher


def normalises_batches(model: nn.Module) -> bool:
    """Whether a layer in training mode normalises by its batch, and so needs two rows in each."""
    return any(isinstance(layer, _BatchNorm) and layer.training for layer in model.modules())


def check_not_alone(model: nn.Module, rows: int, batch_size: int | None, holder: str) -> None:
    """Refuses batches of one row before a layer that normalises by its batch.

    Args:
        model: The model, in training mode.
        rows: How many rows there are.
        batch_size: Rows in a batch; None for all rows as one batch.
        holder: Who holds them, for the message.

    Raises:
        DataError: If a row would be alone, whose only statistics are its own.
    """
    if not normalises_batches(model) or (rows > 1 and batch_size != 1):
        return
    what = f"batch_size={batch_size}" if rows > 1 else f"{holder}, which holds a single row,"
    told = "" if rows > 1 else f" {READS_ROWS}"
    raise DataError(
        f"Expected {what} to give batches of two rows at least: the model normalises by its batch "
        "(nn.BatchNorm). Use a larger batch_size, leave such parties out, or use nn.GroupNorm."
        f"{told}"
    )


@dataclass(frozen=True, kw_only=True)
class PlainSteps:
    """Epochs of minibatch gradient descent, without noise.

    Args:
        epochs: Passes over the party's rows in each round; at least 1.
        batch_size: Rows in a batch; None for all rows as one batch.
        learning_rate: Learning rate; positive.
        optimizer: Name of a class in `torch.optim`, or a factory. Its state starts at zero in each
            round.
    """

    epochs: int = 1
    batch_size: int | None = 32
    learning_rate: float = 0.1
    optimizer: str | OptimizerFactory = "SGD"

    def __post_init__(self) -> None:
        check_count(epochs=self.epochs)
        check_positive(learning_rate=self.learning_rate)
        check_factory(self.optimizer)
        if self.batch_size is not None:
            check_count(batch_size=self.batch_size)

    def __call__(self, model: nn.Module, task: Task, rows: Rows, draws: Draws) -> Seen:
        """Improves the model in place; what is seen is the mean training loss.

        Raises:
            DataError: If there are no rows, or one alone before a layer that normalises by its
                batch.
        """
        # Without a row the update would be zero, and nobody would be told.
        check_party_rows(draws.name, rows)
        rows = rows.to(draws.device)
        alone = not normalises_batches(model)
        if not alone:
            check_not_alone(model, len(rows), self.batch_size, draws.name)
        # McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1, ClientUpdate: B, E and eta are
        # `batch_size`, `epochs` and `learning_rate`.
        optimizer = make_optimizer(self.optimizer, trainable(model), self.learning_rate)
        order = draws.seeds["order", draws.round, draws.name].torch()
        losses = []
        # A stream for each party and round, so that the order in which a worker takes its parties
        # changes no dropout mask.
        with global_generator(draws.seeds["dropout", draws.round, draws.name]):
            for batch in row_batches(rows, self.batch_size, self.epochs, order, alone=alone):
                losses.append(descend(model, optimizer, task.loss, *batch))
        return Seen(numbers={"training_loss": float(torch.stack(losses).mean())})

    @property
    def reads_features(self) -> bool:
        return True

    def wanted(self, queries: int) -> int:
        return queries

    def choose(self, public: PublicInputs, queries: int, seeds: Seeds) -> Tensor:
        return by_chance(len(public), queries, seeds)

    def learn(
        self, model: nn.Module, task: Task, answered: Rows, public: PublicInputs, draws: Draws
    ) -> Seen:
        # From what was answered alone: without targets these steps can learn nothing.
        if isinstance(model, OnFeatures):
            # Once, and not in every pass.
            return self(model.model, task, features_of(model.features, answered), draws)
        return self(model, task, answered, draws)

    def check_public(self, inputs: Tensor, features: Features | None) -> None:
        # What the model makes of them was tried.
        return

    @property
    def trains_model(self) -> bool:
        return True

    def fewest_rows(self, model: nn.Module) -> int:
        if not normalises_batches(model):
            return 1
        # Each teacher trains on rows of its own, of which batches have two at least.
        check_not_alone(model, 2, self.batch_size, "a teacher")
        return 2

    @property
    def at_once(self) -> int:
        return 1

    def prepared(self, task: Task, queries: Tensor, classes: int) -> "PlainSteps":
        return self

    def teach(
        self, task: Task, group: Sequence[Teacher], queries: Tensor, classes: int
    ) -> list[Tensor]:
        # Papernot et al. 2017, "Data partitioning and teachers": one model for each disjoint set.
        scores = []
        for teacher in group:
            draws = teacher.draws
            model = initial_model(task, draws.seeds["teacher", 0, draws.name]).to(draws.device)
            # A teacher that no row belongs to votes by its initial model: that every teacher votes
            # must not depend on the rows.
            # Nor can one on a single row where layers normalise by their batch.
            if len(teacher.rows) >= self.fewest_rows(model.train()):
                self(model, task, teacher.rows, draws)
            with global_generator(draws.seeds["votes", 0, draws.name]):
                scores.append(ModelPredictor(model)(queries).cpu())
        return scores

    def check(self, task: Task, model: nn.Module) -> None:
        # Called for their refusals.
        check_types(model, STEPPED)
        try_optimizer(self.optimizer, trainable(model), self.learning_rate)

    def check_rows(self, data: FederatedData, model: nn.Module) -> None:
        for party in data.parties if normalises_batches(model) else ():
            check_not_alone(model, len(data.train[party]), self.batch_size, party)

    def settled(self, data: FederatedData) -> "PlainSteps":
        return self

    def plans(self, data: FederatedData, rounds: int) -> tuple[PrivacyPlan, ...]:
        # Without noise these steps promise nothing; what leaves may be noised by a release.
        return ()

    def with_scale(self, scale: float) -> None:
        return
