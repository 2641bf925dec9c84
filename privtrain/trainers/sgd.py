"""Pooled stochastic gradient descent: the baseline without any privacy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from privtrain.core.observers import CURATOR, PUBLIC
from privtrain.core.parameters import ModelPredictor
from privtrain.core.runtime import Draws, Runtimes
from privtrain.core.statement import InputPrivacy, Unit
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import PrivacyPlan, Run
from privtrain.core.validate import check_count, check_positive
from privtrain.release.door import Release
from privtrain.report.progress import Report, silent
from privtrain.steps.descent import PooledDescent
from privtrain.steps.optimizers import OptimizerFactory, check_factory
from privtrain.steps.pooling import CURATOR_READS


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Minibatch gradient descent on the pooled rows of all parties, without any privacy.

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
    caveats: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_count(epochs=self.epochs)
        check_positive(learning_rate=self.learning_rate)
        check_factory(self.optimizer)
        if self.batch_size is not None:
            check_count(batch_size=self.batch_size)

    @property
    def descent(self) -> PooledDescent:
        """What the curator does."""
        return PooledDescent(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
        )

    def plan(self, data: FederatedData, runtimes: Runtimes) -> tuple[PrivacyPlan, ...]:
        # The final model, exact; the epochs before it are not published.
        return Release().plans(unit=Unit.EXAMPLE, count=1, parties=1, observers=(PUBLIC, CURATOR))

    def input_privacy(self, data: FederatedData, runtimes: Runtimes) -> tuple[InputPrivacy, ...]:
        return (CURATOR_READS,)

    def with_noise(self, scale: float) -> None:
        return None

    def check(self, task: Task, model: nn.Module) -> None:
        self.descent.check(task, model)

    def check_rows(self, data: FederatedData, model: nn.Module) -> None:
        self.descent.check_rows(data, model)

    def briefly(self) -> "SGD":
        known = self.optimizer if isinstance(self.optimizer, str) else "SGD"
        return SGD(epochs=1, batch_size=8, optimizer=known)

    def train(self, task: Task, data: FederatedData, run: Run) -> ModelPredictor:
        return self.descent.train(task, data, run)

    def train_many(
        self,
        task: Task,
        data: FederatedData,
        included: Tensor,
        draws: Sequence[Draws],
        progress: Report = silent,
    ) -> list[ModelPredictor]:
        return self.descent.train_many(task, data.joined(), included, draws, progress)
