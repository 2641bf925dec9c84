"""Rows that stand for clusters."""

import torch
from torch import Tensor

from privtrain.steps.representatives import representatives


def clusters(sizes: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows around far corners, shuffled, and whose cluster each is."""
    generator = torch.Generator().manual_seed(seed)
    whose = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    whose = whose[torch.randperm(len(whose), generator=generator)]
    corners = 20 * torch.eye(len(sizes))
    return corners[whose] + torch.randn(len(whose), len(sizes), generator=generator), whose


def test_each_cluster_gives_its_middle_and_large_ones_come_first() -> None:
    rows, whose = clusters([10, 50, 30])
    chosen = representatives(rows, 3, seed=1)
    assert whose[chosen].tolist() == [1, 2, 0]
    for index in chosen.tolist():
        own = rows[whose == whose[index]]
        distances = (own - own.mean(dim=0)).norm(dim=1)
        assert (rows[index] - own.mean(dim=0)).norm() == distances.min()


def test_each_is_chosen_once_also_where_rows_are_equal() -> None:
    rows = torch.cat([torch.zeros(5, 2), torch.ones(5, 2)])
    chosen = representatives(rows, 4, seed=0)
    assert len(set(chosen.tolist())) == len(chosen) == 4
    assert set(rows[chosen[:2], 0].tolist()) == {0.0, 1.0}


def test_more_than_there_are_rows_are_all() -> None:
    rows, _ = clusters([3, 4])
    assert sorted(representatives(rows, 7, seed=0).tolist()) == list(range(7))
    assert sorted(representatives(rows, 9, seed=0).tolist()) == list(range(7))


def test_a_seed_gives_the_same_rows() -> None:
    rows, _ = clusters([40, 40, 40])
    assert torch.equal(representatives(rows, 12, seed=5), representatives(rows, 12, seed=5))
