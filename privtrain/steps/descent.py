"""Descent on pooled rows: what the baseline does, and the plaintext twin of secure steps."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from privtrain.core.parameters import (
    STEPPED,
    ModelPredictor,
    check_types,
    initial_model,
    load_state,
    state_of,
    to_vector,
    trainable,
)
from privtrain.core.parties import CURATOR_NAME
from privtrain.core.runtime import Draws
from privtrain.core.seeding import global_generator
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import Run
from privtrain.report.progress import Report, silent
from privtrain.sampling.passes import batches, row_batches
from privtrain.steps.many import Models, in_parts, initial_models, optimizer_of_all, train_together
from privtrain.steps.optimizers import (
    OptimizerFactory,
    check_not_diverged,
    descend,
    make_optimizer,
    try_optimizer,
)
from privtrain.steps.plain import check_not_alone, normalises_batches
from privtrain.steps.pooling import pool


@dataclass(frozen=True)
class WithMomentum:
    """Makes torch's SGD with momentum; two that make the same are equal.

    Args:
        momentum: In [0, 1).
    """

    momentum: float

    def __call__(self, parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
        return torch.optim.SGD(parameters, lr=lr, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class PooledDescent:
    """Minibatch descent on the pooled rows of all parties, without any privacy.

    Args:
        epochs: Passes over the rows; at least 1.
        batch_size: Rows in a batch; None for all rows as one batch.
        learning_rate: Learning rate; positive.
        optimizer: Name of a class in `torch.optim`, or a factory.
    """

    epochs: int
    batch_size: int | None
    learning_rate: float
    optimizer: str | OptimizerFactory = "SGD"

    def check(self, task: Task, model: nn.Module) -> None:
        # Called for their refusals.
        check_types(model, STEPPED)
        try_optimizer(self.optimizer, trainable(model), self.learning_rate)

    def check_rows(self, data: FederatedData, model: nn.Module) -> None:
        rows = sum(len(data.train[party]) for party in data.parties)
        check_not_alone(model, rows, self.batch_size, "the curator")

    def train(self, task: Task, data: FederatedData, run: Run) -> ModelPredictor:
        rows = pool(data, run)
        model = initial_model(task, run.seeds["initialisation", 0, ""]).to(run.device).train()
        optimizer = make_optimizer(self.optimizer, trainable(model), self.learning_rate)
        start, saved = run.kept() or (0, {})
        if saved:
            load_state(model, saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
        alone = not normalises_batches(model)
        for epoch in range(start, self.epochs):
            total, count = torch.zeros((), device=run.device), 0
            # From the public seed: nothing is promised, so the order of the rows may be known.
            order = run.seeds["order", epoch, CURATOR_NAME].torch()
            # Layers such as dropout draw from torch's global generator only.
            with global_generator(run.seeds["dropout", epoch, CURATOR_NAME]):
                for batch in row_batches(rows, self.batch_size, 1, order, alone=alone):
                    total += descend(model, optimizer, task.loss, *batch)
                    count += 1
            check_not_diverged(trainable(model), rows.inputs)
            # On the device until here: reading the loss of each batch would wait for each batch.
            run.outcome.history.record(epoch + 1, training_loss=float(total) / max(count, 1))
            run.watch(epoch + 1, self.epochs, ModelPredictor(model))
            model.train()
            run.keep(epoch + 1, model=state_of(model), optimizer=optimizer.state_dict())
            run.progress(epoch + 1, self.epochs)
        # The final model is the one release of the plan; what led to it stays at the curator.
        run.spend()
        run.ledger.use()
        run.transcript.publish(
            "model", to_vector(trainable(model)), sender=CURATOR_NAME, round=self.epochs
        )
        return ModelPredictor(model)

    def train_many(
        self,
        task: Task,
        rows: Rows,
        included: Tensor,
        draws: Sequence[Draws],
        progress: Report = silent,
    ) -> list[ModelPredictor]:
        """Trains many models, each on rows of its own, to the bits that each has alone.

        Args:
            task: What is learned.
            rows: The rows of all models.
            included: Which rows each model trains on, boolean, shape `(models, rows)`.
            draws: The streams of each model.
            progress: Called as `progress(done, total)`, in steps.

        Raises:
            UnsupportedError: If the model draws while it trains, or the optimizer is none that
                steps each number by itself.
            DataError: If a model has no row, or its training diverged.
        """
        device = draws[0].device
        rows = rows.to(device)
        made = initial_models(task, included, draws)
        batch = self.batch_size or int(included.sum(dim=1).max())
        for part, shown in in_parts(len(made), rows, batch, progress):
            own = included[part].to(device)
            self._train(task, rows, made[part], own, draws[part], shown)
        for model in made:
            check_not_diverged(trainable(model), rows.inputs)
        return [ModelPredictor(model) for model in made]

    def _train(
        self,
        task: Task,
        rows: Rows,
        made: Sequence[nn.Module],
        included: Tensor,
        draws: Sequence[Draws],
        progress: Report,
    ) -> None:
        """Trains models whose batches fit into memory at the same time."""
        models = Models(made, task.loss)
        optimizer = optimizer_of_all(models, made[0], self.optimizer, self.learning_rate)
        most = int(included.sum(dim=1).max())
        steps = self.epochs * -(-most // (self.batch_size or most))

        def step(number: int, batches: list[Tensor | None]) -> None:
            models.step(optimizer, batches, rows)
            progress(number + 1, steps)

        taken = [
            self._batches_of(own.nonzero().flatten(), each)
            for own, each in zip(included, draws, strict=True)
        ]
        dropped = draws[0].seeds["dropout", 0, CURATOR_NAME]
        train_together(taken, step, models.take, dropped)

    def _batches_of(self, own: Tensor, draws: Draws) -> Iterator[Tensor]:
        """Numbers of the rows of each batch of a model, of all epochs."""
        for epoch in range(self.epochs):
            order = draws.seeds["order", epoch, CURATOR_NAME].torch()
            for index in batches(len(own), self.batch_size, 1, order):
                yield own if index is None else own[index.to(own.device)]
