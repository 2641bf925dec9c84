"""The weights of clients in an average."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from privtrain.core.validate import check_count

UNBOUNDED_SCALE = 2.0**-20
"""What weights without a bound are multiplied by: fixed point then holds weights below 2^32.

A power of two, so that no weight is rounded by it.
"""


class Weights(Protocol):
    """The weight of each client in the average: n_k in Algorithm 1 of McMahan et al. 2017."""

    @property
    def bounded(self) -> bool:
        """Whether a client's weight is at most 1, whatever rows it holds."""
        ...

    def weight(self, rows: int) -> float:
        """The weight of a client with so many rows."""
        ...

    @property
    def uniform(self) -> bool:
        """Whether all clients count the same."""
        ...


@dataclass(frozen=True)
class Uniform:
    """The weight 1 for every client."""

    bounded: ClassVar[bool] = True
    uniform: ClassVar[bool] = True

    def weight(self, rows: int) -> float:
        return 1.0


@dataclass(frozen=True)
class ByExamples:
    """A weight that grows with a client's number of rows.

    Args:
        bound: Rows beyond this many do not count; None for no bound, which no noise can cover.
    """

    bound: int | None = None
    uniform: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.bound is not None:
            check_count(bound=self.bound)

    @property
    def bounded(self) -> bool:
        return self.bound is not None

    def weight(self, rows: int) -> float:
        """The number of rows, or its fraction of the bound, at most 1."""
        # The bound is the per-user cap of McMahan et al. 2018: w_k = min(n_k / cap, 1).
        return float(rows) if self.bound is None else min(rows, self.bound) / self.bound


def scale_of(weights: Weights) -> float:
    """The public number that weights are multiplied by before they are sealed."""
    return 1.0 if weights.bounded else UNBOUNDED_SCALE
