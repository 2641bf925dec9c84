"""The last step of a release: what is computed of a noised aggregate before anybody reads it.

It is computed where the noise is: by the aggregator, or on shares. Behind noise it is
post-processing and costs nothing (Dwork and Roth 2014, Proposition 2.1).
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from privtrain.core.validate import check_number


class Finish(Protocol):
    """The function of the noised aggregate that is released."""

    def __call__(self, aggregate: Tensor) -> Tensor:
        """The value that is released."""
        ...


@dataclass(frozen=True)
class Identity:
    """The aggregate itself."""

    def __call__(self, aggregate: Tensor) -> Tensor:
        return aggregate


@dataclass(frozen=True)
class Argmax:
    """Only the place of the largest value of each row."""

    def __call__(self, aggregate: Tensor) -> Tensor:
        """Class indices, shape `(queries,)`, for counts of shape `(queries, classes)`."""
        return aggregate.argmax(dim=-1)


@dataclass(frozen=True)
class Threshold:
    """Only whether each value reaches a threshold.

    Args:
        threshold: The value to reach.
    """

    threshold: float

    def __post_init__(self) -> None:
        check_number(threshold=self.threshold)

    def __call__(self, aggregate: Tensor) -> Tensor:
        """Booleans of the aggregate's shape."""
        return aggregate >= self.threshold


IDENTITY = Identity()
"""Release the aggregate itself."""

ARGMAX = Argmax()
"""Release only the place of the largest value."""
