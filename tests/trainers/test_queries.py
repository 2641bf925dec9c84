"""Queries: three public rows, tried on a model of the task before anything is spent."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from privtrain.core.errors import DataError
from privtrain.core.task import Rows
from privtrain.trainers.queries import tried
from tests.trainers.federations import a_federation, some_rows

DATA = a_federation(4)
MODEL = nn.Linear(5, 3, dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_three_public_rows_are_tried_however_many_there_are(count: int) -> None:
    public = Rows(some_rows(5, count).inputs)
    inputs, scores = tried(replace(DATA, public=public), MODEL)
    assert torch.equal(inputs, public.inputs[torch.arange(3) % count])
    assert torch.equal(scores, MODEL.eval()(inputs).detach())


def test_rows_for_testing_stand_in_where_training_rows_are_given_up() -> None:
    inputs, _ = tried(DATA, MODEL)
    assert torch.equal(inputs, DATA.test.inputs[:3])
    inputs, scores = tried(replace(DATA, test=some_rows(1, 0)), MODEL)
    assert len(inputs) == len(scores) == 0


def test_an_empty_public_part_is_refused_and_not_taken_for_none() -> None:
    with pytest.raises(DataError, match=r"data\.public to hold rows.*public=None"):
        tried(replace(DATA, public=Rows(some_rows(5, 0).inputs)), MODEL)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (torch.zeros(8, 4, dtype=torch.float64), r"shape \(8, 4\) and type torch\.float64; it"),
        (torch.zeros(8, 5), r"shape \(8, 5\) and type torch\.float32; it raised RuntimeError"),
        (
            torch.zeros(8, 2, 5, dtype=torch.float64),
            r"shape \(8, 2, 5\).*it returned shape \(3, 2, 3\)",
        ),
    ],
)
def test_rows_of_another_kind_are_named_beside_the_kind_that_fits(
    inputs: torch.Tensor, said: str
) -> None:
    with pytest.raises(DataError, match=rf"data\.public\.inputs of {said}"):
        tried(replace(DATA, public=Rows(inputs)), MODEL)


def test_one_logit_is_no_choice() -> None:
    with pytest.raises(DataError, match=r"two classes.*data\.test.*returned shape \(3, 1\)"):
        tried(DATA, nn.Linear(5, 1, dtype=torch.float64))
