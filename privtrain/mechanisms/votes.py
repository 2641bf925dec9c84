"""Noisy-max mechanisms on vote counts: GNMax and LNMax.

One changed teacher moves one vote from a class to another: a *replacement*, of L2 sensitivity
sqrt(2) and L1 sensitivity 2. The events below already contain it, under every relation; no further
factor applies. How rows are assigned to teachers decides under which relation one changed example
changes at most one teacher: PATE states add/remove.

Whoever sees only the winner, or only whether a check is passed, is charged by Rényi divergences for
just that; whoever reads noised counts is charged as for any other sum with such noise.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtrain.accounting.event import (
    Event,
    gaussian_event,
    laplace_event,
    non_private_event,
    repeated,
)
from privtrain.accounting.exact_votes import SMALLEST_SIGMA, exact_gnmax_curve
from privtrain.accounting.gnmax import DEFAULT_ORDERS, gnmax_rdp, lnmax_rdp
from privtrain.accounting.renyi import RdpCurve
from privtrain.accounting.winner import (
    gnmax_check_rdp,
    gnmax_winner_rdp,
    lnmax_winner_rdp,
)
from privtrain.core.observers import Exposure
from privtrain.core.seeding import Stream
from privtrain.core.statement import REPLACE_ONE, Relation
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


def _curve(rdp: NDArray[np.float64]) -> RdpCurve:
    return RdpCurve(orders=DEFAULT_ORDERS, rdp=tuple(rdp.tolist()))


def _of_one_vote(noise: float, relation: Relation) -> float:
    """The noise multiplier of one vote that moves, whatever the relation."""
    # Accountants take a replaced contribution for twice the sensitivity; a moved vote is all of it.
    return 2 * noise if relation is REPLACE_ONE else noise


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
        return About(
            theorem=(
                "GNMax: Gaussian mechanism of L2 sensitivity sqrt(2) per query (Papernot et al. "
                "2018, Section 4.1), composed numerically"
            ),
            noisy=True,
            of_winner=(
                "GNMax: Rényi divergence of the winner alone, at any counts (docs/decisions/022); "
                "at most order / sigma^2 (Papernot et al. 2018, Proposition 8)"
            ),
            of_check=(
                "GNMax: Rényi divergence of a check's answer alone, at any count "
                "(docs/decisions/022); at most order / (2 sigma^2)"
            ),
        )

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

    def event(self, exposure: Exposure, relation: Relation) -> Event:
        """What one query tells an observer of one vote, for the variance that stays hidden.

        A Rényi curve for whoever sees the winner or a check's answer only; a Gaussian event for
        whoever reads noised counts.
        """
        # The deviation of the noise that the observer cannot subtract: Gaussians add up.
        sigma = self.sigma * math.sqrt(exposure.hidden_variance)
        if sigma <= 0:
            return non_private_event()
        if exposure.winner_only:
            return _curve(gnmax_winner_rdp(sigma, DEFAULT_ORDERS))
        if exposure.check_only:
            return _curve(gnmax_check_rdp(sigma, DEFAULT_ORDERS))
        # Section 4.1: a vote that moves shifts two counts by 1, and the largest count alone by at
        # most 1.
        moves = 1.0 if exposure.largest_only else math.sqrt(2.0)
        return gaussian_event(_of_one_vote(sigma / moves, relation))

    def realised(self, total: Tensor) -> RdpCurve:
        """The data-dependent RDP curve of all answers.

        Args:
            total: Vote counts before the noise, shape `(queries, classes)`.

        Returns:
            The sum over queries, at the default orders.
        """
        # Theorem 6 with the probability of another answer from Proposition 7, where that is less
        # than what holds for any votes.
        rdp = gnmax_rdp(total, self.sigma, DEFAULT_ORDERS)
        return _curve(np.minimum(rdp, gnmax_winner_rdp(self.sigma, DEFAULT_ORDERS)).sum(axis=0))

    def exact(self, total: Tensor) -> RdpCurve | None:
        """The exact divergence of all winners from those of neighbouring votes, both ways.

        Args:
            total: Vote counts before the noise, shape `(queries, classes)`.

        Returns:
            The sum over queries, at the default orders; None for a sigma below 0.1, at which one
            vote decides nearly everything.
        """
        if self.sigma < SMALLEST_SIGMA:
            return None
        return exact_gnmax_curve(total.double().cpu().numpy(), self.sigma)

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
        return About(
            theorem=(
                "LNMax: Laplace mechanism on the two counts that a vote moves (Papernot et al. "
                "2017, Section 3.2), composed numerically"
            ),
            noisy=True,
            of_winner=(
                "LNMax: Rényi divergence of the winner alone, at any counts (docs/decisions/022); "
                "at most 2 / b (Papernot et al. 2017, Section 3.2)"
            ),
        )

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

    def event(self, exposure: Exposure, relation: Relation) -> Event:
        """What one query tells an observer of one vote.

        A Rényi curve for whoever sees the winner only; Laplace events for whoever reads noised
        counts. Of the largest count a check tells as much as the noised count does, at worst.

        Raises:
            UnsupportedError: If less than one whole noise is hidden.
        """
        if exposure.hidden_variance <= 0:
            return non_private_event()
        check_whole_noise(self, exposure)
        if exposure.winner_only:
            return _curve(lnmax_winner_rdp(self.scale, DEFAULT_ORDERS))
        # Two counts move by 1 each, under noises of their own; the largest count alone by at most
        # 1. Several noises tell no more than one: the others are post-processing.
        moved = laplace_event(_of_one_vote(self.scale, relation))
        return repeated(moved, 1 if exposure.largest_only else 2)

    def realised(self, total: Tensor) -> RdpCurve:
        """The data-dependent RDP curve of all answers.

        Args:
            total: Vote counts before the noise, shape `(queries, classes)`.

        Returns:
            The sum over queries, at the default orders.
        """
        # Papernot et al. 2017, Theorem 3, where the probability of another answer is small.
        rdp = lnmax_rdp(total, self.scale, DEFAULT_ORDERS)
        return _curve(np.minimum(rdp, lnmax_winner_rdp(self.scale, DEFAULT_ORDERS)).sum(axis=0))

    def with_scale(self, scale: float) -> "LNMax":
        return replace(self, scale=scale)
