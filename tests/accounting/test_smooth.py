"""Smooth sensitivity against all count vectors of a few teachers, and the noise's divergence."""

import itertools
import math
from collections import deque

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.stats import norm

from privtrain.accounting import smooth
from privtrain.accounting.gnmax import gnmax_rdp, theorem_6_holds
from privtrain.accounting.smooth import STEPS, SmoothCost, gnmax_smooth_cost, publishing_rdp

Array = NDArray[np.float64]
Votes = tuple[tuple[int, ...], ...]


def queries_of(teachers: int, classes: int) -> list[tuple[int, ...]]:
    """All counts of so many teachers at most; the others abstain."""
    spans = itertools.product(range(teachers + 1), repeat=classes)
    return [counts for counts in spans if sum(counts) <= teachers]


def near(counts: tuple[int, ...], teachers: int) -> list[tuple[int, ...]]:
    """Counts that one teacher turns these into, these among them."""
    made = {counts}
    for loses, gains in itertools.product(range(len(counts) + 1), repeat=2):
        moved = [*counts, 0]
        moved[loses] -= 1
        moved[gains] += 1
        if min(moved[:-1]) >= 0 and sum(moved[:-1]) <= teachers:
            made.add(tuple(moved[:-1]))
    return sorted(made)


def neighbours(votes: Votes, teachers: int) -> list[Votes]:
    """A teacher may change its vote in each query."""
    return list(itertools.product(*(near(counts, teachers) for counts in votes)))


def by_brute_force(
    states: list[Votes], teachers: int, figure: dict[Votes, float], smoothness: float
) -> dict[Votes, float]:
    """Nissim, Raskhodnikova and Smith 2007, Definition 2.2, over all vectors and distances."""
    around = {votes: neighbours(votes, teachers) for votes in states}
    local = {v: max(abs(figure[v] - figure[n]) for n in around[v]) for v in states}
    made = {}
    for start in states:
        distance, line = {start: 0}, deque([start])
        while line:
            votes = line.popleft()
            for other in around[votes]:
                if other not in distance:
                    distance[other] = distance[votes] + 1
                    line.append(other)
        made[start] = max(math.exp(-smoothness * d) * local[v] for v, d in distance.items())
    return made


SETTINGS = [(4, 2, 1, 0.6), (3, 2, 2, 0.6), (4, 3, 1, 0.5), (3, 4, 1, 0.4)]


@pytest.mark.parametrize(("teachers", "classes", "queries", "sigma"), SETTINGS)
@pytest.mark.parametrize("smoothness", [0.05, 0.5])
def test_it_bounds_all_neighbours_at_all_distances_and_is_smooth(
    teachers: int, classes: int, queries: int, sigma: float, smoothness: float
) -> None:
    order = 1.5
    states = list(itertools.product(queries_of(teachers, classes), repeat=queries))
    costs = {
        votes: gnmax_smooth_cost(
            np.array(votes, float), sigma=sigma, order=order, smoothness=smoothness
        )
        for votes in states
    }
    figure = {votes: cost.rdp for votes, cost in costs.items()}
    assert len({round(value, 9) for value in figure.values()}) > 2, "nothing depends on the votes"
    exact = by_brute_force(states, teachers, figure, smoothness)
    for votes, cost in costs.items():
        assert cost.sensitivity >= exact[votes] * (1 - 1e-12)
        for other in neighbours(votes, teachers):
            ratio = cost.sensitivity / costs[other].sensitivity
            assert ratio <= math.exp(smoothness) * (1 + 1e-12)
        # The figure is Theorem 6 at a gap that is up to one step smaller.
        assert cost.rdp >= gnmax_rdp(np.array(votes, float), sigma, [order]).sum() * (1 - 1e-9)


def test_it_is_right_and_not_only_safe() -> None:
    """Two classes and a noise that is wide against a vote: no more than a tenth above the truth."""
    teachers, sigma, order, smoothness = 60, 8.0, 4.0, 0.05
    states: list[Votes] = [((teachers - n, n),) for n in range(teachers + 1)]
    costs = {
        v: gnmax_smooth_cost(np.array(v, float), sigma=sigma, order=order, smoothness=smoothness)
        for v in states
    }
    figure = {v: gnmax_rdp(np.array(v, float), sigma, [order]).sum() for v in states}
    around = {n: [m for m in (n - 1, n, n + 1) if 0 <= m <= teachers] for n in range(teachers + 1)}
    local = [max(abs(figure[states[n]] - figure[states[m]]) for m in around[n]) for n in around]
    for n, votes in enumerate(states):
        exact = max(math.exp(-smoothness * abs(n - m)) * local[m] for m in around)
        assert exact * (1 - 1e-2) <= costs[votes].sensitivity <= 1.15 * exact
        assert costs[votes].rdp == pytest.approx(figure[votes], rel=0.05)


def test_a_twin_that_forgets_that_both_counts_of_a_moved_vote_change_is_caught() -> None:
    """A gap that moves by one vote and not by two: sensitivities are then too small."""
    sigma, order, seen = 8.0, 4.0, []
    table = smooth._table(2, sigma, order)
    for more in range(31, 60):
        costs = [
            gnmax_smooth_cost([[n, 60.0 - n]], sigma=sigma, order=order, smoothness=0.05)
            for n in (more, more - 1)
        ]
        changed = costs[1].rdp - costs[0].rdp
        assert abs(changed) <= min(cost.sensitivity for cost in costs)
        place = (2 * more - 60) * STEPS // 2
        one_vote = table[place - STEPS // 2] - table[place]
        seen.append(one_vote < changed)
    assert any(seen)


def test_of_many_queries_sensitivities_add_up() -> None:
    one = gnmax_smooth_cost([[40.0, 20.0]], sigma=8.0, order=4.0, smoothness=0.05)
    many = gnmax_smooth_cost([[40.0, 20.0]] * 7, sigma=8.0, order=4.0, smoothness=0.05)
    assert many.rdp == pytest.approx(7 * one.rdp)
    assert many.sensitivity == pytest.approx(7 * one.sensitivity)


def test_conditions_of_theorem_6_are_checked_and_its_figure_falls_with_the_gap() -> None:
    """Where it does not apply, the figure is what holds for all votes; it never rises again."""
    sigma, order = 10.0, 6.0
    table = smooth._table(10, sigma, order)
    assert table[0] == pytest.approx(order / sigma**2)
    assert (np.diff(table) <= 0).all()
    assert table[-1] <= 1e-10 * table[0]
    gaps = np.arange(len(table)) * 2 / STEPS
    log_q = math.log(9) + norm.logsf(gaps / (math.sqrt(2) * sigma))
    fails = ~theorem_6_holds(np.minimum(log_q, math.log(0.9)), sigma)
    assert fails.any()
    assert (table[fails] == table[0]).all()


def test_orders_need_not_be_whole_and_whole_ones_do_not_overflow() -> None:
    """The reference computes whole orders in whole numbers, which overflow."""
    votes = np.array([[200.0, 30.0, 20.0]])
    whole = gnmax_smooth_cost(votes, sigma=4, order=500, smoothness=0.0001)
    near_by = gnmax_smooth_cost(votes, sigma=4.0, order=500.001, smoothness=0.0001)
    assert whole.rdp == pytest.approx(near_by.rdp, rel=1e-3)
    assert whole.sensitivity == pytest.approx(near_by.sensitivity, rel=1e-3)
    assert math.isfinite(whole.sensitivity)


def test_arguments_have_names() -> None:
    """The reference passes them in the wrong order: two numbers that look right."""
    with pytest.raises(TypeError):
        gnmax_smooth_cost(np.array([[3.0, 1.0]]), 2.0, 4.0, 0.1)  # type: ignore[misc]
    one = gnmax_smooth_cost([[60.0, 20.0]], sigma=8.0, order=4.0, smoothness=0.05)
    swapped = gnmax_smooth_cost([[60.0, 20.0]], sigma=4.0, order=8.0, smoothness=0.05)
    assert one.rdp != pytest.approx(swapped.rdp, rel=0.5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sigma": 0.0}, "sigma"),
        ({"order": 1.0}, r"order=1\.0 to be finite and > 1"),
        ({"smoothness": 0.0}, "smoothness"),
        ({"votes": [[1.0]]}, "at least 2 classes"),
    ],
)
def test_bad_arguments_are_named(wrong: dict[str, object], said: str) -> None:
    settings: dict[str, object] = {"votes": [[3.0, 1.0]], "sigma": 2.0, "order": 4.0}
    with pytest.raises(ValueError, match=said):
        gnmax_smooth_cost(**{**settings, "smoothness": 0.1, **wrong})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- its noise


def divergence(first: tuple[float, float], second: tuple[float, float], order: float) -> float:
    """Of normals with means and deviations, by quadrature."""

    def integrand(y: float) -> float:
        return math.exp(order * norm.logpdf(y, *first) + (1 - order) * norm.logpdf(y, *second))

    wide = 60 * max(first[1], second[1])
    return math.log(quad(integrand, -wide, wide, limit=400, points=[0.0])[0]) / (order - 1)


@pytest.mark.parametrize("margin", [0.0, 4.0])
@pytest.mark.parametrize(("order", "smoothness", "multiplier"), [(4.0, 0.05, 3.0), (1.5, 0.3, 2.0)])
def test_no_neighbour_is_further_than_stated_and_one_is_nearly_as_far(
    order: float, smoothness: float, multiplier: float, margin: float
) -> None:
    stated = publishing_rdp(
        order=order, smoothness=smoothness, noise_multiplier=multiplier, margin=margin
    )
    worst = 0.0
    for ratio in np.exp(np.linspace(-smoothness, smoothness, 3)):
        for sign in (-1, 1):
            # Sensitivities 1 and `ratio`; the figures differ by the smaller one at most.
            scales = multiplier, multiplier * ratio
            means = margin * scales[0], sign * min(1.0, ratio) + margin * scales[1]
            worst = max(worst, divergence((means[0], scales[0]), (means[1], scales[1]), order))
    assert worst <= stated * (1 + 1e-6)
    assert worst >= 0.4 * stated


def test_a_margin_is_not_free() -> None:
    """The twin that takes a raised figure for one that is not is caught by the quadrature."""
    settings = {"order": 4.0, "smoothness": 0.05, "noise_multiplier": 8.0}
    without = publishing_rdp(**settings)
    ratio, margin = math.exp(-0.05), 4.4
    scales = 8.0, 8.0 * ratio
    means = margin * scales[0], -ratio + margin * scales[1]
    real = divergence((means[0], scales[0]), (means[1], scales[1]), 4.0)
    assert without < real <= publishing_rdp(**settings, margin=margin)


def test_an_order_that_is_too_large_for_the_smoothness_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"smoothness=0\.1 < 0\.0256466"):
        publishing_rdp(order=20.0, smoothness=0.1, noise_multiplier=4.0)
    assert publishing_rdp(order=20.0, smoothness=0.0256, noise_multiplier=4.0) > 0


def test_frozen() -> None:
    assert SmoothCost(1.0, 2.0) == SmoothCost(rdp=1.0, sensitivity=2.0)
