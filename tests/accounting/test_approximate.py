"""Every reader of events charges the distance of an approximate release, or refuses it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from privtrain.accounting.approximate import Approximate
from privtrain.accounting.calibration import calibrate_scale
from privtrain.accounting.curves import DELTAS, epsilon_curve, gaussian_delta, trade_off
from privtrain.accounting.epsilon import best_accountant, epsilon, evaluate, rdp_curve, supports
from privtrain.accounting.event import (
    composed,
    fixed_size_sampled,
    gaussian_event,
    no_event,
    non_private_event,
    poisson_sampled,
    repeated,
)
from privtrain.accounting.files import event_from_plain, event_to_plain
from privtrain.accounting.filter import RdpFilter
from privtrain.accounting.guarantees import guarantees, public_curves
from privtrain.accounting.selection import RandomTrials
from privtrain.core.errors import BudgetExceededError, PrivacyError, UnsupportedError
from privtrain.core.observers import PUBLIC, Exposure
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Budget, Unit
from privtrain.core.trainer import RELEASE, Charge, PrivacyPlan
from privtrain.ledgers.run import capacity, digest_of, epsilon_of
from privtrain.ledgers.study import StudyLedger
from privtrain.mechanisms.discrete import RELEASE_DISTANCE, charged_multiplier
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.runs.scoring import PrivateRows, PublicRows
from privtrain.runs.tuning import tune
from privtrain.trainers.dp_sgd import DPSGD
from tests.contracts.mechanism import PUBLIC_SUM
from tests.trainers.federations import STAR, TASK, a_federation

DELTA = 1e-5
FAR = 2e-8
"""A distance that takes a good part of delta, so that leaving it out is seen."""

ONE = gaussian_event(1.0)
NEAR = Approximate(ONE, FAR)


def a_plan(event: object, count: int = 1) -> PrivacyPlan:
    return PrivacyPlan(
        observer=PUBLIC,
        unit=Unit.EXAMPLE,
        relation=ADD_REMOVE,
        charges={RELEASE: Charge(event, count)},
    )


def test_the_epsilon_is_the_one_of_the_formula() -> None:
    """delta'(epsilon) + (1 + e^epsilon) x distance = delta, with the Gaussian in closed form."""
    found = epsilon(NEAR, DELTA)
    charged = gaussian_delta(found, 1.0) + (1 + math.exp(found)) * FAR
    assert charged <= DELTA
    closer = found * (1 - 1e-3)
    assert gaussian_delta(closer, 1.0) + (1 + math.exp(closer)) * FAR > DELTA
    assert found > epsilon(ONE, DELTA) * 1.005, "dropping the distance would be seen"


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_no_distance_changes_nothing_and_more_costs_more(accountant: str) -> None:
    found = [
        epsilon(Approximate(ONE, far), DELTA, accountant=accountant)  # type: ignore[arg-type]
        for far in (0.0, 1e-12, 1e-9, 1e-8)
    ]
    assert found[0] == epsilon(ONE, DELTA, accountant=accountant)  # type: ignore[arg-type]
    assert found == sorted(found)
    assert found[-1] > found[0]


@pytest.mark.slow
def test_a_distance_that_takes_all_of_delta_promises_nothing() -> None:
    for far in (1e-5, 1e-6, 1.0):
        assert epsilon(Approximate(ONE, far), DELTA) == math.inf
    (said,) = guarantees((a_plan(Approximate(ONE, 1e-6)),), spent={RELEASE: 1}, delta=DELTA)
    assert (said.epsilon, said.accountant, said.theorem) == (math.inf, "none", "")
    huge = Approximate(gaussian_event(0.02), 1e-30)
    assert epsilon(huge, DELTA) == math.inf, "e^epsilon is beyond the range of floats"
    with pytest.raises(ValueError, match="distance"):
        Approximate(ONE, math.nan)
    with pytest.raises(ValueError, match="approximate itself"):
        Approximate(NEAR, 0.0)


def test_distances_add_up_and_sampling_keeps_them() -> None:
    assert repeated(NEAR, 7) == Approximate(repeated(ONE, 7), 7 * FAR)
    assert epsilon(repeated(NEAR, 0), DELTA) == 0.0
    assert composed([NEAR, gaussian_event(2.0), NEAR]) == Approximate(
        composed([ONE, gaussian_event(2.0), ONE]), 2 * FAR
    )
    assert poisson_sampled(0.1, NEAR) == Approximate(poisson_sampled(0.1, ONE), FAR)
    assert fixed_size_sampled(9, 3, NEAR) == Approximate(fixed_size_sampled(9, 3, ONE), FAR)
    assert epsilon(composed([NEAR, non_private_event()]), DELTA) == math.inf
    assert epsilon(composed([NEAR, no_event()]), DELTA) == epsilon(NEAR, DELTA)


def test_one_inside_an_event_of_the_package_is_refused_not_ignored() -> None:
    hidden = replace_inner(poisson_sampled(0.1, ONE))
    for read in (
        lambda: epsilon(repeated(hidden, 3), DELTA),
        lambda: evaluate(hidden, DELTA),
        lambda: rdp_curve(hidden, [2.0]),
    ):
        with pytest.raises(ValueError, match="accounting event"):
            read()


def replace_inner(event: object) -> object:
    return type(event)(event.sampling_probability, NEAR)  # type: ignore[attr-defined, call-arg]


def test_both_accountants_charge_it() -> None:
    assert supports(NEAR, ADD_REMOVE, "pld")
    assert best_accountant(NEAR) == "pld"
    sampled = fixed_size_sampled(100, 10, NEAR)
    assert best_accountant(sampled, REPLACE_ONE) == "pld"
    plain, near = evaluate(ONE, DELTA), evaluate(NEAR, DELTA)
    assert near.epsilon > plain.epsilon
    assert near.cross_check is not None
    assert plain.cross_check is not None
    assert near.cross_check > plain.cross_check
    assert evaluate(sampled, DELTA, REPLACE_ONE).epsilon > epsilon(
        sampled.event, DELTA, relation=REPLACE_ONE
    )


def test_ledger_guarantee_and_capacity_charge_it() -> None:
    plain, near = a_plan(ONE, 40), a_plan(Approximate(ONE, 1e-10), 40)
    assert epsilon_of(near, {RELEASE: 3}, DELTA) > epsilon_of(plain, {RELEASE: 3}, DELTA)
    budget = Budget(8.0, DELTA)
    assert capacity((near,), budget) == capacity((plain,), budget)
    tight = Budget((1 + 1e-6) * epsilon_of(plain, {RELEASE: 2}, DELTA), DELTA)
    assert capacity((plain,), tight) == {RELEASE: 2}
    assert capacity((near,), tight) == {RELEASE: 1}
    with pytest.raises(BudgetExceededError):
        capacity((a_plan(NEAR, 1),), Budget(epsilon(ONE, DELTA) * 1.001, DELTA))
    (said,) = guarantees((near,), spent={RELEASE: 3}, delta=DELTA)
    assert said.epsilon == epsilon_of(near, {RELEASE: 3}, DELTA)
    assert digest_of((near,), DELTA) != digest_of((plain,), DELTA)
    assert digest_of((near,), DELTA) != digest_of((a_plan(Approximate(ONE, 2 * FAR), 40),), DELTA)


@pytest.mark.slow
def test_curves_charge_it_at_every_delta() -> None:
    plain, near = dict(epsilon_curve(ONE)), dict(epsilon_curve(NEAR))
    assert set(near) == set(plain) == set(DELTAS)
    assert all(near[delta] > plain[delta] for delta in near)
    assert near[min(near)] == math.inf, "the distance takes up this delta"
    assert near[1e-2] < math.inf
    missed = dict(trade_off(NEAR))
    assert all(missed[rate] <= value for rate, value in trade_off(ONE))
    assert missed != dict(trade_off(ONE))
    (curves,) = public_curves((a_plan(NEAR),), spent={RELEASE: 1}, delta=DELTA)
    finite = {delta: bound for delta, bound in near.items() if bound < math.inf}
    assert dict(curves.epsilon_by_delta) == finite != near


def test_calibration_charges_it() -> None:
    plain, near = (
        calibrate_scale(event_of, epsilon=3.0, delta=DELTA, count=20)
        for event_of in (gaussian_event, lambda scale: Approximate(gaussian_event(scale), 1e-9))
    )
    assert near > plain * 1.001
    event = repeated(Approximate(gaussian_event(near), 1e-9), 20)
    assert epsilon(event, DELTA) <= 3.0


def test_a_study_charges_it_and_its_journal_keeps_it(tmp_path: Path) -> None:
    data = replace(a_federation(12, 9), digest="ab" * 32)
    plain, near = StudyLedger(data), StudyLedger(data, journal=tmp_path / "journal.jsonl")
    once = gaussian_event(3.0)
    for _ in range(2):
        plain.spend((a_plan(once, 2),), data, name="it")
        near.spend((a_plan(Approximate(once, FAR), 2),), data, name="it")
    assert plain.epsilon * 1.005 < near.epsilon < math.inf
    again = StudyLedger(data, journal=tmp_path / "journal.jsonl")
    assert again.epsilon == near.epsilon
    event = repeated(poisson_sampled(0.1, NEAR), 3)
    assert event_from_plain(event_to_plain(event)) == event
    with pytest.raises(PrivacyError, match="not known"):
        event_from_plain({"kind": "Approximate", "fields": [event_to_plain(ONE), -1.0]})


def test_filters_curves_and_selections_refuse_it() -> None:
    budget = Budget(8.0, DELTA)
    with pytest.raises(UnsupportedError, match="curve"):
        RdpFilter(budget).spend(NEAR)
    with pytest.raises(UnsupportedError, match="curve"):
        rdp_curve(NEAR, [2.0])
    data = replace(a_federation(12, 9, 15, public_rows=36), digest="ab" * 32)
    with pytest.raises(UnsupportedError, match="curve"):
        StudyLedger(data, budget=budget, adaptive=True).spend((a_plan(NEAR),), data, name="it")
    secure = Gaussian(1.0, 3.0, secure=True)
    trainers = {"it": DPSGD(epochs=1, expected_batch=12.0, release=Release(secure))}
    rows = a_federation(14, 7).pooled()
    with pytest.raises(UnsupportedError, match="curve"):
        tune(
            trainers,
            TASK,
            data,
            score=PublicRows(rows),
            trials=RandomTrials(mean=3.0),
            runtimes=STAR,
        )
    with pytest.raises(UnsupportedError, match="selection"):
        PrivateRows(rows, secure)


# ------------------------------------------------------------------------- the secure Gaussian


@pytest.mark.parametrize("multiplier", [1.0, 3.0, 20.0])
@pytest.mark.parametrize("relation", [ADD_REMOVE, ZERO_OUT, REPLACE_ONE])
def test_secure_noise_costs_a_little_more_and_never_less(
    multiplier: float, relation: object
) -> None:
    plain, secure = (
        evaluate(
            repeated(Gaussian(1.0, multiplier, secure=kind).event(PUBLIC_SUM, relation), 4),  # type: ignore[arg-type]
            DELTA,
            relation,  # type: ignore[arg-type]
        ).epsilon
        for kind in (False, True)
    )
    assert plain < secure < plain * 1.01


def test_secure_noise_at_the_size_of_mnist() -> None:
    """26,010 weights, 4,680 steps: the charge holds for 2^26, and costs 0.7%."""
    plain, secure = (
        epsilon(
            repeated(
                poisson_sampled(
                    512 / 60_000, Gaussian(1.0, 1.068, secure=kind).event(PUBLIC_SUM, ADD_REMOVE)
                ),
                4_680,
            ),
            DELTA,
        )
        for kind in (False, True)
    )
    assert plain < secure < plain * 1.01
    assert secure == pytest.approx(3.0216, abs=1e-3)  # as decision 013 states


def test_several_secure_noises_are_charged_as_one_and_less_than_one_is_refused() -> None:
    mechanism = Gaussian(1.0, 2.0, secure=True)
    whole = Approximate(gaussian_event(charged_multiplier(2.0)), RELEASE_DISTANCE)
    several = Exposure(single_messages=False, knows_sample=False, noise_known=0.1, variance=10.0)
    assert mechanism.event(several, ZERO_OUT) == whole
    part = Exposure(single_messages=True, knows_sample=True, noise_known=0.0, variance=0.5)
    with pytest.raises(UnsupportedError, match="split"):
        mechanism.event(part, REPLACE_ONE)
