"""What the winner of noised votes exactly tells: the divergence from every neighbouring vote."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privtrain.accounting.gnmax import DEFAULT_ORDERS, counts_of
from privtrain.accounting.renyi import RdpCurve, check_orders
from privtrain.core.validate import check_positive

Array = NDArray[np.float64]

SMALLEST_SIGMA = 0.1
"""Below it one vote is worth more than 10 standard deviations, and floats end."""

# An integrand falls at least as fast as exp(-t^2 / 2) on both sides of its peak: what is beyond 8
# is less than 1e-14 of it.
_REACH = 8.0

_FLOATS = 2**20
"""Of the largest array at a time."""

_COARSE = 10
"""At so many orders all moves are computed; between them only those that may be the largest."""


def exact_gnmax_rdp(votes: ArrayLike, sigma: float, orders: ArrayLike) -> Array:
    """Exact Rényi divergences of GNMax answers from those to all neighbouring votes.

    Neighbouring votes are those after one vote has moved from a class to another one, has vanished
    or has appeared (a teacher that abstains). For each query and order the largest of all of them
    is taken, in both directions. Between two neighbouring data sets a vote moves in each query, and
    queries share no noise: the sum over queries bounds the divergence of all answers.

    Args:
        votes: Vote counts before the noise, array or tensor of shape `(queries, classes)`; finite,
            not negative, at least two classes. A class with less than one vote cannot lose one.
        sigma: Standard deviation of the noise on each count, in votes; at least 0.1.
        orders: Rényi orders, shape `(orders,)`, each above 1.

    Returns:
        Divergences in nats, shape `(queries, orders)`, to about 1e-9 of themselves. They follow
        from these votes and are as private as these. In the direction of Theorem 6 none is above
        it; the reverse may be, which Theorem 6 does not speak of.

    Raises:
        ValueError: If an argument is out of its range.

    Source: The winner's law is the integral of phi(y - n_k) prod Phi(y - n_j) over the noised count
    y of class k. Rényi divergence: Mironov 2017 (arXiv:1702.07476), Definition 3.
    """
    check_positive(sigma=sigma)
    if sigma < SMALLEST_SIGMA:
        raise ValueError(f"Expected sigma={sigma!r} >= {SMALLEST_SIGMA}.")
    grid = check_orders(orders)
    ascending, back = np.unique(grid, return_inverse=True)
    # The winner's law does not know the classes by name: equal votes are computed once.
    ordered = -np.sort(-counts_of(votes), axis=1)
    distinct, places = np.unique(ordered, axis=0, return_inverse=True)
    largest = np.empty((len(distinct), len(ascending)))
    for rows, values, members in _by_distinct_counts(distinct, sigma):
        largest[rows] = _of_queries(values / sigma, members, values >= 1, 1 / sigma, ascending)
    made: Array = largest[places.reshape(-1)][:, back]
    return made


def exact_gnmax_curve(
    votes: ArrayLike, sigma: float, orders: ArrayLike = DEFAULT_ORDERS
) -> RdpCurve:
    """The curve of all answers of GNMax to these votes; see `exact_gnmax_rdp`."""
    grid = check_orders(orders)
    return RdpCurve(tuple(grid.tolist()), tuple(exact_gnmax_rdp(votes, sigma, grid).sum(axis=0)))


def _by_distinct_counts(
    ordered: Array, sigma: float
) -> Iterator[tuple[NDArray[np.intp], Array, Array]]:
    """Rows, their distinct counts from the largest and how many classes have each, in batches.

    Classes of equal count are one class: a batch has equally many distinct counts in each row.
    """
    starts = np.ones(ordered.shape, dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    numbers = starts.sum(axis=1)
    for number in np.unique(numbers):
        rows = np.flatnonzero(numbers == number)
        # Rows of a similar span share a grid of integration.
        rows = rows[np.argsort(ordered[rows, 0] - ordered[rows, -1], kind="stable")]
        first = np.nonzero(starts[rows])[1].reshape(len(rows), number)
        ends = np.concatenate([first[:, 1:], np.full((len(rows), 1), ordered.shape[1])], axis=1)
        values = np.take_along_axis(ordered[rows], first, axis=1)
        span = float(values[-1, 0] - values[-1, -1])
        points = _points(span / sigma, ordered.shape[1], 1 / sigma)
        size = max(1, _FLOATS // (points * int(number + 1) ** 2))
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            yield rows[part], values[part], (ends - first)[part].astype(np.float64)


def _of_queries(
    values: Array, members: Array, can_lose: NDArray[np.bool_], step: float, orders: Array
) -> Array:
    """The largest divergences of a batch, shape `(queries, orders)`.

    Args:
        values: Distinct counts in standard deviations, shape `(queries, groups)`, descending.
        members: How many classes have each count, same shape.
        can_lose: Which of them have a vote to lose, same shape.
        step: One vote in standard deviations.
        orders: Ascending orders, shape `(orders,)`.
    """
    own, moved, weights = _laws(values, members, step)
    queries, groups = values.shape
    loses, gains = np.divmod(np.arange((groups + 1) ** 2), groups + 1)
    nobody = np.ones((queries, 1))
    allowed = np.concatenate([can_lose, nobody], axis=1)[:, loses].astype(bool)
    # Within one group a vote moves between two of its members.
    allowed &= (loses != gains) | (np.concatenate([members, 0 * nobody], axis=1)[:, loses] > 1)
    query, move = np.nonzero(allowed)
    with np.errstate(invalid="ignore", divide="ignore"):
        odds = np.where(weights > 0, own - moved, 0.0)[query, move]
        sizes = np.log(weights)
    forward, reverse = (sizes + own)[query, move], (sizes + moved)[query, move]
    # Both directions of a move beside each other, so that a query's pairs stay together.
    query = np.repeat(query, 2)
    chances = np.stack([forward, reverse], axis=1).reshape(len(query), -1)
    exponents = np.stack([odds, -odds], axis=1).reshape(len(query), -1)
    return _largest(chances, exponents, query, orders)


def _laws(values: Array, members: Array, step: float) -> tuple[Array, Array, Array]:
    """Logarithms of the chance that a class wins, before and after each move, and how many classes.

    Returns:
        Three arrays that broadcast to `(queries, moves, groups + 2)`: of each remaining group, of
        the class that loses the vote and of the one that gains it. Move `i * (groups + 1) + j` is
        from group i to group j, the last of which is nobody.
    """
    queries, groups = values.shape
    stay, lose, gain = _integrals(values, members, step)
    loses, gains = np.divmod(np.arange((groups + 1) ** 2), groups + 1)
    kinds = np.arange(groups)
    left = -1.0 * (kinds == loses[:, np.newaxis]) - (kinds == gains[:, np.newaxis])
    ends = np.stack([loses < groups, gains < groups], axis=1).astype(np.float64)
    rest = np.maximum(members[:, np.newaxis] + left, 0.0)
    weights = np.concatenate([rest, np.broadcast_to(ends, (queries, *ends.shape))], axis=2)
    # Nobody's entry is that of another class, at weight zero.
    loser, gainer = np.minimum(loses, groups - 1), np.minimum(gains, groups - 1)
    plain = _summing_to_one(stay[:, :, groups, groups], members)
    own = np.concatenate(
        [
            np.broadcast_to(plain[:, np.newaxis], rest.shape),
            plain[:, loser, np.newaxis],
            plain[:, gainer, np.newaxis],
        ],
        axis=2,
    )
    moved = np.concatenate(
        [
            stay.reshape(queries, groups, -1).transpose(0, 2, 1),
            lose[:, loser, gains, np.newaxis],
            gain[:, gainer, loses, np.newaxis],
        ],
        axis=2,
    )
    return own, _summing_to_one(moved, weights), weights


def _integrals(values: Array, members: Array, step: float) -> tuple[Array, Array, Array]:
    """Logarithms of the chance to win, after a vote has moved from group i to group j.

    Returns:
        Of a class of group k that the vote does not touch, shape `(queries, k, i, j)`; of the class
        that loses it, `(queries, i, j)`; of the class that gains it, `(queries, j, i)`. The last i
        and j are nobody.
    """
    from scipy.special import log_ndtr

    classes = int(members.sum(axis=1).max())
    width = _width(classes)
    span = float((values[:, 0] - values[:, -1]).max())
    y = values[:, -1:] - _REACH - 2 * step + width * np.arange(_points(span, classes, step))
    z = y[:, np.newaxis] - values[:, :, np.newaxis]
    here = log_ndtr(z)
    nobody = np.zeros((len(values), 1, y.shape[1]))
    less = np.concatenate([log_ndtr(z + step) - here, nobody], axis=1)
    more = np.concatenate([log_ndtr(z - step) - here, nobody], axis=1)
    # The product over all other classes, whoever of them is touched.
    others = np.einsum("qg,qgt->qt", members, here)[:, np.newaxis] - here
    others += np.log(width) - 0.5 * np.log(2 * np.pi)
    logs = others - z**2 / 2
    peak = logs.argmax(axis=2)[..., np.newaxis]
    top = np.take_along_axis(logs, peak, axis=2)
    up, up_there = _tilted(less, peak)
    down, down_there = _tilted(more, peak)
    weight = np.exp(logs - top)
    up *= weight[:, :, np.newaxis]
    stay = np.log(np.matmul(up, down.transpose(0, 1, 3, 2))) + top[..., np.newaxis]
    stay += up_there[..., np.newaxis] + down_there[:, :, np.newaxis]
    # Its own noise shifts a touched class: phi(z + s) = phi(z) exp(-s z - s^2 / 2).
    there = np.take_along_axis(z, peak, axis=2)
    drift = np.clip(step * (z - there), -700.0, 700.0)
    top -= step**2 / 2
    weight *= np.exp(-drift)
    lose = np.log(np.einsum("qgt,qgit->qgi", weight, down)) + top - step * there + down_there
    gain = np.log(np.einsum("qgt,qgit->qgi", np.exp(drift), up)) + top + step * there + up_there
    return stay, lose, gain


def _width(classes: int) -> float:
    """Of a step of the trapezoidal rule, in standard deviations."""
    # On an analytic integrand: at worst, far below the others, it is as narrow as a normal density
    # of variance 1 / classes, of which the rule misses exp(-2 pi^2 / 0.64).
    return min(0.3, 0.8 / math.sqrt(classes))


def _points(span: float, classes: int, step: float) -> int:
    """How many points reach from below the smallest count to above the largest noised one."""
    reach = span + 2 * (_REACH + 2 * step) + math.sqrt(2 * math.log(classes))
    return math.ceil(reach / _width(classes)) + 1


def _tilted(logs: Array, peak: NDArray[np.intp]) -> tuple[Array, Array]:
    """What a touched class changes, over its value at the peak of each integrand.

    Args:
        logs: Shape `(queries, touched, points)`.
        peak: Shape `(queries, groups, 1)`.

    Returns:
        Shapes `(queries, groups, touched, points)` and `(queries, groups, touched)`.
    """
    there = np.take_along_axis(logs, peak.transpose(0, 2, 1), axis=2).transpose(0, 2, 1)
    # It grows by one step a standard deviation at most, the integrand falls with the square:
    # beyond the cut the integrand is zero.
    far = logs[:, np.newaxis] - there[..., np.newaxis]
    np.minimum(far, 700.0, out=far)
    return np.exp(far, out=far), there


def _summing_to_one(logs: Array, weights: Array) -> Array:
    """Logarithms of chances, the largest from the sum of the others: its complement is exact."""
    with np.errstate(divide="ignore"):
        total = np.log(weights) + logs
    largest = total.argmax(axis=-1)[..., np.newaxis]
    chances = np.exp(total)
    np.put_along_axis(chances, largest, 0.0, axis=-1)
    others = chances.sum(axis=-1, keepdims=True)
    # Where the largest does not dominate, its own integral is as good.
    each = np.log(np.take_along_axis(np.broadcast_to(weights, total.shape), largest, axis=-1))
    made = logs.copy()
    np.put_along_axis(made, largest, np.log1p(-np.minimum(others, 1 - 1e-16)) - each, axis=-1)
    return made


def _largest(chances: Array, exponents: Array, query: NDArray[np.intp], orders: Array) -> Array:
    """The largest divergence of each query, shape `(queries, orders)`.

    Args:
        chances: Logarithms, of each outcome under the first law, shape `(pairs, outcomes)`.
        exponents: Logarithms of its ratio to the second law, same shape.
        query: Which query a pair belongs to, ascending from 0, shape `(pairs,)`.
        orders: Ascending, shape `(orders,)`.
    """
    moments = orders - 1
    first = np.flatnonzero(np.diff(query, prepend=-1))
    if len(orders) <= 2 * _COARSE:
        return _maximum(_log_moments(chances, exponents, moments), first, moments)
    ends = np.linspace(0, len(orders) - 1, _COARSE).round().astype(int)
    coarse = _log_moments(chances, exponents, moments[ends])
    best = np.empty((len(first), len(orders)))
    best[:, ends] = _maximum(coarse, first, moments[ends])
    marks = _may_be_largest(coarse, query, moments[ends])
    for left, right, kept in zip(ends[:-1] + 1, ends[1:], marks.T, strict=True):
        pairs = (chances[kept], exponents[kept], query[kept])
        best[:, left:right] = _largest(*pairs, orders[left:right])
    return best


def _maximum(logs: Array, first: NDArray[np.intp], moments: Array) -> Array:
    """The largest divergence among the pairs of each query, which begin at `first`."""
    best: Array = np.maximum.reduceat(logs, first, axis=0) / moments
    return best


def _log_moments(chances: Array, exponents: Array, moments: Array) -> Array:
    """Log E exp(moment x exponent), shape `(pairs, moments)`, accurate where it is nearly zero."""
    total = np.zeros((len(chances), len(moments)))
    block = max(1, 2**14 // max(1, len(moments)))
    with np.errstate(over="ignore", invalid="ignore"):
        # In blocks that a processor's cache holds.
        for start in range(0, len(chances), block):
            part = slice(start, start + block)
            for chance, exponent in zip(np.exp(chances[part]).T, exponents[part].T, strict=True):
                powers = np.multiply.outer(exponent, moments)
                np.expm1(powers, out=powers)
                powers *= chance[:, np.newaxis]
                total[part] += powers
    made: Array = np.log1p(np.maximum(total, 0.0))
    if not np.isfinite(total).all():
        pair, place = np.nonzero(~np.isfinite(total))
        logs = chances[pair] + exponents[pair] * moments[place, np.newaxis]
        made[pair, place] = np.logaddexp.reduce(logs, axis=1)
    return made


def _may_be_largest(logs: Array, query: NDArray[np.intp], moments: Array) -> NDArray[np.bool_]:
    """Which pairs may have a query's largest divergence at an order between these.

    Logarithmic moments are convex in the moment and zero at zero; so is the largest of them. Hence
    a pair lies below its chord between two moments, and the largest one above the lines through its
    values on either side of them.

    Args:
        logs: Logarithmic moments, shape `(pairs, moments)`.
        query: Which query a pair belongs to, ascending.
        moments: Ascending, at least two, shape `(moments,)`.

    Returns:
        Marks, shape `(pairs, moments - 1)`, for each part between two moments; at least one a
        query.
    """
    new = np.diff(query, prepend=-1) != 0
    of = np.cumsum(new) - 1
    largest = np.maximum.reduceat(logs, np.flatnonzero(new), axis=0)
    at = np.concatenate([[0.0], moments])
    slopes = np.diff(np.pad(largest, ((0, 0), (1, 0))), axis=1) / np.diff(at)
    left, right = moments[:-1], moments[1:]
    start, end, up = largest[:, :-1], largest[:, 1:], slopes[:, :-1]
    # No line from the right ends the last part; it never is the higher one there.
    down = np.concatenate([slopes[:, 2:], np.full((len(largest), 1), np.inf)], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Both lines are lowest where they cross: a chord that is below them there is so everywhere.
        cross = left + (down * (right - left) - (end - start)) / (down - up)
    cross = np.where(np.isfinite(cross), np.clip(cross, left, right), right)
    floor = start + up * (cross - left)
    chord = logs[:, :-1] + np.diff(logs, axis=1) / (right - left) * (cross - left)[of]
    # A little below, since lines are rounded.
    kept: NDArray[np.bool_] = chord >= floor[of] * (1 - 1e-9)
    kept |= logs[:, :-1] >= start[of]
    return kept
