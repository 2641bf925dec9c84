"""How far an honest message reaches: the radius holds its tail, and is not much larger."""

import math

import pytest
import torch
from scipy import stats

from privtrain.mechanisms.reach import (
    BETA,
    Reach,
    gaussian_reach,
    laplace_reach,
    part_norms,
)

DIMENSIONS = (1, 2, 10, 650, 100_000)


def radius_of_normals(values: int, parts: int = 1) -> float:
    return gaussian_reach(torch.zeros(parts, values), 1.0, 1.0).radius - 1.0


def radius_of_laplace(values: int, parts: int = 1) -> float:
    return laplace_reach(torch.zeros(parts, values), 1.0, 1.0).radius - 1.0


def test_the_radius_is_that_of_the_rule() -> None:
    found = gaussian_reach(torch.zeros(1, 650, dtype=torch.float64), 0.3, 0.15)
    tail = math.sqrt(650) + math.sqrt(2 * 40 * math.log(2))
    assert found.radius == pytest.approx(0.3 + 0.15 * tail, rel=1e-12)
    assert found.times == pytest.approx((0.3 + 0.15 * tail) / 0.3)


@pytest.mark.parametrize("values", DIMENSIONS)
def test_honest_noise_stays_within_it(values: int) -> None:
    """By the exact laws: the norm of normals is chi, the L1 norm of Laplace noise is gamma."""
    assert stats.chi.sf(radius_of_normals(values), values) <= BETA
    assert stats.gamma.sf(radius_of_laplace(values), values) <= BETA
    # Of a hundred parts none is beyond it, but with the same probability.
    assert 100 * stats.chi.sf(radius_of_normals(values, 100), values) <= BETA
    assert 100 * stats.gamma.sf(radius_of_laplace(values, 100), values) <= BETA


@pytest.mark.parametrize("values", DIMENSIONS)
def test_a_smaller_radius_would_refuse_honest_messages(values: int) -> None:
    """The twin that leaves the tail away."""
    assert stats.chi.sf(math.sqrt(values), values) > 0.3
    assert stats.gamma.sf(values, values) > 0.3
    # And it is no larger than it has to be by more than two standard deviations of the noise.
    assert stats.chi.sf(radius_of_normals(values) - 3.5, values) > BETA


def test_rounding_to_the_messages_type_refuses_nobody() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        at_the_bound = torch.full((1, 4), 0.05, dtype=dtype)
        bound = 0.1  # the norm, rounded to the type, may lie above it
        assert gaussian_reach(at_the_bound, bound, 1e-12).kept


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_what_is_not_finite_or_huge_is_not_kept(bad: float) -> None:
    message = torch.tensor([[0.1, bad]], dtype=torch.float64)
    assert not gaussian_reach(message, 1.0, 1.0).kept
    assert not laplace_reach(message, 1.0, 1.0).kept


def test_norms_of_extreme_values_neither_overflow_nor_vanish() -> None:
    for scale in (1e-300, 1.0, 1e300):
        parts = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64) * scale
        assert part_norms(parts, 2.0).tolist() == pytest.approx([5.0 * scale, 0.0])
        assert part_norms(parts, 1.0).tolist() == pytest.approx([7.0 * scale, 0.0])
    assert part_norms(torch.zeros(2, 0), 2.0).tolist() == [0.0, 0.0]
    assert gaussian_reach(torch.zeros(0, 3), 1.0, 1.0).kept


def test_a_message_within_the_radius_is_kept() -> None:
    assert Reach(norm=2.0, radius=2.0, bound=1.0).kept
    assert not Reach(norm=2.1, radius=2.0, bound=1.0).kept
    assert Reach(norm=2.0, radius=2.0, bound=0.5).times == 4.0
