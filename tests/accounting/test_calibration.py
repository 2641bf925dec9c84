"""Calibrated scales meet their target, and nothing much smaller does."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import stats

from privtrain.accounting.calibration import _smallest, calibrate_scale
from privtrain.accounting.curves import gaussian_mu
from privtrain.accounting.epsilon import evaluate
from privtrain.accounting.event import (
    composed,
    fixed_size_sampled,
    gaussian_event,
    laplace_event,
    non_private_event,
    poisson_sampled,
    repeated,
)
from privtrain.accounting.gnmax import DEFAULT_ORDERS
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.errors import BudgetExceededError, UnsupportedError
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Relation

DELTA = 1e-5
EventOf = Callable[[float], Any]


def sampled(noise_multiplier: float) -> Any:
    return poisson_sampled(0.05, gaussian_event(noise_multiplier))


def fixed(noise_multiplier: float) -> Any:
    return fixed_size_sampled(1000, 20, gaussian_event(noise_multiplier))


def vote(sigma: float) -> Any:
    return RdpCurve(DEFAULT_ORDERS, tuple(order / sigma**2 for order in DEFAULT_ORDERS))


def assert_tight(
    event_of: EventOf, target: float, relation: Relation, count: int, tolerance: float = 1e-3
) -> float:
    scale = calibrate_scale(
        event_of,
        epsilon=target,
        delta=DELTA,
        relation=relation,
        count=count,
        tolerance=tolerance,
    )
    assert evaluate(repeated(event_of(scale), count), DELTA, relation).epsilon <= target
    less = scale * (1 - 2 * tolerance)
    assert evaluate(repeated(event_of(less), count), DELTA, relation).epsilon > target
    return scale


@pytest.mark.parametrize(
    ("event_of", "relation", "count"),
    [
        (gaussian_event, ADD_REMOVE, 1),
        (gaussian_event, REPLACE_ONE, 30),
        (sampled, ADD_REMOVE, 400),
        (sampled, ZERO_OUT, 400),
        (sampled, REPLACE_ONE, 400),
        (laplace_event, ADD_REMOVE, 10),
        (laplace_event, REPLACE_ONE, 10),
        (vote, ADD_REMOVE, 200),
    ],
)
@pytest.mark.parametrize("target", [0.3, pytest.param(3.0, marks=pytest.mark.slow)])
def test_the_scale_meets_its_target_and_no_smaller_one_does(
    event_of: EventOf, relation: Relation, count: int, target: float
) -> None:
    assert_tight(event_of, target, relation, count)


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.01, 0.1, 1.0, 8.0, 100.0, 1000.0])
@pytest.mark.parametrize("relation", [ADD_REMOVE, REPLACE_ONE])
def test_targets_from_strict_to_lax_are_met(target: float, relation: Relation) -> None:
    assert_tight(sampled, target, relation, 400)


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.3, 3.0])
def test_fixed_size_samples(target: float) -> None:
    assert_tight(fixed, target, REPLACE_ONE, 100)


@pytest.mark.slow
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(target=st.floats(0.05, 20.0), count=st.integers(1, 1000))
def test_any_target(target: float, count: int) -> None:
    assert_tight(gaussian_event, target, ADD_REMOVE, count, tolerance=0.01)


def test_a_single_gaussian_finds_the_known_multiplier() -> None:
    scale = calibrate_scale(gaussian_event, epsilon=4.377, delta=DELTA)
    assert scale == pytest.approx(1.0, rel=2e-3)
    doubled = calibrate_scale(gaussian_event, epsilon=4.377, delta=DELTA, relation=REPLACE_ONE)
    assert doubled == pytest.approx(2.0, rel=2e-3)
    # Balle and Wang 2018, Theorem 8: the exact delta of the scale that was found.
    drift = 4.377 * scale
    lower = math.exp(4.377 + stats.norm.logcdf(-0.5 / scale - drift))
    assert stats.norm.cdf(0.5 / scale - drift) - lower <= DELTA


def test_units_do_not_matter() -> None:
    votes = calibrate_scale(lambda sigma: gaussian_event(sigma / 250), epsilon=1.0, delta=DELTA)
    plain = calibrate_scale(gaussian_event, epsilon=1.0, delta=DELTA)
    assert votes / 250 == pytest.approx(plain, rel=2e-3)


def test_fewer_evaluations_than_a_bisection() -> None:
    scales = []

    def counted(scale: float) -> Any:
        scales.append(scale)
        return sampled(scale)

    calibrate_scale(counted, epsilon=3.0, delta=DELTA, count=400)
    assert len(scales) <= 25


@pytest.mark.parametrize("start", [-20.0, 0.0, 20.0])
@pytest.mark.parametrize(
    "excess",
    [
        lambda scale: 1 - scale,
        lambda scale: (1 - scale) ** 3 + (1 - scale) / 1000,
        lambda scale: 1 - math.exp(3 * (scale - 1)),
        lambda scale: 10.0 if scale < 1 else -0.01,
        lambda scale: 0.01 if scale < 1 else -5.0,
    ],
    ids=["line", "cubic", "ever steeper", "high step", "low step"],
)
def test_a_search_takes_few_evaluations_whatever_the_curve(
    excess: Callable[[float], float], start: float
) -> None:
    asked = []

    def counted(scale: float) -> float:
        asked.append(scale)
        return excess(scale)

    found = _smallest(counted, start, 1e-3)
    assert found is not None
    assert found in asked
    assert 1 <= found <= 1 + 1e-3
    assert len(asked) <= 80


@pytest.mark.parametrize(
    "event_of",
    [
        lambda scale: non_private_event(),
        lambda scale: composed([gaussian_event(scale), gaussian_event(0.5)]),
        lambda scale: composed([gaussian_event(scale), non_private_event()]),
    ],
)
def test_what_noise_cannot_reach_raises(event_of: EventOf) -> None:
    with pytest.raises(BudgetExceededError, match="No amount of noise"):
        calibrate_scale(event_of, epsilon=1.0, delta=DELTA)


@pytest.mark.parametrize(
    ("target", "delta"),
    [
        (1.0, 1e-15),
        (0.01, 1e-30),
        *(
            pytest.param(target, delta, marks=pytest.mark.slow)
            for target in (0.01, 1.0)
            for delta in (1e-12, 1e-15, 1e-20, 1e-30)
        ),
    ],
)
def test_small_deltas_take_hardly_more_noise_than_they_need(target: float, delta: float) -> None:
    """At 1e-15 the scale was 641,468: so much that the grid of losses saw nothing at all."""
    for event_of, rate in ((gaussian_event, 1.0), (sampled, 0.05)):
        scale = calibrate_scale(event_of, epsilon=target, delta=delta, count=100)
        assert evaluate(repeated(event_of(scale), 100), delta).epsilon <= target
        # Balle and Wang 2018, of Gaussians that are not sampled; those that are cost rate^2 of it
        # where noise is large.
        mu = gaussian_mu(target, delta)
        assert mu is not None
        needed = rate * math.sqrt(100) / mu
        assert needed < scale * (1 + 1e-3) and scale < 1.15 * needed


def test_small_deltas_that_only_losses_read_are_found_or_refused() -> None:
    scale = calibrate_scale(sampled, epsilon=1.0, delta=1e-15, relation=REPLACE_ONE, count=100)
    assert scale < 2.5 * calibrate_scale(sampled, epsilon=1.0, delta=1e-15, count=100)
    with pytest.raises(BudgetExceededError, match="larger epsilon or delta"):
        calibrate_scale(sampled, epsilon=1.0, delta=1e-25, relation=REPLACE_ONE, count=100)


@pytest.mark.parametrize(("target", "delta"), [(0.01, 1e-5), (0.05, 1e-15), (0.1, 1e-30)])
def test_noise_for_want_of_orders_is_refused(target: float, delta: float) -> None:
    """Close to what the largest order of a curve shows of nothing, noise no longer helps."""
    with pytest.raises(BudgetExceededError, match=rf"epsilon={target:g} >= .*larger delta"):
        calibrate_scale(vote, epsilon=target, delta=delta, count=200)
    scale = calibrate_scale(vote, epsilon=3 * target, delta=delta, count=200)
    mu = gaussian_mu(3 * target, delta)
    assert mu is not None
    assert scale < 1.5 * math.sqrt(2 * 200) / mu


def test_what_nobody_can_read_raises() -> None:
    with pytest.raises(UnsupportedError, match="replace-one"):
        calibrate_scale(fixed, epsilon=1.0, delta=DELTA, relation=ADD_REMOVE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0},
        {"epsilon": math.inf},
        {"delta": 0.0},
        {"delta": 1.0},
        {"count": 0},
        {"tolerance": 0.0},
    ],
)
def test_wrong_arguments(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        calibrate_scale(gaussian_event, **{"epsilon": 1.0, "delta": DELTA, **wrong})


_LISTED = """
import resource
from privtrain.accounting.epsilon import epsilon
from privtrain.accounting.event import gaussian_event, poisson_sampled, repeated
from privtrain.accounting.calibration import _smallest, calibrate_scale

for target in (0.01, 1.0, 500.0, 1000.0):
    for rate, steps in ((512 / 60_000, 4_680), (1.0, 20)):
        def event(scale):
            return repeated(poisson_sampled(rate, gaussian_event(scale)), steps)
        scale = calibrate_scale(event, epsilon=target, delta=1e-6)
        print(target, epsilon(event(scale), 1e-6))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_extreme_targets_stay_below_a_gigabyte() -> None:
    """In a process of its own; another accountant took all memory of a machine at epsilon 500."""
    found = subprocess.run(
        [sys.executable, "-c", _LISTED], capture_output=True, text=True, check=True
    )
    *pairs, peak = found.stdout.splitlines()
    assert len(pairs) == 8
    for pair in pairs:
        target, spent = map(float, pair.split())
        assert 0.98 * target <= spent <= target
    assert float(peak) < 1000
