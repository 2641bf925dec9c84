"""Votes that are checked before they are answered, as one setting that stands for two releases."""

from dataclasses import dataclass, replace

from privtrain.core.validate import check_count, check_positive, check_probability
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, Threshold
from privtrain.release.reduce import MAX


@dataclass(frozen=True, kw_only=True)
class ConfidentGNMax:
    """Answers a query with the noised winner where the noised count of the winner is large enough.

    The same as `Release(GNMax(sigma), finish=ARGMAX)` for answers, beside
    `Release(GNMax(sigma_check), reduce=MAX, finish=Threshold(threshold))` for checks. A check that
    fails tells no more than that it failed.

    Args:
        threshold: The count that the winner has to reach, in votes; above 0, at most the number of
            teachers.
        sigma_check: Standard deviation of the noise on the largest count, in votes; positive.
        sigma: Standard deviation of the noise on each count of an answer, in votes; positive. This
            is the noise that `calibrate` chooses; that of checks stays.

    Source: Papernot et al. 2018 (arXiv:1802.08908), Section 4.1, Algorithm 1.
    """

    threshold: float
    sigma_check: float
    sigma: float

    def __post_init__(self) -> None:
        check_positive(threshold=self.threshold, sigma_check=self.sigma_check, sigma=self.sigma)

    @property
    def check(self) -> Release:
        """How a query is checked."""
        return _check(self.threshold, self.sigma_check)

    @property
    def answer(self) -> Release:
        """How a query that passed is answered."""
        return Release(GNMax(self.sigma), finish=ARGMAX)

    def with_scale(self, scale: float) -> "ConfidentGNMax":
        """The same with another noise of answers."""
        return replace(self, sigma=scale)


@dataclass(frozen=True, kw_only=True)
class InteractiveGNMax:
    """Answers a query where the student and the teachers differ; else the student may be right.

    The student is trained in rounds, each with a part of the queries. Before a round it says how
    likely it takes each class. Where the count of some class exceeds what the student expects of
    it by the threshold, the teachers answer; where it does not, a student that is sure of a class
    learns it as if it were the answer, and one that is not learns nothing. Before the first round
    the student expects no votes at all, which makes the first round that of `ConfidentGNMax`.

    Args:
        threshold: By how many votes a class has to exceed what the student expects of it; above
            0, at most the number of teachers.
        confidence: How likely the student has to take its class to learn it from itself; in
            (0, 1].
        sigma_check: Standard deviation of the noise on the largest excess, in votes; positive.
        sigma: Standard deviation of the noise on each count of an answer, in votes; positive. This
            is the noise that `calibrate` chooses; that of checks stays.
        rounds: How often the student is trained; at least 2, at most the number of queries.

    Source: Papernot et al. 2018 (arXiv:1802.08908), Section 4.1, Algorithm 2.
    """

    threshold: float
    confidence: float
    sigma_check: float
    sigma: float
    rounds: int = 2

    def __post_init__(self) -> None:
        check_positive(threshold=self.threshold, sigma_check=self.sigma_check, sigma=self.sigma)
        check_probability(confidence=self.confidence)
        check_count(2, rounds=self.rounds)

    @property
    def check(self) -> Release:
        """How a query is checked: of counts from which what the student expects is taken away."""
        return _check(self.threshold, self.sigma_check)

    @property
    def answer(self) -> Release:
        """How a query on which the two differ is answered."""
        return Release(GNMax(self.sigma), finish=ARGMAX)

    def with_scale(self, scale: float) -> "InteractiveGNMax":
        """The same with another noise of answers."""
        return replace(self, sigma=scale)


def _check(threshold: float, sigma: float) -> Release:
    return Release(GNMax(sigma), reduce=MAX, finish=Threshold(threshold))
