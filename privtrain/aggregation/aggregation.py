"""The protocol of aggregations, and the formula for what an observer of a sum sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from privtrain.aggregation.finish import Finish
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, Exposure, Observer
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.runtime import PartyRun, Payload
from privtrain.core.statement import InputPrivacy
from privtrain.core.trainer import Run
from privtrain.privacy.placement import Drawer, Placement


class Sealed(Protocol):
    """An aggregate that is still on shares: nobody has read it."""

    def open(self, finish: Finish) -> Tensor:
        """Finishes on shares and opens only what is left."""
        ...


@dataclass(frozen=True)
class Aggregate:
    """Many contributions as one.

    Args:
        value: The aggregate, or its seal while it is on shares.
    """

    value: Tensor | Sealed


@dataclass(frozen=True)
class BoundedSum:
    """A sum whose contributions were bounded while it was formed (fused clipping).

    Only where the aggregator owns the data: single contributions never existed as messages.

    Args:
        value: The sum, shape `(parameters,)`.
        bound: Upper bound on the norm of each contribution that went into it.
    """

    value: Tensor
    bound: float


class Aggregation(Protocol):
    """How many messages become one, and what the aggregator can read of them."""

    @property
    def bounded(self) -> bool:
        """Whether one bounded contribution moves the aggregate by at most its bound."""
        ...

    def seal(self, contribution: Tensor, party: PartyRun, *, kind: str) -> Payload:
        """At the party: a bounded contribution as the message that leaves."""
        ...

    def __call__(self, messages: Sequence[Payload], run: Run, *, kind: str) -> Aggregate:
        """At the aggregator: messages, in party order, as one aggregate."""
        ...

    def exposure(self, observer: Observer, noise_at: Placement, *, parties: int) -> Exposure:
        """What an observer sees of one release.

        Args:
            observer: Who looks.
            noise_at: Who draws the noise.
            parties: How many parties contribute at least.
        """
        ...

    def readers(self, sender: str, kind: str) -> tuple[InputPrivacy, ...]:
        """Who reads what of the messages on their way.

        Args:
            sender: What a contributing party is called, such as "client".
            kind: What a contribution is called, such as "update".
        """
        ...


def sum_exposure(
    observer: Observer,
    noise_at: Placement,
    *,
    parties: int,
    reads_messages: bool,
    knows_noise: bool,
) -> Exposure:
    """What an observer sees of a sum over parties.

    Args:
        observer: Who looks. A coalition that names the aggregator sees what it sees.
        noise_at: Who draws the noise.
        parties: How many parties contribute at least.
        reads_messages: Whether the aggregator reads single messages.
        knows_noise: Whether the aggregator knows the noise that it draws.

    Returns:
        The exposure: see the golden table of `docs/concepts.md`.
    """
    inside = observer == AGGREGATOR or AGGREGATOR_NAME in observer.corrupted
    if noise_at.drawer is Drawer.AGGREGATOR:
        # Whoever reads the messages before the noise needs no noise to subtract.
        known = 1.0 if inside and (knows_noise or reads_messages) else 0.0
        return Exposure(
            single_messages=inside and reads_messages, knows_sample=inside, noise_known=known
        )
    if inside and reads_messages:
        return Exposure(
            single_messages=True, knows_sample=True, noise_known=0.0, variance=noise_at.fraction
        )
    # A split promises no more than the variance that its honest survivors draw together.
    ceiling = 1.0 if noise_at.split else float(parties)
    # A participant knows its own noise. The party that the guarantee is for is always honest.
    colluding = 1 if observer == PARTICIPANT else len(observer.corrupted - {AGGREGATOR_NAME})
    variance = min(ceiling, parties * noise_at.fraction)
    hidden = min(ceiling, max(parties - colluding, 1) * noise_at.fraction)
    return Exposure(
        single_messages=False,
        knows_sample=inside,
        noise_known=1.0 - hidden / variance,
        variance=variance,
    )
