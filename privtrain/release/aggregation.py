"""The protocol of aggregations: how messages become one, and what can be read of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from privtrain.core.observers import Exposure, Observer
from privtrain.core.runtime import Party, Payload, Runtimes
from privtrain.core.statement import InputPrivacy
from privtrain.core.trainer import Run
from privtrain.release.finish import Finish
from privtrain.release.placement import Placement


class Sealed(Protocol):
    """An aggregate that is still on shares: nobody has read it."""

    def open(self, finish: Finish) -> Tensor:
        """Applies the finish on shares and opens only its result."""
        ...


@dataclass(frozen=True)
class Aggregate:
    """Many contributions as one.

    Args:
        value: The aggregate, or a sealed one while it is on shares.
    """

    value: Tensor | Sealed


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


class Aggregation(Protocol):
    """How many messages become one, and what the aggregator can read of them."""

    @property
    def bounded(self) -> bool:
        """Whether one bounded contribution moves the aggregate by at most its bound."""
        ...

    @property
    def caveats(self) -> tuple[str, ...]:
        """What adding up does not protect from, for the statement."""
        ...

    @property
    def exact_only(self) -> bool:
        """Whether a release with noise is refused, since only exact values can be added up."""
        ...

    def check(
        self, finish: Finish, runtimes: Runtimes, *, parties: int, largest: float | None
    ) -> None:
        """Refuses what could not be aggregated here, before anything is trained or spent.

        Args:
            finish: The function of the aggregate that is released.
            runtimes: Where parties run.
            parties: Smallest number of contributing parties.
            largest: Upper bound on the magnitude of a message's values; None where there is none.

        Raises:
            UnsupportedError: If the finish, a runtime or an engine is missing, or numbers do not
                fit.
        """
        ...

    def seal(self, contribution: Tensor, party: Party, *, kind: str) -> Payload:
        """At the party: the message that leaves, made of a bounded contribution.

        Where the aggregator reads single messages, it finds the contribution under its kind.
        """
        ...

    def __call__(self, messages: Sequence[Payload], run: Run, *, kind: str) -> Aggregate:
        """At the aggregator: one aggregate of the messages, which come in party order."""
        ...

    def exposure(self, observer: Observer, noise_at: Placement, *, parties: int) -> Exposure:
        """What an observer sees of one release.

        Args:
            observer: Who looks.
            noise_at: Who draws the noise.
            parties: Smallest number of contributing parties.
        """
        ...

    def readers(self, sender: str, kind: str) -> tuple[InputPrivacy, ...]:
        """Who can read which part of the messages.

        Args:
            sender: What a contributing party is called, such as "client".
            kind: What a contribution is called, such as "update".
        """
        ...
