import math
import pickle
from typing import Any

import numpy as np
import pytest
from scipy import stats

from privtrain.accounting.epsilon import epsilon
from privtrain.accounting.event import (
    fixed_size_sampled,
    gaussian_event,
    poisson_sampled,
)
from privtrain.core.errors import UnsoundReleaseError
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Exposure, coalition
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Relation, Unit
from privtrain.core.trainer import RELEASE, PrivacyPlan
from privtrain.ledgers.run import epsilon_of
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.release.placement import AT_AGGREGATOR, AT_PARTY, SPLIT, Placement
from privtrain.sampling.sampling import (
    Everyone,
    FixedSize,
    Poisson,
    Sampling,
    TruncatedPoisson,
    check_delta_below,
)
from tests.contracts.aggregation import MaskedSum, SharedSum
from tests.statistics import ALARM

SECRET = Exposure(single_messages=False, knows_sample=False, noise_known=0.0)
KNOWN = Exposure(single_messages=False, knows_sample=True, noise_known=0.0)
SINGLE = Exposure(single_messages=True, knows_sample=True, noise_known=0.0)
EVENT = gaussian_event(1.5)
ROUNDS, PARTIES = 4000, 10


def draws(sampling: Sampling, seed: int = 0) -> np.ndarray[Any, Any]:
    """Who took part, shape `(rounds, parties)`."""
    source = np.random.default_rng(seed)
    taken = np.zeros((ROUNDS, PARTIES), dtype=bool)
    for round in range(ROUNDS):
        taken[round, sampling.choose(PARTIES, source)] = True
    return taken


def rate_is(taken: np.ndarray[Any, Any], rate: float) -> bool:
    """Whether every party can have been drawn at a rate; all tests share the false-alarm rate."""
    if not 0 < rate < 1:
        return bool(taken.mean() == rate)
    return all(
        stats.binomtest(int(column.sum()), len(column), rate).pvalue >= ALARM / PARTIES
        for column in taken.T
    )


@pytest.mark.parametrize("sampling", [Everyone(), FixedSize(3), Poisson(0.3), Poisson(0.3, 4.0)])
def test_samplings_are_frozen_values_that_draw_ascending_numbers(sampling: Sampling) -> None:
    assert pickle.loads(pickle.dumps(sampling)) == sampling
    assert hash(sampling) == hash(pickle.loads(pickle.dumps(sampling)))
    source = np.random.default_rng(1)
    for _ in range(50):
        chosen = sampling.choose(PARTIES, source)
        assert chosen == sorted(set(chosen))
        assert all(type(number) is int and 0 <= number < PARTIES for number in chosen)
        assert len(chosen) >= (sampling.at_least(PARTIES) if not sampling.varies else 0)


@pytest.mark.parametrize("sampling", [FixedSize(3), Poisson(0.3)])
def test_every_party_is_drawn_at_the_stated_rate(sampling: Sampling) -> None:
    taken = draws(sampling)
    assert rate_is(taken, 0.3)
    assert not rate_is(taken, 0.2)
    assert not rate_is(taken, 0.45)


def test_everyone_takes_part() -> None:
    assert draws(Everyone()).all()
    assert FixedSize(PARTIES).choose(PARTIES, np.random.default_rng()) == list(range(PARTIES))
    assert draws(Poisson(1.0)).all()


def test_a_fixed_size_is_fixed_and_pairs_are_as_likely_as_without_replacement() -> None:
    taken = draws(FixedSize(3))
    assert (taken.sum(axis=1) == 3).all()
    together = int((taken[:, 0] & taken[:, 1]).sum())
    assert stats.binomtest(together, ROUNDS, 3 * 2 / (10 * 9)).pvalue >= ALARM
    assert stats.binomtest(together, ROUNDS, 0.3 * 0.3).pvalue < ALARM  # as independent coins


def test_poisson_coins_are_independent_and_rounds_may_be_empty() -> None:
    taken = draws(Poisson(0.3))
    together = int((taken[:, 0] & taken[:, 1]).sum())
    assert stats.binomtest(together, ROUNDS, 0.3 * 0.3).pvalue >= ALARM
    assert stats.binomtest(together, ROUNDS, 3 * 2 / (10 * 9)).pvalue < ALARM
    assert (taken.sum(axis=1) == 0).any()
    sizes = taken.sum(axis=1)
    expected = stats.binom(PARTIES, 0.3).pmf(np.arange(7)) * ROUNDS
    observed = np.bincount(np.minimum(sizes, 6), minlength=7)
    expected[6] = ROUNDS - expected[:6].sum()
    assert stats.chisquare(observed, expected).pvalue >= ALARM


class Lowest:
    """A generator whose every number is the lowest, next lowest, ... that there is."""

    def random(self, count: int) -> np.ndarray[Any, Any]:
        return np.arange(count) * 2.0**-53


@pytest.mark.parametrize("rate", [1e-300, 2.0**-54, 2.0**-53, 1e-16, 2.5e-16, 1e-12, 1.0])
def test_no_rate_is_so_low_that_more_is_drawn_than_is_charged(rate: float) -> None:
    """Numbers are multiples of 2^-53: the number of those that are heads is the probability."""
    for sampling in (Poisson(rate), TruncatedPoisson(rate, 10_000)):
        taken = len(sampling.choose(10_000, Lowest()))  # type: ignore[arg-type] # stands for one
        assert taken == min(10_000, int(rate * 2**53))


def test_rounds_are_independent() -> None:
    taken = draws(Poisson(0.3))
    again = int((taken[:-1, 0] & taken[1:, 0]).sum())
    assert stats.binomtest(again, ROUNDS - 1, 0.09).pvalue >= ALARM


# --------------------------------------------------------------------------------- relations


@pytest.mark.parametrize(
    ("sampling", "of_sums"),
    [
        (Everyone(), ZERO_OUT),
        (FixedSize(PARTIES), ZERO_OUT),
        (FixedSize(PARTIES, replace_one=True), REPLACE_ONE),
        (FixedSize(3), REPLACE_ONE),
        (Poisson(0.3), ZERO_OUT),
        (Poisson(0.3, 3.0), ADD_REMOVE),
        (Poisson(0.3, 3.0, size_is_public=True), ZERO_OUT),
    ],
)
def test_relations(sampling: Sampling, of_sums: Relation) -> None:
    for exposure in (SECRET, KNOWN):
        assert sampling.relation(exposure, PARTIES) is of_sums
    assert sampling.relation(SINGLE, PARTIES) is REPLACE_ONE


# ----------------------------------------------------------------------------- amplification


@pytest.mark.parametrize("sampling", [Everyone(), FixedSize(3), Poisson(0.3)])
def test_whoever_knows_the_sample_gets_no_amplification(sampling: Sampling) -> None:
    for exposure in (KNOWN, SINGLE):
        assert sampling.amplified(EVENT, exposure, PARTIES, 0) == EVENT


def test_others_do() -> None:
    assert Poisson(0.3).amplified(EVENT, SECRET, PARTIES, 0) == poisson_sampled(0.3, EVENT)
    assert Poisson(0.3).amplified(EVENT, SECRET, PARTIES, 4) == poisson_sampled(0.3, EVENT)
    assert FixedSize(3).amplified(EVENT, SECRET, PARTIES, 0) == fixed_size_sampled(10, 3, EVENT)
    assert Everyone().amplified(EVENT, SECRET, PARTIES, 0) == EVENT


def test_corrupted_parties_know_that_they_were_not_drawn_themselves() -> None:
    for corrupted in range(1, 7):
        found = FixedSize(3).amplified(EVENT, SECRET, PARTIES, corrupted)
        assert found == fixed_size_sampled(PARTIES - corrupted, 3, EVENT)
    for corrupted in (7, 8, 9):
        assert FixedSize(3).amplified(EVENT, SECRET, PARTIES, corrupted) == EVENT


def plans_by_observer(
    sampling: Sampling,
    noise_at: Placement = AT_AGGREGATOR,
    aggregation: object = None,
    noise: float = 3.0,
) -> dict[str, PrivacyPlan]:
    release = Release(Gaussian(1.0, noise), noise_at)
    if aggregation is not None:
        release = Release(Gaussian(1.0, noise), noise_at, aggregation)  # type: ignore[arg-type] # doubles
    observers = (PUBLIC, PARTICIPANT, AGGREGATOR, coalition({"client-1", "client-2", "client-3"}))
    plans = release.plans(
        unit=Unit.CLIENT, count=5, parties=PARTIES, sampling=sampling, observers=observers
    )
    return {plan.observer.name: plan for plan in plans}


@pytest.mark.slow
def test_under_fixed_size_who_is_inside_is_charged_for_sampling_among_the_others() -> None:
    plans = plans_by_observer(FixedSize(3))
    inner = gaussian_event(3.0)
    assert plans["public"].charges[RELEASE].event == fixed_size_sampled(10, 3, inner)
    assert plans["participant"].charges[RELEASE].event == fixed_size_sampled(9, 3, inner)
    assert plans["coalition of client-1, client-2, client-3"].charges[
        RELEASE
    ].event == fixed_size_sampled(7, 3, inner)
    found = {name: epsilon_of(plan, {RELEASE: 5}, 1e-5) for name, plan in plans.items()}
    assert (
        found["public"]
        < found["participant"]
        < found["coalition of client-1, client-2, client-3"]
        < 99
    )
    assert found["aggregator"] == float("inf")


def test_noise_on_shares_protects_from_the_aggregator_but_without_amplification() -> None:
    for sampling in (FixedSize(3), Poisson(0.3)):
        plans = plans_by_observer(sampling, aggregation=SharedSum())
        assert plans["aggregator"].charges[RELEASE].event == gaussian_event(3.0)
        assert epsilon_of(plans["public"], {RELEASE: 5}, 1e-5) < epsilon_of(
            plans["aggregator"], {RELEASE: 5}, 1e-5
        )


def test_sampling_helps_those_who_do_not_know_the_sample() -> None:
    sampled, plain = plans_by_observer(Poisson(0.3)), plans_by_observer(Everyone())
    assert sampled["public"].relation is plain["public"].relation
    assert epsilon_of(sampled["public"], {RELEASE: 5}, 1e-5) < epsilon_of(
        plain["public"], {RELEASE: 5}, 1e-5
    )
    event = FixedSize(3).amplified(EVENT, SECRET, PARTIES, 0)
    asked = {"relation": REPLACE_ONE, "accountant": "rdp"}
    assert epsilon(event, 1e-5, **asked) < epsilon(EVENT, 1e-5, **asked)  # type: ignore[arg-type] # one dict for both


def test_noise_of_a_varying_number_of_parties_shows_the_sample() -> None:
    """An empty round publishes an exact zero: whoever sees the noise's size knows who took part."""
    for noise_at in (AT_PARTY, SPLIT(honest_survivors=2)):
        for aggregation in (None, MaskedSum()):
            for sampling in (Poisson(0.3), Poisson(0.3, 3.0)):
                for plan in plans_by_observer(sampling, noise_at, aggregation).values():
                    assert type(plan.charges[RELEASE].event).__name__ == "GaussianDpEvent"
                    assert plan.relation is not ADD_REMOVE


def test_noise_of_a_fixed_number_of_parties_does_not() -> None:
    plans = plans_by_observer(FixedSize(3), AT_PARTY)
    assert (
        type(plans["public"].charges[RELEASE].event).__name__ == "SampledWithoutReplacementDpEvent"
    )
    # Three take part: everybody's noise counts for the public, two noises for a participant.
    assert plans["public"].charges[RELEASE].event.event.noise_multiplier == pytest.approx(
        3.0 * 3**0.5
    )
    assert plans["participant"].charges[RELEASE].event.event.noise_multiplier == pytest.approx(
        3.0 * 2**0.5
    )


def test_parties_that_leave_take_their_noise_along() -> None:
    everybody = plans_by_observer(Poisson(1.0, 10.0), SPLIT(honest_survivors=1))
    assert everybody["public"].relation is ZERO_OUT


# ---------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_a_size_is_a_count(size: int) -> None:
    with pytest.raises(ValueError, match="size="):
        FixedSize(size)


def test_a_sample_fits_into_its_population() -> None:
    for ask in (FixedSize(11).at_least, lambda n: FixedSize(11).choose(n, np.random.default_rng())):
        with pytest.raises(ValueError, match=r"size=11 <= 10"):
            ask(10)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_rate_is_a_probability(rate: float) -> None:
    with pytest.raises(ValueError, match="rate="):
        Poisson(rate)
    with pytest.raises(ValueError, match="expected_size="):
        Poisson(0.5, expected_size=rate if rate != 1.1 else 0.0)


def test_sums_are_divided_by_a_public_number() -> None:
    assert Everyone().expected(12) == 12.0
    assert FixedSize(3).expected(12) == 3.0
    assert Poisson(0.25).expected(12) == 3.0
    assert Poisson(0.25, 7.0).expected(12) == 7.0


@pytest.mark.parametrize(("delta", "population"), [(0.1, 10), (0.5, 10), (1e-5, 100_000)])
def test_a_delta_that_lets_one_unit_out_is_refused(delta: float, population: int) -> None:
    with pytest.raises(UnsoundReleaseError, match=rf"1 / {population}, the number of clients"):
        check_delta_below(delta, population, "client")


@pytest.mark.parametrize(
    ("delta", "population"), [(0.09, 10), (1e-5, 99_999), (0.9, None), (0.5, 1)]
)
def test_a_smaller_one_is_not(delta: float, population: int | None) -> None:
    check_delta_below(delta, population, "client")


def test_truncated_samples_are_drawn_as_they_are_charged() -> None:
    sampling, generator = TruncatedPoisson(0.5, 5), np.random.default_rng(0)
    drawn = [sampling.choose(8, generator) for _ in range(40_000)]
    sizes = np.bincount([len(d) for d in drawn], minlength=9)
    assert sizes[6:].sum() == 0
    expected = [float(stats.binom.pmf(i, 8, 0.5)) for i in range(5)]
    expected.append(1 - sum(expected))
    assert stats.chisquare(sizes[:6], np.array(expected) * len(drawn)).pvalue > 1e-6
    each = np.bincount(np.concatenate(drawn).astype(int), minlength=8)
    inside = sum(float(stats.binom.pmf(i, 7, 0.5)) * 0.5 * min(1.0, 5 / (i + 1)) for i in range(8))
    deviation = math.sqrt(len(drawn) * inside * (1 - inside))
    assert np.abs(each - len(drawn) * inside).max() < 5 * deviation
    assert all(d == sorted(set(d)) for d in drawn)


def test_nothing_is_amplified_for_who_may_be_in_the_sample() -> None:
    sampling, event = TruncatedPoisson(0.1, 5), gaussian_event(1.0)

    def seeing(sample: bool) -> Exposure:
        return Exposure(single_messages=False, knows_sample=sample, noise_known=0.0)

    stranger, reader = seeing(False), seeing(True)
    assert sampling.amplified(event, stranger, 30, 0) != event
    assert sampling.amplified(event, stranger, 30, 1) == event
    assert sampling.amplified(event, reader, 30, 0) == event
    assert sampling.relation(stranger, 30) is ZERO_OUT
