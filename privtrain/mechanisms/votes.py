"""Noisy-max mechanisms on vote counts: GNMax and LNMax.

One changed teacher moves one vote from a class to another: a *replacement*, of L2 sensitivity
sqrt(2) and L1 sensitivity 2. The curves below already contain it; no further factor applies. How
rows are assigned to teachers decides under which relation one changed example changes at most one
teacher: PATE states add/remove.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from privtrain.accounting.event import non_private_event
from privtrain.accounting.gnmax import DEFAULT_ORDERS, gnmax_curve, lnmax_curve
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.observers import Exposure
from privtrain.core.seeding import Stream
from privtrain.core.statement import Relation
from privtrain.core.validate import check_count, check_positive
from privtrain.mechanisms.mechanism import (
    About,
    State,
    add_floats,
    check_whole,
    check_whole_noise,
    to_tensor,
    widened,
)
from privtrain.mechanisms.reach import Reach, gaussian_reach, laplace_reach


def one_vote(scores: Tensor) -> Tensor:
    """One-hot votes for the largest score of each query.

    Args:
        scores: Shape `(queries, classes)`.

    Returns:
        Votes, same shape, float64. A row that is not finite gives no vote.
    """
    # The vote count n_i(x) is the number of teachers that answer class i to query x.
    votes = torch.nn.functional.one_hot(scores.argmax(dim=-1), scores.shape[-1]).double()
    finite = torch.isfinite(scores).all(dim=-1, keepdim=True)
    return torch.where(finite, votes, torch.zeros_like(votes))


def castable(counts: Tensor, voters: int) -> Tensor:
    """Counts of votes, without those of queries that so many voters cannot have cast.

    Args:
        counts: Shape `(queries, classes)`.
        voters: Number of voters, of whom each has one vote or none in each query; at least 1.

    Returns:
        The same tensor where every row holds whole numbers, at least zero, that sum to at most
        the number of voters; else a copy in which the other rows are zero: an invalid ballot
        counts for nobody.
    """
    check_count(voters=voters)
    valid = (counts >= 0) & (counts == counts.floor())  # false for a NaN
    within = valid.all(dim=-1) & (counts.double().sum(dim=-1) <= voters)
    if bool(within.all()):
        return counts
    return torch.where(within.unsqueeze(-1), counts, torch.zeros_like(counts))


def _by_query(counts: Tensor) -> Tensor:
    """Counts as a matrix, shape `(queries, classes)`."""
    return counts.reshape(-1, counts.shape[-1]) if counts.dim() else counts.reshape(1, 1)


@dataclass(frozen=True)
class GNMax:
    """Adds Gaussian noise to vote counts, of which only the largest is then answered.

    Args:
        sigma: Standard deviation of the noise on each count; positive, in votes.

    Source: Papernot et al. 2018, Section 4.1 (arXiv:1802.08908).
    """

    sigma: float

    def __post_init__(self) -> None:
        check_positive(sigma=self.sigma)

    @property
    def about(self) -> About:
        theorem = "GNMax: RDP order / sigma^2 per answer (Papernot et al. 2018, Proposition 8)"
        return About(theorem=theorem, noisy=True)

    def bound(self, contribution: Tensor) -> Tensor:
        return one_vote(contribution)

    def bound_again(self, total: Tensor, contributions: int) -> Tensor:
        return castable(total, contributions)

    def reach(self, message: Tensor, contributions: int, *, fraction: float) -> Reach:
        # Every query is a release. Counts that sum to n have an L2 norm of at most n.
        sigma = self.sigma * math.sqrt(fraction)
        return gaussian_reach(_by_query(message), float(contributions), sigma)

    def sensitivity(self, relation: Relation) -> float:
        # One vote less and one more in another class, under every relation.
        return math.sqrt(2.0)

    def add(
        self, total: Tensor, state: State, stream: Stream, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        # Section 4.1: N(0, sigma^2) is added to each count. The largest is found by the finish.
        scale = self.sigma * math.sqrt(fraction)
        drawn = stream.numpy().standard_normal(tuple(total.shape)) * scale
        return add_floats(total, to_tensor(drawn, widened(total))), state

    def event(self, exposure: Exposure, relation: Relation) -> object:
        """The data-independent RDP curve of one answer, for the variance that stays hidden.

        Where only the largest count is seen, that of a noised check of it.
        """
        if exposure.hidden_variance <= 0:
            return non_private_event()
        orders = np.asarray(DEFAULT_ORDERS, dtype=np.float64)
        # Proposition 8: order / sigma^2, with the variance that the observer cannot subtract.
        rdp = orders / (self.sigma**2 * exposure.hidden_variance)
        if exposure.largest_only:
            # Section 4.1: the largest count moves by at most 1, so that Mironov 2017, Corollary 3,
            # gives order / (2 sigma^2).
            rdp = rdp / 2
        return RdpCurve(orders=tuple(orders), rdp=tuple(rdp))

    def realised(self, total: Tensor) -> RdpCurve:
        """The data-dependent RDP curve of all answers.

        Args:
            total: Vote counts before the noise, shape `(queries, classes)`.

        Returns:
            The sum over queries, at the default orders.
        """
        # Theorem 6 with the probability of another answer from Proposition 7.
        return gnmax_curve(total.double().cpu().numpy(), self.sigma)

    def with_scale(self, scale: float) -> "GNMax":
        return replace(self, sigma=scale)


@dataclass(frozen=True)
class LNMax:
    """Adds Laplace noise to vote counts, of which only the largest is then answered.

    Args:
        scale: Scale b of the Laplace noise on each count; positive, in votes.

    Source: Papernot et al. 2017, Section 3 (arXiv:1610.05755).
    """

    scale: float

    def __post_init__(self) -> None:
        check_positive(scale=self.scale)

    @property
    def about(self) -> About:
        theorem = (
            "LNMax: (2 / b)-DP per answer (Papernot et al. 2017, Section 3.2), composed as RDP"
        )
        return About(theorem=theorem, noisy=True)

    def bound(self, contribution: Tensor) -> Tensor:
        return one_vote(contribution)

    def bound_again(self, total: Tensor, contributions: int) -> Tensor:
        return castable(total, contributions)

    def reach(self, message: Tensor, contributions: int, *, fraction: float) -> Reach:
        check_whole(fraction)
        # Every query is a release. Counts that sum to n have an L1 norm of at most n.
        return laplace_reach(_by_query(message), float(contributions), self.scale)

    def sensitivity(self, relation: Relation) -> float:
        # One vote less and one more in another class, under every relation; in L1.
        return 2.0

    def add(
        self, total: Tensor, state: State, stream: Stream, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        check_whole(fraction)
        drawn = stream.numpy().laplace(0.0, self.scale, tuple(total.shape))
        return add_floats(total, to_tensor(drawn, widened(total))), state

    def event(self, exposure: Exposure, relation: Relation) -> object:
        """The data-independent RDP curve of one answer: that of a (2 / b)-DP mechanism.

        Raises:
            UnsupportedError: If less than one whole noise is hidden.
        """
        if exposure.hidden_variance <= 0:
            return non_private_event()
        check_whole_noise(self, exposure)
        orders = np.asarray(DEFAULT_ORDERS, dtype=np.float64)
        # Papernot et al. 2017, Section 3.2: an L1 sensitivity of 2 under scale b is (2 / b)-DP. The
        # largest count alone moves by at most 1.
        pure = (1.0 if exposure.largest_only else 2.0) / self.scale
        # Bun and Steinke 2016, Proposition 3.3: a pure epsilon gives RDP order x epsilon^2 / 2.
        rdp = np.minimum(pure, orders * pure**2 / 2.0)
        return RdpCurve(orders=tuple(orders), rdp=tuple(rdp))

    def realised(self, total: Tensor) -> RdpCurve:
        """The data-dependent RDP curve of all answers.

        Args:
            total: Vote counts before the noise, shape `(queries, classes)`.

        Returns:
            The sum over queries, at the default orders.
        """
        # Papernot et al. 2017, Theorem 3, where the probability of another answer is small.
        return lnmax_curve(total.double().cpu().numpy(), self.scale)

    def with_scale(self, scale: float) -> "LNMax":
        return replace(self, scale=scale)
