"""How one data holder improves a model under example-level differential privacy."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.accounting.epsilon import repeated
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Exposure
from privtrain.core.parameters import to_vector, trainable
from privtrain.core.runtime import PartyRun
from privtrain.core.seeding import global_generator
from privtrain.core.statement import Unit
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import PrivacyPlan
from privtrain.core.validate import check_offers, check_positive, check_probability
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.gradients import ClippedSum, Gradients
from privtrain.mechanisms.mechanism import (
    Mechanism,
    assumptions_of,
    is_secure,
    l2_bound,
    noised,
)
from privtrain.sampling.batches import (
    Batches,
    PoissonBatches,
    plan_batches,
    poisson_batch,
    whole_steps,
)
from privtrain.sampling.sampling import Poisson
from privtrain.sampling.schedule import check_separation
from privtrain.steps.optimizers import GradientVector, OptimizerFactory, make_optimizer


def diagnostics(clipped: ClippedSum, clipping_norm: float) -> dict[str, float]:
    """Unprotected diagnostics of one clipped sum; empty for an empty batch."""
    if len(clipped.norms) == 0:
        return {}
    return {
        "training_loss": float(clipped.losses.nanmean()),
        "fraction_clipped": float((clipped.norms > clipping_norm).double().mean()),
        "non_finite": float(clipped.non_finite),
    }


NOTE = "note/"
"""What the names of written notes begin with, among the diagnostics of a party's steps."""


def written(notes: tuple[str, ...]) -> dict[str, Tensor]:
    """Notes as tensors of bytes, to ride along with diagnostics."""
    texts = [torch.tensor(list(note.encode()), dtype=torch.uint8) for note in notes]
    return {f"{NOTE}{place}": text for place, text in enumerate(texts)}


def read_note(text: Tensor) -> str:
    """A note from its bytes."""
    return bytes(text.tolist()).decode(errors="replace")


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
        optimizer: Name of a class in `torch.optim`, or a factory. It starts anew in each round.
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
        l2_bound(self.mechanism)
        # Poisson batches: a row may be in the next one, too.
        check_separation(self.mechanism, PoissonBatches())
        check_positive(epochs=self.epochs, learning_rate=self.learning_rate)
        check_probability(sampling_rate=self.sampling_rate)
        check_offers("engine", "BookKeeping()", gradients=self.gradients)
        if self.expected_batch is not None:
            check_positive(expected_batch=self.expected_batch)

    def _batches(self, data: FederatedData) -> Batches:
        return plan_batches(
            data,
            epochs=self.epochs,
            sampling_rate=self.sampling_rate,
            expected_batch=self.expected_batch,
            parties=len(data.parties),
        )

    def settled(self, data: FederatedData) -> "DPSteps":
        """The same steps with every public figure filled in, for parties to use."""
        return replace(self, expected_batch=self._batches(data).sampling.expected(0))

    def __call__(self, model: nn.Module, task: Task, party: PartyRun) -> dict[str, Tensor]:
        """Improves the model in place.

        Args:
            model: The model, on the party's device, in training mode.
            task: What is learned.
            party: Whose rows are used.

        Returns:
            Training loss, fraction clipped and non-finite count, all unprotected; and written notes
            of how gradients were computed.
        """
        rows = party.rows.to(party.device)
        parameters = trainable(model)
        gradient = GradientVector(parameters)
        engine = self.gradients.engine_once(model, task.loss)
        optimizer = make_optimizer(self.optimizer, parameters, self.learning_rate)
        sampling = Poisson(self.sampling_rate, self.expected_batch or 1.0)
        bound = l2_bound(self.mechanism)
        seen: dict[str, float] = {}
        state = self.mechanism.init(to_vector(parameters))
        with global_generator(party.seeds["dropout", party.round, party.party]):
            for step in range(whole_steps(self.epochs / self.sampling_rate, self.epochs)):
                draw = party.entropy[f"sample/{step}", party.round, party.party].numpy()
                clipped = engine.clipped_sum(poisson_batch(rows, sampling, draw), bound)
                stream = party.entropy[f"noise/gradient/{step}", party.round, party.party]
                value, state = noised(self.mechanism, clipped.value, state, stream)
                gradient.set(value, sampling.expected(0))
                optimizer.step()
                seen |= diagnostics(clipped, bound)
        found = {name: torch.tensor(value) for name, value in seen.items()}
        return found | written(engine.notes)

    def plans(self, data: FederatedData, rounds: int) -> tuple[PrivacyPlan, ...]:
        """The same guarantee to everybody: the noise is drawn before anything leaves.

        In the worst case a party takes part in every round.
        """
        batches = self._batches(data)
        seen = Exposure(single_messages=False, knows_sample=False, noise_known=0.0)
        relation = batches.sampling.relation(seen, 0)
        step = batches.sampling.amplified(self.mechanism.event(seen, relation), seen, 0, 0)
        event: Any = repeated(step, batches.steps)
        return tuple(
            PrivacyPlan(
                observer=observer,
                unit=Unit.EXAMPLE,
                relation=relation,
                event=event,
                count=rounds,
                theorem=f"{self.mechanism.theorem}, Poisson sampling of examples in each silo",
                assumptions=(*batches.assumptions, *assumptions_of(self.mechanism)),
                float_noise=not is_secure(self.mechanism),
            )
            for observer in (PUBLIC, PARTICIPANT, AGGREGATOR)
        )

    def with_scale(self, scale: float) -> "DPSteps | None":
        """The same steps with another noise scale."""
        mechanism = self.mechanism.with_scale(scale)
        return None if mechanism is None else replace(self, mechanism=mechanism)
