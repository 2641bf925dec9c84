"""The protocol of aggregations: how messages become one, and what can be read of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from privtrain.core.errors import UnsoundReleaseError, UnsupportedError
from privtrain.core.observers import Exposure, Observer
from privtrain.core.runtime import Party, Payload, Reply, Runtimes
from privtrain.core.statement import InputPrivacy
from privtrain.core.trainer import Run
from privtrain.mechanisms.mechanism import Mechanism
from privtrain.release.finish import Finish
from privtrain.release.placement import Placement

Refusal = UnsoundReleaseError | UnsupportedError
"""Why a mechanism cannot be taken: nothing would be promised, or it is not available here."""


class Sealed(Protocol):
    """An aggregate that is still on shares: nobody has read it."""

    def open(self, finish: Finish, mechanism: Mechanism) -> Tensor:
        """Draws noise and applies the finish on shares, and opens only its result.

        Args:
            finish: The function of the noised aggregate that is released.
            mechanism: What draws the noise; `Exact()` where the parties drew theirs already.

        Raises:
            UnsupportedError: If the finish or the noise cannot be computed on shares.
        """
        ...


@dataclass(frozen=True)
class Total:
    """Many contributions as one.

    Args:
        value: The aggregate, or a sealed one while it is on shares.
        weight: The sum of the weights that messages carry; None where they carry none, or while
            it is sealed.
        parties: Whose contributions it holds, where some were lost after they replied; None for
            those of all that replied.
    """

    value: Tensor | Sealed
    weight: float | None = None
    parties: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Released:
    """What a release gives out.

    Args:
        value: The released value.
        weight: The sum of the weights that messages carry; None where they carry none.
        contributors: Whose contributions it holds, in order. Under noise as secret as the sample;
            empty for a sum that the aggregator formed itself.
        realised: What exactly it cost, as an event, where the exact sum tells; private itself.
    """

    value: Tensor
    weight: float | None = None
    contributors: tuple[str, ...] = field(default=(), repr=False)
    realised: Any | None = field(default=None, repr=False)


@dataclass(frozen=True)
class BoundedSum:
    """A sum whose contributions were bounded while it was formed (fused clipping).

    Only an aggregator that owns the data can form it: no contribution ever was a message.

    Args:
        value: The sum, shape `(parameters,)`.
        bound: Upper bound on the norm of each contribution to it.
    """

    value: Tensor
    bound: float


@dataclass(frozen=True, kw_only=True)
class Gathering:
    """Who takes part in one aggregation, from its beginning to its total.

    Args:
        cohort: Who is asked for a contribution, in order.
        round: Training round, from 0.
        kind: What messages are called in the transcript.
        weighted: Whether the last value of a message is a weight; the release knows when it
            gathers.
        at_least: How many of the cohort have to reply; None for all of them.
        payloads: Party to what it is sent besides what the trainer sends; `seal` finds it in
            `Party.sent`.
        known: What the aggregation keeps at the aggregator until it gathers, such as public keys
            by party.
    """

    cohort: tuple[str, ...]
    round: int
    kind: str = "update"
    weighted: bool = False
    at_least: int | None = None
    payloads: Mapping[str, Payload] = field(default_factory=dict, repr=False)
    known: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def asked(self, payload: Payload) -> dict[str, Payload]:
        """What each party of the cohort is sent.

        Args:
            payload: What the trainer sends to all of them.

        Raises:
            ValueError: If the aggregation sends a party something of the same name.
        """
        for party in self.cohort:
            for name in sorted(set(payload) & set(self.payloads.get(party, {}))):
                raise ValueError(
                    f"Expected what an aggregation sends to {party} to have names of its own; the "
                    f"trainer sends {name!r}, too."
                )
        return {party: {**self.payloads.get(party, {}), **payload} for party in self.cohort}

    def parted(self, summed: Tensor) -> tuple[Tensor, float | None]:
        """The values of a sum of messages, and the sum of their weights.

        Args:
            summed: The sum; shape `(parameters + 1,)` with weights.
        """
        return parted(summed, weighted=self.weighted)


def parted(summed: Tensor, *, weighted: bool) -> tuple[Tensor, float | None]:
    """The values of a sum of messages, and the sum of their weights.

    Args:
        summed: The sum; shape `(parameters + 1,)` with weights.
        weighted: Whether its last value is the sum of weights.
    """
    return (summed[:-1], float(summed[-1])) if weighted else (summed, None)


class Aggregation(Protocol):
    """How many messages become one, and what the aggregator can read of them.

    An aggregation may have exchanges of its own with the parties: before they contribute, in
    `begin`, and afterwards, in `gather`.
    """

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the parties without rows that it addresses, such as a holder of keys."""
        ...

    @property
    def caveats(self) -> tuple[str, ...]:
        """What it does not protect from, in sentences for the statement."""
        ...

    # An answer and no raise, so that the release can tell at which time it is due: what promises
    # nothing is refused when it is written down, what is missing when it would be run.
    def refusal(self, mechanism: Mechanism, noise_at: Placement) -> Refusal | None:
        """Why a mechanism cannot be taken here, or None.

        Args:
            mechanism: How contributions are bounded and noised.
            noise_at: Who draws the noise.

        Returns:
            `UnsoundReleaseError` where one bounded contribution could move the aggregate by more
            than noise covers; `UnsupportedError` where the combination is sound and not available.
        """
        ...

    def check(
        self, finish: Finish, runtimes: Runtimes, *, parties: int, largest: float | None
    ) -> None:
        """Refuses what could not be aggregated here, before anything is trained or spent.

        Args:
            finish: The function of the aggregate that is released.
            runtimes: Where parties run.
            parties: Smallest number of parties that are asked.
            largest: Upper bound on the magnitude of a message's values; None where there is none.

        Raises:
            UnsupportedError: If the finish, a runtime or an engine is missing, or numbers do not
                fit.
        """
        ...

    def begin(self, cohort: tuple[str, ...], run: Run, *, round: int, kind: str) -> Gathering:
        """At the aggregator: prepares one aggregation, before parties contribute.

        Args:
            cohort: Who takes part, in order.
            run: The run, whose parties it may ask.
            round: Training round, from 0.
            kind: What messages are called in the transcript.

        Raises:
            PartyLostError: If fewer parties than it needs are there.
        """
        ...

    def seal(self, contribution: Tensor, party: Party, *, kind: str, grid: float | None) -> Reply:
        """At the party: the message that leaves, made of a bounded contribution.

        Where the aggregator reads single messages, it finds the contribution under its kind.

        Args:
            contribution: What the party adds, any shape; a weight is its last value.
            party: The party's side of the run.
            kind: What the message is called in the transcript.
            grid: Of what the party's own noise is a whole multiple, so that an encoding rounds
                nothing that was drawn; None where it is no such noise.
        """
        ...

    def gather(self, gathering: Gathering, replies: Mapping[str, Reply], run: Run) -> Total:
        """At the aggregator: one aggregate of the messages, which come in the cohort's order.

        Where it asks the parties once more and adds up fewer than replied, the total names them.

        Args:
            gathering: What `begin` returned.
            replies: Party to reply, of those that replied.
            run: The run, whose parties it may ask once more.
        """
        ...

    def exposure(self, observer: Observer, noise_at: Placement, *, parties: int) -> Exposure:
        """What an observer sees of one release.

        Args:
            observer: Who looks.
            noise_at: Who draws the noise.
            parties: Smallest number of parties that are asked. Where some may be lost, the noise of
                no more counts than have to reply.
        """
        ...

    def readers(self, sender: str, kind: str) -> tuple[InputPrivacy, ...]:
        """Who can read which part of the messages.

        Args:
            sender: What a contributing party is called, such as "client".
            kind: What a contribution is called, such as "update".
        """
        ...
