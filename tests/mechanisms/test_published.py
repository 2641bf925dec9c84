"""Publishing a data-dependent epsilon: the law of its noise, its price, and what is refused."""

import math
import pickle

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import kstest

from privtrain.accounting.gnmax import DEFAULT_ORDERS, gnmax_curve
from privtrain.accounting.renyi import rdp_to_epsilon
from privtrain.accounting.smooth import SmoothCost, gnmax_smooth_cost, publishing_rdp
from privtrain.core.errors import UnsoundReleaseError
from privtrain.core.seeding import SeededEntropy, Stream
from privtrain.mechanisms import published
from privtrain.mechanisms.published import PublishedEpsilon, noised, published_epsilon

CLEAR = np.random.default_rng(0).multinomial(1000, [0.98] + [0.02 / 9] * 9, size=300).astype(float)


def stream(number: int) -> Stream:
    return Stream(number.to_bytes(32, "little"))


def test_the_noise_has_the_scale_of_the_sensitivity_and_its_margin() -> None:
    """2,000 figures; false alarms 1e-5, and two thirds or three halves of the noise are caught."""
    cost = SmoothCost(rdp=100.0, sensitivity=0.5)
    figures = np.array([noised(cost, 8.0, 3.0, stream(n)) for n in range(2000)])

    def agrees(scale: float) -> bool:
        law = ("norm", (100.0 + 3.0 * 4.0, scale * 4.0))
        return bool(kstest(figures, *law).pvalue > 1e-5)

    assert agrees(1.0)
    assert not agrees(2 / 3)
    assert not agrees(3 / 2)


def test_a_figure_is_no_less_than_zero() -> None:
    made = [noised(SmoothCost(0.0, 1.0), 1.0, 0.0, stream(n)) for n in range(20)]
    assert min(made) == 0.0
    assert max(made) > 0.0


def test_the_true_cost_lies_above_the_figure_as_rarely_as_delta_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At half of a delta of 0.05 that can be counted: of 400 more than 25 happen once in 1e5."""
    votes = np.array([[20.0, 6.0]] * 20)
    numbers = iter(range(400))
    monkeypatch.setattr(
        published.SystemEntropy, "__getitem__", lambda self, name: stream(next(numbers))
    )
    settings = {"sigma": 4.0, "order": 2.0, "delta": 0.05, "smoothness": 0.1}
    cost = gnmax_smooth_cost(votes, sigma=4.0, order=2.0, smoothness=0.1)
    price = publishing_rdp(order=2.0, smoothness=0.1, noise_multiplier=8.0, margin=1.959964)
    true = rdp_to_epsilon([cost.rdp + price], [2.0], 0.025, "improved")
    below = sum(published_epsilon(votes, **settings).epsilon < true for _ in range(400))
    assert 1 <= below <= 25


def test_of_clear_votes_of_many_teachers_it_is_below_what_holds_for_all_votes() -> None:
    made = published_epsilon(CLEAR, sigma=60.0, order=12.0, smoothness=0.025, noise_multiplier=32.0)
    # The tight data-independent cost of a winner is 0.64 x order / sigma^2.
    independent = rdp_to_epsilon(
        0.64 * len(CLEAR) * np.array(DEFAULT_ORDERS) / 60.0**2, DEFAULT_ORDERS, 1e-5, "improved"
    )
    assert made.epsilon < independent
    # Never for nothing: the private figure is smaller.
    assert made.epsilon > gnmax_curve(CLEAR, 60.0).epsilon(1e-5)


def test_what_it_says_and_what_it_rounds() -> None:
    made = published_epsilon(CLEAR, sigma=60.0, order=12.0)
    assert made.epsilon * 1000 == pytest.approx(round(made.epsilon * 1000))
    assert "delta 1e-05" in str(made)
    margin = float(-ndtri(1e-5 / 2))
    of_noise = {"smoothness": 0.2 / 12, "noise_multiplier": 8.0, "margin": margin}
    assert made.price == pytest.approx(publishing_rdp(order=12.0, **of_noise))
    assert pickle.loads(pickle.dumps(made)) == made
    assert published_epsilon(CLEAR, sigma=60.0, order=12.0) != made, "each call draws anew"


def test_what_else_was_released_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published.SystemEntropy, "__getitem__", lambda self, name: stream(3))
    alone = published_epsilon(CLEAR, sigma=60.0, order=12.0)
    beside = published_epsilon(CLEAR, sigma=60.0, order=12.0, beside=0.5)
    assert beside.epsilon == pytest.approx(alone.epsilon + 0.5, abs=0.0011)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"delta": 0.0}, "delta"),
        ({"order": 1.0}, "order"),
        ({"sigma": -1.0}, "sigma"),
        ({"beside": -0.1}, "beside"),
        ({"smoothness": 0.2}, "smoothness"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        published_epsilon(CLEAR, **{"sigma": 60.0, "order": 12.0, **wrong})


def test_noise_that_follows_from_a_seed_is_refused() -> None:
    with pytest.raises(UnsoundReleaseError, match="Leave entropy out"):
        published_epsilon(CLEAR, sigma=60.0, order=12.0, entropy=SeededEntropy(0))


def test_printing_an_infinite_one() -> None:
    assert "epsilon inf" in str(
        PublishedEpsilon(epsilon=math.inf, delta=1e-5, order=2.0, price=0.1)
    )
