"""Caps of answers: charged in full, whatever the votes; and answers that are whole histograms."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor
from torch.nn import functional

from privtrain.accounting.event import charged
from privtrain.core.errors import BudgetExceededError, DataError
from privtrain.core.parameters import initial_model
from privtrain.core.result import TrainResult
from privtrain.core.runtime import Draws
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.statement import Budget
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import PrivacyPlan
from privtrain.ledgers.run import JournalLedger, epsilon_of
from privtrain.ledgers.study import StudyLedger
from privtrain.mechanisms.votes import GNMax, LNMax
from privtrain.release.checked import ConfidentGNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, IDENTITY, Threshold
from privtrain.release.planning import right_answer
from privtrain.release.reduce import MAX
from privtrain.runs.calibrating import calibrate
from privtrain.runs.fitting import fit
from privtrain.steps.plain import PlainSteps
from privtrain.trainers import pate
from privtrain.trainers.answers import on_simplex
from privtrain.trainers.pate import PATE
from privtrain.trainers.teachers import Vote
from tests.statistics import ALARM
from tests.trainers.federations import STAR, TASK, a_federation, module, some_rows, vector

QUICK = PlainSteps(epochs=3, learning_rate=0.2)
CONFIDENT = ConfidentGNMax(threshold=4.0, sigma_check=1.0, sigma=3.0)
DATA = replace(a_federation(30, 20, 20, public_rows=70), public=Rows(some_rows(77, 40).inputs))


def confident(**options: Any) -> PATE:
    settings = {"teachers": 6, "queries": 12, "release": CONFIDENT, "answers": 3}
    return PATE(**{**settings, "steps": QUICK, "student": QUICK, **options})


def run(
    trainer: PATE, data: FederatedData = DATA, task: Task = TASK, **options: Any
) -> TrainResult:
    return fit(trainer, task, data, runtimes=STAR, keep_payloads=True, **options)


def formal(result: TrainResult) -> Any:
    named = {g.observer.name: g for g in result.statement.guarantees if not g.data_dependent}
    return named["public"]


def sent(result: TrainResult, kind: str) -> list[Tensor]:
    return [
        e.payload for e in result.transcript.entries if e.kind == kind and e.payload is not None
    ]


# ------------------------------------------------------------------------------ what is charged


def test_the_first_that_pass_are_answered_and_the_caps_are_charged() -> None:
    trainer = confident()
    (public, _) = trainer.plan(DATA, STAR)
    assert public.counts == {"check": 12, "answer": 3}
    result = run(trainer)
    (passed,), (labels,) = sent(result, "passed"), sent(result, "labels")
    assert passed.shape == (12,)
    assert int(passed.sum()) > 3
    assert labels.shape == (3,)
    assert formal(result).releases == 15
    assert formal(result).epsilon == epsilon_of(public, public.counts, 1e-5)
    assert "3 of the queries that passed are answered, the cap of answers" in result.notes
    assert result.halted is None
    assert result.history.epsilon[-1] == (15, formal(result).epsilon)
    # The student learned the first three that passed, in the order in which they were asked.
    (asked, *_) = sent(result, "queries")
    model = initial_model(TASK, Seeds(0)["initialisation", 0, ""]).train()
    rows = Rows(asked[passed][:3], labels)
    QUICK(model, TASK, rows, Draws(Seeds(0), SeededEntropy(0), 0, "student"))
    assert torch.equal(vector(module(result)), vector(model))


def votes_of(threshold: float, **options: Any) -> TrainResult:
    release = replace(CONFIDENT, threshold=threshold, sigma_check=0.5)
    return run(confident(release=release, **options))


def test_the_statement_says_nothing_of_what_was_used() -> None:
    """Nothing passes, some queries pass, more than the cap pass: to the public it is one figure."""
    made, used = set(), set()
    for threshold, answers in ((6.0, 3), (4.0, 3), (1.0, 3)):
        result = votes_of(threshold, answers=answers)
        used.add(sum(len(labels) for labels in sent(result, "labels")))
        made.add(formal(result))
    assert len(used) > 1
    assert len(made) == 1


def test_a_twin_that_charges_what_was_given_tells_how_much_that_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pate, "pay_up_to", lambda cap, run: False)
    assert len({formal(votes_of(threshold)) for threshold in (6.0, 1.0)}) == 2


def test_fewer_public_rows_than_queries_cost_the_checks_that_were_made() -> None:
    """How many public rows there are is known before the first vote."""
    few = replace(DATA, public=Rows(some_rows(77, 2).inputs))
    result = run(confident(), few)
    (public, _) = confident().plan(few, STAR)
    assert formal(result).releases == 4
    assert formal(result).epsilon == epsilon_of(public, {"check": 2, "answer": 2}, 1e-5)


def test_one_setting_costs_and_does_what_two_releases_do() -> None:
    pair = confident(
        release=Release(GNMax(3.0), finish=ARGMAX),
        consensus=Release(GNMax(1.0), reduce=MAX, finish=Threshold(4.0)),
    )
    assert pair.plan(DATA, STAR) == confident().plan(DATA, STAR)
    assert pair.input_privacy(DATA, STAR) == confident().input_privacy(DATA, STAR)
    assert formal(run(pair)) == formal(run(confident()))


def test_calibrate_picks_the_noise_of_answers_for_their_number() -> None:
    trainer = confident(release=replace(CONFIDENT, threshold=4.0, sigma_check=30.0))
    found = calibrate(trainer, DATA, epsilon=2.0, runtimes=STAR)
    assert isinstance(found, PATE) and isinstance(found.release, ConfidentGNMax)
    assert found.release == replace(trainer.release, sigma=found.release.sigma)
    (public, _) = found.plan(DATA, STAR)
    assert 1.99 < epsilon_of(public, public.counts, 1e-5) <= 2.0
    fewer = calibrate(replace(trainer, answers=1), DATA, epsilon=2.0, runtimes=STAR)
    assert isinstance(fewer, PATE) and isinstance(fewer.release, ConfidentGNMax)
    assert fewer.release.sigma < 0.7 * found.release.sigma
    with pytest.raises(BudgetExceededError):  # the checks alone cost more
        calibrate(confident(), DATA, epsilon=0.5, runtimes=STAR)


# ------------------------------------------------------------------------------------- budgets


def test_a_budget_that_no_answer_fits_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(self: Vote, *arguments: Any) -> Any:
        raise AssertionError("a teacher was trained")

    monkeypatch.setattr(Vote, "__call__", trained)
    (public, _) = confident().plan(DATA, STAR)
    # One check would fit, and no answer beside it.
    check = epsilon_of(public, {"check": 1}, 1e-5)
    both = epsilon_of(public, {"check": 1, "answer": 1}, 1e-5)
    for budget in (Budget(1e-3), Budget((check + both) / 2)):
        with pytest.raises(BudgetExceededError, match=r"of each kind \(check, answer\)"):
            run(confident(), budget=budget, folder=tmp_path / "run")
    assert not (tmp_path / "run" / "journal.jsonl").exists()
    # A study refuses the caps as a whole.
    study = StudyLedger(replace(DATA, digest="ab" * 32), budget=Budget(both))
    with pytest.raises(BudgetExceededError):
        run(confident(), replace(DATA, digest="ab" * 32), study_ledger=study)
    assert study.charges == ()


def test_a_budget_cuts_both_caps_and_both_are_charged() -> None:
    trainer = confident(release=replace(CONFIDENT, threshold=1.0))
    (public, _) = trainer.plan(DATA, STAR)
    spent = {"check": 8, "answer": 2}
    budget = Budget(epsilon_of(public, spent, 1e-5))
    result = run(trainer, budget=budget)
    assert [len(passed) for passed in sent(result, "passed")] == [8]
    assert [len(labels) for labels in sent(result, "labels")] == [2]
    assert result.halted is not None
    assert formal(result).epsilon == budget.epsilon


def test_a_study_is_charged_the_caps() -> None:
    data = replace(DATA, digest="ab" * 32)
    study = StudyLedger(data, delta=1e-5)
    result = run(confident(), data, study_ledger=study)
    assert study.epsilon == formal(result).epsilon


def test_a_run_that_stops_before_the_caps_are_paid_pays_them_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after the answers were kept, and again while the rest was paid for."""
    trainer = confident(answers=12)
    for stop in ("first", "second"):
        with monkeypatch.context() as patch:

            def broken(cap: int, run: Any, stop: str = stop) -> bool:
                if stop == "second":
                    run.ledger.spend(kind="answer")
                raise KeyboardInterrupt

            patch.setattr(pate, "pay_up_to", broken)
            with pytest.raises(KeyboardInterrupt):
                fit(trainer, TASK, DATA, runtimes=STAR, folder=tmp_path)
    given = JournalLedger(trainer.plan(DATA, STAR), journal=tmp_path / "journal.jsonl")
    result = fit(trainer, TASK, DATA, runtimes=STAR, folder=tmp_path)
    (labels,) = [e.shape[0] for e in result.transcript.entries if e.kind == "labels"]
    assert 0 < labels < given.spent_by_kind["answer"] == labels + 1 < 12
    assert formal(result).releases == 24
    assert fit(trainer, TASK, DATA, runtimes=STAR, folder=tmp_path).statement == result.statement


# ------------------------------------------------- an adaptive number of answers, by brute force


def outcomes(
    counts: list[list[float]], check: GNMax, threshold: float, answer: GNMax, cap: int
) -> Iterator[tuple[Any, float]]:
    """Everything that the public may see of some votes, with its exact probability."""
    passes = [float(stats.norm.sf(threshold, max(n), check.sigma)) for n in counts]
    wins = [
        [right_answer([n[k], *n[:k], *n[k + 1 :]], answer.sigma) for k in range(len(n))]
        for n in counts
    ]
    for pattern in itertools.product((False, True), repeat=len(counts)):
        seen = math.prod(p if on else 1 - p for p, on in zip(passes, pattern, strict=True))
        answered = [query for query, on in enumerate(pattern) if on][:cap]
        for labels in itertools.product(range(len(counts[0])), repeat=len(answered)):
            chances = (wins[query][label] for query, label in zip(answered, labels, strict=True))
            yield (pattern, labels), seen * math.prod(chances)


def divergence(p: dict[Any, float], q: dict[Any, float], order: float) -> float:
    """The Rényi divergence of p from q."""
    mass = sum(p[key] ** order * q[key] ** (1 - order) for key in p)
    return math.log(mass) / (order - 1)


def moved(counts: list[list[float]], moves: list[tuple[int, int]]) -> list[list[float]]:
    """Votes with one of them moved from a class to another in each query, where there is one."""
    neighbour = [list(n) for n in counts]
    for n, (loses, gains) in zip(neighbour, moves, strict=True):
        if n[loses] > 0:
            n[loses], n[gains] = n[loses] - 1, n[gains] + 1
    return neighbour


def largest_part(plan: PrivacyPlan, trainer: PATE, cap: int, trials: int = 40) -> float:
    """The largest fraction of what the caps are charged that random neighbours attain."""
    assert isinstance(trainer.release, ConfidentGNMax)
    check, answer = GNMax(trainer.release.sigma_check), GNMax(trainer.release.sigma)
    generator, largest = np.random.default_rng(0), 0.0
    curve = charged(plan.charges, plan.counts)
    for _ in range(trials):
        classes = int(generator.integers(2, 4))
        votes = [
            generator.multinomial(4, generator.dirichlet(np.ones(classes))).astype(float).tolist()
            for _ in range(trainer.queries)
        ]
        pairs = list(itertools.permutations(range(classes), 2))
        moves = [pairs[i] for i in generator.integers(0, len(pairs), trainer.queries)]
        seen = [
            dict(outcomes(n, check, trainer.release.threshold, answer, cap))
            for n in (votes, moved(votes, moves))
        ]
        for p in seen:
            assert sum(p.values()) == pytest.approx(1, abs=1e-9)
        for order in (1.5, 3.0, 8.0):
            place = int(np.searchsorted(curve.orders, order))
            at, bound = curve.orders[place], curve.rdp[place]
            for p, q in (seen, seen[::-1]):
                largest = max(largest, divergence(p, q, at) / bound)
    return largest


@pytest.mark.parametrize("cap", [1, 2])
def test_no_adaptive_number_of_answers_costs_more_than_its_cap(cap: int) -> None:
    """Four teachers, two queries, all patterns of checks and answers: docs/decisions/023."""
    release = ConfidentGNMax(threshold=2.5, sigma_check=4.0, sigma=2.0)
    trainer = confident(teachers=4, queries=2, answers=cap, release=release)
    (plan, _) = trainer.plan(DATA, STAR)
    assert 0.1 < largest_part(plan, trainer, cap) <= 1 + 1e-9


def test_the_caps_are_needed_where_all_queries_pass() -> None:
    """A twin that charges fewer answers than may be given is caught."""
    release = ConfidentGNMax(threshold=0.1, sigma_check=400.0, sigma=2.0)
    charged_one = confident(teachers=4, queries=3, answers=1, release=release)
    (plan, _) = charged_one.plan(DATA, STAR)
    assert largest_part(plan, charged_one, cap=3, trials=30) > 1


# ------------------------------------------------------------------------------ whole histograms


def soft(mechanism: GNMax | LNMax = GNMax(2.0), **options: Any) -> PATE:
    release = Release(mechanism, finish=IDENTITY)
    return confident(release=release, answers=None, **options)


@pytest.mark.parametrize("mechanism", [GNMax(2.0), LNMax(2.0)])
def test_a_student_learns_noised_counts_as_probabilities(mechanism: GNMax | LNMax) -> None:
    trainer = soft(mechanism)
    result = run(trainer)
    (released,) = sent(result, "labels")
    assert released.shape == (12, 3)
    assert released.is_floating_point()
    (asked, *_) = sent(result, "queries")
    model = initial_model(TASK, Seeds(0)["initialisation", 0, ""]).train()
    rows = Rows(asked, on_simplex(released / 6))
    QUICK(model, TASK, rows, Draws(Seeds(0), SeededEntropy(0), 0, "student"))
    assert torch.equal(vector(module(result)), vector(model))
    # Of whole histograms no data-dependent figure is known; the other one is as planned.
    assert [g.data_dependent for g in result.statement.guarantees] == [False, False]
    (public, _) = trainer.plan(DATA, STAR)
    assert formal(result).epsilon == epsilon_of(public, {"release": 12}, 1e-5)
    student = next(r for r in result.statement.input_privacy if r.reader == "student")
    assert "the noised counts of each vote" in student.reads


def test_noised_counts_are_those_of_the_votes_with_noise_of_the_stated_size() -> None:
    many = replace(DATA, public=Rows(some_rows(77, 400).inputs))
    result = run(soft(GNMax(5.0), queries=400), many)
    (released,) = sent(result, "labels")
    noise = (released - torch.stack(sent(result, "votes")).sum(0)).flatten().numpy()
    for factor, fits in ((1.0, True), (2 / 3, False), (3 / 2, False)):
        squares = float(((noise / (5.0 * factor)) ** 2).sum())
        tail = 2 * min(stats.chi2.cdf(squares, len(noise)), stats.chi2.sf(squares, len(noise)))
        assert (tail > ALARM) == fits


def test_a_check_goes_before_whole_histograms_too() -> None:
    check = Release(GNMax(1.0), reduce=MAX, finish=Threshold(4.0))
    trainer = replace(soft(), consensus=check, answers=3)
    result = run(trainer)
    assert [labels.shape for labels in sent(result, "labels")] == [(3, 3)]
    assert formal(result).releases == 15


def test_a_resumed_run_learns_the_histograms_that_were_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pate, "trained_student", broken)
        with pytest.raises(KeyboardInterrupt):
            fit(soft(), TASK, DATA, runtimes=STAR, folder=tmp_path)
    result = fit(soft(), TASK, DATA, runtimes=STAR, folder=tmp_path)
    assert torch.equal(vector(module(result)), vector(module(run(soft()))))


def test_a_loss_that_takes_no_probabilities_is_refused_before_anything_is_spent(
    tmp_path: Path,
) -> None:
    def of_classes(outputs: Tensor, targets: Tensor) -> Tensor:
        return -functional.log_softmax(outputs, dim=1)[torch.arange(len(outputs)), targets]

    with pytest.raises(DataError, match=r"probabilities of type torch.float64.*finish=IDENTITY"):
        run(soft(), task=replace(TASK, loss=of_classes), folder=tmp_path)
    assert not (tmp_path / "journal.jsonl").exists()


def test_the_nearest_probabilities_are_the_nearest() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(0.3, 1.0, (6, 4))
    found = on_simplex(torch.from_numpy(values)).numpy()
    assert np.allclose(found.sum(axis=1), 1)
    assert (found >= 0).all()
    for row, nearest in zip(values, found, strict=True):
        start = np.full(4, 0.25)
        searched = optimize.minimize(
            lambda x, row=row: ((x - row) ** 2).sum(),
            start,
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
            tol=1e-12,
        )
        assert np.allclose(nearest, searched.x, atol=1e-5)


def test_probabilities_and_votes_that_agree_stay_what_they_are() -> None:
    given = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(on_simplex(given), given)
    assert on_simplex(torch.zeros(0, 3, dtype=torch.float64)).shape == (0, 3)
    assert torch.equal(on_simplex(torch.tensor([[-5.0, -5.0, -4.0]])), torch.tensor([[0.0, 0, 1]]))
