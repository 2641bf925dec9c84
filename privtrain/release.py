"""The one door out of a party: bound, aggregate, noise, finish.

The door has two sides. `leave` is what a party does before anything leaves it; `arrive` is what
the aggregator does with what came. A release that was not paid for does not come through.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from privtrain.aggregation.aggregation import Aggregation, BoundedSum
from privtrain.aggregation.finish import IDENTITY, Finish
from privtrain.aggregation.plain import PlainSum
from privtrain.core.errors import UnsoundReleaseError
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Observer
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.runtime import PartyRun, Payload
from privtrain.core.statement import ADD_REMOVE, Unit
from privtrain.core.trainer import PrivacyPlan, Run
from privtrain.core.transcript import UNPROTECTED
from privtrain.privacy.mechanism import Exact, Mechanism
from privtrain.privacy.placement import AT_AGGREGATOR, Drawer, Placement
from privtrain.privacy.sampling import Everyone, Sampling

NON_FINITE = UNPROTECTED + "non_finite"
"""Diagnostic: how many of a party's contributions were not finite and counted as zero."""


@dataclass(frozen=True)
class Release:
    """What leaves parties in one release, in what form, and who can read it.

    Args:
        mechanism: How a contribution is bounded and what noise is drawn.
        noise_at: Who draws the noise.
        aggregation: How messages become one, and what the aggregator reads of them.
        finish: What is released of the noised aggregate.

    Raises:
        UnsoundReleaseError: If noise is asked for over an aggregation whose result one bounded
            contribution can move by any amount.
    """

    mechanism: Mechanism = Exact()
    noise_at: Placement = AT_AGGREGATOR
    aggregation: Aggregation = PlainSum()
    finish: Finish = IDENTITY

    def __post_init__(self) -> None:
        if self.mechanism.noisy and not self.aggregation.bounded:
            raise UnsoundReleaseError(
                f"{self.mechanism} over {self.aggregation} promises nothing: one bounded "
                "contribution can move its result by more than the bound. Use PlainSum()."
            )

    @property
    def bounding(self) -> bool:
        """Whether contributions are bounded, with or without noise on their sum."""
        return self.mechanism.sensitivity(ADD_REMOVE) is not None

    def leave(
        self, contributions: Iterable[Tensor], party: PartyRun, *, kind: str = "update"
    ) -> Payload:
        """At the party: bounds each contribution, adds them, draws own noise, masks or shares.

        Args:
            contributions: The party's contributions, all of one shape.
            party: The party's side of the run.
            kind: What the message is called in the transcript.

        Returns:
            The message that leaves.
        """
        bounded, broken = [], 0
        for contribution in contributions:
            broken += not bool(torch.isfinite(contribution).all())
            bounded.append(self.mechanism.bound(contribution))
        total = bounded[0] if len(bounded) == 1 else torch.stack(bounded).sum(dim=0)
        if self.mechanism.noisy and self.noise_at.drawer is Drawer.PARTY:
            stream = party.entropy[f"noise/{kind}", party.round, party.party]
            noise, _ = self.mechanism.noise(
                total, None, stream.numpy(), fraction=self.noise_at.fraction
            )
            total = total + noise
        message = self.aggregation.seal(total, party, kind=kind)
        if self.bounding and broken:
            message[NON_FINITE] = torch.tensor(float(broken))
        return message

    def arrive(
        self,
        messages: Sequence[Payload] | BoundedSum,
        run: Run,
        *,
        round: int,
        kind: str = "update",
        releases: int = 1,
    ) -> Tensor:
        """At the aggregator: adds what came, draws the noise, finishes.

        Args:
            messages: What left the parties, in their order; or a sum whose contributions were
                bounded while it was formed, where the aggregator owns the data.
            run: The run, whose ledger was paid before.
            round: Communication round, from 0.
            kind: What the messages are called in the transcript.
            releases: How many releases this is, such as one a query.

        Returns:
            What is released.

        Raises:
            BudgetExceededError: If the release was not paid for.
        """
        run.ledger.use(releases)
        if isinstance(messages, BoundedSum):
            aggregate: Tensor = messages.value
        else:
            value = self.aggregation(messages, run, kind=kind).value
            if not isinstance(value, Tensor):
                return value.open(self.finish)
            aggregate = value
        return self.finish(self._noised(aggregate, run, round, kind))

    def _noised(self, aggregate: Tensor, run: Run, round: int, kind: str) -> Tensor:
        if not (self.mechanism.noisy and self.noise_at.drawer is Drawer.AGGREGATOR):
            return aggregate
        stream = run.entropy[f"noise/{kind}", round, AGGREGATOR_NAME]
        state = run.memory.get(kind) or self.mechanism.init(aggregate)
        noise, run.memory[kind] = self.mechanism.noise(aggregate, state, stream.numpy())
        return aggregate + noise

    def plans(
        self,
        *,
        unit: Unit,
        count: int,
        parties: int,
        sampling: Sampling | None = None,
        observers: tuple[Observer, ...] = (PUBLIC, PARTICIPANT, AGGREGATOR),
        assumptions: tuple[str, ...] = (),
    ) -> tuple[PrivacyPlan, ...]:
        """What each observer will see of a number of releases.

        Args:
            unit: Whose contribution is bounded.
            count: How many releases there are.
            parties: How many parties there are.
            sampling: Which of them take part in a release; everybody where None.
            observers: Whom the statement speaks of.
            assumptions: What has to hold for every guarantee.

        Returns:
            One plan an observer.
        """
        chosen = sampling or Everyone()
        plans = []
        for observer in observers:
            exposure = self.aggregation.exposure(
                observer, self.noise_at, parties=chosen.at_least(parties)
            )
            relation = chosen.relation(exposure, parties)
            event = self.mechanism.event(exposure, relation)
            corrupted = 1 if observer == PARTICIPANT else len(observer.corrupted)
            plan = PrivacyPlan(
                observer=observer,
                unit=unit,
                relation=relation,
                event=chosen.amplified(event, exposure, parties, corrupted),
                count=count,
                theorem=self.mechanism.theorem,
                assumptions=assumptions,
            )
            plans.append(plan)
        return tuple(plans)

    def with_scale(self, scale: float) -> "Release | None":
        """The same release with another noise scale, or None where it draws no noise."""
        mechanism = self.mechanism.with_scale(scale)
        return None if mechanism is None else replace(self, mechanism=mechanism)
