"""What the PATE papers print, as far as it follows without their vote files.

The printed epsilons (LNMax 2017: MNIST, 250 teachers, 2.04; Confident-GNMax 2018: 1.97) depend on
the votes of teachers that are not part of this project, so they cannot be recomputed here. What
can be checked: they lie between the cost of unanimous votes and the cost that holds for any votes.
"""

import math

import numpy as np
import pytest

from privtrain.accounting.gnmax import (
    DEFAULT_ORDERS,
    gnmax_curve,
    gnmax_rdp,
    lnmax_curve,
    lnmax_rdp,
)
from privtrain.accounting.renyi import rdp_to_epsilon

DELTA = 1e-5
MOMENTS = np.arange(2.0, 10.0)
"""The orders of the eight moments that the 2017 paper computed."""


def votes(first: float, queries: int) -> np.ndarray:
    """250 teachers and 10 classes, the same counts for each query."""
    rest = (250.0 - first) / 9
    return np.tile([first, *[rest] * 9], (queries, 1))


@pytest.mark.parametrize("sigma", [40.0, 100.0, 200.0])
def test_the_data_independent_cost_of_gnmax(sigma: float) -> None:
    """Papernot et al. 2018, Proposition 8: order / sigma^2, whatever the votes."""
    split = votes(25.0, 3)
    np.testing.assert_allclose(
        gnmax_rdp(split, sigma, DEFAULT_ORDERS),
        np.tile(np.array(DEFAULT_ORDERS) / sigma**2, (3, 1)),
        rtol=1e-14,
    )


def test_the_data_independent_cost_of_lnmax() -> None:
    """Papernot et al. 2017, Theorem 2: the moment 2 gamma^2 l (l + 1); b = 20, 100 queries."""
    total = lnmax_rdp(votes(25.0, 100), 20.0, MOMENTS).sum(axis=0)
    np.testing.assert_allclose(total, 100 * 2 / 20.0**2 * MOMENTS, rtol=1e-14)
    # min over l of 0.5 (l + 1) + ln(10^5) / l, at l = 5.
    assert rdp_to_epsilon(total, MOMENTS, DELTA) == pytest.approx(3 + math.log(1e5) / 5)


def test_lnmax_on_mnist_2017() -> None:
    """250 teachers, 100 queries, b = 20, delta 1e-5: printed 2.04."""
    agreed = rdp_to_epsilon(lnmax_rdp(votes(250.0, 100), 20.0, MOMENTS).sum(axis=0), MOMENTS, DELTA)
    split = rdp_to_epsilon(lnmax_rdp(votes(25.0, 100), 20.0, MOMENTS).sum(axis=0), MOMENTS, DELTA)
    assert agreed < 2.04 < split
    # Eight moments floor epsilon at ln(1/delta) / 8, which a dense grid of orders does not.
    assert math.log(1e5) / 8 < agreed < math.log(1e5) / 8 + 0.02
    assert lnmax_curve(votes(250.0, 100), 20.0).epsilon(DELTA, "classic") < agreed


def test_confident_gnmax_on_mnist_2018() -> None:
    """T = 200, sigma1 = 150, sigma2 = 40, 640 queries, delta 1e-5: printed 1.97."""
    orders = np.array(DEFAULT_ORDERS)
    check = 640 * orders / (2 * 150.0**2)  # the largest count has sensitivity 1
    epsilons = [
        rdp_to_epsilon(check + gnmax_rdp(counts, 40.0, orders).sum(axis=0), orders, DELTA)
        for counts in (votes(250.0, 640), votes(25.0, 640))
    ]
    assert epsilons[0] < 1.97 < epsilons[1]


def test_answers_where_teachers_agree_cost_a_fraction() -> None:
    """The point of both papers: the data-dependent cost of clear votes is far below the other."""
    clear = gnmax_curve(votes(240.0, 1000), 20.0).epsilon(DELTA)
    unclear = gnmax_curve(votes(60.0, 1000), 20.0).epsilon(DELTA)
    assert clear < unclear / 5
