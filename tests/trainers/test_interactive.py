"""Interactive-GNMax: rounds of student and teachers, and what a check against a student costs."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from privtrain.accounting.event import charged
from privtrain.core.parameters import initial_model
from privtrain.core.result import TrainResult
from privtrain.core.runtime import Draws
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.statement import Budget
from privtrain.core.task import FederatedData, Rows
from privtrain.ledgers.run import epsilon_of
from privtrain.release.checked import ConfidentGNMax, InteractiveGNMax
from privtrain.release.planning import right_answer
from privtrain.runs.fitting import fit
from privtrain.steps.plain import PlainSteps
from privtrain.trainers.interactive import Interview
from privtrain.trainers.pate import PATE
from tests.trainers.federations import STAR, TASK, a_federation, module, some_rows, vector

QUICK = PlainSteps(epochs=3, learning_rate=0.2)
QUIET = InteractiveGNMax(threshold=2.5, confidence=0.5, sigma_check=1e-3, sigma=1e-3, rounds=3)
DATA = replace(a_federation(30, 20, 20, public_rows=70), public=Rows(some_rows(77, 40).inputs))


def interactive(release: InteractiveGNMax = QUIET, **options: Any) -> PATE:
    settings: dict[str, Any] = {"teachers": 6, "queries": 20, "steps": QUICK, "student": QUICK}
    return PATE(release=release, **(settings | options))


def run(trainer: PATE, data: FederatedData = DATA, **options: Any) -> TrainResult:
    return fit(trainer, TASK, data, runtimes=STAR, keep_payloads=True, **options)


def sent(result: TrainResult, kind: str) -> list[Tensor]:
    found = [e.payload for e in result.transcript.entries if e.kind == kind]
    return [payload for payload in found if payload is not None]


def learned(rows: Rows, number: int) -> torch.nn.Module:
    """A student trained on what is known, before a round of that number."""
    model = initial_model(TASK, Seeds(0)["initialisation", 0, ""]).train()
    QUICK(model, TASK, rows, Draws(Seeds(0), SeededEntropy(0), number, "student"))
    return model.eval()


def test_rounds_follow_the_algorithm() -> None:
    """Algorithm 2 of Papernot et al. 2018, line by line, on the votes that were sent."""
    release = replace(QUIET, threshold=1.2, confidence=0.6)
    result = run(interactive(release, queries=40))
    counts = torch.stack(sent(result, "votes")).sum(0)
    (queries, *_) = sent(result, "queries")
    passed, labels = iter(sent(result, "passed")), iter(sent(result, "labels"))
    known = Rows(queries[:0], torch.zeros(0, dtype=torch.long))
    lines = set()
    for number, part in enumerate(torch.arange(40).tensor_split(3)):
        likely = torch.zeros(len(part), 3, dtype=torch.float64)
        if number:
            student = learned(known, number)
            with torch.no_grad():
                likely = torch.softmax(student(queries[part]), dim=-1)
        differ = next(passed)
        winners = next(labels) if bool(differ.any()) else torch.zeros(0, dtype=torch.long)
        asked, own = [], []
        for row, p, says in zip(part.tolist(), likely, differ.tolist(), strict=True):
            assert says == (float((counts[row] - 6 * p).max()) >= 1.2)
            if says:
                asked.append(row)
                lines.add(3 if number else 0)
            elif number and float(p.max()) > 0.6:
                own.append((row, int(p.argmax())))
                lines.add(5)
            else:
                lines.add(7)
        for row, winner in zip(asked, winners.tolist(), strict=True):
            assert float(counts[row, winner]) == float(counts[row].max())
        rows = [*asked, *(row for row, _ in own)]
        answers = torch.tensor([*winners.tolist(), *(label for _, label in own)])
        known = Rows(
            torch.cat([known.inputs, queries[rows]]),
            torch.cat([known.labels, answers.long()]),
        )
    # Teachers answered, in the first round and later, the student itself did, and nobody did.
    assert lines == {0, 3, 5, 7}
    assert torch.equal(vector(module(result)), vector(learned(known, 0)))


def test_the_price_is_that_of_as_many_checks_and_answers_without_a_student() -> None:
    release = replace(QUIET, sigma_check=3.0, sigma=4.0)
    trainer = interactive(release, answers=5)
    confident = replace(trainer, release=ConfidentGNMax(threshold=2.5, sigma_check=3.0, sigma=4.0))
    (public, _) = trainer.plan(DATA, STAR)
    assert trainer.plan(DATA, STAR) == confident.plan(DATA, STAR)
    result = run(trainer)
    named = {g.observer.name: g for g in result.statement.guarantees if not g.data_dependent}
    assert named["public"].epsilon == epsilon_of(public, {"check": 20, "answer": 5}, 1e-5)
    assert named["public"].releases == 25
    assert sum(map(len, sent(result, "labels"))) <= 5
    assert [len(passed) for passed in sent(result, "passed")] == [7, 7, 6]
    # Teachers are trained once, and which query is answered when follows from earlier answers.
    assert len(sent(result, "votes")) == 3
    assert not any(g.data_dependent for g in result.statement.guarantees)


def test_a_budget_ends_the_rounds() -> None:
    trainer = interactive(replace(QUIET, sigma_check=3.0, sigma=4.0), answers=10)
    (public, _) = trainer.plan(DATA, STAR)
    budget = Budget(epsilon_of(public, {"check": 10, "answer": 5}, 1e-5))
    result = run(trainer, budget=budget)
    assert [len(passed) for passed in sent(result, "passed")] == [7, 3]
    assert result.halted == "the budget was used up after 10 releases of kind 'check'"
    assert result.statement.epsilon() == budget.epsilon


def test_an_interrupted_run_repeats_no_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, rounds, of_round = interactive(), list[int](), Interview.round
    stopped: list[int] = []

    def stops(self: Interview, *arguments: Any) -> Any:
        if arguments[-1] == 1 and not stopped:
            stopped.append(1)
            raise KeyboardInterrupt
        rounds.append(arguments[-1])
        return of_round(self, *arguments)

    monkeypatch.setattr(Interview, "round", stops)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, TASK, DATA, runtimes=STAR, folder=tmp_path)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (saved["done"], saved["state"]["rounds"]) == (0, 1)
    result = fit(trainer, TASK, DATA, runtimes=STAR, folder=tmp_path)
    # The checks of the round that broke off stay spent, so that the cap leaves six of 13.
    assert rounds == [0, 1]
    passed = [(e.round, e.shape) for e in result.transcript.entries if e.kind == "passed"]
    assert passed == [(1, (7,)), (2, (6,))]
    assert result.halted == "the budget was used up after 20 releases of kind 'check'"
    (public, _) = trainer.plan(DATA, STAR)
    named = {g.observer.name: g for g in result.statement.guarantees if not g.data_dependent}
    assert named["public"].epsilon == epsilon_of(public, public.counts, 1e-5)


# ----------------------------------------------------------------- what it costs, by brute force

Expects = Callable[[tuple[Any, ...], list[list[float]]], np.ndarray]
"""What a student expects of the next query, from what was released, and the votes, of which an
honest one knows nothing."""


def from_answers(seen: tuple[Any, ...], counts: list[list[float]]) -> np.ndarray:
    """Trusts the classes that were answered so far."""
    likely = np.ones(len(counts[0]))
    for label in seen:
        if label is not None:
            likely[label] += 2.0
    return likely / likely.sum()


def from_votes(seen: tuple[Any, ...], counts: list[list[float]]) -> np.ndarray:
    """A cheat that knows the votes of the next query: it expects all of them for an even class."""
    n = counts[len(seen)]
    return np.eye(len(n))[0] if n[0] % 2 == 0 else np.zeros(len(n))


def outcomes(
    counts: list[list[float]], release: InteractiveGNMax, expects: Expects
) -> Iterator[tuple[tuple[Any, ...], float]]:
    """All that the public may see of a round for each query: None or a label, with its chance."""
    teachers = 4

    def further(seen: tuple[Any, ...], chance: float) -> Iterator[tuple[tuple[Any, ...], float]]:
        if len(seen) == len(counts):
            yield seen, chance
            return
        n = counts[len(seen)]
        likely = expects(seen, counts) if seen else np.zeros(len(n))
        excess = float((np.array(n) - teachers * likely).max())
        differs = float(stats.norm.sf(release.threshold, excess, release.sigma_check))
        yield from further((*seen, None), chance * (1 - differs))
        for k in range(len(n)):
            wins = right_answer([n[k], *n[:k], *n[k + 1 :]], release.sigma)
            yield from further((*seen, k), chance * differs * wins)

    yield from further((), 1.0)


def largest_part(release: InteractiveGNMax, expects: Expects, answers: int) -> float:
    """The largest fraction of the price that votes of four teachers and their neighbours attain."""
    trainer = interactive(release, teachers=4, queries=2, answers=answers)
    (plan, _) = trainer.plan(DATA, STAR)
    curve, largest = charged(plan.charges, plan.counts), 0.0
    generator = np.random.default_rng(3)
    for _ in range(40):
        classes = int(generator.integers(2, 4))
        law = generator.dirichlet(np.ones(classes), size=2)
        votes = [generator.multinomial(4, p).astype(float).tolist() for p in law]
        other = [list(n) for n in votes]
        for n in other:
            moves = [m for m in itertools.permutations(range(classes), 2) if n[m[0]] > 0]
            loses, gains = moves[generator.integers(len(moves))]
            n[loses], n[gains] = n[loses] - 1, n[gains] + 1
        seen = [dict(outcomes(n, release, expects)) for n in (votes, other)]
        for order in (1.5, 3.0, 8.0):
            place = int(np.searchsorted(curve.orders, order))
            at, bound = curve.orders[place], curve.rdp[place]
            for p, q in (seen, seen[::-1]):
                mass = sum(p[key] ** at * q[key] ** (1 - at) for key in p)
                largest = max(largest, math.log(mass) / (at - 1) / bound)
    return largest


def test_a_check_against_a_public_student_costs_no_more_than_one_without() -> None:
    release = replace(QUIET, threshold=1.0, sigma_check=2.0, sigma=2.0, rounds=2)
    assert 0.1 < largest_part(release, from_answers, answers=2) <= 1 + 1e-9


def test_a_student_that_knew_the_votes_would_cost_more() -> None:
    """A twin whose expectation is no function of what was released: largest excesses jump."""
    release = replace(QUIET, threshold=1.5, sigma_check=2.0, sigma=60.0, rounds=2)
    assert largest_part(release, from_answers, answers=2) <= 1 + 1e-9
    assert largest_part(release, from_votes, answers=2) > 1
