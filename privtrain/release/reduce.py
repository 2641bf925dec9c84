"""What is left of an aggregate before the noise: all of it, or the largest value of each row."""

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from privtrain.release.finish import Finish


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
