"""Releases that are only near the ones that an accountant can read.

The distance is part of the event, so that nothing which reads events can leave it out: it is
charged to delta, or the reader refuses.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from privtrain.core.validate import check_non_negative

_PAD = 1e-9
"""By how much, relative and absolute, a bound is raised above the epsilon that it must cover."""

_TRIES = 50


@dataclass(frozen=True)
class Approximate:
    """A release whose outputs are near those of another one, on every data set.

    Args:
        event: The other one.
        distance: Upper bound on the total variation distance between the outputs of the two, of
            all draws of all releases in the event jointly; at least zero.
    """

    event: Any
    distance: float

    def __post_init__(self) -> None:
        check_non_negative(distance=self.distance)
        if isinstance(self.event, Approximate):
            raise ValueError(f"Expected event={self.event!r} not to be approximate itself.")

    def map(self, change: Callable[[Any], Any]) -> "Approximate":
        """The same distance from something else, such as the same release about a sample."""
        return replace(self, event=change(self.event))

    @property
    def no_curve(self) -> str:
        """Why there is no Rényi curve of this event."""
        return (
            f"A Rényi curve cannot hold the distance {self.distance:.3g} of {self!r}, which "
            "belongs to delta. Compose such releases by `epsilon`, or use secure=False."
        )

    def epsilon(self, delta: float, exact: Callable[[float], float]) -> float:
        """The epsilon at a delta, of which (1 + e^epsilon) x distance is for the distance.

        If the other release is (epsilon, delta')-DP, this one is (epsilon, delta' + (1 + e^epsilon)
        distance)-DP: each of the two neighbours' outputs is replaced once.

        Args:
            delta: In (0, 1).
            exact: The other release's epsilon as a function of its delta.

        Returns:
            An epsilon whose own delta was evaluated to be at most the given one; infinity where
            the distance takes up all of delta, so that nothing is promised at it.

        Source: the triangle inequality, written out in docs/decisions/013-secure-noise.md.
        """
        bound = exact(delta)
        for _ in range(_TRIES):
            # Beyond 700 e^epsilon is no float; a distance of zero changes nothing.
            rest = delta - (1 + math.exp(min(bound, 700.0))) * self.distance
            if rest <= 0:
                break
            epsilon = exact(rest) if self.distance > 0 else bound
            # The rest is enough for the bound that it was computed with: that is the proof.
            if epsilon <= bound:
                return bound
            # A larger bound leaves a smaller rest: the search climbs to the smallest fixed point.
            bound = epsilon * (1 + _PAD) + _PAD
        return math.inf


def exact_part(event: Any) -> Any:
    """The event that accountants read, without the distance."""
    return event.event if isinstance(event, Approximate) else event


def holds_distance(event: Any) -> bool:
    """Whether an `Approximate` was put inside an event, where a reader might not see it."""
    return isinstance(getattr(event, "event", None), Approximate)


def total_distance(events: tuple[Any, ...]) -> float:
    """The sum of the distances of several releases from what accountants read."""
    return float(sum(event.distance for event in events if isinstance(event, Approximate)))
