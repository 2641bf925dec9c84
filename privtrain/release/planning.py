"""What answers of teachers cost and how often they are right, before any teacher is trained."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from privtrain.accounting.calibration import calibrate_scale
from privtrain.accounting.epsilon import evaluate
from privtrain.accounting.event import Event, composed, repeated
from privtrain.core.errors import BudgetExceededError
from privtrain.core.extras import check_installed
from privtrain.core.observers import PUBLIC
from privtrain.core.rounding import printed_up
from privtrain.core.statement import ADD_REMOVE, Unit
from privtrain.core.validate import check_count, check_delta, check_positive
from privtrain.mechanisms.votes import GNMax
from privtrain.release.checked import ConfidentGNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX

SIGMAS = (40.0, 50.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One way to ask teachers.

    Args:
        queries: How many queries are asked at most; where none is checked, the answers.
        answers: How many are answered at most.
        sigma: Standard deviation of the noise on each count of an answer, in votes.
        epsilon: To the public, under add/remove, of all checks and answers up to these caps,
            whatever the votes: it may be published.
        passes: Probability that a clear vote passes its check; 1 where none is made.
        right: Probability that the answer to a clear vote is the class of most votes.
    """

    queries: int
    answers: int
    sigma: float
    epsilon: float
    passes: float
    right: float


@dataclass(frozen=True, kw_only=True)
class PlanTable:
    """Ways to ask teachers: epsilon against answers, noise, and how often an answer is right.

    Args:
        rows: The ways, in the order in which they were asked for.
        teachers: How many teachers there are.
        classes: How many classes they choose from.
        share: The share of the votes that the largest count of a clear vote has.
        delta: Of every epsilon.
        threshold: What the largest count has to reach; None where no query is checked.
        sigma_check: Standard deviation of the noise on it.
    """

    rows: tuple[PlanRow, ...]
    teachers: int
    classes: int
    share: float
    delta: float
    threshold: float | None = None
    sigma_check: float | None = None

    def best(self, epsilon: float, *, right: float = 0.95) -> PlanRow:
        """The row with most answers of those that an epsilon pays for and that are right enough.

        Args:
            epsilon: What the row may cost at most; positive.
            right: How likely the answer to a clear vote has to be right; in [0, 1].

        Returns:
            Of rows with equally many answers, one with most queries, and then the likeliest to be
            right.

        Raises:
            BudgetExceededError: If there is none, with the least epsilon of those that are right
                enough.
        """
        check_positive(epsilon=epsilon)
        if not 0 <= right <= 1:
            raise ValueError(f"Expected right={right} in [0, 1]: it is a probability.")
        enough = [row for row in self.rows if row.right >= right]
        within = [row for row in enough if row.epsilon <= epsilon]
        if within:
            return max(within, key=lambda row: (row.answers, row.queries, row.right))
        least = min((row.epsilon for row in enough), default=None)
        way = (
            f"the likeliest row has {max(row.right for row in self.rows):.3f}. Use less noise"
            if least is None
            else f"the cheapest that is costs {printed_up(least)}. Ask for fewer answers"
        )
        raise BudgetExceededError(
            f"No row of the plan costs at most epsilon={epsilon:g} and answers a clear vote right "
            f"with probability {right:g}: {way}, or more teachers."
        )

    def to_frame(self) -> Any:
        """The rows as a table of pandas, which has to be installed."""
        check_installed("to_frame", "pandas")
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.rows])

    def __str__(self) -> str:
        checked = self.threshold is not None
        names = (*(("asked",) if checked else ()), "answers", "sigma", "epsilon")
        lines = [(*names, *(("passes",) if checked else ()), "right")]
        for row in self.rows:
            cells = [str(row.queries)] if checked else []
            cells += [str(row.answers), f"{row.sigma:.4g}", printed_up(row.epsilon, 3)]
            cells += [f"{row.passes:.3f}"] if checked else []
            lines.append((*cells, f"{row.right:.3f}"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        ]
        said = f"{self.teachers} teachers, {self.classes} classes, delta {self.delta:g}; a clear "
        said += f"vote: {self.share:.0%} of the votes against one rival, the worst case"
        if checked:
            said += f"; checked: {self.threshold:g} votes, sigma {self.sigma_check:g}"
        return "\n".join((*table, said, "epsilon is data-independent: it may be published"))


def plan(
    *,
    teachers: int,
    answers: int | Sequence[int] = (100, 286, 500, 1000),
    sigmas: float | Sequence[float] | None = None,
    epsilon: float | None = None,
    classes: int = 10,
    share: float = 0.8,
    delta: float = 1e-5,
    queries: int | Sequence[int] | None = None,
    threshold: float | None = None,
    sigma_check: float | None = None,
) -> PlanTable:
    """What `GNMax` answers cost, and how often they are right, for choosing settings of `PATE`.

    Nothing is read but these arguments: no teacher, no vote, no row.

    Args:
        teachers: How many teachers vote.
        answers: How many queries are answered at most; one number or several.
        sigmas: Noise on each count of an answer, in votes; one number or several. None for 40, 50
            and 100, or for the least that keeps `epsilon`.
        epsilon: What each row may cost; None where `sigmas` are given.
        classes: How many classes the teachers choose from; at least 2.
        share: The share of the votes that the largest count of a clear vote has; above 0.5, at
            most 1. All other votes are taken to be for one rival. That is the worst case: of all
            ways to spread them it makes a wrong answer likeliest.
        delta: In (0, 1).
        queries: How many queries are asked and checked at most; one number or several, none below
            `answers`. None where none is checked.
        threshold: The count that a query's winner has to reach, as in `ConfidentGNMax`.
        sigma_check: Noise on that count. `queries`, `threshold` and `sigma_check` go together.

    Returns:
        The rows for all numbers of queries, answers and sigmas.

    Raises:
        ValueError: If an argument is out of its range, or two of them do not go together.
        BudgetExceededError: If the checks alone cost `epsilon`, or no noise keeps it.
    """
    check_count(teachers=teachers)
    check_count(2, classes=classes)
    check_delta(delta)
    if not 0.5 < share <= 1:
        raise ValueError(
            f"Expected share={share} in (0.5, 1]: with half of the votes or fewer a rival may have "
            "more."
        )
    check = _check(teachers, queries, threshold, sigma_check)
    if epsilon is not None and sigmas is not None:
        raise ValueError(
            f"Expected epsilon={epsilon} or sigmas={sigmas}, not both: the noise follows from "
            "epsilon. Use plan(sigmas=...).best(epsilon) to choose among given ones."
        )
    if epsilon is not None:
        check_positive(epsilon=epsilon)
    wide = _several(sigmas=SIGMAS if sigmas is None else sigmas)
    for sigma in wide:
        check_positive(sigmas=sigma)
    rows = []
    for asked, given in _caps(queries, answers):
        checks = [] if check is None else [repeated(_event(check), asked)]
        chosen = wide
        if epsilon is not None:
            chosen = [_least(checks, given, epsilon, delta)]
        for sigma in chosen:
            event = composed([*checks, repeated(_answer(sigma), given)])
            rows.append(
                PlanRow(
                    queries=asked,
                    answers=given,
                    sigma=float(sigma),
                    epsilon=evaluate(event, delta, ADD_REMOVE).epsilon,
                    passes=_passes(teachers * share, threshold, sigma_check),
                    right=right_answer(_worst(teachers, classes, share), sigma),
                )
            )
    return PlanTable(
        rows=tuple(rows),
        teachers=teachers,
        classes=classes,
        share=share,
        delta=delta,
        threshold=threshold,
        sigma_check=sigma_check,
    )


def right_answer(counts: Sequence[float], sigma: float) -> float:
    """The probability that GNMax answers with the first class, by quadrature to 1e-10.

    Args:
        counts: Votes for each class, the first of them for the class in question; at least two.
        sigma: Standard deviation of the noise on each count; positive.
    """
    from scipy.special import log_ndtr

    check_positive(sigma=sigma)
    # Where the first noised count is n_1 + sigma y, every other one has to be below it. Of smooth
    # functions that vanish at both ends sums over equal steps err by less than any power of them.
    y = np.linspace(-10.0, 10.0, 2001)
    gaps = (counts[0] - np.asarray(counts[1:], dtype=np.float64)) / sigma
    below = log_ndtr(y[:, np.newaxis] + gaps).sum(axis=1)
    density = np.exp(below - y**2 / 2) / np.sqrt(2 * np.pi)
    return float(min(1.0, density.sum() * (y[1] - y[0])))


def _worst(teachers: int, classes: int, share: float) -> list[float]:
    """The votes with this share for the first class that GNMax gets wrong most often."""
    # log Phi is concave: for every y the sum over rivals of log Phi(y + gap) is least where one of
    # them has all votes that the first class has not.
    return [teachers * share, teachers * (1 - share), *[0.0] * (classes - 2)]


def _passes(count: float, threshold: float | None, sigma: float | None) -> float:
    from scipy.special import ndtr

    return 1.0 if threshold is None or sigma is None else float(ndtr((count - threshold) / sigma))


def _several(**given: Any) -> list[Any]:
    """One value, or several, as a list."""
    ((name, values),) = given.items()
    several = list(values) if isinstance(values, Iterable) else [values]
    if not several:
        raise ValueError(f"Expected {name}={values!r} to hold at least one number.")
    return several


def _caps(queries: Any, answers: Any) -> list[tuple[int, int]]:
    """Each number of queries with each number of answers."""
    pairs = []
    for given in _several(answers=answers):
        check_count(answers=given)
        for asked in _several(queries=given if queries is None else queries):
            check_count(queries=asked)
            if asked < given:
                raise ValueError(
                    f"Expected answers={given} <= queries={asked}: a query that is not asked is "
                    "not answered."
                )
            pairs.append((asked, given))
    return pairs


def _check(
    teachers: int, queries: Any, threshold: float | None, sigma: float | None
) -> Release | None:
    named = {"queries": queries, "threshold": threshold, "sigma_check": sigma}
    missing = [name for name, value in named.items() if value is None]
    if threshold is None or sigma is None or missing:
        if len(missing) == len(named):
            return None
        raise ValueError(
            f"Expected {' and '.join(missing)} beside the rest of a check: queries, threshold and "
            "sigma_check go together."
        )
    if threshold > teachers:
        raise ValueError(
            f"Expected threshold={threshold:g} <= teachers={teachers}, the largest count there is."
        )
    return ConfidentGNMax(threshold=threshold, sigma_check=sigma, sigma=1.0).check


def _event(release: Release) -> Event:
    """What one release costs the public, as training would be charged."""
    (seen,) = release.plans(unit=Unit.EXAMPLE, count=1, parties=1, observers=(PUBLIC,))
    (charge,) = seen.charges.values()
    return charge.event


def _answer(sigma: float) -> Event:
    return _event(Release(GNMax(sigma), finish=ARGMAX))


def _least(checks: list[Event], answers: int, epsilon: float, delta: float) -> float:
    """The least noise of answers that keeps an epsilon beside the checks."""
    alone = evaluate(composed(checks), delta, ADD_REMOVE).epsilon if checks else 0.0
    if alone >= epsilon:
        raise BudgetExceededError(
            f"No answer fits epsilon={epsilon:g} at delta={delta:g}: the checks alone cost "
            f"{printed_up(alone)}. Ask fewer queries, or use a larger sigma_check."
        )
    return calibrate_scale(
        lambda sigma: composed([*checks, repeated(_answer(sigma), answers)]),
        epsilon=epsilon,
        delta=delta,
    )
