"""What is noted of votes, what of it is private, and that nothing of it steers a run."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from privtrain.accounting.event import gaussian_event
from privtrain.accounting.exact_votes import exact_gnmax_curve
from privtrain.accounting.gnmax import DEFAULT_ORDERS
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.result import History, TrainResult, VotesSeen
from privtrain.core.seeding import SEEDED, SYSTEM
from privtrain.core.statement import EXACT_PRIVATE, Budget
from privtrain.core.task import Rows
from privtrain.core.trainer import Charge
from privtrain.mechanisms.votes import GNMax, LNMax
from privtrain.release.checked import ConfidentGNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, IDENTITY
from privtrain.release.placement import AT_PARTY
from privtrain.runs.calibrating import calibrate
from privtrain.runs.fitting import fit
from privtrain.steps.plain import PlainSteps
from privtrain.trainers import answers
from privtrain.trainers.pate import PATE
from privtrain.trainers.votes_seen import BINS, charged_beside, check_labels
from tests.trainers.federations import STAR, TASK, a_federation, module, some_rows, vector

QUICK = PlainSteps(epochs=2, learning_rate=0.2)
PUBLIC_ROWS = some_rows(77, 40)
DATA = replace(
    a_federation(30, 20, 20, public_rows=70), public=Rows(PUBLIC_ROWS.inputs, PUBLIC_ROWS.targets)
)


def a_pate(**options: Any) -> PATE:
    release = Release(GNMax(2.0), finish=ARGMAX)
    settings = {"teachers": 6, "queries": 12, "release": release, "steps": QUICK, "student": QUICK}
    return PATE(**{**settings, **options})


def run(trainer: PATE, **options: Any) -> TrainResult:
    return fit(trainer, TASK, DATA, runtimes=STAR, keep_payloads=True, **options)


def seen(result: TrainResult) -> VotesSeen:
    assert result.history.votes is not None
    return result.history.votes


def counts_of(result: TrainResult) -> Tensor:
    votes = [e.payload for e in result.transcript.entries if e.kind == "votes"]
    return torch.stack([v for v in votes if v is not None]).sum(dim=0)


def test_figures_are_those_of_the_exact_votes() -> None:
    result = run(a_pate())
    votes, counts = seen(result), counts_of(result)
    (labels,) = [e.payload for e in result.transcript.entries if e.kind == "labels"]
    assert labels is not None
    assert (votes.asked, votes.answered) == (12, 12)
    top = counts.max(dim=1).values
    # By hand, one query at a time.
    agreed = [counts[n, label] == top[n] for n, label in enumerate(labels.tolist())]
    assert votes.agreement == pytest.approx(sum(map(float, agreed)) / 12)
    bins = [min(BINS - 1, int(BINS * float(row.max() / row.sum()))) for row in counts]
    assert votes.top_shares == tuple(bins.count(n) for n in range(BINS))
    asked = next(e.payload for e in result.transcript.entries if e.kind == "queries")
    assert asked is not None
    true = [
        PUBLIC_ROWS.labels[(PUBLIC_ROWS.inputs == row).all(dim=1).nonzero()[0, 0]] for row in asked
    ]
    right = sum(int(a == b) for a, b in zip(labels, true, strict=True))
    assert votes.label_accuracy == pytest.approx(right / 12)


def test_the_exact_figure_stands_in_the_statement_and_after_each_eighth() -> None:
    result = run(a_pate())
    statement, votes = result.statement, seen(result)
    (exact,) = statement.exact
    curve = exact_gnmax_curve(counts_of(result).numpy(), 2.0)
    assert exact.epsilon == pytest.approx(curve.epsilon(1e-5), rel=1e-12)
    assert exact.epsilon < statement.epsilon()
    assert votes.epsilon[-1] == (12, exact.epsilon)
    # At the same numbers of releases as the formal one, and below it at each.
    assert [n for n, _ in votes.epsilon] == [n for n, _ in result.history.epsilon]
    for (_, private), (_, formal) in zip(votes.epsilon, result.history.epsilon, strict=True):
        assert private < formal
    assert EXACT_PRIVATE in str(statement)
    assert "may be published" in str(statement)
    assert "not to be published" in str(statement)


def test_checks_are_in_the_exact_figure_at_their_planned_cost() -> None:
    setting = ConfidentGNMax(threshold=4.0, sigma_check=1.0, sigma=3.0)
    trainer = a_pate(release=setting)
    result = run(trainer)
    votes = seen(result)
    assert votes.asked == 12
    assert 0 < votes.answered < 12
    (plan, *_) = trainer.plan(DATA, STAR)
    checks = plan.charges["check"].event
    assert isinstance(checks, RdpCurve)
    (passed,) = [e.payload for e in result.transcript.entries if e.kind == "passed"]
    assert passed is not None
    answers = exact_gnmax_curve(counts_of(result)[passed.nonzero().squeeze(1)].numpy(), 3.0)
    (exact,) = result.statement.exact
    whole = checks.repeated(12) + answers
    assert exact.epsilon == pytest.approx(whole.epsilon(1e-5), rel=1e-12)
    assert exact.releases == 12 + votes.answered


@pytest.mark.parametrize(
    "release",
    [
        Release(GNMax(2.0), AT_PARTY, finish=ARGMAX),
        Release(GNMax(2.0), finish=IDENTITY),
    ],
)
def test_of_noised_counts_nothing_exact_is_noted(release: Release) -> None:
    result = run(a_pate(release=release))
    votes = seen(result)
    assert (votes.agreement, votes.top_shares, votes.epsilon) == (None, (), ())
    assert result.statement.exact == ()
    assert votes.answered == 12


def test_of_laplace_noise_shares_are_noted_and_no_exact_figure() -> None:
    result = run(a_pate(release=Release(LNMax(2.0), finish=ARGMAX)))
    assert seen(result).agreement is not None
    assert (result.statement.exact, seen(result).epsilon) == ((), ())


def test_outside_a_simulation_nothing_private_is_noted() -> None:
    result = fit(a_pate(), TASK, DATA, runtimes=STAR, entropy=SYSTEM)
    votes = seen(result)
    assert (votes.agreement, votes.top_shares, votes.epsilon) == (None, (), ())
    assert result.statement.exact == ()
    assert result.statement.publishing == ()
    # By labels that are public anyway.
    assert votes.label_accuracy is not None


def test_nothing_data_dependent_stops_tunes_or_chooses_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs that differ in nothing but their data-dependent figures are the same runs."""
    budget = Budget(0.6 * run(a_pate()).statement.epsilon())
    made = []
    for cost in (0.0, 1e6):
        # The same votes are said to have cost nothing, and everything.
        curve = RdpCurve(DEFAULT_ORDERS, (cost,) * len(DEFAULT_ORDERS))
        for name in ("realised", "exact"):
            monkeypatch.setattr(GNMax, name, lambda self, total, curve=curve: curve)
        trainer = a_pate()
        result = run(trainer, budget=budget)
        chosen = calibrate(trainer, DATA, epsilon=3.0, runtimes=STAR)
        kept = [e for e in result.transcript.entries if e.kind in ("queries", "labels")]
        made.append((result, chosen, [e.payload for e in kept]))
    (one, first, sent), (other, second, again) = made
    # The lie was told: both figures differ, and neither is above the formal one.
    dependent = [
        [g.epsilon for g in r.statement.guarantees if g.data_dependent] for r in (one, other)
    ]
    assert dependent[0] == [0.0]
    assert dependent[1] == [other.statement.epsilon()]
    assert one.statement.exact[0].epsilon == 0.0
    assert other.statement.exact[0].epsilon == other.statement.epsilon()
    assert one.halted == other.halted is not None
    assert one.statement.epsilon() == other.statement.epsilon() <= budget.epsilon
    assert all(torch.equal(a, b) for a, b in zip(sent, again, strict=True))
    assert torch.equal(vector(module(one)), vector(module(other)))
    assert first == second


def test_a_resumed_run_knows_what_votes_looked_like(tmp_path: Any) -> None:
    whole = run(a_pate())

    def stop(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(a_pate(), folder=tmp_path / "run", progress=stop)
    resumed = run(a_pate(), folder=tmp_path / "run")
    assert resumed.history.votes == whole.history.votes
    assert resumed.statement == whole.statement


def test_equal_rows_with_two_labels_have_none() -> None:
    rows = torch.tensor([[0.0], [1.0], [1.0], [2.0]])
    public = Rows(rows, torch.tensor([0, 1, 2, 2]))

    def accuracy(asked: Tensor, labels: list[int], given: Rows | None = public) -> float | None:
        history = History(votes=VotesSeen(asked=4, answered=len(labels)))
        check_labels(history, asked, torch.tensor(labels), given)
        assert history.votes is not None
        return history.votes.label_accuracy

    assert accuracy(rows[[0, 1, 3]], [0, 1, 0]) == 0.5
    assert accuracy(rows[[1, 2]], [1, 2]) is None
    assert accuracy(rows[:0], []) is None
    assert accuracy(rows[:1], [0], None) is None
    assert accuracy(rows[:1], [0], Rows(rows)) is None


def test_what_was_spent_beside_answers() -> None:
    check, answer = RdpCurve((2.0,), (0.25,)), RdpCurve((2.0,), (1.0,))
    charges = {"check": Charge(check, 9), "answer": Charge(answer, 9)}
    assert charged_beside(charges, {"check": 4, "answer": 3}, "answer", 3) == (
        RdpCurve((2.0,), (1.0,)),
    )
    # Of an interrupted run, whose answers may have been seen.
    assert charged_beside(charges, {"check": 4, "answer": 5}, "answer", 3) == (
        RdpCurve((2.0,), (3.0,)),
    )
    alone = {"release": Charge(gaussian_event(1.0), 3)}
    assert charged_beside(alone, {"release": 3}, "release", 3) == ()
    assert math.isfinite(check.epsilon(1e-5))


def test_public_rows_of_any_type_are_told_apart() -> None:
    rows = Rows(torch.eye(4, dtype=torch.bfloat16), torch.arange(4))
    history = History()
    history.votes = VotesSeen(asked=2, answered=2)
    check_labels(history, rows.inputs[:2], torch.tensor([0, 3]), rows)
    assert history.votes is not None and history.votes.label_accuracy == 0.5


def test_a_look_that_fails_costs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise ValueError("votes of another kind")

    usual = run(a_pate())
    monkeypatch.setattr(answers, "see_votes", broken)
    result = run(a_pate())
    assert "votes could not be looked at: ValueError" in result.notes
    assert torch.equal(vector(module(result)), vector(module(usual)))


def test_outside_a_simulation_nothing_computed_from_exact_votes_reaches_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GNMax, "realised", lambda self, total: CURVE)
    for entropy, told in ((SEEDED, True), (SYSTEM, False)):
        folder = tmp_path / str(entropy)
        fit(a_pate(), TASK, DATA, runtimes=STAR, entropy=entropy, folder=folder)
        state = torch.load(folder / "state.pt", weights_only=False)
        assert ("public" in state["state"]["realised"]) == told


CURVE = RdpCurve(DEFAULT_ORDERS, (0.01,) * len(DEFAULT_ORDERS))
