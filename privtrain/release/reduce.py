"""What is left of an aggregate before the noise: all of it, or the largest value of each row."""

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from privtrain.core.errors import UnsupportedError
from privtrain.mechanisms.mechanism import Mechanism
from privtrain.release.finish import ARGMAX, Finish
from privtrain.release.placement import Drawer, Placement


class Reduce(StrEnum):
    """How an aggregate is reduced before the noise."""

    NONE = "none"
    MAX = "max"

    def __call__(self, aggregate: Tensor) -> Tensor:
        """What the noise is added to.

        Args:
            aggregate: Such as counts of votes, shape `(queries, classes)`.

        Returns:
            The aggregate itself, or the largest value of each row, shape `(queries,)`.
        """
        return aggregate if self is Reduce.NONE else aggregate.amax(dim=-1)


NONE = Reduce.NONE
"""The aggregate itself is noised."""

MAX = Reduce.MAX
"""Only the largest value of each row is noised and released: the count of the winner, not who it
is. One vote that moves changes it by at most 1 (Papernot et al. 2018, Section 4.1)."""


@dataclass(frozen=True)
class Reduced:
    """A finish of an aggregate that is reduced where it is finished, without noise in between.

    Args:
        reduce: Comes first.
        finish: Comes after it.
    """

    reduce: Reduce
    finish: Finish

    def __call__(self, aggregate: Tensor) -> Tensor:
        return self.finish(self.reduce(aggregate))


def check_reduced(mechanism: Mechanism, noise_at: Placement, finish: Finish) -> None:
    """Refuses a finish, or a noise, that does not go with `reduce=MAX`.

    Raises:
        ValueError: If the finish has nothing to choose from.
        UnsupportedError: If parties would draw the noise, or noise is correlated over releases.
    """
    if finish == ARGMAX:
        raise ValueError(
            "Expected finish=ARGMAX with reduce=NONE: of the largest value alone nobody can "
            "tell whose it is. Use Threshold(...) or IDENTITY."
        )
    if not mechanism.about.noisy:
        return
    if noise_at.drawer is Drawer.PARTY:
        raise UnsupportedError(
            f"reduce=MAX comes before the noise, which noise_at={noise_at} leaves to "
            "parties that see no sum. Use noise_at=AT_AGGREGATOR."
        )
    if mechanism.about.separation > 1:
        raise UnsupportedError(
            f"{mechanism} correlates noise over the steps of one sum; what that promises "
            "of largest values is not known. Use Gaussian, or GNMax for votes."
        )
