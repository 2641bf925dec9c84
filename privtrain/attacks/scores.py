"""How well a score tells members from non-members: ROC, AUC, TPR at a low FPR, intervals.

All functions are pure and take score arrays in which larger means "more likely a member".
A row that cannot be scored gets -inf; NaN and +inf are refused. Rows with the same score share
one threshold.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privtrain.core.validate import check_count, check_delta, check_fraction, check_probability

Scores = NDArray[np.float64]
"""Scores, shape `(rows,)`."""

FALSE_POSITIVES_NEEDED = 10
"""How many false positives an operating point has to allow before it is reported."""


@dataclass(frozen=True, eq=False)
class Roc:
    """The ROC curve of a score, with one point for each distinct threshold.

    Args:
        thresholds: Falling; rows with a score at or above it are called members. The first is
            above all scores, so that nobody is.
        false_positive_rate: Fraction of non-members called members, rising from 0 to 1.
        true_positive_rate: Fraction of members called members, rising from 0 to 1.
    """

    thresholds: Scores
    false_positive_rate: Scores
    true_positive_rate: Scores


@dataclass(frozen=True)
class OperatingPoint:
    """The rates at a threshold that calls at most a given fraction of non-members members.

    Args:
        threshold: Rows with a score at or above it are called members.
        tpr: True positive rate.
        fpr: Realised false positive rate; at most the one asked for.
        tpr_interval: Interval of the true positive rate at the false positive rate asked for, among
            all rows that these were drawn from; see `tpr_at_fpr`.
    """

    threshold: float
    tpr: float
    fpr: float
    tpr_interval: tuple[float, float]


@dataclass(frozen=True)
class Advantage:
    """TPR minus FPR at a threshold that was chosen on other rows.

    Args:
        value: The advantage, in [-1, 1]; 0 for a coin.
        interval: 95% interval.
    """

    value: float
    interval: tuple[float, float]


def _scores(name: str, values: ArrayLike) -> Scores:
    """The values as an array of scores; refuses empty arrays, NaN and +inf."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"Expected {name} with shape {array.shape} to be (rows,), rows >= 1.")
    if np.isnan(array).any():
        raise ValueError(
            f"Expected {name} without NaN; it holds {int(np.isnan(array).sum())}. "
            "Give a row that cannot be scored the worst score, -inf."
        )
    if array.max() == math.inf:
        raise ValueError(
            f"Expected {name} below +inf, so that a threshold lies above all scores. "
            "Use the largest float instead."
        )
    return array


def _at_or_above(scores: Scores, thresholds: Scores) -> NDArray[np.int64]:
    """The number of scores at or above each threshold, shape `(thresholds,)`."""
    below = np.searchsorted(np.sort(scores), thresholds, side="left")
    return np.asarray(len(scores) - below, dtype=np.int64)


def roc(members: ArrayLike, non_members: ArrayLike) -> Roc:
    """The ROC curve; tied scores share one threshold, so no order among them is invented.

    Args:
        members: Scores of members, shape `(members,)`.
        non_members: Scores of non-members, shape `(non_members,)`.

    Returns:
        One point for each distinct score, and the start at (0, 0).

    Raises:
        ValueError: If an array is empty, or holds NaN or +inf.
    """
    inside, outside = _scores("members", members), _scores("non_members", non_members)
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1]
    tpr = _at_or_above(inside, thresholds) / len(inside)
    fpr = _at_or_above(outside, thresholds) / len(outside)
    # The curve starts where nobody is called a member: just above the highest score.
    with np.errstate(over="ignore"):  # above the largest float lies infinity
        start = np.nextafter(thresholds[0], np.inf)
    return Roc(
        np.concatenate([[start], thresholds]),
        np.concatenate([[0.0], fpr]),
        np.concatenate([[0.0], tpr]),
    )


def _placements(scores: Scores, others: Scores) -> Scores:
    """For each score, the fraction of others below it; ties count half. Shape of `scores`."""
    # DeLong et al. 1988: the structural component V10 of a member, and 1 - V01 of a non-member.
    # By searching in sorted scores, so that m members and n non-members do not make m x n pairs.
    ordered = np.sort(others)
    twice = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    return np.asarray(twice / (2 * len(others)), dtype=np.float64)


def auc(members: ArrayLike, non_members: ArrayLike) -> float:
    """The area under the ROC curve: the fraction of pairs in which the member scores higher.

    Ties count half: it is the Mann-Whitney statistic over the number of pairs.

    Args:
        members: Scores of members, shape `(members,)`.
        non_members: Scores of non-members, shape `(non_members,)`.

    Returns:
        The area, in [0, 1]; 0.5 for a score that tells nothing.

    Raises:
        ValueError: If an array is empty, or holds NaN or +inf.
    """
    inside, outside = _scores("members", members), _scores("non_members", non_members)
    return float(_placements(inside, outside).mean())


def auc_interval(
    members: ArrayLike, non_members: ArrayLike, confidence: float = 0.95
) -> tuple[float, float]:
    """A confidence interval of the AUC: DeLong's variance on the logit scale.

    DeLong's variance is zero where all pairs agree (perfect separation, or nothing but ties).
    There the interval is the exact one over disjoint pairs, of which there are
    min(members, non-members). With a single row on one side it is [0, 1].

    Args:
        members: Scores of members, shape `(members,)`.
        non_members: Scores of non-members, shape `(non_members,)`.
        confidence: In [0, 1).

    Returns:
        Lower and upper bound, in [0, 1].

    Raises:
        ValueError: If an array is empty, or holds NaN or +inf.

    Source: DeLong, DeLong and Clarke-Pearson 1988; logit scale: Pepe 2003, section 5.2.
    """
    check_fraction(confidence=confidence)
    inside, outside = _scores("members", members), _scores("non_members", non_members)
    if min(len(inside), len(outside)) < 2:
        return (0.0, 1.0)
    member_side, other_side = _placements(inside, outside), _placements(outside, inside)
    area = float(member_side.mean())
    # DeLong et al. 1988: var(AUC) = S10 / m + S01 / n, the sample variances of both components.
    variance = float(member_side.var(ddof=1) / len(inside) + other_side.var(ddof=1) / len(outside))
    if variance == 0 or not 0 < area < 1:
        return _unanimous_interval(area, min(len(inside), len(outside)), confidence)
    return _logit_interval(area, math.sqrt(variance), confidence)


def _logit_interval(area: float, deviation: float, confidence: float) -> tuple[float, float]:
    from scipy.special import expit, logit
    from scipy.stats import norm

    # The delta method: the logit's derivative is 1 / (A (1 - A)). On this scale the interval stays
    # within (0, 1), which A +- z s does not near the ends.
    half = float(norm.ppf(0.5 + confidence / 2)) * deviation / (area * (1 - area))
    return (float(expit(logit(area) - half)), float(expit(logit(area) + half)))


def _unanimous_interval(area: float, pairs: int, confidence: float) -> tuple[float, float]:
    """The interval where all disjoint pairs gave the same answer, worth `area`."""
    # Clopper-Pearson bounds how often a pair may answer otherwise, for better or for worse.
    other = 1 - clopper_pearson(pairs, pairs, confidence)[0]
    return (area * (1 - other), area + (1 - area) * other)


def resolvable(non_members: int, fpr: float) -> bool:
    """Whether there are enough non-members to estimate a false positive rate: `10 / fpr` of them.

    A threshold at rate `fpr` rests on the `fpr * non_members` highest non-members. With ten of
    them the realised rate is known to about a third of itself (1 / sqrt(10)); with fewer, a single
    row decides. So 1% takes 1,000 non-members, and 0.1% takes 10,000.

    Args:
        non_members: Their number.
        fpr: The false positive rate, in (0, 1].
    """
    check_probability(fpr=fpr)
    # The rate is a decimal fraction: 10 / 0.001 must not miss 10,000 by a rounding error.
    return non_members * fpr >= FALSE_POSITIVES_NEEDED * (1 - 1e-9)


def tpr_at_fpr(
    members: ArrayLike, non_members: ArrayLike, fpr: float, confidence: float = 0.95
) -> OperatingPoint | None:
    """The true positive rate at a low false positive rate.

    The threshold is the lowest score at which the realised rate does not exceed the one asked
    for; tied rows are let through together or not at all. Where that threshold lies is known no
    better than the few highest non-members tell, and the interval covers that, too: it holds for
    the largest set of scores whose false positive rate in the population is at most `fpr`.

    Args:
        members: Scores of members, drawn independently, shape `(members,)`.
        non_members: Scores of non-members, drawn independently, shape `(non_members,)`.
        fpr: The false positive rate asked for, in (0, 1].
        confidence: Of the interval, in [0, 1).

    Returns:
        The operating point, or None where the rate is not resolvable with so few non-members.

    Raises:
        ValueError: If an array is empty, or holds NaN or +inf.

    Source: Carlini et al. 2022, section III (arXiv:2112.03570), on why the low end matters; for the
    band of thresholds Thompson 1936, on intervals of quantiles by order statistics.
    """
    inside, outside = _scores("members", members), _scores("non_members", non_members)
    if not resolvable(len(outside), fpr):
        return None
    curve = roc(inside, outside)
    # In whole rows, with a margin for rounding: 0.01 x 1,000 non-members must allow all ten.
    allowed = math.floor(len(outside) * fpr * (1 + 1e-12))
    false_positives = np.rint(curve.false_positive_rate * len(outside))
    last = int(np.searchsorted(false_positives, allowed, side="right")) - 1
    true_positives = round(float(curve.true_positive_rate[last]) * len(inside))
    return OperatingPoint(
        threshold=float(curve.thresholds[last]),
        tpr=true_positives / len(inside),
        fpr=float(curve.false_positive_rate[last]),
        tpr_interval=_tpr_interval(inside, outside, fpr, confidence),
    )


def low_rates(members: ArrayLike, non_members: ArrayLike) -> tuple[tuple[float, float], ...]:
    """The ROC curve at the rates 1, 2 and 5 times powers of ten that so few non-members resolve.

    Args:
        members: Scores of members, shape `(members,)`.
        non_members: Scores of non-members, shape `(non_members,)`.

    Returns:
        False positive rate to true positive rate, rising, from ten false positives on. Rates are
        those asked for, and true positive rates have three digits, so that neither tells how many
        rows there were.
    """
    inside, outside = _scores("members", members), _scores("non_members", non_members)
    curve = roc(inside, outside)
    false_positives = np.rint(curve.false_positive_rate * len(outside))
    points = []
    for rate in _RATES:
        if resolvable(len(outside), rate):
            # As in `tpr_at_fpr`: tied rows are let through together or not at all.
            allowed = math.floor(len(outside) * rate * (1 + 1e-12))
            last = int(np.searchsorted(false_positives, allowed, side="right")) - 1
            points.append((rate, round(float(curve.true_positive_rate[last]), 3)))
    return tuple(points)


_RATES = (*(float(f"{step}e-{power}") for power in range(6, 0, -1) for step in (1, 2, 5)), 1.0)


def _tpr_interval(
    inside: Scores, outside: Scores, fpr: float, confidence: float
) -> tuple[float, float]:
    """The interval of the true positive rate at a false positive rate of the population.

    Let A be the largest set of high scores that holds at most a part `fpr` of all non-members. The
    number of these n in it follows Binomial(n, fpr), or a law below it where scores tie. A set with
    so few of them that the binomial law has a quarter of the error there lies within A but for that
    error; one with so many contains A. Given the non-members both sets are fixed, so that members
    in them are counted by binomial laws: another quarter for either end.
    """
    from scipy.stats import binom

    each, count = (1 - confidence) / 4, len(outside)
    falling = np.sort(outside)[::-1]
    # Clopper-Pearson's ends each fail with half of one minus the confidence that they are given.
    ends = 1 - 2 * each
    few = int(binom.ppf(each, count, fpr))
    few -= binom.cdf(few, count, fpr) > each
    many = int(binom.isf(each, count, fpr)) + 1
    low, high = 0.0, 1.0
    if few >= 0:
        within = int((inside > falling[few]).sum()) if few < count else len(inside)
        low = clopper_pearson(within, len(inside), ends)[0]
    if many <= count:
        around = int((inside >= falling[many - 1]).sum())
        high = clopper_pearson(around, len(inside), ends)[1]
    return (low, high)


def advantage(
    members: ArrayLike, non_members: ArrayLike, *, confidence: float = 0.95
) -> Advantage | None:
    """TPR minus FPR at the threshold that is best on the first halves, measured on the second.

    Choosing the best threshold on the rows it is measured on would report an advantage where
    there is none. The interval joins two Clopper-Pearson intervals, each at half the error.

    Args:
        members: Scores of members in random order, shape `(members,)`.
        non_members: Scores of non-members in random order, shape `(non_members,)`.
        confidence: Of the interval.

    Returns:
        The advantage, or None where one side has fewer than two rows.

    Raises:
        ValueError: If an array is empty, or holds NaN or +inf.

    Source: Yeom et al. 2018, Definition 4 (arXiv:1709.01604).
    """
    inside, outside = _scores("members", members), _scores("non_members", non_members)
    if min(len(inside), len(outside)) < 2:
        return None
    half_in, half_out = len(inside) // 2, len(outside) // 2
    # Yeom et al. 2018, Definition 4, maximised over thresholds on the first halves.
    curve = roc(inside[:half_in], outside[:half_out])
    best = int(np.argmax(curve.true_positive_rate - curve.false_positive_rate))
    threshold = curve.thresholds[best]
    hits = int((inside[half_in:] >= threshold).sum())
    alarms = int((outside[half_out:] >= threshold).sum())
    trials_in, trials_out = len(inside) - half_in, len(outside) - half_out
    # Half the error for each interval: then both hold at once with the stated confidence.
    each = 1 - (1 - confidence) / 2
    tpr = clopper_pearson(hits, trials_in, each)
    fpr = clopper_pearson(alarms, trials_out, each)
    return Advantage(hits / trials_in - alarms / trials_out, (tpr[0] - fpr[1], tpr[1] - fpr[0]))


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided confidence interval of a probability.

    Args:
        successes: The number of successes, in 0..trials.
        trials: The number of independent trials; at least 1.
        confidence: In [0, 1).

    Returns:
        Lower and upper bound, in [0, 1].

    Raises:
        ValueError: If an argument is out of range.

    Source: Clopper and Pearson 1934.
    """
    from scipy.stats import beta

    check_count(trials=trials)
    check_count(0, successes=successes)
    check_fraction(confidence=confidence)
    if successes > trials:
        raise ValueError(f"Expected successes={successes} <= trials={trials}.")
    tail = (1 - confidence) / 2
    # Each tail of the binomial law, as a quantile of the beta law; exact at the ends.
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = (
        1.0 if successes == trials else float(beta.ppf(1 - tail, successes + 1, trials - successes))
    )
    return (low, high)


def epsilon_lower_bound(
    true_positives: int,
    positives: int,
    false_positives: int,
    negatives: int,
    *,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """The smallest epsilon that is compatible with the guesses of an attack.

    Under (epsilon, delta)-DP every test obeys `TPR <= e^epsilon FPR + delta` and
    `TNR <= e^epsilon FNR + delta`. The rates are replaced by Clopper-Pearson bounds, one from below
    and one from above, each of which fails with half of one minus the confidence.

    Args:
        true_positives: Correct guesses "it was in"; the threshold must be fixed beforehand.
        positives: Runs in which it was in. The trials must be independent: one training run each.
        false_positives: Wrong guesses "it was in".
        negatives: Runs in which it was not.
        delta: The delta at which epsilon is bounded, in (0, 1).
        confidence: In [0, 1).

    Returns:
        The lower bound; 0 where the guesses prove nothing.

    Source: Jagielski, Ullman and Oprea 2020 (arXiv:2006.07709); Nasr et al. 2021
        (arXiv:2101.04535).
    """
    check_delta(delta)
    # Of each two-sided interval one end is used, by both inequalities, and that end fails with half
    # the interval's error. So the two ends fail with the whole of it at most, whatever the rates
    # (Boole): where they hold, TPR <= e^epsilon FPR + delta and its twin hold of them, too.
    tpr = clopper_pearson(true_positives, positives, confidence)[0]
    fpr = clopper_pearson(false_positives, negatives, confidence)[1]
    # An upper Clopper-Pearson bound is never zero, so that the ratios exist.
    ratios = ((tpr - delta) / fpr, (1 - fpr - delta) / (1 - tpr))
    return max(math.log(max(*ratios, 1.0)), 0.0)
