"""Correlated noise: against dense matrices in float64, by its statistics, and its optimiser."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import toeplitz
from scipy.optimize import minimize
from scipy.special import binom
from torch import Tensor

from privtrain.core.observers import Exposure
from privtrain.core.seeding import SeededEntropy, Stream
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Relation
from privtrain.mechanisms.banded import BandedMatrix, optimise_bands, prefix_error
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.mechanism import Mechanism, l2_bound_of
from tests.contracts.mechanism import CHECKS
from tests.statistics import assert_power, independent, normal_with_std, std_is

Array = NDArray[np.float64]
WIDE = torch.zeros(400, dtype=torch.float64)
STEPS = 23
MECHANISM = BandedMatrix(0.5, 3.0, bands=5, steps=STEPS)


def matrix(column: tuple[float, ...] | Array, steps: int = STEPS) -> Array:
    """C as a dense matrix."""
    first = np.zeros(steps)
    first[: len(column)] = column
    return np.asarray(toeplitz(first, np.zeros(steps)))


def noises(mechanism: Any, steps: int = STEPS, like: Tensor = WIDE, seed: int = 0) -> Array:
    """What a mechanism draws in a run, shape `(steps, values)`."""
    entropy, state, drawn = SeededEntropy(seed), None, []
    for step in range(steps):
        noise, state = mechanism.add(torch.zeros_like(like), state, entropy["noise", step, ""])
        drawn.append(noise.clone())
        noise.fill_(math.nan)  # whoever receives the noise may change it
    return torch.stack(drawn).double().numpy()


def root_of_sums(steps: int) -> Array:
    """The first column of the square root of the matrix of sums, in closed form."""
    number = np.arange(steps)
    return np.asarray(binom(2 * number, number) / 4.0**number)


def dense_error(column: tuple[float, ...] | Array, steps: int) -> float:
    """`prefix_error` by inverting the matrix."""
    made = np.tril(np.ones((steps, steps))) @ np.linalg.inv(matrix(column, steps))
    return float(np.sqrt((made**2).sum() / steps * np.sum(np.square(column))))


# ---------------------------------------------------------------------- the noise


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "mechanism",
    [MECHANISM, BandedMatrix(1.0, 1.0, 1, 10), BandedMatrix(2.0, 0.0, 3, 10)],
    ids=str,
)
def test_contract(mechanism: Mechanism, check: Callable[[Mechanism], None]) -> None:
    check(mechanism)


def test_streamed_noise_is_that_of_the_inverted_matrix() -> None:
    independent_noise = noises(Gaussian(0.5, 3.0))
    wanted = np.linalg.solve(matrix(MECHANISM.coefficients), independent_noise)
    np.testing.assert_allclose(noises(MECHANISM), wanted, rtol=1e-12, atol=1e-12)
    small = noises(MECHANISM, like=WIDE.float())
    assert not np.array_equal(small, noises(MECHANISM))
    again = matrix(MECHANISM.coefficients) @ small
    np.testing.assert_allclose(again, noises(Gaussian(0.5, 3.0), like=WIDE.float()), atol=1e-5)


def test_no_more_noise_is_remembered_than_there_are_bands_to_come() -> None:
    state: Any = None
    for step in range(9):
        _, state = MECHANISM.add(WIDE, state, SeededEntropy(0)["noise", step, ""])
        assert len(state) == min(step + 1, 5 - 1)


def test_one_band_is_the_gaussian_mechanism() -> None:
    one = BandedMatrix(0.5, 3.0, bands=1, steps=STEPS)
    assert np.array_equal(noises(one), noises(Gaussian(0.5, 3.0)))
    seen = Exposure(single_messages=False, knows_sample=False, noise_known=0.25)
    assert one.event(seen, ADD_REMOVE) == Gaussian(0.5, 3.0).event(seen, ADD_REMOVE)


def is_right(mechanism: Any, column: tuple[float, ...] = MECHANISM.coefficients) -> bool:
    """Whether C times the noise can be independent normals of the stated size."""
    drawn = noises(mechanism)
    white = matrix(column) @ drawn
    if not std_is(white, 1.5):
        return False
    return all(independent(white[lag:], white[:-lag]) for lag in (1, 2, 4, 5))


def test_the_noise_times_the_matrix_is_white_and_of_the_stated_size() -> None:
    assert is_right(MECHANISM)
    white = matrix(MECHANISM.coefficients) @ noises(MECHANISM)
    for check in (std_is, normal_with_std):
        assert_power(check, white, 1.5)


def test_noise_of_summed_gradients_is_as_small_as_predicted() -> None:
    """The mean square over steps, and less than that of independent noise."""
    sums = noises(MECHANISM, like=torch.zeros(20_000, dtype=torch.float64)).cumsum(axis=0)
    spread = np.sqrt((sums**2).mean(axis=1))
    predicted = 1.5 * prefix_error(MECHANISM.coefficients, STEPS)
    assert np.sqrt((spread**2).mean()) == pytest.approx(predicted, rel=0.02)
    assert predicted < 0.75 * 1.5 * math.sqrt((STEPS + 1) / 2)


class Twin:
    """A banded mechanism with one part broken."""

    def __init__(self, factor: float = 1.0, forgets: bool = False, reuses: bool = False) -> None:
        self.factor, self.forgets, self.reuses = factor, forgets, reuses

    def add(self, total: Tensor, state: Any, stream: Stream) -> tuple[Tensor, Any]:
        released, after = MECHANISM.add(total, state, Stream(bytes(32)) if self.reuses else stream)
        noise = (released - total) * self.factor
        return total + noise, state if self.forgets else after


@pytest.mark.parametrize(
    "twin",
    [
        Twin(factor=0.0),
        Twin(factor=2 / 3),
        Twin(factor=3 / 2),
        Twin(forgets=True),
        Twin(reuses=True),
        Gaussian(0.5, 3.0),
        BandedMatrix(0.5, 3.0, bands=4, steps=STEPS),
    ],
    ids=["none", "two thirds", "three halves", "forgets", "reuses", "independent", "a band less"],
)
def test_wrong_noise_is_caught(twin: Any) -> None:
    assert is_right(Twin())
    assert not is_right(twin)


# ---------------------------------------------------------------------- the matrix


def columns_are_bounded(column: tuple[float, ...] | Array) -> bool:
    """Whether a contribution to any step moves what is released by at most its own norm."""
    return bool((np.linalg.norm(matrix(column), axis=0) <= 1 + 1e-12).all())


@pytest.mark.parametrize(
    ("steps", "bands"),
    [(STEPS, 1), (STEPS, 5), (STEPS, STEPS), pytest.param(300, 40, marks=pytest.mark.slow)],
)
def test_columns_have_norm_one_and_those_far_apart_share_no_step(steps: int, bands: int) -> None:
    column = optimise_bands(steps, bands)
    assert len(column) == bands
    assert list(column) == sorted(column, reverse=True)
    assert min(column) > 0
    made = matrix(column, steps)
    assert np.linalg.norm(made[:, 0]) == pytest.approx(1.0, abs=1e-12)
    assert (np.linalg.norm(made, axis=0) <= 1 + 1e-12).all()
    gram = made.T @ made
    for apart in range(bands, steps):
        assert not np.diagonal(gram, apart).any()
    if 1 < bands < steps:
        assert (np.diagonal(gram, bands - 1) > 0).all()


def test_a_column_that_is_not_normalised_is_caught() -> None:
    assert columns_are_bounded(optimise_bands(STEPS, 5))
    assert not columns_are_bounded(root_of_sums(STEPS)[:5])


@pytest.mark.parametrize(
    ("steps", "bands"),
    [(1, 1), (12, 3), (STEPS, 5), pytest.param(64, 64, marks=pytest.mark.slow), (65, 7)],
)
def test_the_error_is_that_of_dense_matrices(steps: int, bands: int) -> None:
    for column in (optimise_bands(steps, bands), tuple(root_of_sums(steps)[:bands])):
        assert prefix_error(column, steps) == pytest.approx(dense_error(column, steps), rel=1e-10)
    assert prefix_error((1.0,), steps) == pytest.approx(math.sqrt((steps + 1) / 2))


@pytest.mark.parametrize(
    ("steps", "bands"), [(12, 3), (20, 4), (40, 2), pytest.param(20, 20, marks=pytest.mark.slow)]
)
def test_no_other_column_does_better(steps: int, bands: int) -> None:
    """An unconstrained search over all columns, by another optimiser on dense matrices."""
    start = root_of_sums(bands)[1:]
    found = minimize(lambda free: dense_error(np.append(1.0, free), steps), start, method="BFGS")
    ours = prefix_error(optimise_bands(steps, bands), steps)
    assert ours == pytest.approx(found.fun, rel=1e-6)
    assert ours < dense_error(root_of_sums(bands), steps) < dense_error((1.0,), steps)


def test_all_bands_do_a_little_better_than_the_square_root() -> None:
    ratio = dense_error(optimise_bands(64, 64), 64) / dense_error(root_of_sums(64), 64)
    assert 0.95 < ratio < 0.99


@pytest.mark.slow
def test_more_bands_do_better_over_two_thousand_steps() -> None:
    optimise_bands.cache_clear()
    found = [optimise_bands(2000, bands) for bands in (1, 4, 32, 2000)]
    errors = [prefix_error(column, 2000) for column in found]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.99 * prefix_error(tuple(root_of_sums(500)), 2000)
    optimise_bands.cache_clear()
    assert optimise_bands(2000, 32) == found[2]


# ---------------------------------------------------------------------- what it says of itself


@pytest.mark.parametrize(
    ("relation", "sensitivity"), [(ADD_REMOVE, 0.5), (ZERO_OUT, 0.5), (REPLACE_ONE, 1.0)]
)
def test_only_a_replaced_row_moves_a_sum_by_twice_the_bound(
    relation: Relation, sensitivity: float
) -> None:
    assert MECHANISM.sensitivity(relation) == sensitivity


def test_an_event_is_one_participation() -> None:
    part = Exposure(single_messages=True, knows_sample=True, noise_known=0.75, variance=4.0)
    assert MECHANISM.event(part, REPLACE_ONE).noise_multiplier == pytest.approx(3.0)
    assert "Choquette-Choo et al. 2023" in MECHANISM.about.theorem
    assert MECHANISM.about.separation == 5
    assert l2_bound_of(MECHANISM) == 0.5
    assert MECHANISM.with_scale(7.0) == BandedMatrix(0.5, 7.0, 5, STEPS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clipping_norm": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"bands": 0},
        {"bands": 2.5},
        {"steps": 4},
    ],
    ids=str,
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    settings = {"clipping_norm": 1.0, "noise_multiplier": 1.0, "bands": 5, "steps": 10, **wrong}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BandedMatrix(**settings)


def test_secure_noise_is_refused_since_it_is_independent() -> None:
    made: Any = BandedMatrix
    for secure in (True, False):
        with pytest.raises(TypeError, match=r"BandedMatrix.*secure"):
            made(1.0, 1.0, 2, 10, secure=secure)
    assert BandedMatrix(1.0, 1.0, 2, 10).about.grid is None
