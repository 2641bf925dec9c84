"""The referee draws candidates, shuffles them, and compares what an attack says with the truth."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from privtrain.attacks.membership import LossThreshold
from privtrain.core.errors import DataError
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Target
from privtrain.core.task import Rows, concatenate
from privtrain.runs.refereeing import (
    BY_COIN,
    DECLARED,
    LIMIT,
    drawn,
    membership_leakage,
    scores_of,
    without,
)
from tests.attacks.looking import Looking, LookingAtCanaries, judged_by_coins
from tests.contracts.attack import CANARIES, rows, target


@dataclass(frozen=True)
class FirstColumn:
    """Scores a row by its first input."""

    observer: Observer = PUBLIC
    name: str = "first column"
    needs_messages: bool = False

    def score(self, target: Target, candidates: Rows, *, seed: int) -> ArrayLike:
        return candidates.inputs[:, 0]


MEMBERS, OTHERS = rows(1, 50), rows(2, 30)


def test_equally_many_of_both_sides_are_drawn_and_the_same_for_every_attack() -> None:
    every = drawn(MEMBERS, OTHERS, Looking(), seed=0)
    few = drawn(MEMBERS, OTHERS, LossThreshold(limit=20), seed=0)
    assert every.included.tolist() == [True] * 30 + [False] * 30
    assert few.included.tolist() == [True] * 20 + [False] * 20
    for side, parts in ((0, MEMBERS), (1, OTHERS)):
        chosen = every.rows.inputs[30 * side : 30 * side + 30]
        assert torch.equal(chosen[:20], few.rows.inputs[20 * side : 20 * side + 20])
        assert len({tuple(row) for row in chosen.tolist()}) == 30
        assert all((row == parts.inputs).all(dim=1).any() for row in chosen)
        assert not torch.equal(chosen, parts.inputs[:30])
    assert not torch.equal(drawn(MEMBERS, OTHERS, Looking(), seed=1).rows.inputs, every.rows.inputs)
    many = Rows(torch.arange(LIMIT + 5.0)[:, None])
    assert len(drawn(many, many, Looking(), seed=0).rows) == 2 * LIMIT
    with pytest.raises(ValueError, match="Expected members to hold at least one row"):
        drawn(rows(1, 0), OTHERS, Looking(), seed=0)


def test_an_attack_sees_candidates_in_random_order_and_no_users() -> None:
    named = replace(MEMBERS, users=torch.arange(50))
    candidates = drawn(named, replace(OTHERS, users=torch.arange(30) + 50), Looking(), seed=0)
    looking, again = Looking(), Looking()
    for attack in (looking, again):
        scores_of(attack, target(PUBLIC), candidates, seed=4)
    ((_, seen, _),), ((_, repeated, _),) = looking.seen, again.seen
    assert seen.users is None
    assert torch.equal(seen.inputs, repeated.inputs)
    assert sorted(seen.inputs.tolist()) == sorted(candidates.rows.inputs.tolist())
    assert not torch.equal(seen.inputs, candidates.rows.inputs)
    # The order follows from the truth: under other coins it is another one.
    other = replace(candidates, included=~candidates.included)
    scores_of(again, target(PUBLIC), other, seed=4)
    assert not torch.equal(again.seen[1][1].inputs, seen.inputs)


def test_scores_are_put_back_in_the_order_of_candidates() -> None:
    candidates = drawn(MEMBERS, OTHERS, FirstColumn(), seed=0)
    scores = scores_of(FirstColumn(), target(PUBLIC), candidates, seed=0)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, candidates.rows.inputs[:, 0].double().numpy())


def test_what_is_not_a_number_is_the_worst_score_and_infinity_the_best() -> None:
    candidates = drawn(MEMBERS, OTHERS, Looking(), seed=0)
    truth = candidates.included.numpy()
    found = membership_leakage(Looking(), np.where(truth, np.inf, np.nan), candidates)
    assert found.metrics["auc"] == 1.0
    assert "30 scores were not a number and got the worst score" in found.notes
    worst = membership_leakage(Looking(), np.where(truth, np.nan, -np.inf), candidates)
    assert worst.metrics["auc"] == 0.5


def test_rows_on_both_sides_are_counted() -> None:
    both = drawn(MEMBERS, concatenate([OTHERS, MEMBERS.take(torch.arange(7))]), Looking(), seed=0)
    inside = both.rows.inputs[both.included]
    equal = [bool((row == inside).all(dim=1).any()) for row in both.rows.inputs[~both.included]]
    found = membership_leakage(Looking(), np.zeros(len(both.rows)), both)
    assert f"{sum(equal)} of the non-members are equal to a member" in found.notes and sum(equal)
    # The same inputs with another target are another row.
    flipped = replace(both.rows, targets=both.rows.labels + both.included)
    apart = membership_leakage(Looking(), np.zeros(len(flipped)), replace(both, rows=flipped))
    assert not any("are equal to a member" in note for note in apart.notes)


def test_how_candidates_were_drawn_is_said_beside_the_figures() -> None:
    candidates = drawn(MEMBERS, OTHERS, Looking(), seed=0)
    found = membership_leakage(Looking(), np.zeros(len(candidates.rows)), candidates)
    assert found.notes[-1] == DECLARED and "epsilon_lower_bound" not in found.metrics
    coins = judged_by_coins(LookingAtCanaries(), target(PUBLIC), CANARIES)
    assert coins.notes[-1] == BY_COIN and "epsilon_lower_bound" in coins.metrics


def rows_of(values: Tensor) -> Rows:
    return Rows(values, torch.zeros(len(values), dtype=torch.long))


def test_types_that_tell_who_is_a_member_are_refused() -> None:
    with pytest.raises(DataError, match=r"float16.* what float16 can hold"):
        drawn(rows_of(torch.rand(5, 2).half()), rows_of(torch.rand(5, 2)), LossThreshold(), seed=0)


def test_public_rows_are_known_whatever_their_type() -> None:
    members = rows_of(torch.rand(6, 2))
    assert len(without(members, rows_of(members.inputs[:4].double()))) == 2


def test_rows_that_are_equal_within_a_side_are_noted() -> None:
    values = torch.rand(4, 2)
    candidates = drawn(
        rows_of(torch.cat([values, values])), rows_of(torch.rand(8, 2)), LossThreshold(), seed=0
    )
    leakage = membership_leakage(LossThreshold(), np.zeros(16), candidates)
    assert any("4 of the members are equal to another of the members" in n for n in leakage.notes)
    assert not any("of the non-members" in note for note in leakage.notes)
