"""Losses of Gaussian mixtures, held against dp_accounting's own search."""

import math

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution, privacy_loss_mechanism
from scipy.optimize import brentq
from scipy.stats import binom, norm

from privtrain.accounting.library import Losses
from privtrain.accounting.library import mixture_losses as losses_by
from privtrain.accounting.mixtures import inverses

REMOVE, ADD = (getattr(privacy_loss_mechanism.AdjacencyType, name) for name in ("REMOVE", "ADD"))
SLOW = pytest.mark.slow
MIXTURES = [
    (1, 0.3, 1.0),
    pytest.param(4, 0.01, 0.7, marks=SLOW),
    pytest.param(3, 0.9, 2.5, marks=SLOW),
    (12, 0.4, 6.0),
    (2, 1e-4, 0.5),
]


def binomial(k: int, rate: float, z: float) -> dp.dp_event.MixtureOfGaussiansDpEvent:
    chances = binom.pmf(range(k + 1), k, rate)
    return dp.dp_event.MixtureOfGaussiansDpEvent(z, list(range(k + 1)), list(chances))


def mixture_losses(
    event: dp.dp_event.MixtureOfGaussiansDpEvent, step: float, *, pessimistic: bool
) -> Losses:
    return losses_by(event, step, inverses, pessimistic=pessimistic)


@pytest.mark.parametrize(("k", "rate", "z"), MIXTURES)
@pytest.mark.parametrize("kind", [REMOVE, ADD])
def test_places_have_the_losses_that_were_asked_for(
    k: int, rate: float, z: float, kind: object
) -> None:
    event = binomial(k, rate, z)
    mixture = privacy_loss_mechanism.MixtureGaussianPrivacyLoss(
        event.standard_deviation, event.sensitivities, event.sampling_probs, adjacency_type=kind
    )
    places = np.linspace(-8 * z - k, 8 * z, 200)
    losses = np.array([mixture.privacy_loss(x) for x in places])[::-1]
    flat = k * math.log1p(-rate)  # where the loss no longer changes, no place is known
    kept = np.abs(losses - (flat if kind is REMOVE else -flat)) > 1e-7
    bounds = (places.min() - 1.0, places.max() + 1.0)
    slopes = mixture.sensitivities / z**2
    constants = mixture._precompute_privacy_loss_constants
    found = inverses(constants, slopes, losses[kept], bounds, added=kind is ADD)
    np.testing.assert_allclose(found, places[::-1][kept], atol=1e-6)
    again = [mixture.privacy_loss(x) for x in found]
    np.testing.assert_allclose(again, losses[kept], rtol=1e-8, atol=1e-9)


def true_delta(event: dp.dp_event.MixtureOfGaussiansDpEvent, epsilon: float) -> float:
    """The hockey-stick divergence where a unit is removed: both densities cross once."""
    shifts, chances = -np.array(event.sensitivities, float), np.array(event.sampling_probs)
    z = event.standard_deviation

    def loss(x: float) -> float:
        return float(np.log(chances @ norm.pdf(x, shifts, z)) - norm.logpdf(x, 0, z)) - epsilon

    cross = brentq(loss, -30 * z + shifts.min(), 30 * z, xtol=1e-13)
    return float(chances @ norm.cdf(cross, shifts, z) - math.exp(epsilon) * norm.cdf(cross, 0, z))


@pytest.mark.parametrize(("k", "rate", "z"), MIXTURES)
def test_both_roundings_hold_the_truth_between_them(k: int, rate: float, z: float) -> None:
    event = binomial(k, rate, z)
    low, high = (
        mixture_losses(event, 0.01, pessimistic=pessimistic) for pessimistic in (False, True)
    )
    for epsilon in (0.1, 0.5, 1.0, 2.0):
        true = true_delta(event, epsilon)
        below, above = (one._pmf_remove.get_delta_for_epsilon(epsilon) for one in (low, high))
        assert 0.9 * true < below <= true * (1 + 1e-9)
        assert true * (1 - 1e-9) <= above < 1.001 * true


@pytest.mark.parametrize(("k", "rate", "z"), MIXTURES)
def test_upper_ends_are_those_of_the_search(k: int, rate: float, z: float) -> None:
    event = binomial(k, rate, z)
    ours = mixture_losses(event, 0.02, pessimistic=True)
    theirs = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        event.standard_deviation,
        event.sensitivities,
        event.sampling_probs,
        value_discretization_interval=0.02,
    )
    for epsilon in (0.0, 0.1, 0.5, 1.0, 3.0):
        found, wanted = (one.get_delta_for_epsilon(epsilon) for one in (ours, theirs))
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-12)
