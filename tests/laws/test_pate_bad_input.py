"""What PATE cannot use is refused by name, with the way out, before a teacher is trained or paid.

And what looks odd and is none is kept as it is documented: docs/trainers/pate.md, "Odd data".
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from privtrain.core.errors import BudgetExceededError, DataError
from privtrain.core.result import TrainResult
from privtrain.core.statement import Budget
from privtrain.core.task import FederatedData, Rows, concatenate
from privtrain.ledgers.study import StudyLedger
from privtrain.mechanisms.votes import GNMax, LNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.fitting import fit
from privtrain.sampling.assignment import USERS
from privtrain.steps.plain import PlainSteps
from privtrain.steps.voting import CoordinatedDraw
from privtrain.trainers.pate import PATE
from tests.statistics import ALARM
from tests.trainers.federations import STAR, TASK, a_federation, some_rows

WINNERS = Release(GNMax(2.0), finish=ARGMAX)


@dataclass(frozen=True)
class Untrained(PlainSteps):
    """Fails where a teacher would be trained."""

    def teach(self, *arguments: Any, **options: Any) -> Iterator[Tensor]:
        pytest.fail("teachers were trained")


def a_pate(steps: PlainSteps = PlainSteps(epochs=2), **options: object) -> PATE:
    given = {
        "teachers": 4,
        "queries": 5,
        "release": WINNERS,
        "steps": steps,
        "student": PlainSteps(epochs=2),
        **options,
    }
    return PATE(**given)  # type: ignore[arg-type]


def data_of(**options: object) -> FederatedData:
    data = replace(a_federation(10, 10), public=Rows(some_rows(5, 8).inputs), digest="ab" * 32)
    return replace(data, **options)  # type: ignore[arg-type]


def train_of(**columns: Tensor | None) -> FederatedData:
    data = data_of()
    return replace(data, train={**data.train, "p1": replace(data.train["p1"], **columns)})


def spoilt(value: float) -> Tensor:
    inputs = some_rows(5, 10).inputs.clone()
    inputs[3, 2] = value
    return inputs


LABELS = some_rows(101, 10).labels
EMPTY = Rows(torch.zeros(0, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("trainer", "data", "said"),
    [
        ({"teachers": 21}, data_of(), r"teachers=21 <= 20.*Use fewer teachers"),
        ({"teachers": 1}, data_of(), r"teachers=1 >= 2, the number of parties"),
        ({}, data_of(public=EMPTY), r"data\.public to hold rows.*it holds 0\. Give public rows"),
        ({}, data_of(public=Rows(spoilt(torch.nan))), r"data\.public\[3, 2\] is nan\. Remove"),
        ({}, data_of(public=Rows(spoilt(torch.inf))), r"data\.public\[3, 2\] is inf\. Remove"),
        ({}, data_of(public=Rows(spoilt(0.0)[:, :4])), r"shape \(10, 4\).*like those.*\(12, 5\)"),
        ({}, data_of(public=Rows(spoilt(0.0)[:, None])), r"public\.inputs of shape \(10, 1, 5\)"),
        ({}, data_of(public=Rows(spoilt(0.0)[:, 0])), r"shape \(10,\).*like those.*\(12, 5\)"),
        ({}, data_of(public=Rows(spoilt(0.0).float())), r"float32; it raised.*float64"),
        ({}, data_of(public=Rows(spoilt(0.0).long())), r"type torch\.int64; it raised.*float64"),
        ({}, data_of(public=Rows(spoilt(0.0) > 0)), r"type torch\.bool; it raised.*float64"),
        ({}, train_of(inputs=spoilt(torch.nan)), r"train\[p1\]\[3, 2\] is nan"),
        (
            {},
            train_of(inputs=spoilt(0.0)[:, :4]),
            r"inputs of 'p1' with rows of shape \(4,\).*Give all parties",
        ),
        (
            {},
            train_of(inputs=spoilt(0.0).float()),
            r"data\.train\['p1'\]\.inputs of shape.*float32",
        ),
        ({}, train_of(targets=None), r"data\.train\['p1'\] to have targets.*Give Rows"),
        ({}, train_of(targets=LABELS.double()), r"train\['p1'\]\.targets.*class numbers"),
        ({}, train_of(targets=LABELS - 1), r"targets in 0\.\.2.*Unprotected"),
        ({}, train_of(targets=LABELS + 1), r"targets in 0\.\.2.*Unprotected"),
        ({}, train_of(targets=LABELS[:, None]), r"targets of 'p1' with rows of shape \(1,\)"),
        ({}, train_of(inputs=spoilt(0.0)[:0], targets=LABELS[:0]), r"'p1' holds no rows"),
        ({"queries": 200}, data_of(public=None), r"queries=200 would take all.*Ask fewer"),
        ({"assigned_by": USERS}, data_of(), r"rows of p0 do not say whose.*users=\.\.\."),
    ],
)
def test_it_is_refused_before_a_teacher_is_trained_or_paid(
    trainer: dict[str, object], data: FederatedData, said: str, tmp_path: Path
) -> None:
    study = StudyLedger(data, delta=1e-2)
    with pytest.raises((DataError, ValueError), match=said):
        fit(
            a_pate(Untrained(epochs=2), **trainer),
            *(TASK, data),
            runtimes=STAR,
            delta=1e-2,
            study_ledger=study,
            folder=tmp_path,
        )
    assert study.charges == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["teachers", "queries"])
@pytest.mark.parametrize("value", [0, -1, True, 2.5, "5", None, float("nan")])
def test_numbers_are_whole_and_positive(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        a_pate(**{name: value})


def fitted(data: FederatedData, **options: object) -> TrainResult:
    trainer = a_pate(**options)  # type: ignore[arg-type]
    return fit(trainer, TASK, data, runtimes=STAR, delta=1e-2, keep_payloads=True)


def payload(result: TrainResult, kind: str) -> Tensor:
    parts = [e.payload for e in result.transcript.entries if e.kind == kind]
    present = [part for part in parts if part is not None]
    assert present
    return torch.stack(present) if kind == "votes" else present[0]


def test_a_budget_that_no_answer_fits_is_refused() -> None:
    with pytest.raises(BudgetExceededError, match=r"Not one release fits.*a single one costs"):
        fit(
            a_pate(Untrained(epochs=2)),
            *(TASK, data_of()),
            runtimes=STAR,
            delta=1e-2,
            budget=Budget(1e-4, 1e-2),
        )


@pytest.mark.parametrize("mechanism", [GNMax(1e-9), GNMax(1e12), LNMax(1e-9), LNMax(1e12)])
def test_hardly_any_noise_and_far_too_much_have_a_statement(mechanism: GNMax | LNMax) -> None:
    epsilon = fitted(data_of(), release=Release(mechanism, finish=ARGMAX)).statement.epsilon()
    assert epsilon > 1e6 if mechanism in (GNMax(1e-9), LNMax(1e-9)) else epsilon < 1e-3


def test_a_single_public_row_is_asked_once_and_paid_once() -> None:
    result = fitted(data_of(public=Rows(some_rows(5, 1).inputs)))
    assert payload(result, "labels").shape == (1,)
    assert "only 1 public rows for 5 queries" in result.notes
    assert {g.releases for g in result.statement.guarantees} == {1}


def test_labels_of_public_rows_are_read_by_nobody() -> None:
    public = some_rows(5, 8)
    wrong = Rows(public.inputs, torch.full((8,), 99))
    left_out = payload(fitted(data_of()), "labels")
    for given in (public, wrong):
        assert torch.equal(payload(fitted(data_of(public=given)), "labels"), left_out)


def test_private_rows_among_the_public_ones_are_questions_like_others() -> None:
    """What is protected is that a row is trained on, not its inputs, which are public already."""
    data = data_of()
    rows = data.train["p0"]
    twins = replace(data, public=Rows(rows.inputs[:8]))
    result = fitted(twins)
    assert result.members is None
    assert result.statement.epsilon() == fitted(data).statement.epsilon()
    # The teachers keep theirs: the votes are those on any other questions.
    asked = payload(result, "queries")
    again = replace(twins, public=Rows(asked))
    assert payload(fitted(again), "votes").sum() == payload(result, "votes").sum() == 4 * 5
    # A single question, asked as often as it stands there; each answer is paid.
    same = fitted(replace(data, public=Rows(rows.inputs[:1].repeat(8, 1))))
    votes = payload(same, "votes")
    assert (votes == votes[:, :1]).all()
    assert payload(same, "labels").shape == (5,)


@pytest.mark.parametrize("vote", [None, CoordinatedDraw()], ids=["top", "drawn"])
def test_teachers_without_rows_or_with_one_class_vote_all_the_same(
    vote: CoordinatedDraw | None,
) -> None:
    """Four rows for four teachers, some of whom have none; and one class alone."""
    options = {} if vote is None else {"vote": vote}
    few = {"p0": some_rows(3, 2), "p1": some_rows(4, 2)}
    single = {"p0": Rows(some_rows(3).inputs, torch.ones(12, dtype=torch.long))}
    for train in (few, single, {"p0": concatenate([few["p0"]] * 3)}):
        votes = payload(fitted(data_of(train=train), **options), "votes")
        assert votes.sum(dim=(0, 2)).tolist() == [4.0] * 5


def test_of_a_tie_the_noise_decides_and_favours_nobody() -> None:
    """Two teachers of two minds on every query: each wins about as often."""
    one, other = (Rows(torch.zeros(9, 5, dtype=torch.float64), torch.full((9,), c)) for c in (0, 2))
    data = data_of(
        train={"a": one, "b": other}, public=Rows(torch.zeros(600, 5, dtype=torch.float64))
    )
    steps = PlainSteps(epochs=60, learning_rate=0.5)
    result = fitted(
        data, teachers=2, queries=600, steps=steps, release=Release(GNMax(1e-3), finish=ARGMAX)
    )
    assert payload(result, "votes").sum(dim=0)[0].tolist() == [1.0, 0.0, 1.0]
    wins = payload(result, "labels").bincount(minlength=3).tolist()
    assert wins[1] == 0
    assert stats.binomtest(wins[0], 600).pvalue > ALARM


def test_a_teacher_whose_training_diverges_casts_no_vote() -> None:
    """Its scores are no numbers. One vote vanishes, which costs less than one that moves."""
    wild = replace(some_rows(3), inputs=some_rows(3).inputs * 1e200)
    data = data_of(train={"a": some_rows(4), "b": wild})
    steps = PlainSteps(epochs=5, learning_rate=1e200)
    votes = payload(fitted(data, teachers=2, steps=steps), "votes")
    assert votes[1].sum() == 0
