"""Rare losses of many releases, against the binomial law."""

from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
from scipy import stats

from privtrain.accounting.convolution import self_composed

LEFT_OUT = 1e-15


@pytest.mark.parametrize("rare", [1e-3, 1e-8, 1e-11])
def test_rare_sums_of_many_losses_are_those_of_the_binomial_law(rare: float) -> None:
    count, chance = 100_000, 0.03
    one = dp.pld.pld_pmf.DensePLDPmf(1e-3, 0, np.array([1 - chance, chance]), 0.0, True)
    make = dp.pld.privacy_loss_distribution.PrivacyLossDistribution
    whole: Any = self_composed(make(one), count, LEFT_OUT)
    whole = whole._pmf_remove
    place = int(stats.binom.isf(rare, count, chance))
    found = whole._probs[place + 1 - whole._lower_loss :].sum()
    assert found == pytest.approx(stats.binom.sf(place, count, chance), rel=1e-3)
    assert (whole._probs >= 0).all()


@pytest.mark.parametrize("pessimistic", [True, False])
def test_one_infinite_loss_makes_the_sum_infinite(pessimistic: bool) -> None:
    count, never = 1_000, 1e-4
    one = dp.pld.pld_pmf.DensePLDPmf(1e-3, 0, np.array([0.5, 0.5 - never]), never, pessimistic)
    make = dp.pld.privacy_loss_distribution.PrivacyLossDistribution
    whole: Any = self_composed(make(one), count, LEFT_OUT)
    assert whole._pmf_remove._infinity_mass == pytest.approx(1 - (1 - never) ** count, rel=1e-9)


def test_what_the_tilt_does_not_resolve_is_not_taken_from_it() -> None:
    # The largest sum is about as rare as what the tilt is centred at: nearly all that is below it
    # has less tilted probability than rounding leaves there.
    count, chance = 10, 0.1 * (1 - 1e-5)
    one = dp.pld.pld_pmf.DensePLDPmf(1e-3, 0, np.array([1 - chance, chance]), 0.0, True)
    make = dp.pld.privacy_loss_distribution.PrivacyLossDistribution
    whole: Any = self_composed(make(one), count, LEFT_OUT)
    exact = stats.binom.pmf(np.arange(count + 1), count, chance)
    np.testing.assert_allclose(whole._pmf_remove._probs, exact, rtol=1e-6)
