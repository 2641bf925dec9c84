"""DP-SGD on pooled rows: per-example clipping and noise (Abadi et al. 2016, Algorithm 1)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from privtrain.core.errors import BudgetExceededError, DataError, UnsoundReleaseError
from privtrain.core.observers import AGGREGATOR, PUBLIC
from privtrain.core.parameters import ModelPredictor, initial_model, to_vector, trainable
from privtrain.core.parties import CURATOR_NAME
from privtrain.core.runtime import Runtimes
from privtrain.core.seeding import global_generator
from privtrain.core.statement import InputPrivacy
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import PrivacyPlan, Run
from privtrain.core.validate import check_offers, check_positive, check_probability
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.gradients import Gradients
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.mechanism import l2_bound
from privtrain.release.aggregation import BoundedSum
from privtrain.release.door import Release
from privtrain.sampling.batches import Batches, BatchSampling, PoissonBatches, taken
from privtrain.steps.optimizers import GradientVector, OptimizerFactory, make_optimizer
from privtrain.steps.pooling import CURATOR_READS, pool
from privtrain.steps.private import diagnostics

SHOWN = 20
"""How often the run is looked at, and how often at most it is kept."""


@dataclass(frozen=True, kw_only=True)
class DPSGD:
    """Gradient descent on clipped and noised sums of per-example gradients.

    The curator, who holds the rows and draws the noise, is promised nothing to; the public is.

    Args:
        epochs: Expected passes over the rows; positive.
        expected_batch: Public number by which noised sums are divided; positive.
        sampling_rate: Each example's probability of being in a batch, in (0, 1]; None for the
            expected batch over the data's public number of rows.
        sampling: How batches are drawn: `PoissonBatches()`, which can also protect users,
            `TruncatedPoissonBatches()`, `FixedSizeBatches()` or `ShuffledEpochs()`; for noise that
            is correlated over steps `CyclicPoisson(groups)` or `FixedOrder()`.
        learning_rate: Learning rate; positive.
        optimizer: Name of a class in `torch.optim`, or a factory.
        release: How gradients are clipped and noised; the mechanism clips in L2 norm.
        gradients: What computes per-example gradients, as `BookKeeping()` or `Opacus()`.

    Source: Abadi et al. 2016, Algorithm 1 (arXiv:1607.00133).
    """

    epochs: float = 20.0
    expected_batch: float = 64.0
    sampling_rate: float | None = None
    sampling: BatchSampling = PoissonBatches()
    learning_rate: float = 0.5
    optimizer: str | OptimizerFactory = "SGD"
    release: Release = Release(Gaussian(1.0, 1.0))
    gradients: Gradients = BookKeeping()
    token: ClassVar[str] = "dp_sgd"

    def __post_init__(self) -> None:
        check_offers("arrive", "Release(Gaussian(1.0, 1.0))", release=self.release)
        check_offers("batches", "PoissonBatches()", sampling=self.sampling)
        check_offers("engine", "BookKeeping()", gradients=self.gradients)
        l2_bound(self.release.mechanism)
        if self.release != Release(self.release.mechanism):
            raise UnsoundReleaseError(
                f"DPSGD trains on pooled rows: only the curator can draw the noise, and no message "
                f"is added up. Got release={self.release}. Use Release({self.release.mechanism}), "
                "or FedAvg for parties that keep their rows."
            )
        check_positive(
            epochs=self.epochs,
            expected_batch=self.expected_batch,
            learning_rate=self.learning_rate,
        )
        if self.sampling_rate is not None:
            check_probability(sampling_rate=self.sampling_rate)

    def batches(self, data: FederatedData) -> Batches:
        """How batches are drawn and how many there are, from public figures."""
        return self.sampling.batches(
            data,
            epochs=self.epochs,
            sampling_rate=self.sampling_rate,
            expected_batch=self.expected_batch,
        )

    def plan(self, data: FederatedData, runtimes: Runtimes) -> tuple[PrivacyPlan, ...]:
        """One release a draw: a step, an epoch whose batches share no row, or the whole run."""
        batches = self.batches(data)
        return self.release.plans(
            unit=batches.unit,
            count=batches.draws,
            parties=batches.population,
            sampling=batches.sampling,
            observers=(PUBLIC, AGGREGATOR),
            assumptions=batches.assumptions,
        )

    def input_privacy(self, data: FederatedData, runtimes: Runtimes) -> tuple[InputPrivacy, ...]:
        """The curator reads everything."""
        return (CURATOR_READS,)

    def with_noise(self, scale: float) -> "DPSGD | None":
        """The same trainer with another noise multiplier."""
        release = self.release.with_scale(scale)
        return None if release is None else replace(self, release=release)

    def train(self, task: Task, data: FederatedData, run: Run) -> ModelPredictor:
        """Trains on the pooled rows.

        Args:
            task: What is learned.
            data: Who holds which rows.
            run: The run.

        Returns:
            The model after the last step that was paid for.

        Raises:
            DataError: If the curator does not hold as many rows as were planned with.
            UnsupportedError: If a layer has no per-example gradients.
            BudgetExceededError: If a run that is one release was interrupted in this folder.
        """
        batches = self.batches(data)
        rows = self._rows(data, batches, run)
        model = initial_model(task, run.seeds["initialisation", 0, ""]).to(run.device)
        engine = self.gradients.engine(model, task.loss)
        parameters = trainable(model)
        gradient = GradientVector(parameters)
        optimizer = make_optimizer(self.optimizer, parameters, self.learning_rate)
        start = self._resume(model, optimizer, run)
        kept, parts = start * SHOWN // batches.steps, iter(list[list[int]]())
        for step in range(start, batches.steps):
            if batches.opens(step):
                if not run.spend():
                    _check_begun(batches)
                    run.checkpoint.save(step, self._state(model, optimizer, run))
                    break
                draw = run.entropy["sample", step, CURATOR_NAME].numpy()
                parts = batches.parts(len(rows), draw)
            batch = taken(rows, next(parts))
            bound, paid = l2_bound(self.release.mechanism), int(batches.opens(step))
            with global_generator(run.seeds["dropout", step, CURATOR_NAME]):
                clipped = engine.clipped_sum(batch, bound)
            bounded = BoundedSum(clipped.value, bound)
            noised = self.release.arrive(bounded, run, round=step, kind="gradient", releases=paid)
            gradient.set(noised, self.expected_batch)
            optimizer.step()
            run.progress(step + 1, batches.steps)
            part = (step + 1) * SHOWN // batches.steps
            if part > step * SHOWN // batches.steps:
                run.history.record(step + 1, **diagnostics(clipped, bound))
                run.watch(step + 1, batches.steps, ModelPredictor(model))
                model.train()
            # What was paid for is done as a whole, so a run is resumed between draws only.
            if batches.closes(step) and part > kept:
                kept = part
                run.checkpoint.save(step + 1, self._state(model, optimizer, run))
        run.notes.extend(engine.notes)
        engine.close()
        run.transcript.publish(
            "model", to_vector(parameters), sender=CURATOR_NAME, round=batches.steps
        )
        return ModelPredictor(model)

    def _rows(self, data: FederatedData, batches: Batches, run: Run) -> Rows:
        """The rows that may take part, at the curator."""
        rows = pool(data, run)
        if batches.population not in (1, len(rows)):
            raise DataError(
                f"The plan counts {batches.population} rows and the curator holds {len(rows)}: "
                f"what {self.sampling} promises depends on their number."
            )
        return batches.kept(rows, run.seeds)

    def _state(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, run: Run
    ) -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "memory": run.memory,
        }

    def _resume(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, run: Run) -> int:
        saved = run.checkpoint.load()
        if saved is None:
            return 0
        done, state = saved
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        run.memory.update(state["memory"])
        return done


def _check_begun(batches: Batches) -> None:
    """Refuses to go on with a run that is one release: it was paid for, and nothing was kept."""
    if batches.draws == 1:
        raise BudgetExceededError(
            f"This run was interrupted in this folder. Its {batches.steps} steps are one release, "
            "which stays spent and cannot be taken up in the middle. Choose another folder to "
            "train anew: that is charged as a whole run again."
        )
