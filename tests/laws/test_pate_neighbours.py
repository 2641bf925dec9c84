"""What PATE states, attacked: neighbours, the real assignment, and the exact law of the answers.

Four teachers, three classes, four queries. Every sequence of answers is enumerated with its
probability under both neighbours, so that what is measured is the mechanism's own epsilon and no
estimate; the plan may not promise less.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtrain.accounting.epsilon import epsilon
from privtrain.accounting.event import gaussian_event
from privtrain.core.observers import AGGREGATOR, PUBLIC
from privtrain.core.runtime import Party
from privtrain.core.seeding import SeededEntropy, Seeds, Streams
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, Unit
from privtrain.core.task import FederatedData, Rows, concatenate
from privtrain.core.trainer import PrivacyPlan
from privtrain.data.coins import coins
from privtrain.ledgers.run import epsilon_of
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.release.placement import AT_PARTY
from privtrain.runs.fitting import fit
from privtrain.sampling.assignment import CONTENTS, USERS, AssignedBy
from privtrain.steps.plain import PlainSteps
from privtrain.steps.voting import CoordinatedDraw
from privtrain.trainers import teachers as teachers_file
from privtrain.trainers.pate import PATE
from privtrain.trainers.teachers import Vote, public_part, public_rate
from tests.trainers.federations import STAR, TASK, some_rows
from tests.winners import measured, sequences

QUERIES, SIGMA, DELTA = 4, 2.5, 1e-2
Counts = NDArray[np.float64]


def a_pate(teachers: int = 4, **options: object) -> PATE:
    steps = PlainSteps(epochs=8, learning_rate=0.5)
    given = {
        "teachers": teachers,
        "queries": QUERIES,
        "release": Release(GNMax(SIGMA), finish=ARGMAX),
        "steps": steps,
        "student": steps,
        **options,
    }
    return PATE(**given)  # type: ignore[arg-type]


def a_party(seed: int, count: int = 10, users: int | None = None) -> Rows:
    """Rows, of which three each belong to a user where a first user is named."""
    rows = some_rows(seed, count)
    return rows if users is None else replace(rows, users=users + torch.arange(count) // 3)


def data_of(*parties: Rows, public: bool = True) -> FederatedData:
    return FederatedData(
        train={f"p{number}": rows for number, rows in enumerate(parties)},
        test=some_rows(1),
        public=Rows(some_rows(5, QUERIES).inputs) if public else None,
        public_rows=sum(map(len, parties)),
    )


def votes(trainer: PATE, data: FederatedData, seed: int = 0) -> dict[str, Counts]:
    """What each party sends without noise, each query's counts a row."""
    seeds = Seeds(seed)
    rate, _ = public_rate(data, trainer.queries)
    hosted = trainer.hosted(data.parties)
    release = Release(trainer.release.mechanism, finish=ARGMAX)
    vote = Vote(
        *(TASK, trainer.steps, release, hosted, rate, seed),
        assigned_by=trainer.assigned_by,
        vote=trainer.vote,
        classes=3,
    )
    order = torch.randperm(QUERIES, generator=seeds["queries", 0, ""].torch())
    asked = some_rows(5, QUERIES).inputs[order]
    sent = {}
    for name, rows in data.train.items():
        entropy = SeededEntropy(0)
        party = Party(
            name=name, round=1, train={name: rows}, state={}, seeds=seeds, entropy=entropy
        )
        sent[name] = vote({"queries": asked}, party).message["votes"].numpy()
    return sent


def total(sent: dict[str, Counts]) -> Counts:
    return np.sum(list(sent.values()), axis=0)


def without(rows: Rows, places: list[int]) -> Rows:
    return rows.take(torch.tensor([n for n in range(len(rows)) if n not in places]))


def with_party(data: FederatedData, party: str, rows: Rows) -> FederatedData:
    # What is stated of the number of rows stays: under add/remove neighbours share it.
    return replace(data, train={**data.train, party: rows})


def planned(trainer: PATE, data: FederatedData, unit: Unit, observer: object) -> PrivacyPlan:
    (plan,) = [p for p in trainer.plan(data, STAR) if (p.unit, p.observer) == (unit, observer)]
    return plan


def measured_to_public(one: Counts, other: Counts) -> float:
    return measured(sequences(one, SIGMA), sequences(other, SIGMA), DELTA)


def attacked(
    trainer: PATE, data: FederatedData, unit: Unit, neighbours: Iterator[FederatedData]
) -> tuple[float, float]:
    """The largest measured epsilon to the public, and the most votes of a query that moved."""
    plan = planned(trainer, data, unit, PUBLIC)
    stated = epsilon_of(plan, plan.counts, DELTA)
    whole, worst, most = total(votes(trainer, data)), 0.0, 0.0
    for neighbour in neighbours:
        # The same is stated of the neighbour: what is planned tells nothing.
        assert planned(trainer, neighbour, unit, PUBLIC) == plan
        other = total(votes(trainer, neighbour))
        most = max(most, float(np.abs(whole - other).sum(axis=1).max()) / 2)
        worst = max(worst, measured_to_public(whole, other))
    assert worst <= stated
    return worst, most


def test_what_is_attacked_is_what_a_fit_sends() -> None:
    data = data_of(a_party(19), a_party(20))
    for trainer in (a_pate(), a_pate(vote=CoordinatedDraw())):
        result = fit(trainer, TASK, data, runtimes=STAR, delta=DELTA, keep_payloads=True)
        sent = {e.sender: e.payload for e in result.transcript.entries if e.kind == "votes"}
        for party, counts in votes(trainer, data).items():
            message = sent[party]
            assert message is not None
            assert np.array_equal(message.numpy(), counts)


@pytest.mark.parametrize("vote", [None, CoordinatedDraw()], ids=["top", "drawn"])
def test_a_row_that_joins_or_leaves_moves_one_vote(vote: CoordinatedDraw | None) -> None:
    """Equal rows among them, and rows that are all zero."""
    rows = a_party(19)
    twice = concatenate([rows, rows.take(torch.tensor([0, 0, 3]))])
    data = data_of(twice, a_party(20))
    trainer = a_pate() if vote is None else a_pate(vote=vote)

    def neighbours() -> Iterator[FederatedData]:
        for place in range(len(twice)):
            yield with_party(data, "p0", without(twice, [place]))
        zero = Rows(torch.zeros(1, 5, dtype=torch.float64), torch.zeros(1, dtype=torch.long))
        for joins in (zero, twice.take(torch.tensor([1])), a_party(11, 1), a_party(12, 1)):
            yield with_party(data, "p0", concatenate([twice, joins]))

    worst, most = attacked(trainer, data, Unit.EXAMPLE, neighbours())
    assert most == 1.0
    assert worst > 0.1, "no neighbour could be told apart, which proves nothing"


def test_a_row_that_is_kept_is_protected_where_others_are_given_up() -> None:
    """And one that is given up is not: it changes what everybody is asked."""
    data = data_of(a_party(19, 16), a_party(20, 16), public=False)
    trainer = a_pate()
    rate, counted = public_rate(data, QUERIES)
    assert rate > 0 and counted is None
    rows = data.train["p0"]
    given = public_part("p0", rows, rate, Seeds(0))
    assert 0 < int(given.sum()) < 10
    kept = [int(n) for n in (~given).nonzero()][:8]
    worst, most = attacked(
        trainer,
        data,
        Unit.EXAMPLE,
        (with_party(data, "p0", without(rows, [place])) for place in kept),
    )
    assert most == 1.0 and worst > 0
    for place in kept:
        rest = public_part("p0", without(rows, [place]), rate, Seeds(0))
        assert torch.equal(rest, given[[n for n in range(len(rows)) if n != place]])


def test_no_copy_of_a_kept_row_is_public() -> None:
    """Else the public copy would tell of the kept one, with whom it goes."""
    rows, purpose = concatenate([a_party(19, 30), a_party(19, 30)]), "privtrain/public/p0/0"
    given = public_part("p0", rows, 0.4, Seeds(0)).view(2, 30)
    assert 0 < int(given[0].sum()) < 30
    assert torch.equal(given[0], given[1])
    # The broken twin: a coin for each copy. A kept row leaves, and what is public loses one.
    apart = torch.from_numpy(coins(rows, purpose) < 0.4)
    first, second = apart.view(2, 30)
    assert torch.equal(first, given[0])
    kept = int((second & ~first).nonzero()[0])
    left = torch.from_numpy(coins(without(rows, [kept]), purpose) < 0.4)
    assert int(left.sum()) == int(apart.sum()) - 1


def test_a_user_moves_one_vote_where_users_decide_and_more_where_they_do_not() -> None:
    data = data_of(a_party(19, 18, users=0), a_party(20, 18, users=50))
    rows = data.train["p0"]
    trainer = a_pate(assigned_by=USERS)

    def neighbours() -> Iterator[FederatedData]:
        for user in range(6):
            yield with_party(data, "p0", without(rows, list(range(3 * user, 3 * user + 3))))
        # A user who holds what is asked, each of it five times, with one label.
        asked = some_rows(5, QUERIES).inputs.repeat(5, 1)
        for label in range(3):
            labels = torch.full((len(asked),), label)
            joins = Rows(asked, labels, torch.full((len(asked),), 90 + label))
            yield with_party(data, "p0", concatenate([rows, joins]))

    worst, most = attacked(trainer, data, Unit.USER, neighbours())
    assert most == 1.0 and worst > 0.1
    plain, moved = total(votes(a_pate(), data)), 0.0
    for neighbour in neighbours():
        shift = np.abs(plain - total(votes(a_pate(), neighbour))).sum(axis=1).max() / 2
        moved = max(moved, float(shift))
    assert moved > 1.0, "rows of a user would not need one teacher"


def test_all_rows_of_a_party_move_one_vote_where_it_hosts_one_teacher() -> None:
    """Replaced by others, by another number of them, by zeros: a group of any size for free."""
    parties = [a_party(seed) for seed in (19, 20, 21, 22)]
    data, trainer = data_of(*parties), a_pate()
    nothing = Rows(torch.zeros(3, 5, dtype=torch.float64), torch.zeros(3, dtype=torch.long))

    def neighbours() -> Iterator[FederatedData]:
        for party in data.parties:
            for rows in (a_party(30), a_party(31, 3), nothing):
                yield with_party(data, party, rows)

    worst, most = attacked(trainer, data, Unit.CLIENT, neighbours())
    assert most == 1.0 and worst > 0.3
    assert planned(trainer, data, Unit.CLIENT, PUBLIC).relation is REPLACE_ONE
    # A party of two teachers is promised nothing as a whole, and moves two votes.
    pair = data_of(*parties[:2])
    assert {plan.unit for plan in trainer.plan(pair, STAR)} == {Unit.EXAMPLE}
    shifted = with_party(pair, "p0", nothing)
    shift = total(votes(trainer, pair)) - total(votes(trainer, shifted))
    assert np.abs(shift).sum(axis=1).max() / 2 == 2.0, "two votes of no query moved"


@pytest.mark.parametrize("assigned_by", [CONTENTS, USERS])
def test_who_reads_a_partys_noised_counts_tells_as_much_as_its_mu(assigned_by: AssignedBy) -> None:
    """A mu of sqrt(2 q) / sigma where one vote of each query moves, twice that where two may."""
    data = data_of(a_party(19, 12, users=0), a_party(20, 12, users=50))
    rows = data.train["p0"]
    trainer = a_pate(
        assigned_by=assigned_by, release=Release(GNMax(SIGMA), AT_PARTY, finish=ARGMAX)
    )
    unit = assigned_by.unit
    plan = planned(trainer, data, unit, AGGREGATOR)
    assert plan.relation is REPLACE_ONE
    stated = epsilon_of(plan, plan.counts, DELTA)
    once = math.sqrt(2 * QUERIES) / SIGMA
    mu = {ADD_REMOVE: once, REPLACE_ONE: once if assigned_by is USERS else 2 * once}
    assert stated >= epsilon(gaussian_event(1 / mu[REPLACE_ONE]), DELTA) * (1 - 1e-6)
    whole = votes(trainer, data)["p0"]
    most = {ADD_REMOVE: 0.0, REPLACE_ONE: 0.0}
    for place in range(0, 12, 3):
        places = [place] if assigned_by is CONTENTS else list(range(place, place + 3))
        gone = without(rows, places)
        changed = Rows(rows.inputs.clone(), rows.labels.clone(), rows.users)
        others = some_rows(30 + place, len(places))
        changed.inputs[places], changed.labels[places] = others.inputs, others.labels
        for relation, neighbour in ((ADD_REMOVE, gone), (REPLACE_ONE, changed)):
            other = votes(trainer, with_party(data, "p0", neighbour))["p0"]
            # Gaussian noise on all counts: the whole message is one Gaussian of this mu.
            most[relation] = max(most[relation], float(np.linalg.norm(whole - other)) / SIGMA)
    for relation in (ADD_REMOVE, REPLACE_ONE):
        assert 0 < most[relation] <= mu[relation] * (1 + 1e-12)


def test_no_ballots_of_four_teachers_are_told_apart_better_than_is_stated() -> None:
    """All of them, and all ways to move one vote: whatever teachers learned, or drew together."""
    data = data_of(a_party(19), a_party(20))
    plan = planned(a_pate(vote=CoordinatedDraw()), data, Unit.EXAMPLE, PUBLIC)
    stated = epsilon_of(plan, plan.counts, DELTA)
    ballots = [(a, b, 4 - a - b) for a in range(5) for b in range(5 - a)]
    worst = 0.0
    for one in map(np.array, ballots):
        for leaves, joins in permutations(range(3), 2):
            other = one.copy()
            other[leaves], other[joins] = other[leaves] - 1, other[joins] + 1
            if other.min() >= 0:
                pair = (np.tile(counts, (QUERIES, 1)) for counts in (one, other))
                worst = max(worst, measured_to_public(*pair))
    assert 0.4 * stated < worst <= stated


# ------------------------------------------------------------------------------- broken twins


def test_teachers_that_share_a_shuffled_list_would_be_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One row less, and all rows behind it change their teacher."""

    def in_turn(rows: Rows, teachers: int, seed: int, by: AssignedBy = CONTENTS) -> Tensor:
        return torch.arange(len(rows)) % teachers

    monkeypatch.setattr(teachers_file, "teacher_of_rows", in_turn)
    data = data_of(a_party(19, 20))
    rows = data.train["p0"]
    whole = total(votes(a_pate(), data))
    moved = [
        np.abs(whole - total(votes(a_pate(), with_party(data, "p0", without(rows, [place])))))
        for place in range(10)
    ]
    assert max(float(shift.sum(axis=1).max()) / 2 for shift in moved) > 1.0


class FromRows(CoordinatedDraw):
    """Broken: what teachers share follows from how many rows a party holds."""

    rows = 0

    def cast(self, scores: Tensor, seeds: Streams) -> Tensor:
        return super().cast(scores, Seeds(type(self).rows))


class Alone(CoordinatedDraw):
    """Broken: every teacher draws for itself."""

    teachers = 0

    def cast(self, scores: Tensor, seeds: Streams) -> Tensor:
        type(self).teachers += 1
        return super().cast(scores, Seeds(type(self).teachers))


def test_draws_that_follow_from_rows_would_be_caught() -> None:
    """All votes move at once, which no plan pays for."""
    data = data_of(a_party(19), a_party(20))
    trainer, epsilons = a_pate(vote=FromRows()), []
    plan = planned(trainer, data, Unit.EXAMPLE, PUBLIC)
    FromRows.rows = 20
    whole = total(votes(trainer, data))
    for count in range(19, 9, -1):
        FromRows.rows = count
        epsilons.append(measured_to_public(whole, total(votes(trainer, data))))
    honest = epsilon_of(plan, plan.counts, DELTA)
    assert max(epsilons) > honest


def test_draws_that_nobody_shares_would_be_caught() -> None:
    """They tell no more, and agree no better than chance: nothing would be won."""

    def unanimous(trainer: PATE) -> float:
        return float(total(votes(trainer, data_of(a_party(19), a_party(20)))).max(axis=1).mean())

    still: Callable[[CoordinatedDraw], PATE] = lambda vote: a_pate(  # noqa: E731
        vote=vote, steps=PlainSteps(epochs=1, learning_rate=1e-9)
    )
    assert unanimous(still(CoordinatedDraw())) > unanimous(still(Alone()))
