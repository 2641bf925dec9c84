"""The best of a random number of runs: its cost against the paper, its numbers against theirs."""

import math
from itertools import pairwise

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.dp_event import RepeatAndSelectDpEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from privtrain.accounting.divergences import ORDERS
from privtrain.accounting.epsilon import rdp_curve
from privtrain.accounting.event import gaussian_event, poisson_sampled
from privtrain.accounting.renyi import RdpCurve
from privtrain.accounting.selection import RandomTrials, costliest
from tests.statistics import ALARM

EVENTS = (gaussian_event(4.0), poisson_sampled(0.05, gaussian_event(1.1)))
SHAPES = (0.0, 0.5, 1.0, 3.0)


def probability(count: int, gamma: float, shape: float) -> float:
    """Definition 1 of the paper, term by term."""
    if shape == 0:
        return math.exp(count * math.log1p(-gamma)) / (count * math.log(1 / gamma))
    product = math.prod((step + shape) / (step + 1) for step in range(count))
    return math.exp(count * math.log1p(-gamma)) * product / math.expm1(-shape * math.log(gamma))


def theorem_two(one: RdpCurve, trials: RandomTrials, order: float, mean: float) -> float:
    """The right-hand side of Theorem 2, in loops."""
    gamma, shape = trials.gamma, trials.shape
    epsilon = dict(zip(one.orders, one.rdp, strict=True))
    return min(
        epsilon[order]
        + (1 + shape) * (1 - 1 / second) * epsilon[second]
        + (1 + shape) * math.log(1 / gamma) / second
        + math.log(mean) / (order - 1)
        for second in one.orders
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("event", EVENTS, ids=["gaussian", "sampled"])
def test_the_cost_is_theorem_two(event: object, shape: float) -> None:
    orders = (1.5, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
    trials = RandomTrials(mean=10.0, shape=shape)
    one = rdp_curve(event, orders)
    found = trials.cost(one)
    mean = sum(k * probability(k, trials.gamma, shape) for k in range(1, 1000))
    for order, rdp in zip(orders, found.rdp, strict=True):
        assert rdp == pytest.approx(theorem_two(one, trials, order, mean), rel=1e-6)


@pytest.mark.parametrize("shape", [*SHAPES, math.inf])
@pytest.mark.parametrize("mean", [2.0, 10.0, 100.0])
def test_the_reference_accountant_agrees(mean: float, shape: float) -> None:
    for event in EVENTS:
        reader = dp.rdp.RdpAccountant(ORDERS)
        reader.compose(RepeatAndSelectDpEvent(event, mean, shape))
        ours = RandomTrials(mean=mean, shape=shape).cost(rdp_curve(event, ORDERS))
        for delta in (1e-5, 1e-8):
            assert ours.epsilon(delta) == pytest.approx(reader.get_epsilon(delta), rel=1e-6)


def test_pure_privacy_of_a_geometric_number_costs_three_times_as_much_at_most() -> None:
    """Liu and Talwar 2019: the best of a geometric number of epsilon-DP runs is 3 epsilon-DP."""
    epsilon, orders = 0.4, (1e6, 1e8)
    found = RandomTrials(mean=20.0, shape=1.0).cost(RdpCurve(orders, (epsilon, epsilon)))
    assert found.rdp[-1] == pytest.approx(3 * epsilon, abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mean", [1.0, pytest.param(3.0, marks=pytest.mark.slow), 20.0])
def test_gamma_gives_the_mean(mean: float, shape: float) -> None:
    gamma = RandomTrials(mean=mean, shape=shape).gamma
    counts = range(1, 2500)
    terms = [probability(k, gamma, shape) for k in counts] if mean > 1 else [1.0]
    assert sum(terms) == pytest.approx(1.0, rel=1e-6)
    expected = sum(k * p for k, p in zip(counts, terms, strict=False))
    assert expected == pytest.approx(mean, rel=1e-6)


def log_probability(counts: NDArray[np.int64], trials: RandomTrials) -> NDArray[np.float64]:
    gamma, shape = trials.gamma, trials.shape
    if trials.poisson:
        return np.asarray(stats.poisson(trials.mean).logpmf(counts))
    if shape == 0:
        return np.asarray(stats.logser(1 - gamma).logpmf(counts))
    logs = special.gammaln(counts + shape) - special.gammaln(counts + 1) - special.gammaln(shape)
    logs = logs + counts * math.log1p(-gamma) - math.log(gamma**-shape - 1)
    return np.where(counts > 0, logs, -np.inf)


def follows(counts: NDArray[np.int64], trials: RandomTrials) -> bool:
    """Whether numbers of trials can follow the distribution: chi-square over its bins."""
    support = np.arange(0, 100_000)
    expected = np.exp(log_probability(support, trials)) * counts.size
    edges = [0]
    for value in support:  # bins in which at least 20 are expected
        if expected[edges[-1] : value + 1].sum() >= 20:
            edges.append(int(value) + 1)
        if expected[value + 1 :].sum() < 20:
            break
    seen = np.array([*(((counts >= a) & (counts < b)).sum() for a, b in pairs(edges))])
    wanted = np.array([expected[a:b].sum() for a, b in pairs(edges)])
    seen = np.append(seen, counts.size - seen.sum())
    wanted = np.append(wanted, counts.size - wanted.sum())
    if wanted[-1] < 20:
        seen, wanted = (
            np.append(seen[:-2], seen[-2:].sum()),
            np.append(wanted[:-2], wanted[-2:].sum()),
        )
    return float(stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue) >= ALARM


def pairs(edges: list[int]) -> list[tuple[int, int]]:
    return list(pairwise(edges))


def numbers(trials: RandomTrials, seed: int, count: int = 4000) -> NDArray[np.int64]:
    generator = np.random.Generator(np.random.Philox(key=seed))
    return np.array([trials.draw(generator) for _ in range(count)])


@pytest.mark.parametrize(
    "shape", [*(pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES), math.inf]
)
def test_the_number_of_trials_has_its_distribution_and_the_test_has_power(shape: float) -> None:
    trials = RandomTrials(mean=10.0, shape=shape)
    drawn = numbers(trials, seed=5)
    assert follows(drawn, trials)
    assert not follows(drawn, RandomTrials(mean=10.0 * 2 / 3, shape=shape))
    assert not follows(drawn, RandomTrials(mean=10.0 * 3 / 2, shape=shape))


@pytest.mark.slow
def test_a_fixed_number_and_the_larger_of_two_draws_are_caught() -> None:
    """Broken twins: ten trials always; and drawn again until there are enough."""
    trials = RandomTrials(mean=10.0)
    assert not follows(np.full(4000, 10), trials)
    assert not follows(np.maximum(numbers(trials, 1), numbers(trials, 2)), trials)


@given(
    rdp=st.lists(st.floats(0.0, 5.0), min_size=3, max_size=3).map(sorted),
    mean=st.floats(1.0, 1000.0),
    shape=st.sampled_from([*SHAPES, math.inf]),
)
@settings(max_examples=60, deadline=None)
def test_choosing_never_costs_less_than_one_run(
    rdp: list[float], mean: float, shape: float
) -> None:
    one = RdpCurve((2.0, 8.0, 32.0), tuple(rdp))
    trials = RandomTrials(mean=mean, shape=shape)
    for found, alone in zip(trials.cost(one).rdp, one.rdp, strict=True):
        assert found >= alone - 1e-12
    more = RandomTrials(mean=2 * mean, shape=shape)
    assert more.cost(one).epsilon(1e-5) >= trials.cost(one).epsilon(1e-5) - 1e-12


def test_settings_drawn_at_random_cost_what_the_costliest_costs() -> None:
    low, high = RdpCurve((2.0, 8.0), (0.1, 0.9)), RdpCurve((2.0, 8.0), (0.2, 0.8))
    assert costliest([low, high]) == RdpCurve((2.0, 8.0), (0.2, 0.9))
    assert costliest([low]) == low
    with pytest.raises(ValueError, match="orders"):
        costliest([low, RdpCurve((2.0, 9.0), (0.2, 0.8))])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mean": 0.5}, r"mean=0.5 in \[1"),
        ({"mean": math.nan}, "mean=nan"),
        ({"shape": -0.5}, "shape=-0.5"),
        ({"shape": 1e-6}, "shape=1e-06 to be 0 or"),
    ],
)
def test_what_is_no_distribution_is_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RandomTrials(**options)


def test_an_infinite_cost_stays_infinite() -> None:
    one = RdpCurve((2.0, 8.0), (math.inf, math.inf))
    for shape in (1.0, math.inf):
        assert all(math.isinf(rdp) for rdp in RandomTrials(shape=shape).cost(one).rdp)
