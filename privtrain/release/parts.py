"""What the steps of a release read of it: its parts, and what follows from them."""

from typing import Protocol

from privtrain.mechanisms.mechanism import Mechanism
from privtrain.release.aggregation import Aggregation
from privtrain.release.finish import Finish
from privtrain.release.placement import Placement
from privtrain.release.reduce import Reduce


class Parts(Protocol):
    """A release, as the functions of its steps see it."""

    @property
    def mechanism(self) -> Mechanism:
        """How a contribution is bounded and what noise is drawn."""
        ...

    @property
    def noise_at(self) -> Placement:
        """Who draws the noise."""
        ...

    @property
    def aggregation(self) -> Aggregation:
        """How messages become one, and what the aggregator reads of them."""
        ...

    @property
    def finish(self) -> Finish:
        """The function of the noised aggregate that is released."""
        ...

    @property
    def reduce(self) -> Reduce:
        """What is left of the aggregate before the noise."""
        ...

    @property
    def noisy(self) -> bool:
        """Whether there is noise on what is released."""
        ...

    @property
    def bounding(self) -> bool:
        """Whether contributions are bounded, with or without noise on their sum."""
        ...

    @property
    def readable(self) -> bool:
        """Whether the aggregator reads single messages."""
        ...

    @property
    def parties_draw(self) -> bool:
        """Whether there is noise and parties draw it."""
        ...

    @property
    def aggregator_draws(self) -> bool:
        """Whether there is noise and the aggregator draws it."""
        ...
