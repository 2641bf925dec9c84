"""The weights of clients in an average."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from privtrain.core.observers import Exposure
from privtrain.core.statement import ADD_REMOVE
from privtrain.core.task import FederatedData
from privtrain.core.validate import check_count
from privtrain.sampling.sampling import Sampling

UNBOUNDED_SCALE = 2.0**-20
"""What weights without a bound are multiplied by: fixed point then holds weights below 2^32.

A power of two, so that no weight is rounded by it.
"""


NOT_PUBLIC = (
    "weights={weights}: how many rows a client holds on average is not public, so that sums are "
    "divided by the number of clients, as if each of them weighed 1: steps are shorter than an "
    "average's. Declare public_rows, or a smaller Poisson(..., expected_size=...)."
)
"""The note where sums are divided by more than the weights are expected to add up to."""


class Weights(Protocol):
    """The weight of each client in the average: n_k in Algorithm 1 of McMahan et al. 2017."""

    @property
    def bounded(self) -> bool:
        """Whether a client's weight is at most 1, whatever rows it holds."""
        ...

    def weight(self, rows: float) -> float:
        """The weight of a client with so many rows; a mean number of them may be no whole one."""
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

    def weight(self, rows: float) -> float:
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

    def weight(self, rows: float) -> float:
        """The number of rows, or its fraction of the bound, at most 1."""
        # The bound is the per-user cap of McMahan et al. 2018: w_k = min(n_k / cap, 1).
        return float(rows) if self.bound is None else min(rows, self.bound) / self.bound


def scale_of(weights: Weights) -> float:
    """The public number that weights are multiplied by before they are sealed."""
    return 1.0 if weights.bounded else UNBOUNDED_SCALE


def expected_weight(weights: Weights, sampling: Sampling, data: FederatedData) -> float | None:
    """A client's mean weight as far as it is public: sums are divided by it for each client.

    Never counted: how many rows a client holds is its own, and a divisor would tell of it.

    Args:
        weights: Bounded weights.
        sampling: Which clients take part in a round.
        data: Who holds which rows, with the public number of rows.

    Returns:
        The weight of a client with the mean number of rows, in (0, 1]: at least the mean weight
        where weights are concave in rows, as capped ones are. None where a mean is not public.

    Source: McMahan et al. 2018, Algorithm 1 (arXiv:1710.06963): W over the number of clients.
    """
    if weights.uniform:
        return 1.0
    parties = len(data.parties)
    seen = Exposure(single_messages=False, knows_sample=False, noise_known=0.0)
    # Under add/remove the number of clients is what is hidden, and a mean would tell of it.
    if data.public_rows is None or sampling.relation(seen, parties) is ADD_REMOVE:
        return None
    return weights.weight(data.public_rows / parties)
