"""What is done with a noised aggregate, where the noise is, before anybody may read it."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Finish(Protocol):
    """The last beat of a release."""

    def __call__(self, aggregate: Tensor) -> Tensor:
        """What is released of an aggregate."""
        ...


@dataclass(frozen=True)
class Identity:
    """The aggregate itself."""

    def __call__(self, aggregate: Tensor) -> Tensor:
        """The aggregate, unchanged."""
        return aggregate


@dataclass(frozen=True)
class Argmax:
    """Only the place of the largest value of each row."""

    def __call__(self, aggregate: Tensor) -> Tensor:
        """Class indices `(queries,)` of counts `(queries, classes)`."""
        return aggregate.argmax(dim=-1)


@dataclass(frozen=True)
class Threshold:
    """Only whether each value reaches a threshold.

    Args:
        threshold: The value to reach.
    """

    threshold: float

    def __call__(self, aggregate: Tensor) -> Tensor:
        """Booleans of the aggregate's shape."""
        return aggregate >= self.threshold


IDENTITY = Identity()
"""Release the aggregate itself."""

ARGMAX = Argmax()
"""Release only the place of the largest value."""
