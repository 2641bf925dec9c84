"""Releases: the only way out of a party, in four steps: bound, aggregate, noise, finish.

A release has two sides. `leave` runs at the party, before anything leaves it; `arrive` runs at the
aggregator, on the messages. A release that was not paid for is refused.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError, UnsoundReleaseError, UnsupportedError
from privtrain.core.fields import LATER, told
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Exposure, Observer
from privtrain.core.parameters import wide_type
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.runtime import NO_STAR, Party, Reply, Runtimes
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Relation, Unit
from privtrain.core.trainer import RELEASE, Charge, PrivacyPlan, Run
from privtrain.core.validate import check_follows
from privtrain.mechanisms.mechanism import Exact, Mechanism
from privtrain.release.aggregation import (
    Aggregation,
    BoundedSum,
    Gathering,
    Released,
    Sealed,
    Total,
    parted,
)
from privtrain.release.arrival import UNREADABLE, Arrival, Expected, with_weight
from privtrain.release.finish import ARGMAX, IDENTITY, Finish
from privtrain.release.placement import AT_AGGREGATOR, Drawer, Placement
from privtrain.release.plain import PlainSum
from privtrain.release.reduce import NONE, Reduce, Reduced
from privtrain.sampling.sampling import Everyone, Sampling
from privtrain.sampling.schedule import check_separation

NON_FINITE = "non_finite"
"""Diagnostic: how many of a party's contributions were not finite and counted as zero."""

LOST = "lost"
"""Diagnostic: how many parties of a noised round were asked and did not contribute."""

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
        if self.noise_at.split and self.mechanism.about.grid is not None:
            self._check_part()
        if self.reduce is not NONE:
            self._check_reduced()

    @property
    def noisy(self) -> bool:
        """Whether there is noise on what is released."""
        return self.mechanism.about.noisy

    def _check_reduced(self) -> None:
        if self.finish == ARGMAX:
            raise ValueError(
                "Expected finish=ARGMAX with reduce=NONE: of the largest value alone nobody can "
                "tell whose it is. Use Threshold(...) or IDENTITY."
            )
        if not self.noisy:
            return
        if self.noise_at.drawer is Drawer.PARTY:
            raise UnsupportedError(
                f"reduce=MAX comes before the noise, which noise_at={self.noise_at} leaves to "
                "parties that see no sum. Use noise_at=AT_AGGREGATOR."
            )
        if self.mechanism.about.separation > 1:
            raise UnsupportedError(
                f"{self.mechanism} correlates noise over the steps of one sum; what that promises "
                "of largest values is not known. Use Gaussian, or GNMax for votes."
            )

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
        if self._parties_draw:
            if self.mechanism.about.separation > 1:
                raise UnsupportedError(self._remembers)
            self._check_part()
        bound = self.mechanism.sensitivity(ADD_REMOVE) if largest is None else largest
        self.aggregation.check(self._finish_of_sum, runtimes, parties=parties, largest=bound)

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
        self._note_lost(named, gathering.cohort, round, run)
        return gathering

    def _check_part(self) -> None:
        # Called for its refusal: the event of a part of the noise that cannot be drawn.
        alone = Exposure(
            single_messages=True,
            knows_sample=True,
            noise_known=0.0,
            variance=self.noise_at.fraction,
        )
        self.mechanism.event(alone, REPLACE_ONE)

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
        if self.noisy and not 0 <= factor <= 1:  # a NaN must fail, too
            raise UnsoundReleaseError(
                f"factor={factor:g} would carry a contribution past the bound that "
                f"{self.mechanism} covers. Use weights in [0, 1]."
            )
        if weight is not None and self.noisy:
            raise UnsoundReleaseError(
                f"weight={weight:g} would leave without noise beside what {self.mechanism} covers. "
                "Divide by a public number."
            )
        bounded, non_finite, bounding = [], 0, self.bounding
        # First step, bound: each contribution by itself, since one unit changes one of them.
        for contribution in contributions:
            if bounding:
                non_finite += not bool(torch.isfinite(contribution).all())
            kept = self.mechanism.bound(contribution)
            # McMahan et al. 2018, Algorithm 1: w_k times the clipped update. The other way round,
            # weights would be clipped away. A factor up to 1 makes no value larger when rounded.
            bounded.append(kept if factor == 1 else _times(kept, factor, sealed=weight is not None))
        if not bounded:
            raise ValueError(
                f"Expected contributions=[] of {party.name!r} to hold at least one; a party "
                "without any sends zeros of the right shape, so that its noise is drawn."
            )
        # A party's own contributions are added before its noise: one noise hides all of them.
        total = bounded[0]
        if len(bounded) > 1:
            # Many terms in bfloat16 would be rounded by more than the bound on one of them.
            dtype = wide_type(bounded) if total.is_floating_point() else None
            total = torch.stack(bounded).sum(dim=0, dtype=dtype)
        if self._parties_draw:
            total = self._with_own_noise(total, party, kind)
        if weight is not None:
            total = with_weight(total, weight)
        grid = self.mechanism.about.grid if self._parties_draw else None
        reply = self.aggregation.seal(total, party, kind=kind, grid=grid)
        # Computed from private values without noise, hence a diagnostic.
        if not non_finite:
            return reply
        numbers = {**reply.seen.numbers, NON_FINITE: float(non_finite)}
        return replace(reply, seen=replace(reply.seen, numbers=numbers))

    def _with_own_noise(self, total: Tensor, party: Party, kind: str) -> Tensor:
        # A stream of its own for every kind, round and party: noise that is drawn twice cancels.
        stream = party.entropy[f"noise/{kind}", party.round, party.name]
        if self.mechanism.about.grid is not None and not self.readable:
            # What is shared or masked is encoded in multiples of the grid, which a coarser type
            # would round.
            total = total.double()
        released, after = self.mechanism.add(total, None, stream, fraction=self.noise_at.fraction)
        # The state would have to outlive the party's round, and the party may not be sampled again.
        if after is not None:
            raise UnsupportedError(self._remembers)
        return released

    @property
    def _finish_of_sum(self) -> Finish:
        """What is opened of a sum that nobody reads, and that no noise is added to."""
        return self.finish if self.reduce is NONE else Reduced(self.reduce, self.finish)

    @property
    def _remembers(self) -> str:
        return (
            f"{self.mechanism} remembers its earlier noise, which parties do not keep; "
            "let the aggregator draw it (noise_at=AT_AGGREGATOR)."
        )

    @property
    def _parties_draw(self) -> bool:
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
        if not self.readable:
            return dict(replies)
        own_noise = self.noise_at.fraction if self._parties_draw else None
        arrival = Arrival(mechanism=self.mechanism, own_noise=own_noise, expected=expected)
        received = {party: reply.message for party, reply in replies.items()}
        admitted = arrival.admit(received, run, round=round, kind=kind)
        return {party: replace(replies[party], message=kept) for party, kept in admitted.items()}

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
            self._check_sum(replies)
            total = Total(replies.value, parties=())
        else:
            total = self.gathered(
                replies, run, round=round, kind=kind, expected=expected, gathering=gathering
            )
        released = self._released(
            total, run, round, kind, charge, weighted=expected.largest_weight is not None
        )
        # Of a sum that was formed elsewhere it is not known that it counts votes.
        if isinstance(replies, BoundedSum):
            return released
        return replace(released, realised=self._realised(total.value))

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
        begun = gathering or Gathering(cohort=tuple(replies), round=round, kind=kind)
        begun = replace(begun, weighted=expected.largest_weight is not None)
        nothing = self._nothing(expected) if not replies else None
        if nothing is not None:
            self._note_lost(begun.cohort, (), round, run)
            return nothing
        admitted = self.admit(replies, run, round=round, kind=kind, expected=expected)
        total = self.aggregation.gather(begun, admitted, run)
        # Some may have been lost after they replied, while the aggregation asked once more.
        parties = tuple(replies) if total.parties is None else total.parties
        strange = [party for party in parties if party not in replies]
        if strange:
            raise ValueError(
                f"Expected the total of {self.aggregation} to hold contributions of parties that "
                f"replied; it names {strange[0]!r}."
            )
        self._note_lost(begun.cohort, parties, round, run)
        if isinstance(total.value, Tensor) and not (
            bool(torch.isfinite(total.value).all()) and math.isfinite(total.weight or 0.0)
        ):
            raise ProtocolError(
                f"Round {round}: the sum of messages {kind!r} is not finite, though each of "
                f"{len(parties)} is. Clip with Release(Gaussian(clipping_norm, 0.0))."
            )
        return replace(total, parties=parties)

    def _nothing(self, expected: Expected) -> Total | None:
        """The total of no message, where noise is added to it all the same; else None."""
        # Whether a round was empty is a secret, so it is noised like any other. No aggregation is
        # asked: there is nobody to agree on keys with, and no message to open.
        if expected.shape is None or not self._aggregator_draws:
            return None
        sizes = [size for size in expected.shape if size is not None]
        if len(sizes) < len(expected.shape):
            return None
        weight = None if expected.largest_weight is None else 0.0
        return Total(torch.zeros(sizes, dtype=torch.float64), weight, ())

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
        released = self._released(total, run, round, kind, charge)
        return replace(released, realised=self._realised(total.value))

    def _released(
        self,
        total: Total,
        run: Run,
        round: int,
        kind: str,
        charge: str,
        *,
        weighted: bool = False,
    ) -> Released:
        parties = total.parties or ()
        if not isinstance(total.value, Tensor):
            # On shares noise and finish come before the opening: only their result is read.
            mechanism = self.mechanism if self._aggregator_draws else Exact()
            opened = total.value.open(self._finish_of_sum, mechanism)
            return Released(*parted(opened, weighted=weighted), parties)
        # A kind of release has noise of its own, also where two of them read the same messages.
        noise = kind if charge == RELEASE else f"{kind}/{charge}"
        # Third and fourth step: the finish sees the noised aggregate only.
        value = self.finish(self._noised(self.reduce(total.value), run, round, noise))
        return Released(value, total.weight, parties)

    def _realised(self, total: Tensor | Sealed) -> Any | None:
        """What these very votes cost, where the exact sum tells; it is private itself."""
        # Proved of the winner alone: whoever sees noised counts, or the largest one, sees more. Of
        # messages that nobody could read it is not known that they are votes.
        if not isinstance(total, Tensor) or total.dim() != 2 or not self._aggregator_draws:
            return None
        winners = self.finish == ARGMAX and self.readable
        return self.mechanism.realised(total) if winners else None

    def _note_lost(
        self, asked: Iterable[str], there: Collection[str], round: int, run: Run
    ) -> None:
        """Notes who was asked and did not reply; under noise, where nobody publishes it."""
        lost = [party for party in asked if party not in there]
        if not lost:
            return
        if self.noisy:
            # Even a count tells of a party that never replies whether it was drawn, or is in the
            # data at all, which is what the noise hides.
            run.outcome.history.record(round + 1, **{LOST: float(len(lost))})
            return
        run.outcome.notes.append(
            f"round {round} went on without {', '.join(lost)}: lost on the way"
        )

    @property
    def _aggregator_draws(self) -> bool:
        return self.noisy and self.noise_at.drawer is Drawer.AGGREGATOR

    def _check_sum(self, given: BoundedSum) -> None:
        """Refuses a sum, formed outside `leave`, that the noise does not cover."""
        if not self.noisy:
            return
        if self.reduce is not NONE:
            raise UnsupportedError(
                f"reduce={self.reduce.name} needs messages: how far one contribution to a sum that "
                "was formed elsewhere moves its largest value is not known."
            )
        if self.noise_at.drawer is not Drawer.AGGREGATOR:
            raise UnsoundReleaseError(
                f"noise_at={self.noise_at} leaves the noise to parties, but the aggregator formed "
                "this sum itself, so nobody would draw it. Use noise_at=AT_AGGREGATOR."
            )
        covered = self.mechanism.sensitivity(ADD_REMOVE)
        if covered is None or not given.bound <= covered:  # a NaN must fail, too
            raise UnsoundReleaseError(
                f"The contributions of this sum are bounded by {given.bound:g}, but "
                f"{self.mechanism} covers {covered}. Clip to the mechanism's own bound."
            )

    def _noised(self, aggregate: Tensor, run: Run, round: int, kind: str) -> Tensor:
        if not self._aggregator_draws:
            return aggregate
        stream = run.entropy[f"noise/{kind}", round, AGGREGATOR_NAME]
        # A state for each kind: correlated noise of one kind says nothing of another's.
        return run.remember(kind, partial(self.mechanism.add, aggregate, stream=stream))

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
        chosen = sampling or Everyone()
        about = self.mechanism.about
        check_separation(self.mechanism, about.separation, chosen)
        unread = (UNREADABLE,) if about.noisy and not self.readable else ()
        plans = []
        for observer in observers:
            relation, event, counted = self._event(observer, chosen, parties)
            plan = PrivacyPlan(
                observer=observer,
                unit=unit,
                relation=relation,
                charges={charge: Charge(event, count)},
                theorem=self._theorem,
                assumptions=(*assumptions, *about.assumptions, *counted, *unread),
                float_noise=about.grid is None,
            )
            plans.append(plan)
        return tuple(plans)

    @property
    def _theorem(self) -> str:
        theorem = self.mechanism.about.theorem
        if self.reduce is NONE or not theorem:
            return theorem
        return f"{theorem}, at the sensitivity of the largest value alone (reduce=MAX)"

    def _event(
        self, observer: Observer, sampling: Sampling, parties: int
    ) -> tuple[Relation, Any, tuple[str, ...]]:
        """The relation of an observer's guarantee, the event of one release, whose noise counts."""
        # The smallest sample is the worst case: fewer parties draw less noise of their own.
        exposure = self.aggregation.exposure(
            observer, self.noise_at, parties=sampling.at_least(parties)
        )
        relation = sampling.relation(exposure, parties)
        if self._parties_draw:
            # A party takes its noise along: nobody leaves unseen, and where the number of
            # parties varies, so does the noise, which shows who takes part.
            relation = ZERO_OUT if relation is ADD_REMOVE else relation
            exposure = replace(exposure, knows_sample=exposure.knows_sample or sampling.varies)
        if self.reduce is not NONE:
            # Who reads single messages sees all of them.
            exposure = replace(exposure, largest_only=not exposure.single_messages)
        event = self.mechanism.event(exposure, relation)
        counted = self._counted(exposure, relation, event) if self._parties_draw else ()
        # A participant is one party that knows whether it took part, whoever it is.
        corrupted = 1 if observer == PARTICIPANT else len(observer.corrupted)
        return relation, sampling.amplified(event, exposure, parties, corrupted), counted

    def _counted(self, exposure: Exposure, relation: Relation, event: Any) -> tuple[str, ...]:
        """Whose honest noise an event rests on, for the assumptions of its guarantee."""
        fraction = self.noise_at.fraction
        drawers = round(exposure.hidden_variance / fraction)
        if drawers > 1:
            # Some mechanisms charge several noises as one, which the protected party draws itself.
            alone = replace(exposure, variance=fraction, noise_known=0.0)
            whole = fraction == 1
            if not (whole and self.mechanism.event(alone, relation) == event):
                return (
                    f"counts on the noise of {drawers} honest parties that stay to the end, each "
                    f"of which draws {_share(fraction)}",
                )
        return (f"counts on the noise of the protected party itself, {_share(fraction)}",)

    def with_scale(self, scale: float) -> "Release | None":
        """The same release with another noise scale, or None if it draws no noise."""
        mechanism = self.mechanism.with_scale(scale)
        return None if mechanism is None else replace(self, mechanism=mechanism)


def _times(contribution: Tensor, factor: float, *, sealed: bool) -> Tensor:
    """A contribution times a factor, in float32 at least where a sealed weight needs it anyhow."""
    dtype = contribution.dtype
    return contribution.to(torch.promote_types(dtype, torch.float32) if sealed else dtype) * factor


def _share(fraction: float) -> str:
    return "all of it" if fraction == 1 else f"1/{round(1 / fraction)} of its variance"
