"""Lower bounds on epsilon at one delta from the guesses of a one-run audit: pure functions.

Each of `canaries` rows was included or not by its own fair coin; after one run an attack guesses
as many coins as it said beforehand, and abstains from the others.
"""

import numpy as np

from privtrain.core.validate import (
    check_count,
    check_delta,
    check_fraction,
    check_non_negative,
)


def check_confidence(confidence: float) -> None:
    """Raises `ValueError` unless the confidence lies in (0, 1), also after rounding.

    At confidence 0 every epsilon counts as refuted: there is no largest one.
    """
    check_fraction(confidence=confidence)
    if 1 - confidence >= 1:
        raise ValueError(f"Expected confidence={confidence!r} in (0, 1), such as 0.95.")


def check_guesses(*, canaries: int, guesses: int, correct: int) -> None:
    """Raises `ValueError` unless 0 <= correct <= guesses <= canaries and 1 <= guesses."""
    check_count(canaries=canaries, guesses=guesses)
    check_count(0, correct=correct)
    if guesses > canaries:
        raise ValueError(f"Expected guesses={guesses} <= canaries={canaries}.")
    if correct > guesses:
        raise ValueError(f"Expected correct={correct} <= guesses={guesses}.")


def p_value(epsilon: float, *, canaries: int, guesses: int, correct: int, delta: float) -> float:
    """An upper bound on the probability of so many right guesses after an (epsilon, delta)-DP run.

    Without delta, the number of right guesses is dominated by a binomial one whose coin is right
    with probability e^epsilon / (1 + e^epsilon). Delta adds to it a count F >= 0 of mean at most
    2 x canaries x delta; among all such counts the worst one jumps by a single amount i:
    `P[B >= v] + 2 m delta max_i P[v - i <= B < v] / i`. The result rises with epsilon.

    Args:
        epsilon: At least zero; neighbours differ in one canary being included or not.
        canaries: The number of coins.
        guesses: The number of guessed ones; fixed beforehand.
        correct: The number of right guesses.
        delta: In [0, 1).

    Returns:
        In [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Source: Steinke, Nasr and Jagielski 2023, Theorem 5.2 (arXiv:2305.08846).
    """
    from scipy.special import expit
    from scipy.stats import binom

    check_guesses(canaries=canaries, guesses=guesses, correct=correct)
    check_non_negative(epsilon=epsilon)
    check_fraction(delta=delta)
    # Theorem 5.2: W' is binomial with e^epsilon / (1 + e^epsilon), P[W >= v] <= P[W' >= v] + 2 m
    # delta alpha, and alpha is the largest P[v - i <= W' < v] / i.
    right = float(expit(epsilon))
    tail = float(binom.sf(correct - 1, guesses, right))
    if correct == 0 or delta == 0:
        return tail
    # P[v - i <= B < v] for i = 1, ..., v; beyond v it stays the same while i grows.
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, right))
    jump = float((below / np.arange(1, correct + 1)).max())
    return min(tail + 2 * canaries * delta * jump, 1.0)


def epsilon_bound(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95
) -> float:
    """The largest epsilon that the guesses of one run refute.

    If the run is (epsilon, delta)-DP under including or excluding one canary, the result is at
    most epsilon with the stated confidence, whatever the attack is.

    Args:
        canaries: The number of coins; independent and fair.
        guesses: The number of guessed ones; fixed beforehand.
        correct: The number of right guesses.
        delta: In (0, 1).
        confidence: In (0, 1).

    Returns:
        The lower bound; 0 where the guesses prove nothing.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Steinke, Nasr and Jagielski 2023, Theorem 5.2 (arXiv:2305.08846).
    """
    check_delta(delta)
    check_confidence(confidence)
    alarm = 1 - confidence

    def refuted(epsilon: float) -> bool:
        counts = {"canaries": canaries, "guesses": guesses, "correct": correct}
        return p_value(epsilon, **counts, delta=delta) <= alarm

    # The p-value rises with epsilon, so that the refuted ones are an interval from zero.
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    # The lower end is returned: it was refuted, whatever the bisection's precision.
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def ceiling(*, canaries: int, guesses: int, delta: float, confidence: float = 0.95) -> float:
    """The bound that results if every guess is right: no audit of this size can show more.

    Args:
        canaries: The number of coins.
        guesses: The number of guessed ones.
        delta: In (0, 1).
        confidence: In (0, 1).

    Returns:
        The largest possible lower bound on epsilon. About
        log(guesses / -log(1 - confidence)) while delta is far below 1 / canaries.
    """
    return epsilon_bound(
        canaries=canaries, guesses=guesses, correct=guesses, delta=delta, confidence=confidence
    )
