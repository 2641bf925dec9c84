"""Weights of clients: which are bounded, and what is sealed of them."""

import pytest

from privtrain.mpc.sharing import LARGEST
from privtrain.sampling.sampling import Everyone, FixedSize, Poisson, Sampling
from privtrain.steps.weights import ByExamples, Uniform, Weights, expected_weight, scale_of
from tests.trainers.federations import a_federation


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


@pytest.mark.parametrize(
    ("weights", "sampling", "public_rows", "mean"),
    [
        (Uniform(), Everyone(), None, 1.0),
        (Uniform(), Poisson(0.5, expected_size=2.0), 20, 1.0),
        (ByExamples(bound=10), Everyone(), 20, 0.5),
        (ByExamples(bound=10), FixedSize(2), 20, 0.5),
        (ByExamples(bound=10), Poisson(0.5), 20, 0.5),
        (ByExamples(bound=10), Poisson(0.5, expected_size=2.0, size_is_public=True), 20, 0.5),
        (ByExamples(bound=10), Everyone(), 400, 1.0),
        # Rows are never counted, and neither are clients whose number is hidden.
        (ByExamples(bound=10), Everyone(), None, None),
        (ByExamples(bound=10), Poisson(0.5, expected_size=2.0), 20, None),
    ],
)
def test_the_mean_weight_is_taken_from_public_figures_alone(
    weights: Weights, sampling: Sampling, public_rows: int | None, mean: float | None
) -> None:
    for counts in ((5, 5, 5, 5), (1, 9, 2, 80)):
        data = a_federation(*counts, public_rows=public_rows)
        assert expected_weight(weights, sampling, data) == mean
