import math
import pickle

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

from privtrain.accounting.epsilon import epsilon, evaluate
from privtrain.accounting.event import gaussian_event, truncated_poisson_sampled
from privtrain.accounting.guarantees import ONE_SIDED, PRIVATE_NUMBER, guarantees, public_curves
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Observer, coalition
from privtrain.core.rounding import printed_up
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Unit
from privtrain.core.trainer import RELEASE, Charge, PrivacyPlan
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.placement import AT_PARTY
from privtrain.sampling.sampling import FixedSize

PLANS = Release(Gaussian(1.0, 2.0)).plans(
    unit=Unit.CLIENT, count=10, parties=5, assumptions=("the cohort is secret",)
)


def test_one_guarantee_an_observer_with_unit_relation_and_accountant() -> None:
    made = guarantees(PLANS, spent={RELEASE: 4}, delta=1e-5, assumptions=("simulated",))
    assert [g.observer for g in made] == [PUBLIC, PARTICIPANT, AGGREGATOR]
    public = made[0]
    assert (public.unit, public.relation) == (Unit.CLIENT, ZERO_OUT)
    assert public.epsilon == epsilon(gaussian_event(1.0), 1e-5, relation=ZERO_OUT)
    assert (public.delta, public.accountant, public.releases) == (1e-5, "pld", 4)
    assert public.cross_check is not None
    assert public.cross_check > public.epsilon
    assert "Gaussian" in public.theorem
    assert public.assumptions == ("the cohort is secret", "simulated")
    assert pickle.loads(pickle.dumps(made)) == made


def test_a_coalition_stands_in_a_statement_without_its_members() -> None:
    many = coalition({f"client-{number}" for number in range(9)})
    plans = Release(Gaussian(1.0, 2.0)).plans(
        unit=Unit.CLIENT, count=1, parties=20, observers=(many,)
    )
    (made,) = guarantees(plans, spent={RELEASE: 1}, delta=1e-5)
    # Equal to what is read from a file, and to what it was before it was written.
    assert made.observer == many.without_members == Observer(many.name)
    assert made.observer.is_coalition and b"client-8" not in pickle.dumps(made)


def test_where_nothing_is_promised_nothing_is_claimed() -> None:
    aggregator = guarantees(PLANS, spent={RELEASE: 4}, delta=1e-5)[2]
    assert aggregator.epsilon == math.inf
    assert (aggregator.accountant, aggregator.cross_check, aggregator.theorem) == ("none", None, "")


def test_no_cross_check_is_copied_where_there_is_none() -> None:
    plan = PrivacyPlan(
        observer=PUBLIC,
        unit=Unit.CLIENT,
        relation=ZERO_OUT,
        charges={RELEASE: Charge(truncated_poisson_sampled(20, 0.2, 6, gaussian_event(2.0)), 3)},
    )
    (made,) = guarantees((plan,), spent={RELEASE: 3}, delta=1e-5)
    assert (made.accountant, made.cross_check) == ("pld", None)


def test_the_reader_of_single_messages_is_owed_replace_one() -> None:
    plans = Release(Gaussian(1.0, 2.0), AT_PARTY).plans(unit=Unit.CLIENT, count=3, parties=5)
    made = {g.observer.name: g for g in guarantees(plans, spent={RELEASE: 3}, delta=1e-5)}
    assert made["aggregator"].relation is REPLACE_ONE
    assert made["public"].relation is ZERO_OUT
    assert made["public"].epsilon < made["participant"].epsilon < made["aggregator"].epsilon < 99


def test_a_data_dependent_charge_stands_beside_the_formal_one_and_says_what_it_is() -> None:
    mechanism = GNMax(10.0)
    plans = Release(mechanism).plans(
        unit=Unit.EXAMPLE, count=20, parties=4, observers=(PUBLIC, AGGREGATOR)
    )
    counts = torch.tensor([[90.0, 5.0, 5.0]]).repeat(20, 1)
    realised = {observer.name: mechanism.realised(counts) for observer in (PUBLIC, AGGREGATOR)}
    made = guarantees(plans, spent={RELEASE: 20}, delta=1e-5, realised=realised)
    assert [(g.observer, g.data_dependent) for g in made] == [
        (PUBLIC, False),
        (PUBLIC, True),
        (AGGREGATOR, False),
    ]
    formal, private, aggregator = made
    assert private.epsilon < formal.epsilon
    assert PRIVATE_NUMBER in private.assumptions
    assert PRIVATE_NUMBER not in formal.assumptions
    assert aggregator.epsilon == math.inf  # the counts say nothing to whoever reads them


def test_a_data_dependent_line_is_true_of_one_direction_and_claims_no_other() -> None:
    """20 queries, votes 11 to 7, sigma 0.5: exactly, since both answers are binomial."""
    queries, sigma, delta = 20, 0.5, 1e-5
    mechanism = GNMax(sigma)
    plans = Release(mechanism).plans(
        unit=Unit.EXAMPLE, count=queries, parties=18, observers=(PUBLIC,)
    )
    counts = torch.tensor([[11.0, 7.0]]).repeat(queries, 1)
    realised = {PUBLIC.name: mechanism.realised(counts)}
    formal, made = guarantees(plans, spent={RELEASE: queries}, delta=delta, realised=realised)
    assert made.epsilon == pytest.approx(15.402, abs=5e-4)
    # How often class 1 wins, with all votes and with one of them moved (11:7 becomes 10:8).
    often = np.arange(queries + 1)
    seen, other = (
        binom.pmf(often, queries, norm.sf(gap / (math.sqrt(2) * sigma))) for gap in (4, 2)
    )
    forward = np.maximum(0, seen - math.exp(made.epsilon) * other).sum()
    back = np.maximum(0, other - math.exp(made.epsilon) * seen).sum()
    assert forward <= delta
    assert back == pytest.approx(1.0e-3, rel=0.05)
    assert back > 50 * delta, "it is no (epsilon, delta)-DP, so the line must not say so"
    line = str(made).splitlines()[0]
    assert line == (
        "epsilon 15.41 at delta 1e-05 for these votes, one-sided, to the public, per example, "
        "zero-out, data-dependent"
    )
    assert "DP" not in str(made).replace(GNMax(sigma).about.theorem, "")
    assert ONE_SIDED in made.theorem
    # The formal line is proved in both directions.
    assert str(formal).startswith(f"({printed_up(formal.epsilon)}, 1e-05)-DP to the public")
    assert ONE_SIDED not in formal.theorem
    assert np.maximum(0, other - math.exp(formal.epsilon) * seen).sum() <= delta


def test_realised_charges_of_others_change_nothing() -> None:
    made = guarantees(
        PLANS, spent={RELEASE: 2}, delta=1e-5, realised={"querier": gaussian_event(1.0)}
    )
    assert not any(g.data_dependent for g in made)
    assert made == guarantees(PLANS, spent={RELEASE: 2}, delta=1e-5)


@pytest.mark.parametrize("observer", [PUBLIC, PARTICIPANT])
def test_equals_the_accountant_asked_directly(observer: object) -> None:
    (plan,) = [plan for plan in PLANS if plan.observer == observer]
    (made,) = guarantees((plan,), spent={RELEASE: 1}, delta=1e-6)
    asked = evaluate(plan.charges[RELEASE].event, 1e-6, plan.relation)
    assert (made.epsilon, made.accountant, made.cross_check) == (
        asked.epsilon,
        asked.accountant,
        asked.cross_check,
    )
    assert plan.relation is not ADD_REMOVE


def test_the_public_promise_has_its_curves_through_the_stated_pair() -> None:
    (made,) = public_curves(PLANS, spent={RELEASE: 4}, delta=1e-5)
    (stated, *_) = guarantees(PLANS, spent={RELEASE: 4}, delta=1e-5)
    assert (made.observer, made.unit, made.relation) == (PUBLIC, Unit.CLIENT, ZERO_OUT)
    assert dict(made.epsilon_by_delta)[1e-5] == stated.epsilon
    assert made.mu == pytest.approx(1.0, rel=1e-3)
    assert pickle.loads(pickle.dumps(made)) == made


SAMPLED = Release(Gaussian(1.0, 2.0)).plans(
    unit=Unit.EXAMPLE, count=10, parties=50, sampling=FixedSize(5), observers=(PUBLIC,)
)
VOTES = Release(GNMax(20.0)).plans(unit=Unit.EXAMPLE, count=10, parties=5, observers=(PUBLIC,))


@pytest.mark.parametrize("delta", [1e-5, 1e-3, 3e-6, 0.02])
def test_every_curve_passes_through_what_is_stated_at_any_delta(delta: float) -> None:
    """Of each unit; by PLD, and by RDP of a fixed-size sample and of votes."""
    both = (PLANS[0], *SAMPLED)
    for plans in (both, both[::-1], VOTES):
        stated = {g.unit: g.epsilon for g in guarantees(plans, spent={RELEASE: 4}, delta=delta)}
        drawn = public_curves(plans, spent={RELEASE: 4}, delta=delta)
        assert {c.unit: dict(c.epsilon_by_delta)[delta] for c in drawn} == stated
        assert all(dict(c.promised)[delta] == stated[c.unit] for c in drawn)


def test_without_releases_or_a_promise_there_are_no_curves() -> None:
    assert public_curves(PLANS, spent={RELEASE: 0}, delta=1e-5) == ()
    exact = Release().plans(unit=Unit.CLIENT, count=3, parties=5)
    assert public_curves(exact, spent={RELEASE: 3}, delta=1e-5) == ()
