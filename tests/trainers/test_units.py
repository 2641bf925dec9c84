"""Units: what is promised to each row, user and party, and that one moved vote is charged once."""

import math
from dataclasses import replace

import pytest
import torch

from privtrain.accounting.approximate import Approximate
from privtrain.accounting.epsilon import epsilon
from privtrain.accounting.event import (
    composed,
    gaussian_event,
    laplace_event,
    non_private_event,
    repeated,
)
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.errors import UnsoundReleaseError
from privtrain.core.observers import AGGREGATOR, PUBLIC, Observer
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Relation, Unit
from privtrain.core.task import FederatedData, Rows
from privtrain.core.trainer import Charge, PrivacyPlan
from privtrain.ledgers.run import epsilon_of
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.release.placement import AT_PARTY
from privtrain.runs.checks import check_plans
from privtrain.runs.fitting import fit
from privtrain.sampling.assignment import CONTENTS, USERS, AssignedBy
from privtrain.steps.plain import PlainSteps
from privtrain.trainers.pate import PATE
from privtrain.trainers.units import ONE_PARTY, STAYS_KEPT, of_units
from tests.trainers.federations import STAR, TASK, a_federation, some_rows

EXAMPLE, USER, CLIENT = Unit.EXAMPLE, Unit.USER, Unit.CLIENT
AT_AGGREGATOR = Release(GNMax(4.0), finish=ARGMAX)
BY_PARTIES = Release(GNMax(4.0), AT_PARTY, finish=ARGMAX)


def a_pate(teachers: int, release: Release, assigned_by: AssignedBy = CONTENTS) -> PATE:
    steps = PlainSteps(epochs=1)
    return PATE(
        teachers=teachers,
        queries=6,
        release=release,
        assigned_by=assigned_by,
        steps=steps,
        student=steps,
    )


def data_of(public: bool = True, **options: int) -> FederatedData:
    data = a_federation(12, 12, **options)
    train = {
        name: replace(rows, users=100 * number + torch.arange(12) // 3)
        for number, (name, rows) in enumerate(data.train.items())
    }
    return replace(data, train=train, public=Rows(some_rows(5).inputs) if public else None)


def stated(plans: tuple[PrivacyPlan, ...]) -> list[tuple[Observer, Unit, Relation]]:
    return [(plan.observer, plan.unit, plan.relation) for plan in plans]


def to_aggregator(trainer: PATE, data: FederatedData) -> PrivacyPlan:
    """What it is promised for each row or user."""
    plans = trainer.plan(data, STAR)
    return next(p for p in plans if p.observer == AGGREGATOR and p.unit is not CLIENT)


def spent(plan: PrivacyPlan) -> float:
    return epsilon_of(plan, plan.counts, 1e-5)


def test_a_party_that_is_one_teacher_is_protected_as_a_whole_for_the_price_of_a_row() -> None:
    for by, unit in ((CONTENTS, EXAMPLE), (USERS, USER)):
        plans = a_pate(2, AT_AGGREGATOR, by).plan(data_of(), STAR)
        assert stated(plans) == [
            (PUBLIC, unit, ADD_REMOVE),
            (AGGREGATOR, unit, REPLACE_ONE),
            (PUBLIC, CLIENT, REPLACE_ONE),
            (AGGREGATOR, CLIENT, REPLACE_ONE),
        ]
        own, _, whole, _ = plans
        assert spent(own) == spent(whole) < math.inf
        assert "each party hosts one teacher" in whole.theorem


def test_the_statement_has_a_line_for_each_unit_and_its_headline_is_of_all() -> None:
    result = fit(a_pate(2, AT_AGGREGATOR, USERS), TASK, data_of(), runtimes=STAR)
    formal = [g for g in result.statement.guarantees if not g.data_dependent]
    lines = [g.claim for g in formal if g.observer == PUBLIC]
    assert lines[0].endswith("to the public, per user, add-remove")
    assert lines[1].endswith("to the public, per client, replace-one")
    assert lines[0].split(" to ")[0] == lines[1].split(" to ")[0]
    assert result.statement.epsilon() == formal[0].epsilon
    for guarantee in formal:
        assert (ONE_PARTY in guarantee.assumptions) == (guarantee.unit is USER)


def test_no_party_is_protected_whose_rows_become_public_or_that_has_two_votes() -> None:
    two = a_pate(3, AT_AGGREGATOR).plan(data_of(), STAR)
    given = a_pate(2, AT_AGGREGATOR).plan(data_of(public=False, public_rows=24), STAR)
    for plans in (two, given):
        assert stated(plans) == [(PUBLIC, EXAMPLE, ADD_REMOVE), (AGGREGATOR, EXAMPLE, REPLACE_ONE)]
    counted = a_pate(2, AT_AGGREGATOR, USERS).plan(data_of(public=False), STAR)
    assert stated(counted)[0] == (PUBLIC, USER, ZERO_OUT)


def test_a_replaced_row_that_keeps_its_teacher_moves_one_vote() -> None:
    """By its user, or since its party hosts one teacher; else a group of two."""
    moved = to_aggregator(a_pate(4, BY_PARTIES), data_of())
    by_user = to_aggregator(a_pate(4, BY_PARTIES, USERS), data_of())
    alone = to_aggregator(a_pate(2, BY_PARTIES), data_of())
    assert {plan.relation for plan in (moved, by_user, alone)} == {REPLACE_ONE}
    assert "group of two" in moved.theorem
    assert "keeps its number" in by_user.theorem
    assert "hosts one teacher" in alone.theorem
    assert spent(by_user) == spent(alone)
    # A Gaussian of mu = sqrt(2 q) / sigma, and of twice that.
    mu = math.sqrt(2 * 6) / 4.0
    once, twice = (epsilon(gaussian_event(1 / m), 1e-5) for m in (mu, 2 * mu))
    assert once <= spent(by_user) < 1.02 * once
    assert twice <= spent(moved) < 1.02 * twice


def test_a_row_that_may_become_public_is_replaced_by_one_that_may_not() -> None:
    data = data_of(public=False, public_rows=24)
    assert STAYS_KEPT in to_aggregator(a_pate(4, BY_PARTIES), data).assumptions
    assert STAYS_KEPT not in a_pate(4, BY_PARTIES).plan(data, STAR)[0].assumptions
    # The coin of a user is kept with its number.
    assert STAYS_KEPT not in to_aggregator(a_pate(4, BY_PARTIES, USERS), data).assumptions
    assert STAYS_KEPT not in to_aggregator(a_pate(4, BY_PARTIES), data_of()).assumptions


@pytest.mark.parametrize("relation", [ADD_REMOVE, ZERO_OUT, REPLACE_ONE])
def test_one_moved_vote_costs_each_unit_what_the_plan_of_one_vote_says(relation: Relation) -> None:
    """Accountants double the sensitivity of a replaced unit's noise; a vote moves once."""
    curve = RdpCurve(orders=(2.0, 8.0, 32.0), rdp=(0.02, 0.08, 0.32))
    for event in (
        curve,
        gaussian_event(3.0),
        repeated(laplace_event(5.0), 2),
        Approximate(gaussian_event(3.0), 1e-9),
        composed([gaussian_event(3.0), repeated(gaussian_event(5.0), 2)]),
        composed([gaussian_event(3.0), curve]),
        non_private_event(),
    ):
        plan = PrivacyPlan(
            observer=AGGREGATOR,
            unit=EXAMPLE,
            relation=relation,
            charges={"release": Charge(event, 3)},
        )
        options = {"relation": ADD_REMOVE, "teachers": 2, "parties": 2, "given_up": False}
        for assigned_by in (CONTENTS, USERS):
            own, whole = of_units(plan, assigned_by=assigned_by, **options)  # type: ignore[arg-type]
            assert own.relation is (REPLACE_ONE if relation is REPLACE_ONE else ADD_REMOVE)
            assert (whole.unit, whole.relation) == (CLIENT, REPLACE_ONE)
            assert spent(own) == pytest.approx(spent(plan), rel=1e-3)
            assert spent(whole) == pytest.approx(spent(plan), rel=1e-3)


def test_a_delta_above_one_over_the_parties_is_refused_where_they_are_protected() -> None:
    trainer = a_pate(2, AT_AGGREGATOR)
    with pytest.raises(UnsoundReleaseError, match="client"):
        # Parties are the fewest: a delta of theirs protects rows, and nobody of two.
        check_plans(trainer.plan(replace(data_of(), public_rows=24), STAR)[2:], data_of(), 0.6)
