"""Groups and truncated samples, against densities that are integrated here."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from privtrain.accounting.approximate import Approximate
from privtrain.accounting.calibration import calibrate_scale
from privtrain.accounting.curves import gaussian_delta
from privtrain.accounting.epsilon import epsilon, evaluate, group_epsilon, supports
from privtrain.accounting.event import (
    Event,
    charged,
    composed,
    fixed_size_sampled,
    gaussian_event,
    laplace_event,
    no_event,
    non_private_event,
    of_group,
    poisson_sampled,
    relies_on_sample,
    repeated,
    terms_of,
    truncated_poisson_sampled,
)
from privtrain.accounting.files import event_from_plain, event_to_plain
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.errors import UnsupportedError
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT
from privtrain.core.trainer import Charge

Density = Callable[[NDArray[np.float64]], NDArray[np.float64]]
DELTA = 1e-5


def exact(p: Density, q: Density, delta: float = DELTA, reach: float = 60.0) -> float:
    """The epsilon of one pair of densities, in both directions, by summing over a fine grid."""
    x = np.linspace(-reach, reach, 1_200_001)
    a, b, step = p(x), q(x), x[1] - x[0]

    def miss(bound: float) -> float:
        over = [np.maximum(u - math.exp(bound) * v, 0).sum() * step for u, v in ((a, b), (b, a))]
        return math.log(max(*over, 1e-300)) - math.log(delta)

    return float(optimize.brentq(miss, 0.0, 40.0, xtol=1e-9))


def normal(center: float, deviation: float) -> Density:
    return lambda x: np.asarray(stats.norm.pdf(x, center, deviation))


def mixed(chances: list[float], parts: list[Density]) -> Density:
    return lambda x: np.asarray(sum(c * p(x) for c, p in zip(chances, parts, strict=True)))


def of_binomial(size: int, rate: float, deviation: float) -> Density:
    chances = [float(c) for c in stats.binom.pmf(range(size + 1), size, rate)]
    return mixed(chances, [normal(i, deviation) for i in range(size + 1)])


def gaussian_exactly(mu: float, delta: float) -> float:
    def miss(bound: float) -> float:
        return math.log(max(gaussian_delta(bound, mu), 1e-300)) - math.log(delta)

    return float(optimize.brentq(miss, 0.0, 500.0, xtol=1e-10))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "rate", "noise"), [(2, 0.01, 1.0), (5, 0.1, 2.0), (20, 0.3, 8.0)])
def test_a_sampled_group_costs_what_its_densities_say(size: int, rate: float, noise: float) -> None:
    event = poisson_sampled(rate, gaussian_event(noise))
    truth = exact(of_binomial(size, rate, noise), normal(0, noise))
    for relation in (ADD_REMOVE, ZERO_OUT):
        found = group_epsilon(event, size, DELTA, relation)
        assert truth * (1 - 1e-6) <= found <= truth * 1.02 + 0.002
    # The broken twin charges a group like one unit.
    assert epsilon(event, DELTA) < 0.9 * truth


def test_a_group_that_is_not_sampled_has_that_much_less_noise() -> None:
    for relation in (ADD_REMOVE, REPLACE_ONE):
        factor = 2.0 if relation is REPLACE_ONE else 1.0
        found = group_epsilon(repeated(gaussian_event(9.0), 4), 3, DELTA, relation)
        assert found == pytest.approx(gaussian_exactly(factor * 2 * 3 / 9.0, DELTA), rel=0.02)
    assert group_epsilon(laplace_event(6.0), 3, 1e-9) == pytest.approx(0.5, rel=1e-3)
    assert group_epsilon(gaussian_event(1.0), 1, DELTA) == epsilon(gaussian_event(1.0), DELTA)
    assert group_epsilon(non_private_event(), 2, DELTA) == math.inf


def test_where_its_losses_are_not_known_one_units_guarantee_is_converted() -> None:
    event = repeated(fixed_size_sampled(1_000, 10, gaussian_event(4.0)), 50)
    found = group_epsilon(event, 3, DELTA, REPLACE_ONE)
    single = epsilon(event, DELTA, relation=REPLACE_ONE)
    assert 3 * single < found < 6 * single
    sampled = poisson_sampled(0.01, gaussian_event(4.0))
    exact_one = group_epsilon(sampled, 3, DELTA, ADD_REMOVE)
    # By conversion from replace-one, which has no losses of a group, more is charged.
    assert group_epsilon(sampled, 3, DELTA, REPLACE_ONE) > exact_one
    with pytest.raises(UnsupportedError, match="group of 900"):
        group_epsilon(
            repeated(fixed_size_sampled(9, 3, gaussian_event(1.0)), 50), 900, DELTA, REPLACE_ONE
        )
    with pytest.raises(ValueError, match="size=0"):
        group_epsilon(sampled, 0, DELTA)


@pytest.mark.slow
def test_groups_in_compositions_journals_and_calibration() -> None:
    sampled = poisson_sampled(0.05, gaussian_event(2.0))
    event = composed([repeated(sampled, 30), gaussian_event(10.0)])
    group = of_group(event, 4)
    again = event_from_plain(event_to_plain(group))
    assert epsilon(group, DELTA) == epsilon(again, DELTA) > epsilon(event, DELTA)

    def at(scale: float) -> Event:
        return of_group(poisson_sampled(0.02, gaussian_event(scale)), 5)

    scale = calibrate_scale(at, epsilon=2.0, delta=DELTA, count=500)
    assert 1.9 < epsilon(repeated(at(scale), 500), DELTA) <= 2.0


# Truncated samples: all other rows contribute `other`, the changed one 1, or nothing.


def cut_pair(
    size: int, rate: float, largest: int, noise: float, other: float
) -> tuple[Density, Density]:
    chances: list[float] = []
    with_it: list[Density] = []
    without: list[Density] = []
    for drawn in range(size):
        chance = float(stats.binom.pmf(drawn, size - 1, rate))
        inside = rate * min(1.0, largest / (drawn + 1))
        rest = min(drawn, largest) * other
        beside = min(drawn, largest - 1) * other
        chances += [chance * (1 - inside), chance * inside]
        with_it += [normal(rest, noise), normal(beside + 1, noise)]
        without += [normal(rest, noise), normal(beside, noise)]
    return mixed(chances, with_it), mixed(chances, without)


@pytest.mark.parametrize("other", [0.0, 1.0, pytest.param(-1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("size", "rate", "largest", "noise"),
    [
        pytest.param(12, 0.3, 3, 1.0, marks=pytest.mark.slow),
        pytest.param(12, 0.3, 8, 1.0, marks=pytest.mark.slow),
        pytest.param(9, 0.95, 2, 1.5, marks=pytest.mark.slow),
        (9, 1.0, 2, 1.0),
    ],
)
def test_a_truncated_sample_is_charged_what_rows_can_lose(
    size: int, rate: float, largest: int, noise: float, other: float
) -> None:
    truth = exact(*cut_pair(size, rate, largest, noise, other), reach=40)
    event = truncated_poisson_sampled(size, rate, largest, gaussian_event(noise))
    assert truth <= epsilon(event, DELTA, relation=ZERO_OUT) * (1 + 1e-6)


@pytest.mark.slow
def test_the_rate_after_the_cut_is_no_poisson_rate() -> None:
    """The broken twin: Poisson at the chance with which a row ends in a batch."""
    truth = exact(*cut_pair(40, 1.0, 2, 1.0, -1.0), reach=40)
    twin = epsilon(poisson_sampled(2 / 40, gaussian_event(1.0)), DELTA, relation=ZERO_OUT)
    assert twin < 0.95 * truth


def test_a_cut_that_never_happens_costs_nothing() -> None:
    plain = poisson_sampled(0.01, gaussian_event(1.0))
    for largest in (1_000, 200):
        cut = truncated_poisson_sampled(1_000, 0.01, largest, gaussian_event(1.0))
        found = [epsilon(repeated(e, 300), DELTA, relation=ZERO_OUT) for e in (plain, cut)]
        assert found[1] == pytest.approx(found[0], rel=1e-6)
    often = truncated_poisson_sampled(1_000, 0.01, 10, gaussian_event(1.0))
    assert epsilon(repeated(often, 300), DELTA, relation=ZERO_OUT) > 1.2 * found[0]
    assert supports(often, ZERO_OUT, "pld") and not supports(often, ZERO_OUT, "rdp")
    assert not supports(often, ADD_REMOVE, "pld") and not supports(often, REPLACE_ONE, "pld")
    with pytest.raises(UnsupportedError, match="Gaussian noise only"):
        truncated_poisson_sampled(1_000, 0.01, 10, laplace_event(1.0))


def test_no_repetition_is_no_release() -> None:
    step = poisson_sampled(0.1, gaussian_event(1.0))
    assert repeated(step, 0) == no_event()
    assert repeated(step, 1) == step
    assert terms_of(repeated(step, 3)) == {step: 3}


def test_what_relies_on_a_secret_sample_is_told() -> None:
    plain = gaussian_event(1.0)
    sampled = poisson_sampled(0.1, plain)
    for event in (
        sampled,
        repeated(sampled, 7),
        composed([plain, repeated(sampled, 2)]),
        fixed_size_sampled(20, 2, plain),
        truncated_poisson_sampled(20, 0.1, 3, plain),
        of_group(sampled, 3),
        Approximate(sampled, 1e-9),
    ):
        assert relies_on_sample(event), event
    for event in (
        plain,
        repeated(plain, 3),
        poisson_sampled(1.0, plain),
        no_event(),
        poisson_sampled(0.1, non_private_event()),
        RdpCurve((2.0,), (1.0,)),
    ):
        assert not relies_on_sample(event), event


# Several kinds


def test_what_is_charged_is_each_kind_as_often_as_it_was_made() -> None:
    charges = {"check": Charge(gaussian_event(20.0), 7), "answer": Charge(gaussian_event(4.0), 2)}
    assert terms_of(charged(charges)) == {gaussian_event(20.0): 7, gaussian_event(4.0): 2}
    assert terms_of(charged(charges, {"check": 3})) == {gaussian_event(20.0): 3}
    assert terms_of(charged(charges, {})) == terms_of(charged({})) == {}
    # Of one kind it is the event itself, to the bit what it was without kinds.
    alone = {"release": Charge(gaussian_event(4.0), 5)}
    assert charged(alone) == repeated(gaussian_event(4.0), 5)
    assert charged(alone, {"release": 1}) == gaussian_event(4.0)


def test_curves_of_kinds_add_up_and_a_curve_makes_an_event_one() -> None:
    orders = (2.0, 5.0, 9.0, 30.0)
    slow, fast = (RdpCurve(orders, tuple(rate * a for a in orders)) for rate in (0.01, 0.1))
    both = charged({"check": Charge(slow, 4), "answer": Charge(fast, 3)})
    assert isinstance(both, RdpCurve)
    assert both.rdp == pytest.approx([0.34 * order for order in orders])
    # A curve and a Gaussian: order / (2 z^2) of it is added, and Rényi divergences are converted.
    mixed = charged({"check": Charge(slow, 4), "answer": Charge(gaussian_event(2.0), 2)})
    found = evaluate(mixed, 1e-5)
    by_hand = RdpCurve(orders, tuple((0.04 + 2 / 8) * order for order in orders))
    assert found.epsilon == pytest.approx(by_hand.epsilon(1e-5), rel=1e-12)
    assert (found.accountant, found.cross_check) == ("rdp", None)
