"""The bound of a one-run audit: published figures, its definition by loops, what it must not do."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privtrain.attacks.one_run.bounds import ceiling, epsilon_bound, p_value

# Steinke, Nasr and Jagielski 2023, Theorem 5.2 with their reference figures; delta 1e-5, 95%.
CEILINGS = [(100, 3.4902), (1_000, 5.7823), (5_000, 7.2839)]
BOUNDS = [(1_000, 100, 100, 3.4654), (1_000, 100, 90, 1.6261), (1_000, 1_000, 600, 0.2972)]


@pytest.mark.parametrize(("canaries", "expected"), CEILINGS)
def test_ceilings(canaries: int, expected: float) -> None:
    found = ceiling(canaries=canaries, guesses=canaries, delta=1e-5)
    assert found == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("canaries", "guesses", "correct", "expected"), BOUNDS)
def test_bounds(canaries: int, guesses: int, correct: int, expected: float) -> None:
    found = epsilon_bound(canaries=canaries, guesses=guesses, correct=correct, delta=1e-5)
    assert found == pytest.approx(expected, abs=5e-5)


def by_loops(epsilon: float, canaries: int, guesses: int, correct: int, delta: float) -> float:
    """Theorem 5.2 as it stands there, with exact binomial probabilities."""
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    law = [
        math.comb(guesses, k) * right**k * (1 - right) ** (guesses - k) for k in range(guesses + 1)
    ]
    tail = sum(law[correct:])
    jumps = [sum(law[max(correct - i, 0) : correct]) / i for i in range(1, canaries + 1)]
    return min(1.0, tail + 2 * canaries * delta * max(jumps))


@given(st.integers(1, 30), st.integers(0, 20), st.floats(0, 4), st.data())
def test_the_p_value_is_its_definition(
    guesses: int, more: int, epsilon: float, data: st.DataObject
) -> None:
    correct = data.draw(st.integers(0, guesses))
    delta = data.draw(st.sampled_from([0.0, 1e-5, 1e-3]))
    found = p_value(epsilon, canaries=guesses + more, guesses=guesses, correct=correct, delta=delta)
    expected = by_loops(epsilon, guesses + more, guesses, correct, delta)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_p_value_rises_with_epsilon_and_with_delta() -> None:
    for delta in (0.0, 1e-6, 1e-4):
        found = [
            p_value(epsilon, canaries=500, guesses=100, correct=80, delta=delta)
            for epsilon in np.linspace(0, 8, 200)
        ]
        assert (np.diff(found) >= -1e-12).all()
    rising = [p_value(1.0, canaries=500, guesses=100, correct=90, delta=d) for d in (0, 1e-6, 1e-3)]
    assert rising == sorted(rising)


def test_a_bound_is_wrong_no_more_often_than_it_says() -> None:
    """Randomised response at epsilon 1 is the worst pure mechanism: the bound is exact for it."""
    rng = np.random.default_rng(0)
    right = math.e / (1 + math.e)
    counts = rng.binomial(200, right, 4_000)
    bounds = {
        int(v): epsilon_bound(canaries=200, guesses=200, correct=int(v), delta=1e-12)
        for v in np.unique(counts)
    }
    wrong = sum(bounds[int(v)] > 1.0 for v in counts)
    # Binomial(4000, 0.05) exceeds 254 with probability 1e-4; below 60 the bound would be loose.
    assert 60 < wrong <= 254


def test_coin_flips_prove_nothing_and_a_large_delta_explains_everything() -> None:
    assert epsilon_bound(canaries=100, guesses=100, correct=50, delta=1e-5) == 0.0
    assert epsilon_bound(canaries=100, guesses=100, correct=100, delta=0.5) == 0.0


def test_many_canaries_at_a_large_delta_lower_the_ceiling() -> None:
    at = {"delta": 1e-5, "confidence": 1 - 1e-4}
    assert ceiling(canaries=200, guesses=200, **at) > 1.7  # type: ignore[arg-type]
    assert ceiling(canaries=1_000, guesses=100, **at) == 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"canaries": 0}, "canaries=0"),
        ({"guesses": 0}, "guesses=0"),
        ({"guesses": 11}, "Expected guesses=11 <= canaries=10"),
        ({"correct": 9}, "Expected correct=9 <= guesses=8"),
        ({"correct": -1}, "correct=-1"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"confidence": 1.0}, "confidence=1.0"),
        ({"confidence": 0.0}, r"confidence=0.0 in \(0, 1\)"),
        ({"confidence": 1e-17}, r"confidence=1e-17 in \(0, 1\)"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, float], match: str) -> None:
    given_all = {"canaries": 10, "guesses": 8, "correct": 8, "delta": 1e-5, **arguments}
    with pytest.raises(ValueError, match=match):
        epsilon_bound(**given_all)  # type: ignore[arg-type]
