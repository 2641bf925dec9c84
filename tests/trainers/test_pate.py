"""PATE: disjoint teachers, labels only, and a charge for each answer."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from privtrain.accounting.epsilon import epsilon
from privtrain.accounting.event import gaussian_event
from privtrain.accounting.gnmax import DEFAULT_ORDERS
from privtrain.accounting.renyi import rdp_to_epsilon
from privtrain.accounting.winner import gnmax_check_rdp, gnmax_winner_rdp
from privtrain.core.errors import (
    DataError,
    TamperedShareError,
    UnsoundReleaseError,
    UnsupportedError,
)
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Exposure, Observer, coalition
from privtrain.core.parties import AGGREGATOR_NAME, PUBLIC_NAME
from privtrain.core.result import TrainResult
from privtrain.core.runtime import Draws, Payload, Reply, Runtimes
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Budget, Unit
from privtrain.core.task import COLUMNS, FederatedData, Rows, Task
from privtrain.core.trainer import RELEASE, Run
from privtrain.ledgers.run import JournalLedger, epsilon_of
from privtrain.ledgers.study import StudyLedger
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.mechanism import Exact
from privtrain.mechanisms.votes import GNMax, LNMax
from privtrain.release.aggregation import Aggregation, Gathering, Total
from privtrain.release.arrival import Expected
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, IDENTITY, Threshold
from privtrain.release.placement import AT_PARTY, SPLIT
from privtrain.release.plain import PlainSum
from privtrain.release.reduce import MAX
from privtrain.release.shared import SharedSum
from privtrain.runs.fitting import fit
from privtrain.runtimes.in_process import InProcess
from privtrain.runtimes.threads import Threads
from privtrain.steps.plain import PlainSteps
from privtrain.trainers import pate
from privtrain.trainers.answers import PADDED, Panel, paid
from privtrain.trainers.pate import PATE
from privtrain.trainers.teachers import of_two_votes
from tests.contracts.aggregation import MaskedSum, a_run
from tests.contracts.aggregation import SharedSum as Sealing
from tests.mpc.proved import SAID, Proved
from tests.statistics import ALARM, independent
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


# -------------------------------------------------------------------------- disjoint teachers


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
    own = Draws(Seeds(0), SeededEntropy(0), 0, "student")
    QUICK(model, TASK, Rows(asked, labels), own)
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
        {"a": Reply(message)}, run_, round=1, kind="votes", releases=queries, expected=expected
    )
    wins = int((winners.value == 0).sum())

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

        def spend(self, count: int = 1, *, kind: str = RELEASE) -> bool:
            return True

        def use(self, count: int = 1, *, kind: str = RELEASE) -> None:
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


ALONE = Exposure(
    single_messages=False, knows_sample=False, noise_known=0.0, finish_only=True, winner_only=True
)


@pytest.mark.parametrize("mechanism", [GNMax(4.0), LNMax(4.0)])
def test_who_reads_single_messages_is_owed_replace_one_of_two_votes(
    mechanism: GNMax | LNMax,
) -> None:
    data = with_public(a_federation(20, 20, 20))
    at_party = Release(mechanism, AT_PARTY, finish=ARGMAX)
    if isinstance(mechanism, LNMax):  # a sum of Laplace noises is none, so the public has no curve
        plans = at_party.plans(unit=Unit.EXAMPLE, count=1, parties=3, observers=(AGGREGATOR,))
        (single,), (both,) = plans, (of_two_votes(plans[0]),)
        twice = replace(mechanism, scale=mechanism.scale / 2)
    else:
        public, both, colluding = a_pate(release=at_party).plan(data, STAR)
        assert public.relation is colluding.relation is ADD_REMOVE
        # All other parties together know all noise but that of the protected one.
        alone = GNMax(4.0).event(ALONE, ADD_REMOVE)
        assert colluding.charges[RELEASE].event.rdp == pytest.approx(alone.rdp)
        single = at_party.plans(unit=Unit.EXAMPLE, count=1, parties=3)[-1]
        twice = replace(mechanism, sigma=mechanism.sigma / 2)
    assert both.observer == AGGREGATOR and both.relation is REPLACE_ONE
    assert "group of two" in both.theorem
    # A shift twice as large is noise half as wide.
    exact = Release(twice, AT_PARTY, finish=ARGMAX)
    (halved,) = exact.plans(unit=Unit.EXAMPLE, count=1, parties=3, observers=(AGGREGATOR,))
    found, other, one = (epsilon_of(plan, {RELEASE: 1}, 1e-5) for plan in (both, halved, single))
    assert found == pytest.approx(other, rel=1e-9)
    assert found > 1.5 * one
    if isinstance(mechanism, GNMax):
        # To the reader of counts mu = sqrt(2) / sigma for a vote, twice that for a replaced row.
        by_hand = gaussian_event(4.0 / (2 * math.sqrt(2)))
        assert found == pytest.approx(epsilon(by_hand, 1e-5), rel=1e-3)
        assert one == pytest.approx(epsilon(gaussian_event(4.0 / math.sqrt(2)), 1e-5), rel=1e-3)


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
    public = [g for g in result.statement.guarantees if g.observer.name == "public"]
    assert [g.data_dependent for g in public] == [False, True]
    assert public[1].epsilon <= public[0].epsilon * (1 + 1e-12)
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


def test_some_teachers_without_rows() -> None:
    """A row's own contents choose its teacher, so that a few of ten have none of ten rows."""
    result = run(a_pate(teachers=10), with_public(a_federation(5, 5)))
    assert bool(torch.isfinite(vector(module(result))).all())


def test_more_teachers_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="teachers=11 <= 10, the number of training rows"):
        run(a_pate(teachers=11), with_public(a_federation(5, 5)))


def test_fewer_teachers_than_parties_are_refused_before_anything_is_paid() -> None:
    with pytest.raises(ValueError, match="teachers=2"):
        a_pate(teachers=2).plan(a_federation(4, 4, 4), STAR)


def test_teachers_are_spread_evenly() -> None:
    assert a_pate(teachers=8).hosted(("a", "b", "c")) == {"a": 3, "b": 3, "c": 2}


@pytest.mark.parametrize(
    ("release", "error"),
    [
        (Release(GNMax(1.0), finish=Threshold(1.0)), UnsupportedError),
        (Release(GNMax(1.0), reduce=MAX), UnsupportedError),
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
    assert [plan.counts for plan in plans] == 2 * [{RELEASE: 12}]
    with pytest.raises(UnsupportedError, match="mesh=Processes"):
        on_shares.plan(data, STAR)
    # What its shadow models take in its place.
    plain = a_pate(release=Release(Exact(), finish=ARGMAX))
    assert on_shares.with_plain_sum() == plain and plain.with_plain_sum() is None


def test_exact_votes_come_with_proofs_where_the_engine_asks_for_them() -> None:
    data = with_public(a_federation(20, 20))
    here = Runtimes(star=InProcess(), mesh=Threads(timeout=20))

    def answered(aggregation: Aggregation) -> Tensor:
        trainer = a_pate(release=Release(Exact(), finish=ARGMAX, aggregation=aggregation))
        result = fit(trainer, TASK, data, runtimes=here, keep_payloads=True)
        (labels,) = [e.payload for e in result.transcript.entries if e.kind == "labels"]
        assert labels is not None
        return labels

    assert torch.equal(answered(SharedSum(Proved())), answered(PlainSum()))
    with pytest.raises(TamperedShareError, match=SAID):
        answered(SharedSum(Proved(changes="0")))


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
    networks = {"steps": PlainSteps(), "student": PlainSteps()}
    for task, rows, match in cases:
        trainer = PATE(queries=3, teachers=4, **networks)
        with pytest.raises(DataError, match=match):
            fit(trainer, task, rows, delta=1e-3, study_ledger=study, folder=tmp_path)
    assert study.charges == ()
    assert list(tmp_path.iterdir()) == []
    # A teacher whom a single row falls to votes by its initial model, like one without any.
    crowded = replace(data, train={"a": some_rows(3, 8)})
    fit(PATE(queries=3, teachers=4, **networks), Task(model=normalised), crowded, delta=1e-3)


# ----------------------------------------------------------------- checked before it is answered

CHECK = Release(GNMax(1.0), reduce=MAX, finish=Threshold(4.0))


def checked(**options: object) -> PATE:
    return a_pate(**{"consensus": CHECK, "release": Release(GNMax(3.0), finish=ARGMAX)} | options)


def asked_of(result: TrainResult) -> tuple[Tensor, Tensor]:
    """Which queries passed, and the labels of those."""
    (passed,) = [e.payload for e in result.transcript.entries if e.kind == "passed"]
    (labels,) = [e.payload for e in result.transcript.entries if e.kind == "labels"]
    assert passed is not None
    assert labels is not None
    return passed, labels


def test_a_checked_query_is_answered_where_its_votes_agree() -> None:
    """The whole fit: plan, ledger, statement and transcript, by kind."""
    data = with_public(a_federation(30, 20, 20, public_rows=70))
    trainer = checked()
    public, aggregator = trainer.plan(data, STAR)
    assert public.counts == aggregator.counts == {"check": 12, "answer": 12}
    result = run(trainer, data)
    passed, labels = asked_of(result)
    # Six teachers and a threshold of four: some queries pass, and some do not.
    answers = int(passed.sum())
    assert passed.shape == (12,)
    assert 0 < answers < 12
    assert labels.shape == (answers,)
    assert result.halted is None
    # The caps, whatever was used of them: every check, and an answer to each.
    stated = result.statement.guarantees
    formal = {g.observer.name: g for g in stated if not g.data_dependent}
    assert formal["public"].releases == 12 + 12
    assert formal["public"].epsilon == epsilon_of(public, public.counts, 1e-5)
    assert formal["public"].epsilon > epsilon_of(public, {"check": 12, "answer": answers}, 1e-5)
    assert (formal["public"].relation, formal["public"].unit) == (ADD_REMOVE, Unit.EXAMPLE)
    assert "check's answer alone" in formal["public"].theorem
    assert any("winner of each vote only" in text for text in formal["public"].assumptions)
    assert PADDED in formal["public"].theorem
    assert formal["aggregator"].epsilon == math.inf
    # By hand: an order-alpha divergence of alpha / 2 a check and alpha / 9 an answer, of which who
    # sees no more than their results learns 0.64 to 1 times as much (decision 022).
    below, above = (
        min(
            part * alpha * (12 / 2 + 12 / 9)
            + math.log1p(-1 / alpha)
            - math.log(1e-5 * alpha) / (alpha - 1)
            for alpha in DEFAULT_ORDERS
        )
        for part in (0.64, 1.0)
    )
    assert below < formal["public"].epsilon < above
    alphas = np.array(DEFAULT_ORDERS)
    curve = 12 * gnmax_check_rdp(1.0, alphas) + 12 * gnmax_winner_rdp(3.0, alphas)
    by_hand = rdp_to_epsilon(curve, alphas, 1e-5, "improved")
    assert formal["public"].epsilon == pytest.approx(by_hand, rel=1e-9)
    # The data-dependent figure has all of the checks in it, too.
    (private,) = [g for g in stated if g.data_dependent]
    checks = epsilon_of(public, {"check": 12}, 1e-5)
    assert checks <= private.epsilon <= formal["public"].epsilon
    # Votes leave once; which queries passed and their winners are published.
    kinds = [(e.sender, e.receiver, e.kind, e.shape) for e in result.transcript.entries]
    votes = [(p, AGGREGATOR_NAME, "votes", (12, 3)) for p in data.parties]
    assert [k for k in kinds if k[1] == AGGREGATOR_NAME] == votes
    assert (AGGREGATOR_NAME, PUBLIC_NAME, "passed", (12,)) in kinds
    assert (AGGREGATOR_NAME, PUBLIC_NAME, "labels", (answers,)) in kinds
    assert f"{answers} of 12 queries passed the check, which is public" in result.notes


def test_checks_and_answers_follow_the_algorithm() -> None:
    """Algorithm 1 of Papernot et al. 2018, line by line, on the votes that were sent."""
    data = with_public(a_federation(30, 20, 20, public_rows=70))
    quiet = Release(GNMax(1e-3), reduce=MAX, finish=Threshold(3.5))
    result = run(checked(consensus=quiet, release=Release(GNMax(1e-3), finish=ARGMAX)), data)
    counts = sum(e.payload for e in result.transcript.entries if e.kind == "votes")
    passed, labels = asked_of(result)
    assert passed.tolist() == [float(n.max()) >= 3.5 for n in counts]
    assert 0 < int(passed.sum()) < 12
    decided = counts[passed]
    # Of a tie either winner may come out.
    for n, label in zip(decided, labels.tolist(), strict=True):
        assert float(n[label]) == float(n.max())


def test_a_check_and_an_answer_have_noise_of_their_own() -> None:
    release, run_ = Release(GNMax(3.0)), a_run()
    counts = {"a": Reply({"votes": torch.full((3_000, 2), 4.0, dtype=torch.float64)})}
    expected = Expected(contributions=8)
    check = replace(release, reduce=MAX).arrive(
        counts, run_, round=1, kind="votes", expected=expected, charge="check"
    )
    answer = release.arrive(counts, run_, round=1, kind="votes", expected=expected, charge="answer")
    for column in (0, 1):
        assert independent(check.value - 4.0, answer.value[:, column] - 4.0)


def test_published_golden_of_checks_and_answers() -> None:
    """1,000 checks at sigma 150 and 300 answers at sigma 40: 2.890; 5.488 on one counter.

    That is what order / (2 sigma^2) a check and order / sigma^2 an answer give; who sees no more
    than checks' answers and winners is charged 2.261, and 4.260 (decision 022).

    Papernot et al. 2018, Section 4.1; the conversion by Canonne et al. 2020, Proposition 12.
    """
    release = Release(GNMax(40.0), finish=ARGMAX)
    check = Release(GNMax(150.0), reduce=MAX, finish=Threshold(200.0))
    trainer = PATE(teachers=250, queries=1_000, release=release, consensus=check)
    (public, _) = trainer.plan(replace(a_federation(600), public_rows=60_000), STAR)
    for answers, stated, tighter in ((300, 2.890, 2.261), (1_000, 5.488, 4.260)):
        slope = 1_000 / (2 * 150.0**2) + answers / 40.0**2
        alphas = np.linspace(1.5, 200.0, 200_000)
        curve = slope * alphas + np.log1p(-1 / alphas) - np.log(1e-5 * alphas) / (alphas - 1)
        assert float(curve.min()) == pytest.approx(stated, abs=1e-3)
        found = epsilon_of(public, {"check": 1_000, "answer": answers}, 1e-5)
        assert found == pytest.approx(tighter, abs=1e-3)


def test_a_budget_too_small_halts_by_kind() -> None:
    """Checks are used up first; the answers that they could lead to are paid for all the same."""
    data = with_public(a_federation(30, 20, 20, public_rows=70))
    trainer = checked(consensus=Release(GNMax(20.0), reduce=MAX, finish=Threshold(0.5)))
    (public, _) = trainer.plan(data, STAR)
    budget = Budget(epsilon_of(public, {"check": 5, "answer": 5}, 1e-5))
    result = run(trainer, data, budget=budget)
    assert result.halted == "the budget was used up after 5 releases of kind 'check'"
    passed, labels = asked_of(result)
    assert passed.shape == (5,)
    assert len(labels) == int(passed.sum()) < 5
    assert result.statement.epsilon() == budget.epsilon


def test_a_resumed_run_pays_for_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted between the checks and the answers, and again after the answers."""
    data = with_public(a_federation(30, 20, 20, public_rows=70))
    trainer, folder = checked(), tmp_path / "run"
    (public, _) = trainer.plan(data, STAR)

    def broken(*arguments: object, **options: object) -> Tensor:
        raise KeyboardInterrupt

    for owner, method in ((Panel, "labels"), (pate, "trained_student")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, broken)
            with pytest.raises(KeyboardInterrupt):
                fit(trainer, TASK, data, runtimes=STAR, folder=folder)
        saved = torch.load(folder / "state.pt", weights_only=True)
        assert saved["done"] == (0 if method == "labels" else 1)
        assert saved["spent_by_kind"]["check"] == 12
    result = fit(trainer, TASK, data, runtimes=STAR, folder=folder)
    again = fit(trainer, TASK, data, runtimes=STAR, folder=folder)
    passed = [e for e in result.transcript.entries if e.kind == "passed"]
    (labels,) = [e for e in result.transcript.entries if e.kind == "labels"]
    assert len(passed) == 1
    formal = next(g for g in result.statement.guarantees if not g.data_dependent)
    # Answers that were paid for before the first crash stay spent; the cap ends them.
    assert formal.epsilon == epsilon_of(public, public.counts, 1e-5)
    ledger = JournalLedger((public, trainer.plan(data, STAR)[1]), journal=folder / "journal.jsonl")
    assert ledger.spent_by_kind["check"] == 12
    assert 0 < labels.shape[0] < ledger.spent_by_kind["answer"] == 12
    assert formal.releases == ledger.spent
    assert again.statement == result.statement
    assert torch.equal(vector(module(again)), vector(module(result)))


def test_nothing_passes_and_nothing_is_answered() -> None:
    data = with_public(a_federation(30, 20, 20, public_rows=70))
    never = Release(GNMax(1e-3), reduce=MAX, finish=Threshold(30.0))
    trainer = checked(consensus=never, teachers=30)
    result = run(trainer, data)
    (public, _) = trainer.plan(data, STAR)
    # That no answer was given follows from the votes: the statement says nothing of it.
    assert result.statement.epsilon() == epsilon_of(public, public.counts, 1e-5) > 0
    assert not [e for e in result.transcript.entries if e.kind == "labels"]
    # Teachers were trained, and voted.
    assert result.members is None


@pytest.mark.parametrize(
    ("consensus", "release", "error", "said"),
    [
        (Release(GNMax(1.0), finish=ARGMAX), None, UnsupportedError, "reaches a threshold"),
        (Release(GNMax(1.0), reduce=MAX), None, UnsupportedError, "reaches a threshold"),
        (Release(GNMax(1.0), finish=Threshold(1)), None, UnsupportedError, "reaches a threshold"),
        (
            Release(Gaussian(1.0, 1.0), reduce=MAX, finish=Threshold(1)),
            None,
            UnsoundReleaseError,
            "not its vote",
        ),
        (CHECK, Release(GNMax(1.0), AT_PARTY, finish=ARGMAX), UnsupportedError, "leave their"),
        (
            CHECK,
            Release(Exact(), aggregation=SharedSum(), finish=ARGMAX),
            UnsupportedError,
            "leave their",
        ),
    ],
)
def test_a_check_that_is_none_is_refused(
    consensus: Release, release: Release | None, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        checked(consensus=consensus, **({} if release is None else {"release": release}))


def test_more_noise_is_drawn_for_answers_and_a_check_keeps_its_own() -> None:
    noisier = checked().with_noise(7.0)
    assert noisier is not None
    assert (noisier.release.mechanism, noisier.consensus) == (GNMax(7.0), CHECK)


def test_votes_are_added_up_once_and_what_they_cost_is_known() -> None:
    """One aggregate gives the winners and, in a simulation, their data-dependent charge."""
    data, calls = with_public(a_federation(30, 20)), []

    class Counted(PlainSum):
        def gather(self, *arguments: Any, **options: Any) -> Any:
            calls.append(1)
            return super().gather(*arguments, **options)

    release = Release(GNMax(2.0), aggregation=Counted(), finish=ARGMAX)
    result = run(a_pate(release=release), data)
    assert len(calls) == 1
    assert [g.data_dependent for g in result.statement.guarantees] == [False, True, False]


def test_checks_and_answers_are_of_one_total() -> None:
    """An aggregation that asks its parties while it gathers does so once, in the cohort's terms."""
    data, gathered = with_public(a_federation(30, 20, 20, public_rows=70)), []

    class Late(MaskedSum):
        """A double in which one party is lost after it replied."""

        def gather(self, gathering: Gathering, replies: Mapping[str, Reply], run: Run) -> Total:
            gathered.append([tuple(r.message["votes"].shape) for r in replies.values()])
            there = {name: reply for name, reply in replies.items() if name != "p1"}
            return super().gather(gathering, there, run)

    quiet = Release(GNMax(1e-3), reduce=MAX, finish=Threshold(2.5), aggregation=Late())
    answers = Release(GNMax(1e-3), finish=ARGMAX, aggregation=Late())
    result = run(checked(consensus=quiet, release=answers), data)
    assert gathered == [[(12, 3)] * 3]
    sent = {e.sender: e.payload for e in result.transcript.entries if e.kind == "votes"}
    counts = sent["p0"] + sent["p2"]
    passed, labels = asked_of(result)
    assert passed.tolist() == [float(n.max()) >= 2.5 for n in counts]
    assert 0 < int(passed.sum()) < 12
    for n, label in zip(counts[passed], labels.tolist(), strict=True):
        assert float(n[label]) == float(n.max())


def test_answers_that_a_budget_pays_for_are_those_of_the_first_checked_queries() -> None:
    data = with_public(a_federation(30, 20, 20, public_rows=70))
    trainer = checked(
        consensus=Release(GNMax(1e-3), reduce=MAX, finish=Threshold(0.5)),
        release=Release(GNMax(1e-3), finish=ARGMAX),
    )
    full = run(trainer, data)

    def three(wanted: int, kind: str, run: Run) -> int:
        return paid(3 if kind == "answer" else wanted, kind, run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("privtrain.trainers.answers.paid", three)
        (_, labels) = asked_of(run(trainer, data))
    counts = sum(e.payload for e in full.transcript.entries if e.kind == "votes")
    assert labels.shape == (3,)
    for n, label in zip(counts[:3], labels.tolist(), strict=True):
        assert float(n[label]) == float(n.max())


def test_answers_to_some_queries_of_a_sealed_total_are_refused_by_name() -> None:
    data = with_public(a_federation(30, 20, 20, public_rows=70))
    sealed = Sealing()
    check = Release(reduce=MAX, finish=Threshold(1.0), aggregation=sealed)
    answers = Release(finish=ARGMAX, aggregation=sealed)
    with pytest.raises(UnsupportedError, match="sealed total is opened whole"):
        run(checked(consensus=check, release=answers), data)
    # Where all queries are answered it is opened once, as winners.
    (labels,) = [
        e.payload
        for e in run(a_pate(release=answers), data).transcript.entries
        if e.kind == "labels"
    ]
    assert labels is not None
    assert labels.shape == (12,)


def test_the_data_dependent_charge_has_the_answers_of_an_interrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after the answers were released and before they were kept."""
    data = with_public(a_federation(30, 20, 20, public_rows=70))
    # With little noise votes that agree cost nearly nothing, and planned answers very much.
    trainer = checked(release=Release(GNMax(0.2), finish=ARGMAX))
    (public, _) = trainer.plan(data, STAR)
    whole = fit(trainer, TASK, data, runtimes=STAR)
    keep = Run.keep

    def broken(self: Run, done: int, **state: Any) -> None:
        if "labels" in state:
            raise KeyboardInterrupt
        keep(self, done, **state)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "keep", broken)
        with pytest.raises(KeyboardInterrupt):
            fit(trainer, TASK, data, runtimes=STAR, folder=tmp_path / "run")
    journal = tmp_path / "run/journal.jsonl"
    aborted = JournalLedger(trainer.plan(data, STAR), journal=journal).spent_by_kind["answer"]
    result = fit(trainer, TASK, data, runtimes=STAR, folder=tmp_path / "run")

    def private(result: TrainResult) -> float:
        (found,) = [g.epsilon for g in result.statement.guarantees if g.data_dependent]
        return found

    assert 0 < aborted < 12
    assert private(result) >= epsilon_of(public, {"check": 12, "answer": aborted}, 1e-5)
    assert private(result) > private(whole)


# ---------------------------------------------------------------------------------- who sees what


def promised(release: Release, observer: Observer, queries: int = 12) -> float:
    plans = release.plans(unit=Unit.EXAMPLE, count=queries, parties=3, observers=(observer,))
    return epsilon_of(plans[0], plans[0].counts, 1e-5)


def test_every_observer_of_a_vote_is_charged_for_what_it_sees() -> None:
    """The winner, noised counts of all, of one party, or nothing that is protected."""
    two = coalition({"party-0", "party-1"})
    with_aggregator = coalition({"party-0", AGGREGATOR_NAME})
    winner = promised(Release(GNMax(6.0), finish=ARGMAX), PUBLIC)
    counts = promised(Release(GNMax(6.0), finish=IDENTITY), PUBLIC)
    assert winner < counts
    for answers, least in ((ARGMAX, winner), (IDENTITY, counts)):
        release = Release(GNMax(6.0), finish=answers)
        assert promised(release, PARTICIPANT) == promised(release, two) == least
        assert promised(release, AGGREGATOR) == promised(release, with_aggregator) == math.inf
        # On shares nobody knows the noise, and only the finish is opened.
        shared = replace(release, aggregation=Sealing())
        assert promised(shared, AGGREGATOR) == promised(shared, PUBLIC) == least
    # Masked sums are read by the aggregator before the winner is found.
    split = Release(GNMax(6.0), SPLIT(honest_survivors=3), MaskedSum(), finish=ARGMAX)
    assert promised(split, PUBLIC) == winner
    assert promised(split, AGGREGATOR) == pytest.approx(counts, rel=1e-6)
    assert promised(split, two) == pytest.approx(
        promised(Release(GNMax(6.0 / math.sqrt(3)), finish=ARGMAX), PUBLIC)
    )


def test_computing_parties_of_a_shared_sum_are_charged_for_the_counts() -> None:
    """One of them may deal the triples, from which it reads the sum."""
    release = Release(GNMax(6.0), aggregation=SharedSum(), finish=ARGMAX)
    counts = promised(Release(GNMax(6.0), finish=IDENTITY), PUBLIC)
    assert promised(release, coalition({"computing-0"})) == counts
    assert promised(release, PUBLIC) == promised(release, AGGREGATOR) < counts


def test_a_statement_says_who_reads_what_and_what_would_help() -> None:
    data = with_public(a_federation(20, 20))
    result = run(a_pate(), data)
    read = {line.reader: line.reads for line in result.statement.input_privacy}
    assert set(read) == {"aggregator", "party", "student"}
    assert "together" in read["party"]
    said = str(result.statement)
    assert "with noise_at=AT_PARTY it reads noised counts only, with SharedSum none" in said
    assert "if the observer sees the winner of each vote only" in said
    # Who noises its own votes knows that noise.
    local = a_pate(release=Release(GNMax(3.0), AT_PARTY, finish=ARGMAX))
    (party,) = (p for p in local.input_privacy(data, STAR) if p.reader == "party")
    assert "its own noise" in party.reads
    assert not any("AT_PARTY" in text for text in local.caveats)
    names = [plan.observer.name for plan in local.plan(data, STAR)]
    assert names[:2] == ["public", "aggregator"]
    assert names[2].startswith("coalition of")


def test_a_released_histogram_beside_checks_is_one_figure() -> None:
    """Rényi divergences of both, as checks have no privacy losses."""
    histogram = Release(GNMax(6.0), finish=IDENTITY)
    check = Release(GNMax(20.0), reduce=MAX, finish=Threshold(4.0))
    plans = [
        release.plans(unit=Unit.EXAMPLE, count=12, parties=3, observers=(PUBLIC,), charge=charge)[0]
        for release, charge in ((check, "check"), (histogram, "answer"))
    ]
    both = plans[0].beside(plans[1])
    found = epsilon_of(both, both.counts, 1e-5)
    alone = epsilon_of(both, {"check": 0, "answer": 12}, 1e-5)
    assert alone < found < alone + epsilon_of(both, {"check": 12, "answer": 0}, 1e-5)
