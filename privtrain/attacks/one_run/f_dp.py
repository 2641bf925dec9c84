"""The test of a whole trade-off curve by the guesses of one run: the f-DP one-run audit.

A single pair (epsilon, delta) is one point of what a run promises. All of them together, the
trade-off function f, say more, and so does a test of all of them.

Notation: W of the `guesses` guesses are right. For a canary i, a guess b and a count j take the
event "i is guessed b, and at least j - 1 of the other guesses are right". Its probability where b
is the truth and where it is not obeys `right <= 1 - f(wrong)`, since these two worlds are
neighbours. Averaged over coins and canaries, f being convex, for every j:

    sum_{w >= j} w p_w / m  <=  1 - f( sum_{w >= j - 1} (guesses - w) p_w / m ),    p_w = P[W = w].

The tests below ask whether any p that obeys all of these makes the observed count as likely as
the false-alarm rate.

Source: Mahloujifar, Melis and Chaudhuri 2024 (arXiv:2410.22235).
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privtrain.accounting.curves import Pairs, gaussian_epsilon
from privtrain.attacks.one_run.bounds import check_confidence, check_guesses
from privtrain.core.validate import check_delta

Values = NDArray[np.float64]

LeastWrong = Callable[[Values], Values]
"""Maps how often a test is right in one world to the least it is wrong in the other: f(1 - right).

Both are probabilities. Symmetric trade-off functions only, as those of add/remove in either
direction are."""

_POINTS = 48
"""The number of values that one pass tries; each pass narrows the bracket to one of their gaps."""

# A geometric grid from 1e-12 to 1 has a ratio of 1.8; after five passes it is below 1 + 1e-6.
_PASSES = 5


def least_wrong(pairs: Pairs) -> LeastWrong:
    """The trade-off function of pairs (epsilon, delta): the largest of all their bounds.

    It lies at or below the true one, so that what refutes it refutes the promise.

    Args:
        pairs: Pairs `(delta, epsilon)` that are promised, such as `epsilon_curve` gives.

    Returns:
        The function, of any shape to the same shape; zero where nothing is promised.
    """
    # Capped, since e^710 overflows a float; that moves f by no more than e^-700.
    finite = [(delta, min(bound, 700.0)) for delta, bound in pairs if math.isfinite(bound)]
    deltas = np.array([delta for delta, _ in finite])
    growth = np.exp([bound for _, bound in finite])

    def trade_off(right: Values) -> Values:
        if not finite:
            return np.zeros_like(right)
        # Both lines of f_{epsilon, delta} at 1 - right (Dong, Roth and Su 2022), and the largest
        # over all pairs: a maximum of convex functions is convex, as a trade-off function is.
        shaped = right[..., None]
        first = (shaped - deltas) / growth
        second = (1 - deltas) - growth * (1 - shaped)
        return np.asarray(np.maximum(first, second).max(axis=-1).clip(0.0, 1.0), dtype=np.float64)

    return trade_off


def gaussian_least_wrong(mu: ArrayLike) -> LeastWrong:
    """The trade-off function of mu-Gaussian differential privacy.

    Args:
        mu: Sensitivity over standard deviation; positive, any shape that fits the argument's.

    Source: Dong, Roth and Su 2022, Equation 6 (arXiv:1905.02383).
    """
    from scipy.special import ndtr, ndtri

    widths = np.asarray(mu, dtype=np.float64)

    def trade_off(right: Values) -> Values:
        # Equation 6: G_mu(alpha) = Phi(Phi^-1(1 - alpha) - mu), at alpha = 1 - right.
        return np.asarray(ndtr(ndtri(np.minimum(right, 1.0)) - widths), dtype=np.float64)

    return trade_off


def _probability_needed(
    curve: LeastWrong, tail: Values, *, canaries: int, guesses: int, correct: int
) -> Values:
    """The least total probability of a law of W with `P[W >= correct] = tail`.

    Above 1 there is no such law. Mass at fewer right guesses loosens all inequalities, so the
    tail sits at `correct`, and each count below gets the least mass that its inequality asks for.

    Args:
        curve: The trade-off function.
        tail: In [0, 1], any shape.
        canaries: As in `p_value`.
        guesses: As in `p_value`.
        correct: As in `p_value`.

    Returns:
        Same shape as the tail and the curve's own parameters together.
    """
    # Both sums of the module's inequality, over w >= correct and then over one count more a step:
    # `right` is that of w p_w / m, `wrong` that of (guesses - w) p_w / m.
    right = tail * correct / canaries
    wrong = tail * (guesses - correct) / canaries
    for count in range(correct - 1, -1, -1):
        needed = np.maximum(wrong, curve(right))
        # Mass at `count` right guesses brings them in the ratio count : guesses - count.
        right = right + count / (guesses - count) * (needed - wrong)
        wrong = needed
    # Now both sums are over all w, and add up to guesses / m times the total probability.
    return np.asarray((right + wrong) * canaries / guesses, dtype=np.float64)


def p_value(curve: LeastWrong, *, canaries: int, guesses: int, correct: int) -> float:
    """An upper bound on the probability of so many right guesses if a trade-off function is kept.

    Args:
        curve: The trade-off function: `least_wrong(pairs)` of the accountant's own pairs.
        canaries: The number of coins; independent and fair.
        guesses: The number of guessed ones; fixed beforehand.
        correct: The number of right guesses.

    Returns:
        In [0, 1]. Rejecting the curve where it is at most `alarm` is wrong with probability at most
        `alarm`, whatever the attack is. Values below 1e-12 are not told apart.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Mahloujifar, Melis and Chaudhuri 2024, section 3 (arXiv:2410.22235).
    """
    check_guesses(canaries=canaries, guesses=guesses, correct=correct)

    def impossible(tails: Values) -> NDArray[np.bool_]:
        needed = _probability_needed(
            curve, tails, canaries=canaries, guesses=guesses, correct=correct
        )
        # A margin for rounding: a law that just exists must not be called impossible.
        return np.asarray(needed > 1 + 1e-9)

    if not impossible(np.array([1.0]))[0]:
        return 1.0
    low, high = 1e-12, 1.0
    for _ in range(_PASSES):
        tails = np.geomspace(low, high, _POINTS)
        # Possible tails lie below impossible ones: half-way to "never right" is always possible.
        first = int(np.argmax(impossible(tails)))
        low, high = float(tails[max(first - 1, 0)]), float(tails[first])
    return high


def gaussian_epsilon_bound(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95
) -> float:
    """The epsilon of the largest mu-Gaussian trade-off function that the guesses reject.

    It speaks of a run whose trade-off function is Gaussian and of no other: not a lower bound on
    the epsilon of runs in general. Always say "Gaussian family" beside it.

    Args:
        canaries: The number of coins; independent and fair.
        guesses: The number of guessed ones; fixed beforehand.
        correct: The number of right guesses.
        delta: The delta at which epsilon is read from the rejected function, in (0, 1).
        confidence: In (0, 1).

    Returns:
        Epsilon; 0 where no Gaussian is rejected.

    Raises:
        ValueError: If an argument is out of its range.
    """
    check_guesses(canaries=canaries, guesses=guesses, correct=correct)
    check_delta(delta)
    check_confidence(confidence)
    # Bisection on mu from "as good as perfectly private" to "as good as no privacy".
    low, high = 1e-4, 64.0
    tail = np.full(_POINTS, 1 - confidence)
    for number in range(_PASSES):
        widths = np.geomspace(low, high, _POINTS)
        needed = _probability_needed(
            gaussian_least_wrong(widths),
            tail,
            canaries=canaries,
            guesses=guesses,
            correct=correct,
        )
        # A larger mu allows more right guesses, so that the rejected widths come first.
        rejected = int((needed > 1 + 1e-9).sum())
        if number == 0 and rejected == 0:
            return 0.0
        low = float(widths[max(rejected - 1, 0)])
        high = float(widths[min(rejected, _POINTS - 1)])
    return gaussian_epsilon(low, delta)
