"""Releases: the only way out of a party, in four steps: bound, aggregate, noise, finish.

A release has two sides. `leave` runs at the party, before anything leaves it; `arrive` runs at the
aggregator, on the messages. A release that was not paid for is refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from privtrain.core.errors import UnsoundReleaseError, UnsupportedError
from privtrain.core.fields import LATER, told
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Observer
from privtrain.core.runtime import NO_STAR, Party, Reply, Runtimes
from privtrain.core.statement import ADD_REMOVE, Unit
from privtrain.core.trainer import RELEASE, PrivacyPlan, Run
from privtrain.core.validate import check_follows, check_member
from privtrain.mechanisms.mechanism import Exact, Mechanism
from privtrain.release.aggregation import Aggregation, BoundedSum, Gathering, Released, Total
from privtrain.release.arrival import UNREADABLE, Expected
from privtrain.release.departure import check_part, leave, remembers
from privtrain.release.finish import IDENTITY, Finish
from privtrain.release.gathering import admit, check_sum, gathered, note_lost
from privtrain.release.noising import finish_of_sum, realised, released
from privtrain.release.placement import AT_AGGREGATOR, Drawer, Placement
from privtrain.release.plain import PlainSum
from privtrain.release.plans import plans
from privtrain.release.reduce import NONE, Reduce, check_reduced
from privtrain.sampling.sampling import Sampling

ONE_CONTRIBUTION = Expected()
"""One bounded contribution a party, of the shape of the first message, without a weight."""


@dataclass(frozen=True, repr=False)
class Release:
    """What leaves parties in one release, in what form, and who can read it.

    Args:
        mechanism: How a contribution is bounded and what noise is drawn.
        noise_at: Who draws the noise.
        aggregation: How messages become one, and what the aggregator reads of them.
        finish: The function of the noised aggregate that is released.
        reduce: What is left of the aggregate before the noise; by keyword only.

    Raises:
        ValueError: If the finish has nothing to choose from after `MAX`.
        UnsoundReleaseError: If noise is asked for over an aggregation whose result one bounded
            contribution can move by any amount.
        UnsupportedError: If discrete noise is to be split whose parts have sums of no known law. If
            parties would draw noise before the aggregate is reduced, or noise is correlated over
            releases that are.
    """

    mechanism: Mechanism = Exact()
    noise_at: Placement = AT_AGGREGATOR
    aggregation: Aggregation = PlainSum()
    finish: Finish = IDENTITY
    reduce: Reduce = field(default=NONE, kw_only=True, metadata=LATER)

    def __repr__(self) -> str:
        return told(self)

    def __post_init__(self) -> None:
        # A study file writes it as a plain string.
        check_member([each.value for each in Reduce], reduce=self.reduce)
        object.__setattr__(self, "reduce", Reduce(self.reduce))
        # Every member that is asked for after something was spent: own mechanisms of 0.1 and 0.2
        # lack some.
        check_follows(Mechanism, "Gaussian(1.0, 1.0)", mechanism=self.mechanism)
        check_follows(Aggregation, "PlainSum()", aggregation=self.aggregation)
        if not isinstance(self.noise_at, Placement):
            raise ValueError(
                f"Expected noise_at={self.noise_at!r} to be AT_AGGREGATOR, AT_PARTY or SPLIT(...)."
            )
        refusal = self.aggregation.refusal(self.mechanism, self.noise_at)
        if isinstance(refusal, UnsoundReleaseError):
            raise refusal
        if isinstance(self.finish, type) or not callable(self.finish):
            raise ValueError(
                f"Expected finish={self.finish!r} to be IDENTITY, ARGMAX or Threshold(...)."
            )
        if self.noise_at.split and self.mechanism.about.grid is not None:
            check_part(self.mechanism, self.noise_at)
        if self.reduce is not NONE:
            check_reduced(self.mechanism, self.noise_at, self.finish)

    @property
    def noisy(self) -> bool:
        """Whether there is noise on what is released."""
        return self.mechanism.about.noisy

    @property
    def bounding(self) -> bool:
        """Whether contributions are bounded, with or without noise on their sum."""
        return self.mechanism.sensitivity(ADD_REMOVE) is not None

    def check(self, runtimes: Runtimes, *, parties: int, largest: float | None = None) -> None:
        """Refuses a release that could not be made here, before anything is trained or spent.

        Args:
            runtimes: Where parties run.
            parties: Smallest number of contributing parties.
            largest: Upper bound on the magnitude of a message's values, where a party's
                contributions have one; None for the mechanism's bound on a single contribution.

        Raises:
            UnsupportedError: If noise cannot be drawn where it would have to be, or the
                aggregation misses something.
        """
        self._check_available()
        if runtimes.star is None:
            raise UnsupportedError(NO_STAR)
        if self.parties_draw:
            if self.mechanism.about.separation > 1:
                raise UnsupportedError(remembers(self.mechanism))
            check_part(self.mechanism, self.noise_at)
        bound = self.mechanism.sensitivity(ADD_REMOVE) if largest is None else largest
        self.aggregation.check(finish_of_sum(self), runtimes, parties=parties, largest=bound)

    def _check_available(self) -> None:
        refusal = self.aggregation.refusal(self.mechanism, self.noise_at)
        if refusal is not None:
            raise refusal

    def begin(
        self,
        cohort: Iterable[str],
        run: Run,
        *,
        round: int,
        kind: str = "update",
    ) -> Gathering:
        """At the aggregator: prepares one release, before its parties are asked to contribute.

        The trainer then sends `gathering.asked(payload)` to the parties, of whom
        `gathering.at_least` have to reply, and hands the gathering to `arrive`.

        Args:
            cohort: Who takes part, in order.
            run: The run, whose parties the aggregation may ask beforehand.
            round: Training round, from 0.
            kind: What the messages are called in the transcript.

        Raises:
            PartyLostError: If fewer parties than the aggregation needs are there.
        """
        named = tuple(cohort)
        # A round that nobody was drawn for has no exchange.
        if not named:
            return Gathering(cohort=(), round=round, kind=kind)
        gathering = self.aggregation.begin(named, run, round=round, kind=kind)
        note_lost(named, gathering.cohort, round, run, noisy=self.noisy)
        return gathering

    def leave(
        self,
        contributions: Iterable[Tensor],
        party: Party,
        *,
        kind: str = "update",
        factor: float = 1.0,
        weight: float | None = None,
    ) -> Reply:
        """At the party: the reply that leaves, of bounded contributions and the party's noise.

        Args:
            contributions: The party's contributions, all of one shape.
            party: The party's side of the run.
            kind: What the message is called in the transcript.
            factor: What bounded contributions are multiplied by. Under noise in [0, 1]: what is
                covered is the bound.
            weight: A number that is added up like the contributions, of shape `(parameters,)`,
                and is sealed with them as the last value of the message; never bounded. None for
                none. Refused under noise, which would not cover it.

        Raises:
            UnsupportedError: If the release has noise and the aggregation adds exact values only.
            UnsoundReleaseError: If a weight would leave beside noise, or a factor carry a
                contribution past what the noise covers.
            ValueError: If there is no contribution.
        """
        self._check_available()
        return leave(self, contributions, party, kind=kind, factor=factor, weight=weight)

    @property
    def parties_draw(self) -> bool:
        """Whether there is noise and parties draw it."""
        return self.noisy and self.noise_at.drawer is Drawer.PARTY

    @property
    def readable(self) -> bool:
        """Whether the aggregator reads single messages."""
        seen = self.aggregation.exposure(AGGREGATOR, self.noise_at, parties=1)
        return seen.single_messages

    def trusted(self, sender: str, result: str) -> tuple[str, ...]:
        """What senders are trusted with, in sentences for the caveats of a statement.

        Args:
            sender: What a contributing party is called, such as "client".
            result: What a message without a bound could replace, such as "the model".
        """
        if not self.bounding:
            return (f"messages have no bound: one {sender} can replace {result}",)
        # Under noise it is an assumption of each guarantee.
        return () if self.readable or self.noisy else (UNREADABLE,)

    def admit(
        self,
        replies: Mapping[str, Reply],
        run: Run,
        *,
        round: int,
        kind: str = "update",
        expected: Expected = ONE_CONTRIBUTION,
    ) -> dict[str, Reply]:
        """At the aggregator: the replies that `arrive` adds up, none of which is believed.

        What can be read is bounded again, or refused where its party drew noise of its own. An
        honest message keeps its bits.

        Args:
            replies: Party to reply.
            run: The run, whose history counts what was bounded again.
            round: Training round, from 0.
            kind: What the messages are called in the transcript.
            expected: What messages are held to.

        Raises:
            ProtocolError: If a message cannot be an honest one, with the name of its party.
        """
        return admit(self, replies, run, round=round, kind=kind, expected=expected)

    def arrive(
        self,
        replies: Mapping[str, Reply] | BoundedSum,
        run: Run,
        *,
        round: int,
        kind: str = "update",
        releases: int = 1,
        expected: Expected = ONE_CONTRIBUTION,
        gathering: Gathering | None = None,
        charge: str = RELEASE,
    ) -> Released:
        """At the aggregator: the released value, of messages that are aggregated and noised.

        Args:
            replies: Party to reply, in the order of the parties; or a sum whose contributions
                were bounded while it was formed, if the aggregator owns the data.
            run: The run, whose ledger was paid before.
            round: Training round, from 0.
            kind: What the messages are called in the transcript.
            releases: Number of paid releases that this uses, such as one a query; 0 for a further
                part of the last one, such as a later batch of an epoch, which shares no row with
                the earlier ones.
            expected: What messages are held to: by default one bounded contribution a party.
            gathering: What `begin` returned; None for messages that needed no preparation.
            charge: Which of the plan's charges it is, where it has several.

        Returns:
            The released value, with weights their sum; whose contributions it holds; and what
            exactly it cost, where only winners leave and the aggregator draws a noise that can
            tell.

        Raises:
            ProtocolError: If a message cannot be an honest one, with the name of its party, or
                messages add up to what is not finite.
            PartyLostError: If the aggregation asks the parties once more, and too few reply.
            BudgetExceededError: If the release was not paid for.
            UnsoundReleaseError: If a sum was bounded less than the noise covers, or nobody would
                draw the noise.
            UnsupportedError: If the noise would have to be drawn on shares.
        """
        # First of all: a release that was not paid for must not even be computed.
        run.ledger.use(releases, kind=charge)
        if isinstance(replies, BoundedSum):
            check_sum(self, replies)
            total = Total(replies.value, parties=())
        else:
            total = self.gathered(
                replies, run, round=round, kind=kind, expected=expected, gathering=gathering
            )
        value = released(
            self, total, run, round, kind, charge, weighted=expected.largest_weight is not None
        )
        # Of a sum that was formed elsewhere it is not known that it counts votes.
        if isinstance(replies, BoundedSum):
            return value
        return replace(value, realised=realised(self, total.value))

    def gathered(
        self,
        replies: Mapping[str, Reply],
        run: Run,
        *,
        round: int,
        kind: str = "update",
        expected: Expected = ONE_CONTRIBUTION,
        gathering: Gathering | None = None,
    ) -> Total:
        """At the aggregator: the admitted messages as one, the first half of `arrive`.

        For trainers that release one aggregate twice, in `release_of`: an aggregation may ask its
        parties while it gathers, which it does once. Pay before it.

        Args:
            replies: Party to reply, in the order of the parties.
            run: The run.
            round: Training round, from 0.
            kind: What the messages are called in the transcript.
            expected: What messages are held to: by default one bounded contribution a party.
            gathering: What `begin` returned; None for messages that needed no preparation.

        Returns:
            The total, with the names of those whose contributions it holds. Not released yet.

        Raises:
            ProtocolError: If a message cannot be an honest one, with the name of its party, or
                messages add up to what is not finite.
            PartyLostError: If the aggregation asks the parties once more, and too few reply.
            ValueError: If a total names a party that did not reply.
        """
        return gathered(
            self, replies, run, round=round, kind=kind, expected=expected, gathering=gathering
        )

    def release_of(
        self,
        total: Total,
        run: Run,
        *,
        round: int,
        kind: str = "update",
        releases: int = 1,
        charge: str = RELEASE,
    ) -> Released:
        """At the aggregator: the released value of a gathered total, the second half of `arrive`.

        Args:
            total: What `gathered` returned, or rows of it; of messages without weights.
            run: The run, whose ledger was paid before.
            round: Training round, from 0.
            kind: What the messages are called in the transcript.
            releases: Number of paid releases that this uses, such as one a query.
            charge: Which of the plan's charges it is, where it has several.

        Raises:
            BudgetExceededError: If the release was not paid for.
            UnsupportedError: If the noise would have to be drawn on shares.
        """
        run.ledger.use(releases, kind=charge)
        value = released(self, total, run, round, kind, charge, weighted=False)
        return replace(value, realised=realised(self, total.value))

    @property
    def aggregator_draws(self) -> bool:
        """Whether there is noise and the aggregator draws it."""
        return self.noisy and self.noise_at.drawer is Drawer.AGGREGATOR

    def plans(
        self,
        *,
        unit: Unit,
        count: int,
        parties: int,
        sampling: Sampling | None = None,
        observers: tuple[Observer, ...] = (PUBLIC, PARTICIPANT, AGGREGATOR),
        assumptions: tuple[str, ...] = (),
        charge: str = RELEASE,
    ) -> tuple[PrivacyPlan, ...]:
        """One privacy plan for each observer, for a number of releases.

        Args:
            unit: Whose contribution is bounded.
            count: Number of releases.
            parties: Number of parties.
            sampling: Which of them take part in a release; None for all of them.
            observers: The observers that get a guarantee.
            assumptions: What has to hold for every guarantee.
            charge: What these releases are called where a run makes several kinds.

        Raises:
            UnsoundReleaseError: If noise is correlated over more steps than lie between two
                contributions of a unit.
        """
        return plans(
            self,
            unit=unit,
            count=count,
            parties=parties,
            sampling=sampling,
            observers=observers,
            assumptions=assumptions,
            charge=charge,
        )

    def with_scale(self, scale: float) -> "Release | None":
        """The same release with another noise scale, or None if it draws no noise."""
        mechanism = self.mechanism.with_scale(scale)
        return None if mechanism is None else replace(self, mechanism=mechanism)
