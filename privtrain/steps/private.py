"""How one data holder improves a model under example-level differential privacy."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from privtrain.accounting.event import repeated
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Exposure
from privtrain.core.parameters import trainable, unwritten
from privtrain.core.runtime import Draws, Seen
from privtrain.core.seeding import SystemEntropy, kept_generators, secret_generators
from privtrain.core.statement import Unit
from privtrain.core.task import COLUMNS, FederatedData, Loss, Rows, Task
from privtrain.core.trainer import RELEASE, Charge, PrivacyPlan
from privtrain.core.validate import check_follows, check_offers, check_positive, check_probability
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.gradients import ClippedSum, GradientEngine, Gradients
from privtrain.mechanisms.mechanism import Mechanism, State, l2_bound_of
from privtrain.sampling.figures import (
    Batches,
    other_size,
    poisson_figures,
    rows_at,
    whole_steps,
)
from privtrain.sampling.sampling import Poisson
from privtrain.sampling.schedule import check_separation
from privtrain.steps.optimizers import (
    GradientVector,
    OptimizerFactory,
    advance,
    check_factory,
    make_optimizer,
    try_optimizer,
)

DRAWN_IN_SECRET = (
    "what the model draws while it trains, such as dropout masks, comes from entropy, fresh in "
    "each step for each row, by a law that does not depend on the batch"
)
"""What private training assumes of layers that draw."""


def diagnostics(clipped: ClippedSum, clipping_norm: float) -> dict[str, float]:
    """Unprotected diagnostics of one clipped sum; empty for an empty batch."""
    if len(clipped.norms) == 0:
        return {}
    return {
        "training_loss": float(clipped.losses.nanmean()),
        "fraction_clipped": float((clipped.norms > clipping_norm).double().mean()),
        "non_finite": float(clipped.non_finite),
    }


def averaged(seen: list[dict[str, float]]) -> dict[str, float]:
    """The diagnostics of several clipped sums as one: means over sums that hold rows, one count.

    Args:
        seen: What `diagnostics` said of each sum.

    Returns:
        Empty where no sum held a row.
    """
    held = [step for step in seen if step]
    if not held:
        return {}
    # A batch all of whose losses are NaN has no mean; the others still have one.
    losses = torch.tensor([step["training_loss"] for step in held], dtype=torch.float64)
    return {
        "training_loss": float(losses.nanmean()),
        "fraction_clipped": sum(step["fraction_clipped"] for step in held) / len(held),
        "non_finite": sum(step["non_finite"] for step in held),
    }


def public_trial(public: Rows, private: Rows, count: float) -> Rows:
    """Public rows on which a model may be tried before it sees private ones.

    Args:
        public: Rows that anybody may read; their targets, if there are any, are not used.
        private: The training rows, of which the shape alone is used.
        count: About how many rows a batch has.

    Returns:
        As many public inputs as a batch has, and at least three, again and again if there are
        fewer, with targets of two values, on the device of the training rows; none where public
        inputs are of another shape or type.
    """
    alike = public.inputs.shape[1:] == private.inputs.shape[1:]
    alike = alike and public.inputs.dtype == private.inputs.dtype
    # Of fewer than three rows it could not tell.
    rows = max(3, math.ceil(count)) if alike and len(public) else 0
    # A capacity that no small batch fills would not be seen in one.
    place = torch.arange(rows) % max(1, len(public))
    inputs = public.inputs[place.to(public.inputs.device)].to(private.inputs.device)
    # Of two values: what is computed from the targets of a batch would not show in equal ones.
    targets = private.labels.new_zeros((rows, *private.labels.shape[1:]))
    targets[1::2] = 1
    return Rows(inputs, targets)


def try_gradients(
    gradients: Gradients, task: Task, data: FederatedData, model: nn.Module, count: float
) -> None:
    """Tries a model and a loss before training on public rows, or else on a few rows for testing.

    Args:
        gradients: What computes per-example gradients.
        task: What is learned.
        data: Whose public or test rows are used; of training rows the shape and type alone.
        model: A model of the task that nobody will use afterwards.
        count: About how many rows a batch has.

    Raises:
        UnsupportedError: If examples influence one another, or the model cannot be taken.
    """
    whole = data.pooled() if data.split is COLUMNS else data.train[data.parties[0]]
    device = str(next(model.parameters(), torch.empty(0)).device)
    like = whole.take(torch.arange(min(2, len(whole)))).to(device)
    if data.public is not None:
        rows = public_trial(data.public, like, count)
    else:
        rows = data.test.take(torch.arange(min(_TRIED, len(data.test)))).to(device)
        if rows.targets is None or _kinds(rows) != _kinds(like):
            return
    # As secret as in training: whether a draw leads to a refusal is seen.
    stream = SystemEntropy()["draws/trial", 0, ""]
    engine = gradients.engine(model, task.loss)
    try:
        with secret_generators(stream):
            engine.try_on(rows)
    finally:
        engine.close()


_TRIED = 16
"""Rows for testing on which a model is tried at most."""


def _kinds(rows: Rows) -> tuple[object, ...]:
    inputs, targets = rows.inputs, rows.labels
    return inputs.shape[1:], inputs.dtype, targets.shape[1:], targets.dtype


@dataclass(frozen=True)
class DPSteps:
    """DP-SGD inside a silo: every party noises its own gradients before its update leaves.

    What leaves the party is private already, to everybody, the aggregator included.

    Args:
        mechanism: Clips per-example gradients and noises their sum.
        epochs: Expected passes over the party's rows in each round; positive.
        sampling_rate: Each example's probability of being in a batch, in (0, 1].
        expected_batch: The public number by which noised sums are divided; None for the rate
            times the public number of rows for each party.
        learning_rate: Learning rate; positive.
        optimizer: Name of a class in `torch.optim`, or a factory. Its state starts at zero in each
            round.
        gradients: What computes per-example gradients, as `BookKeeping()` or `Opacus()`.

    Source: Abadi et al. 2016, Algorithm 1 (arXiv:1607.00133), run by each party.
    """

    mechanism: Mechanism
    epochs: float = 1.0
    sampling_rate: float = 0.25
    expected_batch: float | None = None
    learning_rate: float = 0.5
    optimizer: str | OptimizerFactory = "SGD"
    gradients: Gradients = BookKeeping()

    def __post_init__(self) -> None:
        check_follows(Mechanism, "Gaussian(1.0, 1.0)", mechanism=self.mechanism)
        l2_bound_of(self.mechanism)
        check_positive(epochs=self.epochs, learning_rate=self.learning_rate)
        check_factory(self.optimizer)
        check_probability(sampling_rate=self.sampling_rate)
        # Poisson batches: a row may be in the next one, too, which correlated noise of banded
        # matrices does not allow.
        poisson = Poisson(self.sampling_rate)
        check_separation(self.mechanism, self.mechanism.about.separation, poisson)
        check_offers("engine", "BookKeeping()", gradients=self.gradients)
        if self.expected_batch is not None:
            check_positive(expected_batch=self.expected_batch)

    def _batches(self, data: FederatedData) -> Batches:
        figures = poisson_figures(
            data,
            epochs=self.epochs,
            sampling_rate=self.sampling_rate,
            expected_batch=self.expected_batch,
            parties=len(data.parties),
        )
        return Batches(*figures)

    def notes_on(self, data: FederatedData) -> tuple[str, ...]:
        """Whether batches are of another size than the number that their sums are divided by."""
        sampling = self._batches(data).sampling
        if data.public_rows is None or not isinstance(sampling, Poisson):
            return ()
        mean = sampling.rate * data.public_rows / len(data.parties)
        return other_size(mean, sampling.expected(0))

    def check(self, task: Task, model: nn.Module) -> None:
        # Called for their refusals.
        self.gradients.engine(model, task.loss).close()
        try_optimizer(self.optimizer, trainable(model), self.learning_rate)

    def try_beforehand(self, task: Task, data: FederatedData, model: nn.Module) -> None:
        try_gradients(self.gradients, task, data, model, self._batches(data).sampling.expected(0))

    def settled(self, data: FederatedData) -> "DPSteps":
        # A party knows its own rows only: a divisor that it computed from them would be private.
        return replace(self, expected_batch=self._batches(data).sampling.expected(0))

    def __call__(self, model: nn.Module, task: Task, rows: Rows, draws: Draws) -> Seen:
        """Improves the model in place.

        Returns:
            Of the round's steps the mean training loss and fraction clipped, the non-finite count
            and which rows were drawn; and notes of how gradients were computed, and what their
            sums assume.
        """
        rows = rows.to(draws.device)
        parameters = trainable(model)
        gradient = GradientVector(parameters)
        engine = self._engine(model, task.loss, draws)
        optimizer = make_optimizer(self.optimizer, parameters, self.learning_rate)
        sampling = Poisson(self.sampling_rate, self.expected_batch or 1.0)
        bound = l2_bound_of(self.mechanism)
        used = np.zeros(len(rows), dtype=np.bool_)
        seen: list[dict[str, float]] = []
        state: State = None
        with kept_generators():
            for step in range(whole_steps(self.epochs / self.sampling_rate, self.epochs)):
                # Algorithm 1, "Take a random sample", each row with probability L / N: an empty one
                # is a step, too, and noised.
                draw = draws.entropy[f"sample/{step}", draws.round, draws.name].numpy()
                chosen = sampling.choose(len(rows), draw)
                used[chosen] = True
                # "Compute gradient" and "Clip gradient".
                batch = rows_at(rows, chosen)
                # What the model draws is part of the mechanism, and as secret as the noise.
                secret = secret_generators(draws.entropy[f"draws/{step}", draws.round, draws.name])
                with secret, unwritten(model, parameters, step):
                    clipped = engine.clipped_sum(batch, bound)
                # "Add noise", over the public expected size: the true one is private.
                stream = draws.entropy[f"noise/gradient/{step}", draws.round, draws.name]
                value, state = self.mechanism.add(clipped.value, state, stream)
                gradient.set(value, sampling.expected(0))
                # "Descent".
                advance(optimizer)
                seen.append(diagnostics(clipped, bound))
        return Seen(
            # In single precision, as histories of parties have held them since version 0.1.
            numbers={name: float(np.float32(value)) for name, value in averaged(seen).items()},
            notes=engine.notes,
            assumptions=engine.assumptions,
            used=torch.from_numpy(used),
        )

    def _engine(self, model: nn.Module, loss: Loss, draws: Draws) -> GradientEngine:
        """The engine of this model; a worker keeps it, so that a model is tried once."""
        # Out of the cache first: should preparing a model fail, no closed engine stays behind.
        held = draws.cache.pop("engine", None)
        # The model by `is`, and held here, so that no other one can come to have its identity.
        if held is None or held[0] is not model or held[1:3] != (self.gradients, loss):
            if held is not None:
                held[3].close()
            held = (model, self.gradients, loss, self.gradients.engine(model, loss))
        draws.cache["engine"] = held
        engine: GradientEngine = held[3]
        return engine

    def plans(self, data: FederatedData, rounds: int) -> tuple[PrivacyPlan, ...]:
        batches = self._batches(data)
        # The noise is drawn and the batch chosen at the party, so that even the aggregator, which
        # reads single updates, sees sampled and fully noised sums.
        seen = Exposure(single_messages=False, knows_sample=False, noise_known=0.0)
        relation = batches.sampling.relation(seen, 0)
        step = batches.sampling.amplified(self.mechanism.event(seen, relation), seen, 0, 0)
        event: Any = repeated(step, batches.steps)
        about = self.mechanism.about
        return tuple(
            PrivacyPlan(
                observer=observer,
                unit=Unit.EXAMPLE,
                relation=relation,
                # In the worst case a party takes part in every round.
                charges={RELEASE: Charge(event, rounds)},
                theorem=f"{about.theorem}, Poisson sampling of examples in each silo",
                assumptions=(*batches.assumptions, DRAWN_IN_SECRET, *about.assumptions),
                float_noise=about.grid is None,
            )
            for observer in (PUBLIC, PARTICIPANT, AGGREGATOR)
        )

    def with_scale(self, scale: float) -> "DPSteps | None":
        mechanism = self.mechanism.with_scale(scale)
        return None if mechanism is None else replace(self, mechanism=mechanism)
