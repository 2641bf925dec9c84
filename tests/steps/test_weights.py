"""Weights of clients: which are bounded, and what is sealed of them."""

import pytest

from privtrain.mpc.sharing import LARGEST
from privtrain.steps.weights import ByExamples, Uniform, scale_of


def test_all_clients_weigh_the_same() -> None:
    assert (Uniform().bounded, Uniform().uniform) == (True, True)
    assert {Uniform().weight(rows) for rows in (1, 7, 10**6)} == {1.0}


def test_rows_count_up_to_the_bound() -> None:
    assert [ByExamples().weight(rows) for rows in (1, 451)] == [1.0, 451.0]
    assert [ByExamples(bound=10).weight(rows) for rows in (1, 10, 451)] == [0.1, 1.0, 1.0]
    assert not ByExamples().bounded
    assert ByExamples(bound=10).bounded
    with pytest.raises(ValueError, match="bound=0"):
        ByExamples(bound=0)


def test_what_is_sealed_fits_into_fixed_point_and_is_not_rounded() -> None:
    assert scale_of(Uniform()) == scale_of(ByExamples(bound=3)) == 1.0
    scale = scale_of(ByExamples())
    assert (2**32 - 1) * scale < LARGEST <= 2**32 * scale
    assert all(rows * scale / scale == rows for rows in (1, 451, 3_000_001))
