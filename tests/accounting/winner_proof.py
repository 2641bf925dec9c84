"""Proves the tables of `privtrain.accounting.winner`, cell by cell.

    python -m tests.accounting.winner_proof          proves every figure of both (minutes)

Every figure is an upper bound of a supremum over the plane. The plane is cut into cells; in a cell
each probability and each mean score is at most its value at one corner, by the monotonicity that
docs/decisions/022-cost-of-the-winner.md proves, so that a cell's bound holds for all its points.
Cells whose bound is too large are cut again. Outside the box the decision's estimates hold.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from privtrain.accounting.winner import FIRST, GAUSSIAN, LAPLACE, PER_OCTAVE

Array = NDArray[np.float64]

ROOT_2 = math.sqrt(2.0)
_SERIES = [1 / math.factorial(power + 2) for power in range(18)]
_ROUNDING = 1 + 1e-6
"""Far above the rounding of floats, and what lies outside the box; see the decision."""


def log_psi(x: Array) -> Array:
    """log(exp(x) - 1 - x), which grows with |x| on either side of zero."""
    x = np.asarray(x, dtype=np.float64)
    made = np.empty_like(x)
    near, above, below = np.abs(x) < 0.7, x >= 0.7, x <= -0.7
    small, total = x[near], np.zeros(int(near.sum()))
    for coefficient in _SERIES[::-1]:
        total = total * small + coefficient
    with np.errstate(divide="ignore"):
        made[near] = 2 * np.log(np.abs(small)) + np.log(total)
    made[above] = x[above] + np.log1p(-(1 + x[above]) * np.exp(-x[above]))
    made[below] = np.log(np.expm1(x[below]) - x[below])
    return made


def _log_square(x: Array) -> Array:
    """What `log_psi(order x) - 2 log(order)` tends to where the order falls to zero."""
    with np.errstate(divide="ignore"):
        return np.asarray(2 * np.log(np.abs(x)) - math.log(2.0))


def _log_density(x: Array) -> Array:
    return np.asarray(-x * x / 2 - 0.5 * math.log(2 * math.pi))


def _log_chords(height: Array, step: float) -> Array:
    """Logarithms of integrals between grid points, of functions whose logarithm is linear there."""
    first, second = height[:, :-1], height[:, 1:]
    drop = np.abs(second - first)
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(drop > 1e-6, -np.expm1(-drop) / np.where(drop == 0, 1, drop), 1 - drop / 2)
    return np.asarray(np.maximum(first, second) + np.log(part) + math.log(step))


def _slopes(d: Array, w: Array) -> tuple[Array, Array]:
    """Logarithms of the two parts of the derivative in d of the chance to win."""
    return (
        np.asarray(_log_density(d) + log_ndtr(w)),
        np.asarray(_log_density((w + d) / ROOT_2) + log_ndtr((d - w) / ROOT_2) - math.log(2.0) / 2),
    )


def gaussian_tails(first: float, count: int, step: float, w: Array) -> tuple[Array, Array, Array]:
    """Bounds of the chance to win and of the mean score, at d = first + step x (0, 1, ...).

    The chance is the integral of its derivative, two log-concave functions: their chords bound it
    below, and exp(step^2 / 8) times them above, since no logarithm bends by more than 1.

    Returns:
        log p from below, log p from above, log of the mean score from above, `(w, count)`.
    """
    w = w[:, np.newaxis]
    coarse = 0.01
    left = math.ceil((first - min(first, 0.0) + 10.0) / coarse)
    before = first - coarse * np.arange(left, -1, -1.0)
    parts = np.logaddexp(*(_log_chords(height, coarse) for height in _slopes(before, w)))
    start = np.logaddexp.reduce(parts, axis=1)[:, np.newaxis]
    # Farther to the left than the grid: the derivative over its own slope, which is above |d|.
    rest = np.logaddexp(*(height[:, :1] for height in _slopes(before, w))) - math.log(-before[0])
    d = first + step * np.arange(count)
    heights = _slopes(d, w)
    parts = np.logaddexp(*(_log_chords(height, step) for height in heights))
    low = np.logaddexp.accumulate(np.concatenate([start, parts], axis=1), axis=1)
    high = np.logaddexp(low + max(step, coarse) ** 2 / 8, rest)
    score = np.logaddexp(*heights) + math.log(2.0) / 2 - low
    return low, np.minimum(high, 0.0), score


def _log_hazard(x: Array) -> Array:
    return np.asarray(_log_density(x) - log_ndtr(-x))


def gaussian_cells(order: float, d: Array, w: Array) -> Array:
    """Bounds of log(E exp(order x score) - 1) in cells of (d, w); the last cell of w is unbounded.

    Here d = (u - v) / sqrt 2 and w = (u + v) / sqrt 2.

    Args:
        order: The argument of the cumulant generating function; 0 for half the Fisher information.
        d: The ends of cells of d, ascending, all as wide.
        w: The ends of cells of w, ascending; the last may be infinity.

    Returns:
        One bound a cell, shape `(len(w) - 1, len(d) - 1)`.
    """
    first, count, step = float(d[0]), len(d), float(d[1] - d[0])
    psi: Callable[[Array], Array] = _log_square if order == 0 else log_psi
    scale = order or 1.0
    below, above = w[:-1], np.where(np.isinf(w[1:]), 0.0, w[1:])
    finite = np.isfinite(w[1:])
    # The larger w makes winning likelier, the smaller one makes the score of a win larger.
    score_i = gaussian_tails(first, count, step, below)[2]
    score_j = gaussian_tails(-float(d[-1]), count, step, below)[2][:, ::-1]
    chance_i, chance_j = (
        np.tile(log_ndtr(d), (len(below), 1)),
        np.tile(log_ndtr(-d), (len(below), 1)),
    )
    if finite.any():
        chance_i[finite] = gaussian_tails(first, count, step, above[finite])[1]
        chance_j[finite] = gaussian_tails(-float(d[-1]), count, step, above[finite])[1][:, ::-1]
    wins = chance_i[:, 1:] + psi(scale * np.exp(score_i[:, :-1]))
    loses = chance_j[:, :-1] + psi(-scale * np.exp(score_j[:, 1:]))
    # The third class: likeliest at the smaller w and where d is nearest to zero.
    nearest = np.clip(0.0, d[:-1], d[1:])
    third = log_ndtr(-(below[:, None] + nearest) / ROOT_2)
    third = third + log_ndtr(-(below[:, None] - nearest) / ROOT_2)
    u, v = (above[:, None] + d) / ROOT_2, (above[:, None] - d) / ROOT_2
    # Of slope below 1 is the normal hazard rate.
    hazards = np.where(
        finite[:, None], np.exp(_log_hazard(v)) - np.exp(_log_hazard(u)), -ROOT_2 * d
    )
    ends = psi(scale * hazards)
    third = third + np.maximum(ends[:, :-1], ends[:, 1:])
    return np.asarray(np.logaddexp(np.logaddexp(wins, loses), third))


def gaussian_box(order: float) -> tuple[Array, Array]:
    """The ends of the first cells; beyond the box the decision's estimates hold."""
    width = max(0.1, order / 40)
    lowest = (2 * order + 17) / ROOT_2
    farthest = 3 * order + 2 * lowest
    cells = math.ceil(2 * farthest / width)
    w = np.arange(-lowest, order + 8 + width, width)
    return np.linspace(-farthest, farthest, cells + 1), np.append(w, np.inf)


def _finer(ends: Array, parts: int = 4, *, uniform: bool = False) -> Array:
    """Cells cut into equal parts; of one without an end, four units are."""
    finite = ends[np.isfinite(ends)]
    if len(finite) == len(ends) and uniform:
        return np.linspace(ends[0], ends[-1], (len(ends) - 1) * parts + 1)
    # Two counts so far above the third hardly depend on how far: fewer parts are enough there.
    cut = [np.linspace(a, b, parts + 1 if a < 5 else 3)[:-1] for a, b in pairwise(finite.tolist())]
    last = float(finite[-1])
    end = [last] if len(finite) == len(ends) else [*np.linspace(last, last + 4, 9), np.inf]
    return np.concatenate([*cut, end])


def proven(
    cells: Callable[[float, Array, Array], Array],
    box: tuple[Array, Array],
    order: float,
    claim: float,
    *,
    plain: bool = False,
    levels: int = 8,
    most: int = 20_000_000,
) -> bool:
    """Whether log(E exp(order x score)) / order^2 is at most a claim all over a box.

    Args:
        cells: Bounds of cells.
        box: The ends of the first cells.
        order: See `gaussian_cells`.
        claim: What is to be proved.
        plain: Whether (E exp(order x score) - 1) / order^2 is to be bounded, which is larger.
        levels: How often cells are cut at most.
        most: How many cells there may be at once.
    """
    columns, rows = box
    for _ in range(levels):
        bound = cells(order, columns, rows)
        if order:
            with np.errstate(divide="ignore"):
                bound = bound if plain else np.log(np.logaddexp(0.0, bound))
            bound = bound - 2 * math.log(order)
        # A NaN is above every claim.
        above = ~(bound <= math.log(claim / _ROUNDING))
        if not above.any():
            return True
        left, right = np.flatnonzero(above.any(axis=0))[[0, -1]]
        low, high = np.flatnonzero(above.any(axis=1))[[0, -1]]
        columns = _finer(columns[left : right + 2], uniform=True)
        rows = _finer(rows[low : high + 2])
        if len(columns) * len(rows) > most:
            return False
    return False


def _laplace_density(x: Array) -> Array:
    return np.asarray(0.5 * np.exp(-np.abs(x)))


def _laplace_below(x: Array) -> Array:
    """The chance that Laplace noise is below x."""
    tail = _laplace_density(x)
    return np.where(x < 0, tail, 1 - tail)


def laplace_win(u: Array, v: Array) -> tuple[Array, Array]:
    """The chance of u + noise to be above zero and v + noise, and its derivative in (1, -1)."""
    low, high = np.maximum(np.minimum(u, v), 0), np.maximum(np.maximum(u, v), 0)
    first, second = np.maximum(u, 0), np.maximum(v, 0)
    # The integral of density(x - u) below(x - v) over x > 0, in pieces that end at u and at v.
    chance = 1 - _laplace_below(second - u)
    chance = chance - 0.25 * np.exp(-np.abs(u - v)) * np.maximum(first - second, 0)
    chance = chance - 0.125 * np.exp(u + v - 2 * high)
    chance = chance + 0.125 * (np.exp(2 * low - u - v) - np.exp(-u - v))
    chance = chance + 0.25 * np.exp(-np.abs(u - v)) * np.maximum(second - first, 0)
    # density(x - u) density(x - v), integrated likewise.
    both = 0.125 * np.exp(u + v - 2 * high) + 0.25 * np.exp(-np.abs(u - v)) * (high - low)
    both = both + 0.125 * (np.exp(2 * low - u - v) - np.exp(-u - v))
    return chance, _laplace_density(u) * _laplace_below(-v) + 2 * both


def _laplace_hazard(x: Array) -> Array:
    return np.asarray(_laplace_density(x) / _laplace_below(-x))


def laplace_cells(order: float, u: Array, v: Array) -> Array:
    """Bounds of log(E exp(order x score) - 1) in cells of (u, v), for Laplace noise.

    Returns:
        One bound a cell, shape `(len(v) - 1, len(u) - 1)`.
    """
    psi: Callable[[Array], Array] = _log_square if order == 0 else log_psi
    scale = order or 1.0
    across, along = u[np.newaxis, :], v[:, np.newaxis]
    rounding = 1e-14
    parts = []
    for win in (laplace_win(across, along), laplace_win(along, across)):
        chance, slope = np.broadcast_arrays(*win)
        with np.errstate(divide="ignore"):
            # Scores are means of a difference of two signs.
            score = np.minimum(slope / np.maximum(chance - rounding, 1e-300), 2.0)
            parts.append((np.log(np.minimum(chance + rounding, 1.0)), score))
    (win_i, score_i), (win_j, score_j) = parts
    wins = win_i[:-1, 1:] + psi(scale * score_i[1:, :-1])
    loses = win_j[1:, :-1] + psi(-scale * score_j[:-1, 1:])
    hazard_u, hazard_v = _laplace_hazard(across), _laplace_hazard(along)
    # Of the third class the score falls in u and rises in v, as far as from one corner to another.
    least, most = hazard_v[:-1] - hazard_u[:, 1:], hazard_v[1:] - hazard_u[:, :-1]
    third = np.log(_laplace_below(-across[:, :-1]) * _laplace_below(-along[:-1]))
    third = third + np.maximum(psi(scale * least), psi(scale * most))
    return np.asarray(np.logaddexp(np.logaddexp(wins, loses), third))


def laplace_box(order: float) -> tuple[Array, Array]:
    """The ends of the first cells; beyond the box the decision's estimates hold."""
    farthest = 3 * order + 16
    width = max(0.1, order / 30)
    ends = np.linspace(-farthest, farthest, math.ceil(2 * farthest / width) + 1)
    return ends, ends


def laplace_pairs(order: float, d: Array, one: Array) -> Array:
    """The same for two classes alone, in cells of the difference d of their counts.

    Args:
        order: See `laplace_cells`.
        d: The ends of cells, ascending.
        one: Two numbers, which say nothing: there is one row of cells.
    """
    psi: Callable[[Array], Array] = _log_square if order == 0 else log_psi
    scale = order or 1.0
    slope = 0.5 * (1 + np.abs(d)) * np.exp(-np.abs(d))  # twice the density: both counts move
    tail = np.log(2 + np.abs(d)) - np.log(4.0) - np.abs(d)
    win = np.where(d < 0, tail, np.log1p(-np.exp(tail)))
    lose = win[::-1] if np.allclose(d, -d[::-1]) else np.where(d < 0, np.log1p(-np.exp(tail)), tail)
    wins = win[1:] + psi(scale * slope[:-1] / np.exp(win[:-1]))
    loses = lose[:-1] + psi(-scale * slope[1:] / np.exp(lose[1:]))
    return np.tile(np.logaddexp(wins, loses), (len(one) - 1, 1))


PAIRS = np.linspace(-60, 60, 2401), np.array([0.0, 1.0])
"""The ends of cells for `laplace_pairs`."""


def argument(place: int) -> float:
    """Where the figure of a table holds that has so many before it."""
    return FIRST * float(2 ** (place / PER_OCTAVE))


def gaussian_proven(place: int, part: float = 1.0) -> bool:
    """Whether a figure for normal noise is proved, or so much of it."""
    order, claim = argument(place), part * GAUSSIAN[place]
    return proven(gaussian_cells, gaussian_box(order), order, claim)


def laplace_proven(place: int) -> bool:
    """Whether a figure for Laplace noise is proved."""
    order, claim = argument(place), LAPLACE[place]
    inside = proven(laplace_cells, laplace_box(order), order, claim)
    return inside and proven(laplace_pairs, PAIRS, order, claim)


def gaussian_starts_proven() -> bool:
    """Whether c is at most the first figure for normal noise from zero to the first argument.

    (E exp(x score) - 1) / x^2 is convex in x, and bounds c: both ends are enough.
    """
    ends = (0.0, FIRST)
    return all(proven(gaussian_cells, gaussian_box(x), x, GAUSSIAN[0], plain=True) for x in ends)


def laplace_starts_proven() -> bool:
    """The same for Laplace noise."""
    return all(
        proven(laplace_cells, laplace_box(x), x, LAPLACE[0], plain=True)
        and proven(laplace_pairs, PAIRS, x, LAPLACE[0], plain=True)
        for x in (0.0, FIRST)
    )


if __name__ == "__main__":
    print("up to the first argument:", gaussian_starts_proven(), laplace_starts_proven())
    for number in range(len(GAUSSIAN)):
        of_laplace = laplace_proven(number) if number < len(LAPLACE) else "-"
        print(f"{argument(number):.4f}", gaussian_proven(number), of_laplace, flush=True)
