"""Ridge teachers: one solve each, a function of their own rows alone."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import linear_model
from torch import Tensor

from privtrain.core.errors import UnsupportedError
from privtrain.core.runtime import Draws
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import Rows
from privtrain.steps.ridge import Ridge, fitted
from privtrain.steps.teaching import Teacher
from tests.trainers.federations import TASK, some_rows


def teachers(*rows: Rows) -> list[Teacher]:
    return [
        Teacher(own, Draws(Seeds(3), SeededEntropy(3), 0, f"p/teacher-{number}"))
        for number, own in enumerate(rows)
    ]


def scores_of(*rows: Rows, strength: float = 0.5, classes: int = 3) -> list[Tensor]:
    asked = some_rows(50, 20).inputs
    return Ridge(strength=strength).teach(TASK, teachers(*rows), asked, classes)


def by_sklearn(rows: Rows, strength: float, classes: int, asked: Tensor) -> Tensor:
    """The oracle: one ridge regression a class, each with its own intercept."""
    columns = []
    for number in range(classes):
        model = linear_model.Ridge(alpha=strength, solver="svd")
        model.fit(rows.inputs.numpy(), (rows.labels == number).double().numpy())
        columns.append(model.predict(asked.numpy()))
    return torch.from_numpy(np.stack(columns, axis=1))


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 40])  # fewer, as many, and more than features
@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_scores_are_those_of_one_regression_a_class(count: int, strength: float) -> None:
    rows, asked = some_rows(4, count), some_rows(50, 20).inputs
    (scores,) = scores_of(rows, strength=strength)
    assert torch.allclose(scores, by_sklearn(rows, strength, 3, asked), atol=1e-9, rtol=1e-9)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 12), strength=st.floats(0.01, 10), seed=st.integers(0, 99))
def test_it_is_the_minimum_of_what_it_says(count: int, strength: float, seed: int) -> None:
    rows = some_rows(seed, count)
    weights, bias = (part.requires_grad_() for part in fitted(rows, strength, 3))
    wanted = torch.nn.functional.one_hot(rows.labels, 3).double()
    loss = (rows.inputs @ weights + bias - wanted).square().sum()
    (loss + strength * weights.square().sum()).backward()
    assert weights.grad is not None and bias.grad is not None
    assert float(weights.grad.abs().max()) < 1e-9
    assert float(bias.grad.abs().max()) < 1e-9


def test_a_teacher_hears_its_own_rows_alone_to_the_bit() -> None:
    """Whatever is trained in one go with it: no mean of private rows is shared."""
    mine = some_rows(4, 30)
    others = [some_rows(8, 30), Rows(some_rows(9, 2).inputs * 1e6, torch.zeros(2).long())]
    broken = Rows(torch.full((3, 5), torch.inf, dtype=torch.float64), torch.zeros(3).long())
    first = scores_of(mine, others[0])[0]
    for other in (others[1], broken, some_rows(8, 30).take(torch.arange(0))):
        assert torch.equal(scores_of(mine, other)[0], first)


def test_features_centred_by_all_rows_would_hear_the_others() -> None:
    """The broken twin of the test above, which has the power to tell it."""
    mine, other = some_rows(4, 30), some_rows(8, 30)
    asked = some_rows(50, 20).inputs

    def together(*rows: Rows) -> Tensor:
        middle = torch.cat([each.inputs for each in rows]).mean(dim=0)
        own = rows[0].inputs - middle
        wanted = torch.nn.functional.one_hot(rows[0].labels, 3).double()
        return (asked - middle) @ torch.linalg.solve(
            own.T @ own + 0.5 * torch.eye(5), own.T @ wanted
        )

    far = Rows(other.inputs * 1e3, other.labels)
    assert not torch.allclose(together(mine, other), together(mine, far))


def test_votes_of_a_teacher_without_rows_are_constant_and_follow_from_its_name() -> None:
    none = some_rows(4, 3).take(torch.arange(0))
    scores = scores_of(*[none] * 30)
    votes = torch.stack(scores).argmax(dim=2)
    assert bool((votes == votes[:, :1]).all())
    assert set(votes[:, 0].tolist()) == {0, 1, 2}, "all would vote for one class"
    assert all(torch.equal(a, b) for a, b in zip(scores, scores_of(*[none] * 30), strict=True))


def test_one_class_and_one_row_win_every_vote_and_classes_come_from_outside() -> None:
    single = some_rows(4, 1)
    alike = Rows(some_rows(4, 9).inputs, torch.full((9,), 2))
    first, second = scores_of(single, alike, classes=7)
    assert first.shape == second.shape == (20, 7)
    assert bool((first.argmax(dim=1) == single.labels).all())
    assert bool((second.argmax(dim=1) == 2).all())
    assert bool((second[:, [0, 1, 3, 4, 5, 6]] == 0).all())


def test_equal_rows_and_tiny_penalties_do_not_end_a_run() -> None:
    rows = some_rows(4, 3)
    copies = rows.take(torch.zeros(12, dtype=torch.long))
    wide = Rows(torch.cat([copies.inputs] * 9, dim=1) * 1e8, copies.labels)
    for strength in (1e-300, 1e-12, 1.0):
        weights, bias = fitted(wide, strength, 3)
        assert bool(torch.isfinite(weights).all()) and bool(torch.isfinite(bias).all())


def test_features_that_overflow_give_no_vote_and_end_nothing() -> None:
    rows = some_rows(4, 8)
    rows.inputs[2, 1] = torch.inf
    assert bool(scores_of(rows)[0].isnan().all())


def test_float32_features_and_whole_numbers_are_solved_in_float64() -> None:
    rows, asked = some_rows(4, 30), some_rows(50, 20).inputs
    narrow = dataclasses.replace(rows, inputs=rows.inputs.float())
    scores = Ridge().teach(TASK, teachers(narrow), asked.float(), 3)[0]
    assert scores.dtype == torch.float32
    assert torch.allclose(scores.double(), by_sklearn(rows, 1.0, 3, asked), atol=1e-5)
    whole = dataclasses.replace(rows, inputs=(rows.inputs * 9).long())
    assert Ridge().teach(TASK, teachers(whole), whole.inputs, 3)[0].dtype == torch.float64


def test_other_targets_are_refused() -> None:
    rows = some_rows(4, 8)
    with pytest.raises(UnsupportedError, match="class numbers"):
        fitted(dataclasses.replace(rows, targets=rows.labels.double()), 1.0, 3)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan"), float("inf")])
def test_settings_are_checked(strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        Ridge(strength=strength)
