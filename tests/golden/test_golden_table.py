"""The golden table: one release of 100 parties, to every observer.

Clipping norm 1, noise multiplier 1, delta 1e-5, privacy loss distributions. Every row follows from
one formula: the noise an observer cannot subtract, over the sensitivity of what it sees.
"""

import math
from dataclasses import dataclass

import pytest

from privtrain.accounting.epsilon import evaluate
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Observer, coalition
from privtrain.core.parties import AGGREGATOR_NAME, party_names
from privtrain.core.statement import REPLACE_ONE, ZERO_OUT, Relation, Unit
from privtrain.core.trainer import RELEASE
from privtrain.ledgers.run import epsilon_of
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.release.placement import AT_AGGREGATOR, AT_PARTY, SPLIT, Placement
from privtrain.release.shared import SharedSum
from privtrain.sampling.sampling import FixedSize
from tests.contracts.aggregation import MaskedSum

DELTA = 1e-5
CLIENTS = party_names("client", 100)
THIRTY = coalition(frozenset(CLIENTS[:30]))
THIRTY_AND_AGGREGATOR = coalition(frozenset({*CLIENTS[:30], AGGREGATOR_NAME}))
GAUSSIAN = Gaussian(1.0, 1.0)
EVERY_PARTY = SPLIT(honest_survivors=100)
INF = math.inf


@dataclass(frozen=True)
class Cell:
    """An epsilon as it is printed, and how many decimals of it are."""

    epsilon: float
    relation: Relation
    decimals: int = 3


def sum_(epsilon: float) -> Cell:
    """What the reader of a sum is owed: zero-out."""
    return Cell(epsilon, ZERO_OUT)


def single(epsilon: float, decimals: int = 3) -> Cell:
    """What the reader of single messages is owed: replace-one."""
    return Cell(epsilon, REPLACE_ONE, decimals)


Row = tuple[str, Release, dict[Observer, Cell]]

ROWS: list[Row] = [
    (
        "exact, plain",
        Release(),
        {
            PUBLIC: sum_(INF),
            PARTICIPANT: sum_(INF),
            AGGREGATOR: single(INF),
            THIRTY: sum_(INF),
            THIRTY_AND_AGGREGATOR: single(INF),
        },
    ),
    (
        "exact, masked",
        Release(aggregation=MaskedSum()),
        {
            PUBLIC: sum_(INF),
            PARTICIPANT: sum_(INF),
            AGGREGATOR: sum_(INF),
            THIRTY: sum_(INF),
            THIRTY_AND_AGGREGATOR: sum_(INF),
        },
    ),
    (
        "Gaussian, plain: the aggregator drew the noise",
        Release(GAUSSIAN),
        {
            PUBLIC: sum_(4.377),
            PARTICIPANT: sum_(4.377),
            AGGREGATOR: single(INF),
            THIRTY: sum_(4.377),
            THIRTY_AND_AGGREGATOR: single(INF),
        },
    ),
    (
        "Gaussian, masked: the aggregator drew the noise",
        Release(GAUSSIAN, aggregation=MaskedSum()),
        {
            PUBLIC: sum_(4.377),
            PARTICIPANT: sum_(4.377),
            AGGREGATOR: sum_(INF),
            THIRTY: sum_(4.377),
            THIRTY_AND_AGGREGATOR: sum_(INF),
        },
    ),
    (
        "Gaussian, split, masked",
        Release(GAUSSIAN, EVERY_PARTY, MaskedSum()),
        {
            PUBLIC: sum_(4.377),
            PARTICIPANT: sum_(4.403),  # it can subtract its own hundredth
            AGGREGATOR: sum_(4.377),
            THIRTY: sum_(5.388),
            THIRTY_AND_AGGREGATOR: sum_(5.388),
        },
    ),
    (
        "Gaussian, split, plain: a mistake that must be visible",
        Release(GAUSSIAN, EVERY_PARTY),
        {
            PUBLIC: sum_(4.377),
            PARTICIPANT: sum_(4.403),
            AGGREGATOR: single(284.4, decimals=1),
            THIRTY: sum_(5.388),
            THIRTY_AND_AGGREGATOR: single(284.4, decimals=1),
        },
    ),
    (
        "Gaussian at each party, plain",
        Release(GAUSSIAN, AT_PARTY),
        {
            PUBLIC: sum_(0.341),
            PARTICIPANT: sum_(0.343),
            AGGREGATOR: single(9.997),
            THIRTY: sum_(0.414),
            THIRTY_AND_AGGREGATOR: single(9.997),
        },
    ),
    (
        "Gaussian on shares",
        Release(GAUSSIAN, aggregation=SharedSum()),
        {
            PUBLIC: sum_(4.377),
            PARTICIPANT: sum_(4.377),
            AGGREGATOR: sum_(4.377),
            THIRTY: sum_(4.377),
            THIRTY_AND_AGGREGATOR: sum_(4.377),
        },
    ),
]

CELLS = [
    pytest.param(release, observer, cell, id=f"{name}-{observer}{number}")
    for name, release, cells in ROWS
    for number, (observer, cell) in enumerate(cells.items())
]


@pytest.mark.parametrize(("release", "observer", "cell"), CELLS)
def test_every_cell(release: Release, observer: Observer, cell: Cell) -> None:
    (plan,) = release.plans(unit=Unit.CLIENT, count=1, parties=100, observers=(observer,))
    assert plan.relation is cell.relation
    assert plan.unit is Unit.CLIENT
    found = epsilon_of(plan, {RELEASE: 1}, DELTA)
    assert round(found, cell.decimals) == cell.epsilon if cell.epsilon < INF else found == INF


@pytest.mark.parametrize(("name", "release", "cells"), ROWS)
def test_finite_cells_come_from_pld_and_rdp_is_no_smaller(
    name: str, release: Release, cells: dict[Observer, Cell]
) -> None:
    for plan in release.plans(unit=Unit.CLIENT, count=1, parties=100, observers=tuple(cells)):
        found = evaluate(plan.charges[RELEASE].event, DELTA, plan.relation)
        if found.epsilon == INF:
            assert (found.accountant, found.cross_check) == ("none", None)
        else:
            assert found.accountant == "pld"
            assert found.cross_check is not None
            assert found.cross_check >= found.epsilon


def test_the_table_covers_every_observer_in_every_row() -> None:
    everybody = {PUBLIC, PARTICIPANT, AGGREGATOR, THIRTY, THIRTY_AND_AGGREGATOR}
    assert all(set(cells) == everybody for _, _, cells in ROWS)
    assert len(THIRTY.corrupted) == 30
    assert len(THIRTY_AND_AGGREGATOR.corrupted) == 31


def test_replace_one_by_the_other_accountant() -> None:
    (plan,) = Release(GAUSSIAN, AT_PARTY).plans(
        unit=Unit.CLIENT, count=1, parties=100, observers=(AGGREGATOR,)
    )
    assert evaluate(plan.charges[RELEASE].event, DELTA, plan.relation).cross_check == pytest.approx(
        10.726, abs=5e-4
    )


@pytest.mark.parametrize("noise_at", [AT_AGGREGATOR, AT_PARTY, EVERY_PARTY])
def test_all_computing_parties_together_read_every_message(noise_at: Placement) -> None:
    """Their shares add up: to them the shared sum is a plain one."""
    shared = SharedSum(computing_parties=3)
    names = frozenset(shared.computing_names)
    release, plain = Release(GAUSSIAN, noise_at, shared), Release(GAUSSIAN, noise_at)
    for others in (frozenset[str](), frozenset(CLIENTS[:30])):
        together, aggregator = coalition(names | others), coalition(others | {AGGREGATOR_NAME})
        assert shared.exposure(together, noise_at, parties=100) == plain.aggregation.exposure(
            aggregator, noise_at, parties=100
        )
    some = coalition(names - {shared.computing_names[0]})
    seen = shared.exposure(some, noise_at, parties=100)
    assert seen.knows_sample
    assert not seen.single_messages
    assert seen.hidden_variance == pytest.approx(100.0 if noise_at == AT_PARTY else 1.0)
    (plan,) = release.plans(
        unit=Unit.CLIENT, count=1, parties=100, observers=(some,), sampling=FixedSize(10)
    )
    assert (
        type(plan.charges[RELEASE].event).__name__ == "GaussianDpEvent"
    )  # no amplification: the sample is known
