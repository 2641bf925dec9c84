"""Teachers: disjoint rows, one vote each, and what one row moves."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn import functional

from privtrain.core.errors import DataError
from privtrain.core.identity import value_digest
from privtrain.core.runtime import Party
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import FederatedData, Rows, Task, concatenate
from privtrain.data.coins import coins
from privtrain.data.models import MLP
from privtrain.ledgers.study import StudyLedger
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.fitting import fit
from privtrain.runs.keeping import load_model, save_model
from privtrain.sampling.assignment import teacher_of_rows
from privtrain.steps.features import Features, ModelOnFeatures
from privtrain.steps.plain import PlainSteps
from privtrain.steps.ridge import Ridge, fitted
from privtrain.steps.teaching import TeacherSteps
from privtrain.trainers.pate import PATE
from privtrain.trainers.teachers import Vote, public_part
from tests.statistics import ALARM
from tests.trainers.federations import STAR, TASK, a_federation, some_rows

QUICK = PlainSteps(epochs=3, learning_rate=0.2)


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


def votes_of(
    rows: Rows,
    teachers: int = 5,
    queries: int = 20,
    rate: float = 0.0,
    steps: TeacherSteps = QUICK,
    features: Features | None = None,
    task: Task = TASK,
) -> Tensor:
    """The counts that a party sends."""
    release = Release(GNMax(1.0), finish=ARGMAX)
    vote = Vote(*(task, steps, release, {"p": teachers}, rate, 3), features=features, classes=3)
    party = Party(
        name="p", round=1, train={"p": rows}, state={}, seeds=Seeds(3), entropy=SeededEntropy(3)
    )
    return vote({"queries": some_rows(50, queries).inputs}, party).message["votes"]


def squares(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, inputs.square()], dim=1)


def mixed(inputs: Tensor) -> Tensor:
    """Mixes whatever rows it is given together: what no map may do."""
    return squares(inputs - inputs.mean(dim=0)) * len(inputs)


KINDS: dict[str, dict[str, object]] = {
    "networks": {},
    "networks on features": {"features": squares, "task": Task(model=MLP((10, 3), torch.float64))},
    "ridge": {"steps": Ridge()},
    "ridge on features": {"steps": Ridge(), "features": squares},
    "ridge on features that mix rows": {"steps": Ridge(), "features": mixed},
}


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_a_row_moves_at_most_one_vote_of_each_query(rate: float, kind: str) -> None:
    """Of every row: one that was given up moves none."""
    rows = some_rows(9, 40)
    options: dict[str, Any] = {"rate": rate, **KINDS[kind]}
    whole = votes_of(rows, **options)
    moved = 0
    for place in range(0, 40, 3):
        rest = rows.take(torch.tensor([i for i in range(40) if i != place]))
        difference = whole - votes_of(rest, **options)
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


def test_features_of_all_rows_together_would_move_more_votes() -> None:
    """The broken twin: the map is given the rows of all teachers at once."""
    rows, most = some_rows(9, 40), 0.0

    def counts(held: Rows) -> Tensor:
        # Whose a row is follows from the row itself in both cases.
        number = teacher_of_rows(held, 5, 3)
        read = replace(held, inputs=mixed(held.inputs))
        votes = torch.zeros(20, 3, dtype=torch.float64)
        asked = mixed(some_rows(50, 20).inputs)
        for each in range(5):
            weights, bias = fitted(read.take((number == each).nonzero().squeeze(1)), 1.0, 3)
            votes += functional.one_hot((asked @ weights + bias).argmax(dim=1), 3)
        return votes

    whole = counts(rows)
    for place in range(0, 40, 3):
        rest = rows.take(torch.tensor([i for i in range(40) if i != place]))
        most = max(most, float((whole - counts(rest)).abs().sum(dim=1).max()))
    assert most > 2.0


@pytest.mark.parametrize("steps", [QUICK, Ridge()])
def test_a_teacher_without_rows_votes_too(steps: TeacherSteps) -> None:
    counts = votes_of(some_rows(9, 2), teachers=9, steps=steps)
    assert torch.equal(counts.sum(dim=1), torch.full((20,), 9.0, dtype=torch.float64))


# ------------------------------------------------------------- the whole fit, with Ridge and a map


def with_public(data: FederatedData, count: int = 60) -> FederatedData:
    return replace(data, public=Rows(some_rows(77, count).inputs))


def a_pate(**options: object) -> PATE:
    student = PlainSteps(epochs=40, learning_rate=0.2)
    given = {"teachers": 6, "queries": 40, "release": SURE, "steps": Ridge(), "student": student}
    return PATE(**given | options)  # type: ignore[arg-type]


SURE = Release(GNMax(0.1), finish=ARGMAX)


def test_ridge_teachers_teach_a_student_that_is_no_ridge() -> None:
    result = fit(a_pate(), TASK, with_public(a_federation(60, 60)), runtimes=STAR)
    rows = some_rows(1, 200)
    assert float((result.predictor(rows.inputs).argmax(dim=1) == rows.labels).double().mean()) > 0.7


def test_teachers_and_student_read_features_and_the_predictor_takes_rows(tmp_path: Path) -> None:
    """The class is which of three features has the largest square: no linear model finds it."""

    def labelled(rows: Rows) -> Rows:
        return Rows(rows.inputs, rows.inputs[:, :3].square().argmax(dim=1))

    plain = a_federation(90, 90)
    train = {party: labelled(rows) for party, rows in plain.train.items()}
    data = with_public(replace(plain, train=train, test=labelled(some_rows(1, 200))))
    task = Task(model=MLP((10, 3), torch.float64))
    networks = PlainSteps(epochs=40, learning_rate=0.2)
    for steps in (Ridge(), networks):
        trainer = a_pate(steps=steps, features=squares, student=networks)
        result = fit(trainer, task, data, runtimes=STAR, keep_payloads=True)
        found = result.predictor(data.test.inputs).argmax(dim=1)
        assert float((found == data.test.labels).double().mean()) > 0.7
        # What is sent to parties are rows, of which each makes features by itself.
        sent = [e.shape for e in result.transcript.entries if e.kind == "queries"]
        assert sent == [(40, 5), (40, 5)]
    save_model(result, tmp_path / "kept")
    kept = load_model(tmp_path / "kept", model=ModelOnFeatures(squares, task.model))
    assert torch.equal(kept(data.test.inputs), result.predictor(data.test.inputs))
    # Without the map, the same model cannot read the rows, which is found out beforehand.
    with pytest.raises(DataError, match=r"take data\.test\.inputs"):
        fit(a_pate(steps=networks), task, data, runtimes=STAR)
    with pytest.raises(DataError, match="read what features= makes"):
        fit(a_pate(features=squares), TASK, data, runtimes=STAR)


def test_features_identify_a_run_and_only_where_they_are_given() -> None:
    assert "features" not in repr(a_pate())
    assert value_digest(a_pate()) != value_digest(a_pate(features=squares))
    assert value_digest(a_pate(features=squares)) != value_digest(a_pate(features=mixed))
    assert value_digest(a_pate()) != value_digest(a_pate(steps=Ridge(strength=2.0)))


def test_features_that_mix_rows_cost_nothing(tmp_path: Path) -> None:
    data = replace(with_public(a_federation(20, 20)), digest="ab" * 32)
    study = StudyLedger(data, delta=1e-3)
    task = Task(model=MLP((10, 3), torch.float64))
    trainer = a_pate(features=mixed)
    with pytest.raises(DataError, match="map each row by itself"):
        fit(trainer, task, data, delta=1e-3, study_ledger=study, folder=tmp_path)
    assert study.charges == () and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"steps": Ridge}, {"steps": 3}, {"features": 3}])
def test_other_teachers_and_maps_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        a_pate(**wrong)
