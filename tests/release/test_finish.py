import pickle

import pytest
import torch

from privtrain.release.finish import ARGMAX, IDENTITY, Finish, Threshold

COUNTS = torch.tensor([[3.0, 5.0, 4.0], [9.0, -1.0, 8.5]])


@pytest.mark.parametrize("finish", [IDENTITY, ARGMAX, Threshold(4.0)])
def test_finishes_are_frozen_values(finish: Finish) -> None:
    assert pickle.loads(pickle.dumps(finish)) == finish
    assert hash(finish) == hash(pickle.loads(pickle.dumps(finish)))


def test_identity_releases_the_aggregate() -> None:
    assert torch.equal(IDENTITY(COUNTS), COUNTS)


def test_argmax_releases_only_the_winner_of_each_row() -> None:
    released = ARGMAX(COUNTS)
    assert released.tolist() == [1, 0]
    assert not released.is_floating_point()
    assert ARGMAX(torch.tensor([1.0, 7.0, 2.0])).item() == 1


def test_threshold_releases_only_whether_it_is_reached() -> None:
    released = Threshold(5.0)(COUNTS)
    assert released.dtype == torch.bool
    assert released.tolist() == [[False, True, False], [True, False, True]]


def test_threshold_is_not_reached_by_a_nan() -> None:
    assert not bool(Threshold(0.0)(torch.tensor(float("nan"))))
