"""RMIA: how many population rows a row's likelihood ratio dominates.

Zarifzadeh, Liu and Shokri 2024, Low-Cost High-Power Membership Inference Attacks
(arXiv:2312.03262): equations 1 and 2; in the appendix the offline form.

Under one target the score of a row rises with its own ratio alone: population rows decide where it
is cut, and not who comes first.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from privtrain.attacks.scores import Scores, auc
from privtrain.attacks.scoring.design import Flags, check_side, checked, side, usable
from privtrain.attacks.scoring.lira import LARGEST_LOSS
from privtrain.core.validate import check_positive

TENTHS = tuple(tenth / 10 for tenth in range(11))
"""Values of `a` that are tried."""


def online_ratios(
    target: ArrayLike, shadows: ArrayLike, included: ArrayLike | None = None
) -> Scores:
    """The ratio p(x | target) / p(x), where p(x) is the mean of the IN and of the OUT models' mean.

    Args:
        target: Losses -log p of the target, shape `(rows,)`; at least 0.
        shadows: Losses of the shadow models, shape `(models, rows)`.
        included: True where the model was trained on the row, bool, same shape. None for population
            rows that no model was trained on: p(z) is then the mean of all models.

    Returns:
        Shape `(rows,)`; NaN where the target's loss or a model's is not a number.

    Raises:
        ValueError: If a row has no IN or no OUT model, or a loss is negative.

    Source: equation 2; p(x) is unbiased with as many IN as OUT models, which the mean of the two
        means is with any number of them.
    """
    probability, models, flags = _probabilities(target, shadows, included)
    rows = usable(probability, models, np.ones_like(flags))
    marginal = _mean(models, ~flags, rows, "OUT")
    if included is not None:
        marginal = (marginal + _mean(models, flags, rows, "IN")) / 2
    return _spread(probability[rows] / marginal, rows)


def offline_ratios(
    target: ArrayLike, shadows: ArrayLike, included: ArrayLike | None = None, *, a: float
) -> Scores:
    """The ratio p(x | target) / p(x), where p(x) follows from the OUT models alone.

    With p_IN = a p_OUT + (1 - a) it is p(x) = ((1 + a) p_OUT + (1 - a)) / 2, for candidates and for
    population rows alike.

    Args:
        target: As for `online_ratios`.
        shadows: Likewise; values of IN models are not used.
        included: Likewise.
        a: In [0, 1]; chosen by `best_a` on shadow models, never on the target.

    Returns:
        Shape `(rows,)`; NaN where the target's loss or an OUT model's is not a number.

    Raises:
        ValueError: If a row has no OUT model, a loss is negative, or `a` is out of range.

    Source: appendix, the linear approximation of p_IN by p_OUT.
    """
    probability, models, flags = _probabilities(target, shadows, included)
    rows = usable(probability, models, ~flags)
    marginal = _offline_marginal(_mean(models, ~flags, rows, "OUT"), a)
    return _spread(probability[rows] / marginal, rows)


def scores(ratios: ArrayLike, population: ArrayLike, *, gamma: float = 1.0) -> Scores:
    """The fraction of population rows z with ratio(x) / ratio(z) >= gamma: the published score.

    It takes |z| + 1 values, so that many rows tie at its ends: see `untied_scores`.

    Args:
        ratios: Of the candidates, shape `(candidates,)`.
        population: Of the population rows, from the same function, shape `(rows,)`; none of them
            a candidate that is scored.
        gamma: Positive.

    Returns:
        Shape `(candidates,)`, in [0, 1]; -inf where the ratio is NaN.

    Raises:
        ValueError: If a shape does not fit, a ratio of the population is not finite and positive,
            or gamma is not positive.

    Source: equation 1.
    """
    rows, ordered = _checked_ratios(ratios, population)
    check_positive(gamma=gamma)
    dominated = np.searchsorted(ordered, rows / gamma, side="right") / len(ordered)
    return np.asarray(np.where(np.isnan(rows), -np.inf, dominated))


def untied_scores(ratios: ArrayLike, population: ArrayLike, *, gamma: float = 1.0) -> Scores:
    """The published score, and less than 1 / |z| more by which equal scores are told apart.

    What is added is s(m) / |z|, where m is the mean over z of log(ratio(x) / ratio(z)) and s the
    logistic function. Rows whose scores differ keep their order.

    Args, returns and raises: as `scores`, in (0, 1 + 1 / |z|).
    """
    fractions = scores(ratios, population, gamma=gamma)
    rows, ordered = _checked_ratios(ratios, population)
    # s(log r - mean log z) = r / (r + geometric mean of z).
    extra = rows / (rows + np.exp(np.log(ordered).mean())) / len(ordered)
    return np.asarray(np.where(np.isnan(rows), -np.inf, fractions + extra))


def best_a(losses: ArrayLike, included: ArrayLike, *, grid: Sequence[float] = TENTHS) -> float:
    """The `a` of the offline attack with the highest AUC against shadow models, each in turn.

    The model that is attacked and its complement are left out of the models that attack it. A model
    within the design would tell how many of the others saw a row. No population is needed, since
    the order of untied scores is that of the ratios.

    Args:
        losses: -log p of the shadow models, shape `(models, candidates)`; without the target.
        included: True where the model was trained on the candidate, bool, same shape.
        grid: Values to try, in [0, 1]; among equally good ones the first is taken. Rows on which a
            model gives no number are left out.

    Raises:
        ValueError: If a row has no OUT model left: four models in complementary pairs are enough.
    """
    _, models, flags = _probabilities(np.zeros(np.shape(losses)[1:]), losses, included)
    if not len(grid):
        raise ValueError("Expected grid to hold a value.")
    areas = np.zeros(len(grid))
    for number, members in enumerate(flags):
        others = attackers_of(flags, number)
        if not others.any():
            raise ValueError(
                f"Expected losses of {len(models)} models to be of four at least, in complementary "
                "pairs: a model is attacked by those of other pairs."
            )
        rows = usable(models[number], models[others], ~flags[others])
        out = _mean(models[others], ~flags[others], rows, "OUT")
        for place, a in enumerate(grid):
            ratios = models[number, rows] / _offline_marginal(out, a)
            areas[place] += auc(ratios[members[rows]], ratios[~members[rows]])
    return float(grid[int(np.argmax(areas))])


def _offline_marginal(out: Scores, a: float) -> Scores:
    """What p(x) is, as far as the OUT models' mean tells."""
    if not 0 <= a <= 1:
        raise ValueError(f"Expected a={a!r} in [0, 1].")
    return np.asarray(((1 + a) * out + (1 - a)) / 2)


def attackers_of(included: Flags, number: int) -> Flags:
    """Which shadow models may attack one of them: neither itself nor its complement.

    Args:
        included: Bool, shape `(models, candidates)`.
        number: The model that is attacked.

    Returns:
        Shape `(models,)`. In a design of complementary pairs they see each row equally often.
    """
    attackers: Flags = (included == included[number]).any(axis=1)
    attackers[number] = False
    return attackers


def check_losses(**named: Scores) -> None:
    """Raises `ValueError` unless losses are those of probabilities, at least 0; NaN passes."""
    for name, losses in named.items():
        if (losses < 0).any():
            raise ValueError(
                f"Expected {name} to be losses -log p, at least 0; the smallest is "
                f"{np.nanmin(losses)}. Take LiRA for losses of another kind."
            )


def _probabilities(
    target: ArrayLike, shadows: ArrayLike, included: ArrayLike | None
) -> tuple[Scores, Scores, Flags]:
    """Probabilities of the true class, none of them 0: losses above 700 are taken for 700."""
    nowhere = np.zeros(np.shape(shadows), dtype=np.bool_)
    arrays = checked(target, shadows, nowhere if included is None else included)
    check_losses(target=arrays[0], shadows=arrays[1])
    target_p, shadows_p = (np.exp(-np.minimum(losses, LARGEST_LOSS)) for losses in arrays[:2])
    return target_p, shadows_p, arrays[2]


def _mean(models: Scores, chosen: Flags, rows: Flags, name: str) -> Scores:
    """The mean over the chosen models of each row that is scored."""
    of_side = side(models[:, rows], chosen[:, rows])
    check_side(of_side, name, rows)
    return of_side.mean


def _spread(ratios: Scores, rows: Flags) -> Scores:
    """The ratios in the places of their rows; NaN elsewhere."""
    spread = np.full(len(rows), np.nan)
    spread[rows] = ratios
    return spread


def _checked_ratios(ratios: ArrayLike, population: ArrayLike) -> tuple[Scores, Scores]:
    """The candidates' ratios, and the population's in rising order."""
    rows, others = (np.asarray(r, dtype=np.float64) for r in (ratios, population))
    for name, array in (("ratios", rows), ("population", others)):
        if array.ndim != 1 or not array.size:
            raise ValueError(f"Expected {name} with shape {array.shape} to be (rows,), rows >= 1.")
    if not (np.isfinite(others) & (others > 0)).all():
        raise ValueError(
            "Expected population to be finite and above 0; leave out rows on which a model gives "
            "no number."
        )
    return rows, np.sort(others)
