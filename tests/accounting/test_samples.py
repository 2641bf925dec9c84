"""Samples of a fixed or bounded size, against densities over all samples that there are."""

import math
from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from privtrain.accounting.epsilon import epsilon, epsilon_bracket, evaluate, reads
from privtrain.accounting.event import (
    Event,
    fixed_size_sampled,
    gaussian_event,
    laplace_event,
    poisson_sampled,
    repeated,
    truncated_poisson_sampled,
)
from privtrain.accounting.library import GridLosses, Kind, Losses, gaussian_losses, make
from privtrain.accounting.samples import Told, fixed_size_losses, mirrored, truncated_losses
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT

STEP = 5e-3
NEAR = 2e-6  # how precise sums over the grid are
EPSILONS = (0.0, 0.1, 0.5, 1.0, 2.0, 4.0)
GRID = np.linspace(-9.0, 9.0, 6_001)
Chances = dict[tuple[int, ...], float]
Curve = NDArray[np.float64]


def fixed(rows: int, size: int) -> Chances:
    """Every sample of a size, and its chance."""
    samples = list(combinations(range(rows), size))
    return dict.fromkeys(samples, 1 / len(samples))


def cut(rows: int, rate: float, largest: int) -> Chances:
    """Every sample by coins, cut to a random choice of `largest`, and its chance."""
    chances: Chances = {}
    for coins in product((0, 1), repeat=rows):
        drawn = [row for row, coin in enumerate(coins) if coin]
        chance = rate ** len(drawn) * (1 - rate) ** (rows - len(drawn))
        kept = list(combinations(drawn, min(largest, len(drawn))))
        for sample in kept:
            chances[sample] = chances.get(sample, 0.0) + chance / len(kept)
    return chances


def density(chances: Chances, rows: tuple[float, ...], noise: float) -> Curve:
    """The density of the noisy sum over a sample of the rows."""
    sums: dict[float, float] = {}
    for sample, chance in chances.items():
        total = sum(rows[row] for row in sample)
        sums[total] = sums.get(total, 0.0) + chance
    parts = [chance * stats.norm.pdf(GRID, total, noise) for total, chance in sums.items()]
    return np.asarray(sum(parts))


def deltas(p: Curve, q: Curve) -> Curve:
    """The hockey-stick divergences of two densities, the larger of both directions."""
    width = GRID[1] - GRID[0]
    return np.array(
        [
            max(np.maximum(a - math.exp(bound) * b, 0.0).sum() * width for a, b in ((p, q), (q, p)))
            for bound in EPSILONS
        ]
    )


def stated(losses: Losses) -> Curve:
    return np.array([losses.get_delta_for_epsilon(bound) for bound in EPSILONS])


def companions(count: int) -> Iterator[tuple[float, ...]]:
    """Rows of at most the clipping norm: all at its ends, and some that tell their sums apart."""
    yield from product((-1.0, 1.0), repeat=count)
    yield (0.0,) * count
    generator = np.random.default_rng(0)
    for _ in range(6):
        yield tuple(generator.uniform(-1, 1, count).tolist())


@pytest.mark.parametrize(("rows", "size", "noise"), [(5, 2, 0.7), (6, 1, 0.4), (4, 3, 1.5)])
def test_a_fixed_size_sample_is_charged_what_the_worst_rows_lose(
    rows: int, size: int, noise: float
) -> None:
    bound = stated(fixed_size_losses(rows, size, noise, STEP, pessimistic=True))
    at_least = stated(fixed_size_losses(rows, size, noise, STEP, pessimistic=False))
    chances, worst = fixed(rows, size), np.zeros(len(EPSILONS))
    for others in companions(rows - 1):
        for first, second in ((1.0, -1.0), (1.0, 0.0), (0.5, -1.0)):
            pair = [density(chances, (row, *others), noise) for row in (first, second)]
            worst = np.maximum(worst, deltas(*pair))
    assert (worst <= bound + NEAR).all()
    # Where the others equal one of the two rows nothing is left between truth and charge.
    assert (worst >= 0.98 * at_least - NEAR).all() and (at_least >= 0.98 * bound - NEAR).all()
    # Broken twins: a row that moves by one clipping norm, and the losses of one direction alone.
    once = gaussian_losses(noise, size / rows, ADD_REMOVE, STEP, pessimistic=True)
    assert (worst > 1.05 * stated(once)).any()


def test_a_fixed_size_sample_costs_at_least_the_pair_that_attains_it() -> None:
    """25.5 by Rényi divergences; the pair where all other rows equal the new one loses 15.2."""
    event = repeated(fixed_size_sampled(500, 40, gaussian_event(1.3)), 120)
    low, high = epsilon_bracket(event, 1e-5, REPLACE_ONE)
    found = evaluate(event, 1e-5, REPLACE_ONE)
    assert (low, high) == pytest.approx((15.258, 16.905), abs=0.01)
    assert (found.epsilon, found.accountant) == (high, "pld")
    assert found.cross_check == pytest.approx(25.481, abs=0.01)


def test_fixed_size_samples_are_read_for_replaced_rows_and_gaussians_only() -> None:
    for inner, relation, read in (
        (gaussian_event(1.0), REPLACE_ONE, True),
        (gaussian_event(1.0), ADD_REMOVE, False),
        (gaussian_event(1.0), ZERO_OUT, False),
        (laplace_event(1.0), REPLACE_ONE, False),
    ):
        assert reads("pld", fixed_size_sampled(20, 4, inner), relation) is read


@pytest.mark.parametrize(
    ("rows", "rate", "largest", "noise", "as_poisson"),
    [
        (5, 0.4, 2, 0.3, True),
        (6, 0.15, 1, 0.5, False),
        (5, 0.7, 4, 1.0, True),
        (4, 1.0, 2, 0.6, False),
    ],
)
def test_a_truncated_sample_is_charged_at_least_what_the_worst_rows_lose(
    rows: int, rate: float, largest: int, noise: float, as_poisson: bool
) -> None:
    event = make(Kind.TRUNCATED_GAUSSIAN, rows, rate, largest, noise)
    chances, worst = cut(rows, rate, largest), np.zeros(len(EPSILONS))
    for others in companions(rows - 1):
        for row in (1.0, 0.6):
            pair = [density(chances, (first, *others), noise) for first in (row, 0.0)]
            worst = np.maximum(worst, deltas(*pair))
    for told in Told:
        assert (worst <= stated(truncated_losses(event, STEP, told)) + NEAR).all()
    # The broken twin: Poisson at the chance with which a row ends in a sample.
    chance = sum(c for sample, c in chances.items() if 0 in sample)
    twin = gaussian_losses(noise, min(1.0, chance), ADD_REMOVE, STEP, pessimistic=True)
    assert (worst <= stated(twin) + NEAR).all() == as_poisson


def last_place_forgotten(rows: int, rate: float, largest: int, noise: float) -> Curve:
    """Poisson where any place is left, as if rows that were pushed in did not show."""
    full = float(stats.binom.sf(largest - 1, rows - 1, rate))
    once = gaussian_losses(noise, rate, ADD_REMOVE, STEP, pessimistic=True)
    return (1 - full) * stated(once)


def test_other_rows_that_tell_of_a_last_place_are_counted() -> None:
    """Companions whose sums tell them apart: one of them less tells that the row came in."""
    rows, rate, largest, noise = 5, 0.4, 2, 0.12
    chances, others = cut(rows, rate, largest), (0.13, 0.29, 0.57, -0.83)
    truth = deltas(*(density(chances, (first, *others), noise) for first in (1.0, 0.0)))
    event = make(Kind.TRUNCATED_GAUSSIAN, rows, rate, largest, noise)
    bound = stated(truncated_losses(event, STEP, Told.OTHERS))
    assert (truth <= bound + NEAR).all() and (truth[:4] > 0.6 * bound[:4]).all()
    assert (truth > 1.02 * last_place_forgotten(rows, rate, largest, noise)).any()


@pytest.mark.parametrize(
    ("largest", "poisson", "most"), [(30, 3.2015, 3.34), (40, 3.2015, 3.203), (20, 3.2015, 6.07)]
)
def test_samples_that_are_rarely_cut_cost_little_more_than_poisson(
    largest: int, poisson: float, most: float
) -> None:
    """Charged 7.18, 3.41 and 12.8 where the observer was told less."""
    event = repeated(truncated_poisson_sampled(400, 0.05, largest, gaussian_event(1.0)), 50)
    assert poisson - 1e-3 <= epsilon(event, 1e-6, relation=ZERO_OUT) <= most
    plain = repeated(poisson_sampled(0.05, gaussian_event(1.0)), 50)
    assert epsilon(plain, 1e-6) == pytest.approx(poisson, abs=1e-3)


def test_samples_that_are_always_cut_are_charged_by_the_other_proof() -> None:
    def at(largest: int) -> Event:
        return repeated(truncated_poisson_sampled(400, 0.5, largest, gaussian_event(5.0)), 20)

    # Whoever is told the other rows knows whether the row is there: no amplification in epsilon.
    single = epsilon(gaussian_event(5.0), 1e-6)
    assert epsilon(at(10), 1e-6, relation=ZERO_OUT) < single


@pytest.mark.parametrize("lowest", [-2, 0, 3])
def test_mirrored_losses_keep_the_positive_ones_and_look_the_same_from_both_sides(
    lowest: int,
) -> None:
    step, infinite = 0.1, 1e-3
    chances = np.array([0.15, 0.1, 0.05, 0.02, 0.01])
    once = GridLosses(step, lowest, chances, infinite, True)
    both = mirrored(once)
    found = dict(zip(range(both.lowest, -both.lowest + 1), both.probabilities, strict=True))
    for place, chance in enumerate(chances, lowest):
        if place > 0:
            assert found[place] == chance
            assert found[-place] == pytest.approx(chance * math.exp(-step * place), rel=1e-12)
    assert sum(found.values()) + infinite == pytest.approx(1.0, abs=1e-12)
    assert found[0] > 0 and both.infinite == infinite
