"""DP-SGD on pooled rows: per-example clipping and noise (Abadi et al. 2016, Algorithm 1)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from privtrain.core.errors import (
    BudgetExceededError,
    DataError,
    UnsoundReleaseError,
    UnsupportedError,
)
from privtrain.core.libraries import is_library
from privtrain.core.observers import CURATOR, PUBLIC
from privtrain.core.parameters import (
    ModelPredictor,
    initial_model,
    load_state,
    to_vector,
    trainable,
    trained_state_of,
    unwritten,
)
from privtrain.core.parties import CURATOR_NAME
from privtrain.core.runtime import Draws, Runtimes
from privtrain.core.seeding import kept_generators, secret_generators
from privtrain.core.statement import ADD_REMOVE, InputPrivacy
from privtrain.core.task import ROWS, FederatedData, Rows, Task
from privtrain.core.trainer import PrivacyPlan, Run
from privtrain.core.validate import check_offers, check_positive, check_probability
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.gradients import ClippedSum, GradientEngine, Gradients
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.mechanism import l2_bound_of
from privtrain.release.aggregation import BoundedSum
from privtrain.release.door import Release
from privtrain.report.progress import Report, silent
from privtrain.sampling.batches import PoissonBatches
from privtrain.sampling.figures import Batches, BatchSampling, rows_at
from privtrain.steps.many import (
    Models,
    in_parts,
    initial_models,
    optimizer_of_all,
    train_together,
)
from privtrain.steps.many_private import NoisedSums
from privtrain.steps.optimizers import (
    GradientVector,
    OptimizerFactory,
    advance,
    check_factory,
    make_optimizer,
    try_optimizer,
)
from privtrain.steps.pooling import (
    CURATOR_READS,
    UsedRows,
    pool,
    pooling_cost,
)
from privtrain.steps.private import (
    DRAWN_IN_SECRET,
    averaged,
    diagnostics,
    public_trial,
    try_gradients,
)

SHOWN = 20
"""How often a run is evaluated, and how often at most it is saved."""


@dataclass(frozen=True, kw_only=True)
class DPSGD:
    """Gradient descent on clipped and noised sums of per-example gradients.

    The public is promised privacy. The curator, who holds the rows and draws the noise, reads all.

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
    caveats: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_offers("arrive", "Release(Gaussian(1.0, 1.0))", release=self.release)
        check_offers("batches", "PoissonBatches()", sampling=self.sampling)
        check_offers("engine", "BookKeeping()", gradients=self.gradients)
        check_factory(self.optimizer)
        # Called for its refusal: a mechanism that does not clip in L2 norm raises here.
        l2_bound_of(self.release.mechanism)
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
        """The way batches are drawn and their number, both from public figures alone."""
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
            observers=(PUBLIC, CURATOR),
            assumptions=(*batches.assumptions, DRAWN_IN_SECRET),
        )

    def input_privacy(self, data: FederatedData, runtimes: Runtimes) -> tuple[InputPrivacy, ...]:
        return (CURATOR_READS,)

    def with_noise(self, scale: float) -> "DPSGD | None":
        release = self.release.with_scale(scale)
        return None if release is None else replace(self, release=release)

    def briefly(self) -> "DPSGD":
        known = isinstance(self.release.mechanism, Gaussian)
        return DPSGD(
            epochs=1.0,
            expected_batch=8.0,
            optimizer=self.optimizer if isinstance(self.optimizer, str) else "SGD",
            release=self.release if known else Release(Gaussian(1.0, 1.0)),
            gradients=self.gradients if is_library(type(self.gradients)) else BookKeeping(),
        )

    @kept_generators()
    def check(self, task: Task, model: nn.Module) -> None:
        # Called for their refusals.
        self.gradients.engine(model, task.loss).close()
        try_optimizer(self.optimizer, trainable(model), self.learning_rate)

    @kept_generators()
    def try_beforehand(self, task: Task, data: FederatedData, model: nn.Module) -> None:
        try_gradients(self.gradients, task, data, model, self.expected_batch)

    def train(self, task: Task, data: FederatedData, run: Run) -> ModelPredictor:
        """Trains on the pooled rows, in the order of Algorithm 1.

        Returns:
            The model after the last step that was paid for.

        Raises:
            DataError: If the curator does not hold as many rows as were planned with.
            UnsupportedError: If a layer has no per-example gradients.
            BudgetExceededError: If a run that is one release was interrupted in this folder.
        """
        batches = self.batches(data)
        rows, used = self._rows(data, batches, run)
        run.outcome.note(*batches.notes)
        # Algorithm 1, "Initialize theta_0 randomly": from a public seed, so that it costs nothing.
        model = initial_model(task, run.seeds["initialisation", 0, ""]).to(run.device)
        engine = self.gradients.engine(model, task.loss)
        if data.public is not None:
            with secret_generators(run.entropy["draws/trial", 0, CURATOR_NAME]):
                engine.try_on(public_trial(data.public, rows, self.expected_batch))
        parameters = trainable(model)
        gradient = GradientVector(parameters)
        optimizer = make_optimizer(self.optimizer, parameters, self.learning_rate)
        start, saved = run.kept() or (0, {})
        if saved:
            load_state(model, saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
        used.restore(saved)
        bound, seen = l2_bound_of(self.release.mechanism), list(saved.get("seen", []))
        saved_part, drawn = start * SHOWN // batches.steps, iter(list[list[int]]())
        for step in range(start, batches.steps):
            opens = batches.begins_draw(step)
            if opens:
                # Paid before anything is drawn: an interrupted run may only spend too much.
                if not run.spend():
                    _check_begun(batches)
                    run.keep(step, **_state(model, optimizer, used, seen))
                    break
                drawn = self._draw(batches, len(rows), step, run)
            chosen = next(drawn)
            used.add(chosen)
            batch = rows_at(rows, chosen)
            # What the model draws is part of the mechanism, and as secret as the noise.
            with secret_generators(run.entropy["draws", step, CURATOR_NAME]):
                # The steps of one draw share no row, or are one release: the first one is charged.
                with unwritten(model, parameters, step):
                    clipped, noised = self._noised_sum(engine, batch, step, int(opens), run)
                # "Add noise", the factor 1 / L: a public number, whatever the batch's true size.
                gradient.set(noised, self.expected_batch)
                # "Descent": what an optimizer makes of a noised gradient is post-processing.
                advance(optimizer)
            seen.append(diagnostics(clipped, bound))
            run.progress(step + 1, batches.steps)
            part = (step + 1) * SHOWN // batches.steps
            if part > step * SHOWN // batches.steps:
                run.outcome.history.record(step + 1, **averaged(seen))
                seen = []
                run.watch(step + 1, batches.steps, ModelPredictor(model))
                model.train()
            # A draw is paid for and drawn as a whole, so a run is resumed between draws only.
            if batches.ends_draw(step) and part > saved_part:
                saved_part = part
                run.keep(step + 1, **_state(model, optimizer, used, seen))
        run.outcome.members = used.members(data)
        run.outcome.note(*engine.notes)
        run.outcome.assume(*engine.assumptions)
        engine.close()
        run.transcript.publish(
            "model", to_vector(parameters), sender=CURATOR_NAME, round=batches.steps
        )
        return ModelPredictor(model)

    def train_many(
        self,
        task: Task,
        data: FederatedData,
        included: Tensor,
        draws: Sequence[Draws],
        progress: Report = silent,
    ) -> list[ModelPredictor]:
        if not isinstance(self.sampling, PoissonBatches) or self.sampling.rows_per_user is not None:
            raise UnsupportedError(
                f"sampling={self.sampling} draws batches of one model at a time."
            )
        device = draws[0].device
        rows = data.joined().to(device)
        made = initial_models(task, included, draws)
        batch = math.ceil(self.expected_batch)
        for part, shown in in_parts(len(made), rows, batch, progress):
            own = included[part].to(device)
            self._train(task, data, rows, made[part], own, draws[part], shown)
        return [ModelPredictor(model) for model in made]

    def _train(
        self,
        task: Task,
        data: FederatedData,
        rows: Rows,
        made: Sequence[nn.Module],
        included: Tensor,
        draws: Sequence[Draws],
        progress: Report,
    ) -> None:
        """Trains models whose batches fit into memory at the same time."""
        models = Models(made, task.loss)
        mechanism = self.release.mechanism
        sums = NoisedSums(
            models, made[0], task.loss, self.gradients, mechanism, self.expected_batch
        )
        optimizer = optimizer_of_all(models, made[0], self.optimizer, self.learning_rate)
        held = [own.nonzero().flatten() for own in included]
        steps = [self._batches(data, len(own)) for own in held]
        total = max(each.steps for each in steps)

        def step(number: int, taken: list[Tensor | None]) -> None:
            sums.write(number, taken, rows, draws)
            advance(optimizer)
            progress(number + 1, total)

        taken = [_drawn(*each) for each in zip(steps, held, draws, strict=True)]
        train_together(taken, step, models.take, draws[0].seeds["dropout", 0, CURATOR_NAME])

    def _batches(self, data: FederatedData, rows: int) -> Batches:
        """How the batches of a model are drawn that has so many rows."""
        # Where no figure is public, rows are counted: those of this model.
        counted = Rows(torch.empty(rows, 0))
        return self.batches(replace(data, train={CURATOR_NAME: counted}, split=ROWS))

    def _draw(self, batches: Batches, rows: int, step: int, run: Run) -> Iterator[list[int]]:
        """The batches of one draw: Algorithm 1, "Take a random sample L_t"."""
        # From entropy, not from the seed: amplification holds while nobody knows the sample.
        return batches.draw(rows, run.entropy["sample", step, CURATOR_NAME].numpy())

    def _noised_sum(
        self, engine: GradientEngine, batch: Rows, step: int, releases: int, run: Run
    ) -> tuple[ClippedSum, Tensor]:
        """The clipped sum of a batch, before and after the noise."""
        bound = l2_bound_of(self.release.mechanism)
        # "Compute gradient" and "Clip gradient", fused: no row's gradient need exist on its own.
        clipped = engine.clipped_sum(batch, bound)
        # "Add noise": N(0, sigma^2 C^2 I) on the sum, drawn behind the door, which refuses a bound
        # above the one its noise covers.
        summed = BoundedSum(clipped.value, bound)
        noised = self.release.arrive(summed, run, round=step, kind="gradient", releases=releases)
        return clipped, noised.value

    def _rows(self, data: FederatedData, batches: Batches, run: Run) -> tuple[Rows, UsedRows]:
        """The rows that may take part, at the curator, none of which was used yet."""
        rows = pool(data, run)
        # Under add/remove the true number is what the guarantee hides: only a stated one is used.
        hidden = self.plan(data, Runtimes())[0].relation is ADD_REMOVE
        number = data.public_rows if hidden else len(rows)
        run.outcome.public_cost = pooling_cost(data, rows, number)
        # 1 stands for "not public": Poisson samples promise the same over any number of rows.
        if batches.population not in (1, len(rows)):
            raise DataError(
                f"The plan counts {batches.population} rows and the curator holds {len(rows)}: "
                f"what {self.sampling} promises depends on their number."
            )
        eligible = batches.eligible(rows, run.seeds)
        used = UsedRows(len(rows), eligible)
        return (rows.take(eligible.to(run.device)) if len(eligible) < len(rows) else rows), used


def _drawn(batches: Batches, own: Tensor, draws: Draws) -> Iterator[Tensor]:
    """Numbers of the rows of each batch of a model that has some of the rows."""
    for step in range(batches.steps):
        entropy = draws.entropy["sample", step, CURATOR_NAME].numpy()
        for chosen in batches.draw(len(own), entropy):
            yield own[torch.tensor(chosen, dtype=torch.long, device=own.device)]


def _state(
    model: nn.Module, optimizer: Optimizer, used: UsedRows, seen: list[dict[str, float]]
) -> dict[str, Any]:
    """What an interrupted run needs to go on; `seen` is of the steps that no record holds yet."""
    # Trainable parameters alone: no noise covers what a model keeps elsewhere.
    parts = {"model": trained_state_of(model), "optimizer": optimizer.state_dict()}
    return {**parts, "used": used.marks, "seen": seen}


def _check_begun(batches: Batches) -> None:
    """Refuses to resume a run that is one release: it was paid for, and nothing was saved."""
    if batches.draws == 1:
        raise BudgetExceededError(
            f"This run was interrupted in this folder. Its {batches.steps} steps are one release, "
            "which stays spent and cannot be resumed in the middle. Choose another folder to "
            "train from the start: that is charged as a whole run again."
        )
