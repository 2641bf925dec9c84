"""Ways of voting: from a teacher's scores to what its one vote is the largest of."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from privtrain.core.seeding import Streams
from privtrain.core.validate import check_positive


class Voting(Protocol):
    """How a teacher makes one vote a query of its scores."""

    def cast(self, scores: Tensor, seeds: Streams) -> Tensor:
        """What the vote is the largest of.

        Args:
            scores: Logits of one teacher, shape `(queries, classes)`.
            seeds: The run's public streams, the same for every teacher.

        Returns:
            Scores, same shape. A row that is not finite casts no vote.
        """
        ...


@dataclass(frozen=True)
class TopScore:
    """A teacher votes for its likeliest class: right where there is one true answer."""

    def cast(self, scores: Tensor, seeds: Streams) -> Tensor:
        return scores


@dataclass(frozen=True)
class CoordinatedDraw:
    """A teacher draws its vote from its own distribution, by randomness that all teachers share.

    Each teacher alone votes as if it drew: for class j with its probability p_j. Teachers of nearby
    distributions draw the same class nearly always: two of them agree with probability at least
    (1 - d) / (1 + d), where d is their distance in total variation. So answers to a query that is
    asked often are as diverse as the teachers' distributions, and each still has a clear winner.

    The shared numbers follow from the run's public seed and the place of a query, from no row:
    given them, a teacher's vote follows from its rows. One row still moves one vote, at the same
    price.

    Args:
        temperature: Logits are divided by it first; below 1 votes are less diverse. Positive.

    Source: Cohen et al. 2026, Hot PATE (arXiv:2312.02132): coordinated ensembles.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive(temperature=self.temperature)

    def cast(self, scores: Tensor, seeds: Streams) -> Tensor:
        """The logarithms of p_j / rho_j; the largest is drawn with probability p_j."""
        logits = scores.double().cpu() / self.temperature
        # Of impossible classes only: rows of nothing else, and NaN, stay without a vote.
        log_p = logits.log_softmax(dim=-1).clamp(min=torch.finfo(torch.float64).min / 4)
        # No teacher and no party in the name: shared randomness, one exponential a query and class.
        shared = seeds["coordinated votes", 0, ""].numpy().standard_exponential(tuple(scores.shape))
        return log_p - torch.from_numpy(shared).clamp(min=torch.finfo(torch.float64).tiny).log()
