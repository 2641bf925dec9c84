"""Sides of other classes are named, and sides of one distribution are not."""

import pytest
import torch

from privtrain.core.task import Rows
from privtrain.runs.sides import OTHER_CLASSES, notes_on_classes

MEMBERS = torch.arange(400) < 200


def rows(targets: torch.Tensor) -> Rows:
    return Rows(torch.zeros(len(targets), 1), targets)


def test_sides_of_one_distribution_are_named_in_one_of_a_thousand_audits_at_most() -> None:
    draw = torch.Generator().manual_seed(0)
    said = [
        notes_on_classes(rows(torch.randint(0, 10, (400,), generator=draw)), MEMBERS)
        for _ in range(300)
    ]
    # Three or more of 300 have a probability of 0.004 at 1 in 1,000.
    assert sum(map(bool, said)) < 3


@pytest.mark.parametrize("other", [1, 0])
def test_non_members_of_one_class_are_named(other: int) -> None:
    targets = torch.arange(400) % 2
    targets[200:] = other
    assert notes_on_classes(rows(targets), MEMBERS) == (OTHER_CLASSES,)


def test_without_classes_nothing_is_said() -> None:
    assert notes_on_classes(rows(torch.linspace(0, 1, 400)), MEMBERS) == ()
    assert notes_on_classes(rows(torch.zeros(400, 2)), MEMBERS) == ()
    assert notes_on_classes(Rows(torch.zeros(400, 1)), MEMBERS) == ()
    assert notes_on_classes(rows(torch.full((400,), 3)), MEMBERS) == ()
