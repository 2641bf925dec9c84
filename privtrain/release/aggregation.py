"""The protocol of aggregations, and the formula for what an observer of a sum sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from privtrain.core.observers import Exposure, Observer
from privtrain.core.runtime import PartyRun, Payload
from privtrain.core.statement import InputPrivacy
from privtrain.core.trainer import Run
from privtrain.release.finish import Finish
from privtrain.release.placement import Placement


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
