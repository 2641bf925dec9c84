"""Pooled stochastic gradient descent: the baseline without any privacy."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from privtrain.core.observers import AGGREGATOR, PUBLIC
from privtrain.core.parameters import ModelPredictor, initial_model, to_vector, trainable
from privtrain.core.parties import CURATOR_NAME
from privtrain.core.runtime import Runtimes
from privtrain.core.seeding import global_generator
from privtrain.core.statement import InputPrivacy, Unit
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import PrivacyPlan, Run
from privtrain.core.validate import check_count, check_positive
from privtrain.release.door import Release
from privtrain.sampling.passes import row_batches
from privtrain.steps.optimizers import OptimizerFactory, descend, make_optimizer
from privtrain.steps.pooling import CURATOR_READS, pool


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Minibatch gradient descent on the pooled rows of all parties. Nothing is promised.

    Args:
        epochs: Passes over the rows; at least 1.
        batch_size: Rows in a batch; None for all rows as one batch.
        learning_rate: Learning rate; positive.
        optimizer: Name of a class in `torch.optim`, or a factory.
    """

    epochs: int = 20
    batch_size: int | None = 32
    learning_rate: float = 0.1
    optimizer: str | OptimizerFactory = "SGD"
    token: ClassVar[str] = "sgd"

    def __post_init__(self) -> None:
        check_count(epochs=self.epochs)
        check_positive(learning_rate=self.learning_rate)
        if self.batch_size is not None:
            check_count(batch_size=self.batch_size)

    def plan(self, data: FederatedData, runtimes: Runtimes) -> tuple[PrivacyPlan, ...]:
        """One exact release of the final model."""
        return Release().plans(
            unit=Unit.EXAMPLE, count=1, parties=1, observers=(PUBLIC, AGGREGATOR)
        )

    def input_privacy(self, data: FederatedData, runtimes: Runtimes) -> tuple[InputPrivacy, ...]:
        """The curator reads everything."""
        return (CURATOR_READS,)

    def with_noise(self, scale: float) -> None:
        """None: there is no noise to scale."""
        return

    def train(self, task: Task, data: FederatedData, run: Run) -> ModelPredictor:
        """Trains on the pooled rows.

        Args:
            task: What is learned.
            data: Who holds which rows.
            run: The run.

        Returns:
            The trained model.
        """
        rows = pool(data, run)
        model = initial_model(task, run.seeds["initialisation", 0, ""]).to(run.device).train()
        optimizer = make_optimizer(self.optimizer, trainable(model), self.learning_rate)
        start = self._resume(model, optimizer, run)
        for epoch in range(start, self.epochs):
            total, count = torch.zeros((), device=run.device), 0
            order = run.seeds["order", epoch, CURATOR_NAME].torch()
            with global_generator(run.seeds["dropout", epoch, CURATOR_NAME]):
                for batch in row_batches(rows, self.batch_size, 1, order):
                    total += descend(model, optimizer, task.loss, *batch)
                    count += 1
            run.history.record(epoch + 1, training_loss=float(total) / max(count, 1))
            run.watch(epoch + 1, self.epochs, ModelPredictor(model))
            model.train()
            run.checkpoint.save(
                epoch + 1, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            )
            run.progress(epoch + 1, self.epochs)
        run.spend()
        run.ledger.use()
        run.transcript.publish(
            "model", to_vector(trainable(model)), sender=CURATOR_NAME, round=self.epochs
        )
        return ModelPredictor(model)

    def _resume(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, run: Run) -> int:
        saved = run.checkpoint.load()
        if saved is None:
            return 0
        done, state = saved
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return done
