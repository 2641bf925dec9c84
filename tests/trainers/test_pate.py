"""PATE: disjoint teachers, labels only, and a charge for each answer."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from privtrain.core.errors import DataError, UnsoundReleaseError, UnsupportedError
from privtrain.core.observers import AGGREGATOR
from privtrain.core.parties import AGGREGATOR_NAME, PUBLIC_NAME
from privtrain.core.result import TrainResult
from privtrain.core.runtime import Party, Payload, Runtimes
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Budget, Unit
from privtrain.core.task import COLUMNS, FederatedData, Rows, Task, concatenate
from privtrain.data.coins import coins
from privtrain.ledgers.run import epsilon_of
from privtrain.ledgers.study import StudyLedger
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.mechanism import Exact
from privtrain.mechanisms.votes import GNMax, LNMax
from privtrain.release.arrival import Expected
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, IDENTITY
from privtrain.release.placement import AT_PARTY
from privtrain.release.shared import SharedSum
from privtrain.runs.fitting import fit
from privtrain.steps.plain import PlainSteps
from privtrain.trainers.pate import (
    PATE,
    Vote,
    _of_two_votes,
    public_part,
    teacher_of_rows,
)
from tests.statistics import ALARM
from tests.trainers.federations import STAR, TASK, a_federation, module, some_rows, vector

QUICK = PlainSteps(epochs=3, learning_rate=0.2)


def a_pate(**options: object) -> PATE:
    return PATE(
        **{  # type: ignore[arg-type]
            "teachers": 6,
            "queries": 12,
            "release": Release(GNMax(2.0), finish=ARGMAX),
            "steps": QUICK,
            "student": QUICK,
            **options,
        }
    )


def run(trainer: PATE, data: FederatedData, task: Task = TASK, **options: object) -> TrainResult:
    return fit(trainer, task, data, runtimes=STAR, keep_payloads=True, **options)  # type: ignore[arg-type]


def with_public(data: FederatedData, count: int = 40) -> FederatedData:
    return replace(data, public=Rows(some_rows(77, count).inputs))


def without_public_part(party: str, rows: Rows, rate: float, seeds: Seeds) -> tuple[Rows, Rows]:
    """The rows that a party gives up to the public, and those that its teachers keep."""
    given_up = public_part(party, rows, rate, seeds)
    return rows.take(given_up.nonzero().squeeze(1)), rows.take((~given_up).nonzero().squeeze(1))


def groups(rows: Rows, teachers: int, seed: int, rate: float = 0.0) -> list[list[bytes]]:
    """What each teacher trains on and, last, what is public: row by row."""
    public, kept = without_public_part("p", rows, rate, Seeds(seed))
    number = teacher_of_rows(kept, teachers, seed).tolist()
    found: list[list[bytes]] = [[] for _ in range(teachers + 1)]
    places = zip([*number, *[teachers] * len(public)], concatenate_all(kept, public), strict=True)
    for place, row in places:
        found[place].append(row)
    return [sorted(rows) for rows in found]


def concatenate_all(*parts: Rows) -> list[bytes]:
    return [
        row.numpy().tobytes() + bytes([int(label)])
        for part in parts
        for row, label in zip(part.inputs, part.labels, strict=True)
    ]


# -------------------------------------------------------------------------- disjoint teachers


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(2, 40),
    place=st.integers(0, 39),
    teachers=st.integers(1, 9),
    seed=st.integers(0, 50),
    rate=st.floats(0, 0.9),
    copies=st.integers(1, 4),
    users=st.booleans(),
)
def test_removing_a_row_changes_what_one_teacher_trains_on_or_what_is_public(
    count: int, place: int, teachers: int, seed: int, rate: float, copies: int, users: bool
) -> None:
    rows = some_rows(seed, count)
    if users:
        rows = replace(rows, users=torch.arange(count) // 3)
    gone = place % count
    for _ in range(copies - 1):  # the row also occurs some more times
        rows = concatenate([rows, rows.take(torch.tensor([gone]))])
    rest = rows.take(torch.tensor([i for i in range(len(rows)) if i != gone]))
    pairs = zip(groups(rows, teachers, seed, rate), groups(rest, teachers, seed, rate), strict=True)
    changed = [(more, less) for more, less in pairs if more != less]
    assert len(changed) == 1
    assert len(changed[0][0]) == len(changed[0][1]) + 1


def test_rows_with_the_smallest_hashes_would_move_a_second_row() -> None:
    """The broken twin: as many rows as were asked are given up, however many there are."""

    def public(rows: Rows) -> set[bytes]:
        return set(concatenate_all(rows.take(torch.from_numpy(coins(rows, "p").argsort()[:5]))))

    rows = some_rows(3, 40)
    rests = [rows.take(torch.tensor([i for i in range(40) if i != gone])) for gone in range(40)]
    assert max(len(public(rows) ^ public(rest)) for rest in rests) == 2


def test_a_users_rows_are_all_public_or_all_kept() -> None:
    rows = replace(some_rows(3, 90), users=torch.arange(90) % 15)
    public, kept = without_public_part("p", rows, 0.4, Seeds(0))
    assert public.users is not None and kept.users is not None
    assert not set(public.users.tolist()) & set(kept.users.tolist())
    assert len(public) % 6 == 0 and 0 < len(public) < 90


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 40), teachers=st.integers(1, 9), rate=st.floats(0, 1))
def test_every_row_has_one_teacher_or_is_public(count: int, teachers: int, rate: float) -> None:
    rows = some_rows(3, count)
    public, kept = without_public_part("p", rows, rate, Seeds(1))
    assert rate > 0 or len(public) == 0
    everything = torch.cat([public.inputs, kept.inputs])
    assert sorted(everything.tolist()) == sorted(rows.inputs.tolist())
    number = teacher_of_rows(kept, teachers, 1)
    assert len(number) == len(kept)
    assert all(0 <= n < teachers for n in number.tolist())


def test_teachers_get_about_equally_many_rows() -> None:
    number = teacher_of_rows(some_rows(1, 4_000), 8, 5)
    assert stats.chisquare(number.bincount(minlength=8).numpy()).pvalue > ALARM
    assert not torch.equal(number, teacher_of_rows(some_rows(1, 4_000), 8, 6))


def votes_of(rows: Rows, teachers: int = 5, queries: int = 20, rate: float = 0.0) -> Tensor:
    """The counts that a party sends."""
    release = Release(GNMax(1.0), finish=ARGMAX)
    vote = Vote(TASK, QUICK, release, {"p": teachers}, rate, 3)
    party = Party(
        name="p", round=1, train={"p": rows}, state={}, seeds=Seeds(3), entropy=SeededEntropy(3)
    )
    return vote({"queries": some_rows(50, queries).inputs}, party)["votes"]


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_a_row_moves_at_most_one_vote_of_each_query(rate: float) -> None:
    """Of every row: one that was given up moves none."""
    rows = some_rows(9, 40)
    whole = votes_of(rows, rate=rate)
    moved = 0
    for place in range(0, 40, 3):
        rest = rows.take(torch.tensor([i for i in range(40) if i != place]))
        difference = whole - votes_of(rest, rate=rate)
        assert float(difference.abs().sum(dim=1).max()) <= 2.0
        assert float(difference.norm(dim=1).max()) <= math.sqrt(2.0) + 1e-12
        moved += int(difference.abs().sum() > 0)
    assert moved > 0, "no row moved any vote, which proves nothing"


def test_a_replaced_row_moves_two_votes_at_most_and_sometimes_two() -> None:
    rows, others = some_rows(9, 40), some_rows(10, 40)
    whole, most = votes_of(rows, queries=50), 0.0
    for place in range(10):
        inputs, labels = rows.inputs.clone(), rows.labels.clone()
        inputs[place], labels[place] = others.inputs[place], others.labels[place]
        difference = whole - votes_of(Rows(inputs, labels), queries=50)
        assert float(difference.abs().sum(dim=1).max()) <= 4.0
        most = max(most, float(difference.abs().sum(dim=1).max()))
    assert most > 2.0, "a group of one would have been enough"


def test_every_teacher_votes_once_on_every_query() -> None:
    counts = votes_of(some_rows(9, 40))
    assert torch.equal(counts.sum(dim=1), torch.full((20,), 5.0, dtype=torch.float64))
    assert torch.equal(counts, counts.round())


def test_a_teacher_without_rows_votes_too() -> None:
    counts = votes_of(some_rows(9, 2), teachers=9)
    assert torch.equal(counts.sum(dim=1), torch.full((20,), 9.0, dtype=torch.float64))


# ------------------------------------------------------------------------------ what is released


def test_only_winners_leave_the_aggregator() -> None:
    result = run(a_pate(), with_public(a_federation(20, 20)))
    entries = result.transcript.entries
    assert {e.kind for e in entries if e.sender == AGGREGATOR_NAME} == {"queries", "labels"}
    labels = [e.payload for e in entries if e.kind == "labels"]
    assert len(labels) == 1
    assert labels[0] is not None
    assert labels[0].shape == (12,)
    assert labels[0].dtype == torch.int64
    published = [(e.kind, e.round) for e in entries if e.receiver == PUBLIC_NAME]
    assert published == [("labels", 1), ("model", 1)]


def test_the_student_learns_from_queries_and_winners_alone() -> None:
    data = with_public(a_federation(20, 20))
    result = run(a_pate(), data)
    by_kind = {e.kind: e.payload for e in result.transcript.entries}
    asked, labels = by_kind["queries"], by_kind["labels"]
    assert asked is not None
    assert labels is not None
    assert data.public is not None
    assert all(any(torch.equal(row, p) for p in data.public.inputs) for row in asked)
    from privtrain.core.parameters import initial_model

    model = initial_model(TASK, Seeds(0)["initialisation", 0, ""]).train()
    own = Party(
        name="student",
        round=0,
        train={"student": Rows(asked, labels)},
        state={},
        seeds=Seeds(0),
        entropy=SeededEntropy(0),
    )
    QUICK(model, TASK, own)
    assert torch.equal(vector(module(result)), vector(model))


@pytest.mark.parametrize("mechanism", [GNMax(3.0), LNMax(3.0)])
def test_winners_are_those_of_counts_with_noise_of_the_stated_size(
    mechanism: GNMax | LNMax,
) -> None:
    """Two classes, one vote ahead: the better one wins as often as the noise allows."""
    release = Release(mechanism, finish=ARGMAX)
    queries = 4_000
    message: Payload = {"votes": torch.tensor([[3.0, 0.0]]).repeat(queries, 1).double()}
    run_ = _a_run(queries)
    expected = Expected(contributions=3)
    winners = release.arrive(
        {"a": message}, run_, round=1, kind="votes", releases=queries, expected=expected
    )
    wins = int((winners == 0).sum())

    def rate(scale: float) -> float:
        if isinstance(mechanism, GNMax):
            return float(stats.norm.cdf(3.0 / (scale * math.sqrt(2.0))))
        t = 3.0 / scale  # difference of two Laplace variables
        return 1 - 0.5 * math.exp(-t) * (1 + t / 2)

    assert stats.binomtest(wins, queries, rate(3.0)).pvalue > ALARM
    for factor in (2 / 3, 3 / 2):
        assert stats.binomtest(wins, queries, rate(3.0 * factor)).pvalue < ALARM


def _a_run(releases: int):  # type: ignore[no-untyped-def]
    from tests.steps.test_pooling import a_run

    run_ = a_run()

    class Paid:
        spent = releases

        def spend(self, count: int = 1) -> bool:
            return True

        def use(self, count: int = 1) -> None:
            return

    run_.ledger = Paid()
    return run_


# ------------------------------------------------------------------------------ the public part


def test_a_split_that_had_to_be_made_is_stated_and_its_rows_are_in_no_teacher() -> None:
    data = a_federation(60, 60, public_rows=110)
    result = run(a_pate(), data)
    rate = (12 + 3 * math.sqrt(12)) / 110
    assert any(f"with probability {rate:.3g}" in note for note in result.notes)
    assert result.members is not None
    public = [e.payload for e in result.transcript.entries if e.kind == "public inputs"]
    given_up = torch.cat([rows for rows in public if rows is not None])
    assert stats.binomtest(len(given_up), 120, rate).pvalue > ALARM
    marks = {party: rows for party, rows in result.members.rows.items() if rows is not None}
    kept = [data.train[party].inputs[marks[party]] for party in data.parties]
    together = torch.cat([given_up, *kept])
    assert sorted(together.tolist()) == sorted(data.pooled().inputs.tolist())


def test_the_rate_is_a_public_figure_or_the_count_is_an_assumption() -> None:
    """Under add/remove, one row more must not change other rows' chances to be public."""
    declared, counted = a_federation(60, 60, public_rows=110), a_federation(60, 60)
    for data, relation in ((declared, ADD_REMOVE), (counted, ZERO_OUT)):
        public, _ = a_pate().plan(data, STAR)
        assert public.relation is relation
        assert ("the number of training rows, 120, is public" in public.assumptions) == (
            relation is ZERO_OUT
        )
    assert a_pate().plan(with_public(counted), STAR)[0].relation is ADD_REMOVE


@pytest.mark.parametrize("mechanism", [GNMax(4.0), LNMax(4.0)])
def test_who_reads_single_messages_is_owed_replace_one_of_two_votes(
    mechanism: GNMax | LNMax,
) -> None:
    data = with_public(a_federation(20, 20, 20))
    at_party = Release(mechanism, AT_PARTY, finish=ARGMAX)
    if isinstance(mechanism, LNMax):  # a sum of Laplace noises is none, so the public has no curve
        plans = at_party.plans(unit=Unit.EXAMPLE, count=1, parties=3, observers=(AGGREGATOR,))
        (single,), (both,) = plans, (_of_two_votes(plans[0]),)
        twice = replace(mechanism, scale=mechanism.scale / 2)
    else:
        public, both = a_pate(release=at_party).plan(data, STAR)
        assert public.relation is ADD_REMOVE
        single = at_party.plans(unit=Unit.EXAMPLE, count=1, parties=3)[-1]
        twice = replace(mechanism, sigma=mechanism.sigma / 2)
    assert both.observer == AGGREGATOR and both.relation is REPLACE_ONE
    assert "group of two" in both.theorem
    # A shift twice as large is noise half as wide, at every order.
    exact = Release(twice, AT_PARTY, finish=ARGMAX)
    (halved,) = exact.plans(unit=Unit.EXAMPLE, count=1, parties=3, observers=(AGGREGATOR,))
    assert (np.array(both.event.rdp) >= np.array(halved.event.rdp) - 1e-12).all()
    assert epsilon_of(both, 1, 1e-5) > 1.5 * epsilon_of(single, 1, 1e-5)
    if isinstance(mechanism, GNMax):
        assert np.allclose(both.event.rdp, halved.event.rdp)


def test_a_public_part_is_used_and_costs_no_training_rows() -> None:
    result = run(a_pate(), with_public(a_federation(20, 20)))
    assert result.members is None
    assert not result.notes


def test_fewer_public_rows_than_queries_are_said_and_charged_as_asked() -> None:
    result = run(a_pate(queries=30), with_public(a_federation(20, 20), count=9))
    assert any("only 9 public rows" in note for note in result.notes)
    assert result.statement.guarantees[0].releases == 9


def test_fewer_rows_given_up_than_queries_are_said_and_charged_as_asked() -> None:
    """A stated number of rows that is far too large makes the rate small."""
    result = run(a_pate(), a_federation(20, 20, public_rows=4_000))
    answered = result.statement.guarantees[0].releases
    assert answered < 12
    assert f"only {answered} public rows for 12 queries" in result.notes


def test_queries_that_would_take_all_rows_are_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"Ask fewer queries.*Unprotected"):
        a_pate(queries=40).plan(a_federation(20, 20), STAR)
    with pytest.raises(DataError, match=r"public rows\.$"):
        a_pate(queries=40).plan(a_federation(20, 20, public_rows=40), STAR)


# ------------------------------------------------------------------------------------ the charge


@pytest.mark.parametrize("mechanism", [GNMax(4.0), LNMax(4.0)])
def test_the_data_dependent_charge_is_private_and_never_the_larger(
    mechanism: GNMax | LNMax,
) -> None:
    trainer = a_pate(release=Release(mechanism, finish=ARGMAX))
    result = run(trainer, with_public(a_federation(20, 20)))
    public = [g for g in result.statement.guarantees if g.observer == "public"]
    assert [g.data_dependent for g in public] == [False, True]
    assert public[1].epsilon <= public[0].epsilon
    assert result.statement.epsilon() == public[0].epsilon
    assert any("itself private" in text for text in public[1].assumptions)
    assert {g.relation for g in public} == {ADD_REMOVE}
    assert public[0].releases == 12


def test_a_budget_answers_as_many_queries_as_fit() -> None:
    data = with_public(a_federation(20, 20))
    whole = run(a_pate(), data).statement.epsilon()
    result = run(a_pate(), data, budget=Budget(0.6 * whole))
    assert result.halted is not None
    assert 1 <= result.statement.guarantees[0].releases < 12
    assert result.statement.epsilon() <= 0.6 * whole


# ------------------------------------------------------------------------------ odd data, refusals


def test_one_class_only() -> None:
    rows = some_rows(4, 24)
    single = Rows(rows.inputs, torch.zeros(24, dtype=torch.long))
    data = with_public(FederatedData(train={"a": single}, test=rows))
    result = run(
        a_pate(release=Release(GNMax(0.1), finish=ARGMAX), steps=PlainSteps(epochs=30)), data
    )
    labels = next(e.payload for e in result.transcript.entries if e.kind == "labels")
    assert labels is not None
    assert not labels.any()


def test_more_teachers_than_rows() -> None:
    result = run(a_pate(teachers=50), with_public(a_federation(5, 5)))
    assert bool(torch.isfinite(vector(module(result))).all())


def test_fewer_teachers_than_parties_are_refused_before_anything_is_paid() -> None:
    with pytest.raises(ValueError, match="teachers=2"):
        a_pate(teachers=2).plan(a_federation(4, 4, 4), STAR)


def test_teachers_are_spread_evenly() -> None:
    assert a_pate(teachers=8).hosted(("a", "b", "c")) == {"a": 3, "b": 3, "c": 2}


@pytest.mark.parametrize(
    ("release", "error"),
    [
        (Release(GNMax(1.0), finish=IDENTITY), UnsupportedError),
        (Release(Gaussian(1.0, 1.0), finish=ARGMAX), UnsoundReleaseError),
    ],
)
def test_other_releases_are_refused(release: Release, error: type[Exception]) -> None:
    with pytest.raises(error):
        PATE(release=release)


def test_exact_votes_promise_nothing() -> None:
    result = run(a_pate(release=Release(Exact(), finish=ARGMAX)), with_public(a_federation(20, 20)))
    assert result.statement.epsilon() == math.inf


def test_votes_on_shares_are_planned_where_a_mesh_is_there_or_nothing_is_known_yet() -> None:
    on_shares = a_pate(release=Release(Exact(), finish=ARGMAX, aggregation=SharedSum()))
    data = with_public(a_federation(20, 20))
    plans = on_shares.plan(data, Runtimes())
    assert [plan.count for plan in plans] == [12, 12]
    with pytest.raises(UnsupportedError, match="mesh=Processes"):
        on_shares.plan(data, STAR)


def test_columns_are_refused() -> None:
    data = FederatedData(train={"a": some_rows(1)}, test=some_rows(2), split=COLUMNS)
    with pytest.raises(UnsupportedError, match="columns"):
        run(a_pate(), data)


@pytest.mark.parametrize("wrong", [{"teachers": 0}, {"queries": 0}])
def test_settings_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        a_pate(**wrong)


def test_what_teachers_or_the_student_cannot_use_costs_no_vote(tmp_path: Path) -> None:
    """One logit, two dimensions of them, public rows and losses that do not fit, and BatchNorm."""
    data = replace(a_federation(12, 9, public_rows=21), public=some_rows(5), digest="ab" * 32)
    study = StudyLedger(data, delta=1e-3)

    def linear(outputs: int) -> nn.Module:
        return nn.Linear(5, outputs, dtype=torch.float64)

    def normalised() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(5, dtype=torch.float64), linear(3))

    def of_one_logit(outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = targets.clamp(max=1).to(outputs)
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], wanted, reduction="none")

    def of_values(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], targets, reduction="none")

    single = replace(data, train={"a": some_rows(3, 1), "b": some_rows(4)})
    floats = {
        name: Rows(rows.inputs, (rows.labels > 0).double()) for name, rows in data.train.items()
    }
    valued = replace(data, train=floats, test=floats["p0"])
    cases = [
        (Task(model=lambda: linear(1), loss=of_one_logit), data, "two classes at least"),
        (Task(model=lambda: linear(2), loss=of_values), valued, "torch.int64"),
        (Task(model=normalised), single, "two for each of its 2 teachers"),
    ]
    for task, rows, match in cases:
        trainer = PATE(queries=3, teachers=4)
        with pytest.raises(DataError, match=match):
            fit(trainer, task, rows, delta=1e-3, study_ledger=study, folder=tmp_path)
    assert study.charges == ()
    assert list(tmp_path.iterdir()) == []
    # A teacher whom a single row falls to votes by its initial model, like one without any.
    crowded = replace(data, train={"a": some_rows(3, 8)})
    fit(PATE(queries=3, teachers=4), Task(model=normalised), crowded, delta=1e-3)
