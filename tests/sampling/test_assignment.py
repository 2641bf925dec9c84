"""Assignment: a row's teacher follows from its contents, or a user's from the user alone."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privtrain.command.overrides import changed_trainer
from privtrain.command.tables import make_trainer, to_table
from privtrain.core.errors import DataError
from privtrain.core.statement import Unit
from privtrain.core.task import Rows
from privtrain.runs.fitting import fit
from privtrain.sampling.assignment import CONTENTS, USERS, check_users, teacher_of_rows
from privtrain.steps.voting import CoordinatedDraw
from privtrain.trainers.pate import PATE
from tests.statistics import ALARM
from tests.trainers.federations import STAR, TASK, a_federation, some_rows


def of_users(seed: int, count: int, each: int = 3, first: int = 0) -> Rows:
    return replace(some_rows(seed, count), users=first + torch.arange(count) // each)


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 40), teachers=st.integers(1, 9), seed=st.integers(0, 50))
def test_a_user_has_one_teacher_whoever_else_is_there_and_whatever_it_holds(
    count: int, teachers: int, seed: int
) -> None:
    rows = of_users(seed, count)
    number = teacher_of_rows(rows, teachers, seed, USERS)
    assert number.dtype == torch.int64 and number.shape == (count,)
    assert all(0 <= n < teachers for n in number.tolist())
    assert rows.users is not None
    for user in rows.users.unique():
        assert len(number[rows.users == user].unique()) == 1
    # Other contents, another order, and fewer users around it.
    shuffled = torch.randperm(count)
    other = replace(some_rows(seed + 1, count), users=rows.users).take(shuffled)
    assert torch.equal(teacher_of_rows(other, teachers, seed, USERS), number[shuffled])
    part = rows.take((rows.users % 2 == 0).nonzero().squeeze(1))
    assert torch.equal(teacher_of_rows(part, teachers, seed, USERS), number[rows.users % 2 == 0])


def test_teachers_get_about_equally_many_users_and_a_seed_decides_which() -> None:
    rows = of_users(1, 4_000, each=1)
    number = teacher_of_rows(rows, 8, 5, USERS)
    assert stats.chisquare(number.bincount(minlength=8).numpy()).pvalue > ALARM
    assert not torch.equal(number, teacher_of_rows(rows, 8, 6, USERS))
    assert not torch.equal(number, teacher_of_rows(rows, 8, 5, CONTENTS))
    # One teacher has everybody, and no rows have none.
    assert not teacher_of_rows(rows, 1, 5, USERS).any()
    assert len(teacher_of_rows(rows.take(torch.arange(0)), 8, 5, USERS)) == 0


def test_users_decide_only_where_they_are_asked_to() -> None:
    rows = of_users(1, 60)
    plain = replace(rows, users=None)
    assert torch.equal(teacher_of_rows(rows, 8, 5), teacher_of_rows(plain, 8, 5))
    assert (CONTENTS.unit, USERS.unit) == (Unit.EXAMPLE, Unit.USER)


def test_users_that_nobody_knows_or_that_have_two_parties_are_refused_before_training() -> None:
    data = replace(a_federation(9, 9), public=some_rows(5))
    trainer = PATE(teachers=4, queries=3, assigned_by=USERS)
    with pytest.raises(DataError, match=r"rows of p0 do not say whose they are.*users=\.\.\."):
        fit(trainer, TASK, data, runtimes=STAR)
    with pytest.raises(DataError, match="do not say whose"):
        teacher_of_rows(some_rows(1), 4, 0, USERS)
    apart = replace(data, train={"a": of_users(1, 9), "b": of_users(2, 9, first=3)})
    check_users(apart, USERS)
    shared = replace(data, train={"a": of_users(1, 9), "b": of_users(2, 9, first=2)})
    with pytest.raises(
        DataError, match=r"a and b both hold rows of one user.*parties=1.*Unprotected"
    ):
        fit(trainer, TASK, shared, runtimes=STAR)
    check_users(shared, CONTENTS)
    half = replace(data, train={"a": of_users(1, 9), "b": some_rows(2, 9)})
    with pytest.raises(DataError, match="rows of b do not say"):
        check_users(half, USERS)


@pytest.mark.parametrize("wrong", ["user", "", True, None, Unit.USER])
def test_what_decides_is_one_of_two(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"assigned_by=.*users"):
        PATE(assigned_by=wrong)  # type: ignore[arg-type]


def test_a_study_file_holds_what_decides_and_how_votes_are_made() -> None:
    trainer = PATE(assigned_by=USERS, vote=CoordinatedDraw(temperature=0.5))
    table = json.loads(json.dumps(to_table(trainer)))
    assert (table.pop("assigned_by"), table.pop("vote")["kind"]) == ("users", "CoordinatedDraw")
    table = json.loads(json.dumps(to_table(trainer)))
    del table["kind"]
    assert make_trainer("pate", table) == trainer
    for text in ("assigned_by=users", "assigned_by=USERS"):
        assert changed_trainer(PATE(), [text]) == PATE(assigned_by=USERS)
    made = changed_trainer(PATE(), ["vote=CoordinatedDraw(0.5)"])
    assert made == PATE(vote=CoordinatedDraw(temperature=0.5))
