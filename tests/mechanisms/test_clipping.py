import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from privtrain.mechanisms.clipping import (
    RECLIPPING_SLACK,
    AutomaticClipping,
    FlatClipping,
    PerLayerClipping,
    clip,
    clip_again,
    clip_factors,
)
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.mechanisms.mechanism import Mechanism

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LARGEST = {dtype: torch.finfo(dtype).max for dtype in DTYPES}

values = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20)
norms = st.floats(min_value=5e-324, max_value=1.7e308)
orders = st.sampled_from([1.0, 2.0])
dtypes = st.sampled_from(DTYPES)


def exact_norm(update: Tensor, order: float) -> float:
    """Python's own norms, which neither overflow nor lose tiny numbers."""
    plain = update.double().tolist()
    if order == 2.0:
        return math.hypot(*plain)
    try:
        return math.fsum(map(abs, plain))
    except OverflowError:
        return math.inf


def as_type(numbers: list[float], dtype: torch.dtype) -> Tensor:
    largest = LARGEST[dtype]
    return torch.tensor([max(-largest, min(largest, x)) for x in numbers], dtype=dtype)


@given(values, norms, orders, dtypes)
def test_clipped_norm_is_at_most_the_bound(
    numbers: list[float], norm: float, order: float, dtype: torch.dtype
) -> None:
    update = as_type(numbers, dtype)
    clipped = clip(update, norm, order=order)
    assert (clipped.shape, clipped.dtype) == (update.shape, update.dtype)
    # Four units of float64's last place, since both sides compute norms in float64.
    assert exact_norm(clipped, order) <= norm * (1 + 1e-15) or exact_norm(clipped, order) == 0


@given(values, norms, orders, dtypes)
def test_what_is_within_the_bound_stays_as_it_is(
    numbers: list[float], norm: float, order: float, dtype: torch.dtype
) -> None:
    update = as_type(numbers, dtype)
    if exact_norm(update, order) * (1 + 1e-12) <= norm:
        assert torch.equal(clip(update, norm, order=order), update)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), st.floats(1e-3, 1e3), orders)
def test_clipping_keeps_the_direction_and_reaches_the_bound(
    numbers: list[float], norm: float, order: float
) -> None:
    update = as_type(numbers, torch.float64)
    before = exact_norm(update, order)
    if before <= norm:
        return
    clipped = clip(update, norm, order=order)
    assert torch.allclose(clipped, update * (norm / before), rtol=1e-12, atol=0)
    assert exact_norm(clipped, order) == pytest.approx(norm, rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("order", [1.0, 2.0])
def test_a_contribution_that_is_not_finite_becomes_zero(
    bad: float, dtype: torch.dtype, order: float
) -> None:
    update = torch.tensor([1.0, bad, -2.0], dtype=dtype)
    clipped = clip(update, 1.0, order=order)
    assert torch.equal(clipped, torch.zeros(3, dtype=dtype))
    assert clipped.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_stays_zero(dtype: torch.dtype) -> None:
    for shape in ((4,), (2, 3), (), (0,)):
        zero = torch.zeros(shape, dtype=dtype)
        assert torch.equal(clip(zero, 1e-300), zero)


def test_no_square_is_lost_and_none_overflows() -> None:
    tiny = clip(torch.full((4,), 1e-200, dtype=torch.float64), 1e-250)
    assert torch.allclose(tiny, torch.full((4,), 5e-251, dtype=torch.float64), rtol=1e-12, atol=0)
    huge = clip(torch.full((4,), 1e200, dtype=torch.float64), 1.0)
    assert torch.allclose(huge, torch.full((4,), 0.5, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("value", "norm", "dtype"),
    [(1.0, 1.5e-45, torch.float32), (1.0, 1e-5, torch.float16), (1.0, 7e-324, torch.float64)],
)
def test_a_bound_below_what_the_type_resolves_ends_in_zero(
    value: float, norm: float, dtype: torch.dtype
) -> None:
    clipped = clip(torch.full((2000,), value, dtype=dtype), norm)
    assert exact_norm(clipped, 2.0) <= norm


@pytest.mark.parametrize("parameters", [3, 1000, 100_000])
def test_rounding_of_float32_never_exceeds_the_bound(parameters: int) -> None:
    for seed in range(20):
        source = torch.Generator().manual_seed(seed)
        update = torch.randn(parameters, generator=source)
        for norm in (0.1, 1 / 3, 1.0):
            assert exact_norm(clip(update, norm), 2.0) <= norm


def test_clipping_does_not_write_into_the_update() -> None:
    update = torch.tensor([3.0, 4.0])
    clip(update, 1.0)
    assert update.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, math.inf])
def test_the_bound_is_positive(norm: float) -> None:
    with pytest.raises(ValueError, match=rf"clipping_norm={norm!r} > 0"):
        clip(torch.ones(2), norm)
    with pytest.raises(ValueError, match=rf"clipping_norm={norm!r} > 0"):
        clip_factors(torch.ones(2), norm)


@pytest.mark.parametrize(
    ("mechanism", "order"), [(Gaussian(0.7, 1.0), 2.0), (Laplace(0.7, 1.0), 1.0)]
)
@given(numbers=values, dtype=dtypes)
def test_mechanisms_bound_in_their_own_norm(
    mechanism: Mechanism, order: float, numbers: list[float], dtype: torch.dtype
) -> None:
    assert exact_norm(mechanism.bound(as_type(numbers, dtype)), order) <= 0.7 * (1 + 1e-15)


@given(st.lists(st.floats(min_value=0, width=32), min_size=1, max_size=20), st.floats(1e-30, 1e30))
def test_factors_bound_each_of_many(lengths: list[float], norm: float) -> None:
    for dtype in (torch.float32, torch.float64):
        tensor = torch.tensor(lengths, dtype=dtype)
        factors = clip_factors(tensor, norm)
        assert bool(((factors >= 0) & (factors <= 1)).all())
        finite = torch.isfinite(tensor)
        assert not bool(factors[~finite].any())
        clipped = factors[finite].double() * tensor[finite].double()
        # One rounding of the factor to its type; where that type has normal numbers for it.
        assert bool((clipped <= norm * (1 + torch.finfo(dtype).eps) + 1e-44 * tensor[finite]).all())
        assert bool((factors[tensor.double() <= norm] == 1).all())


def test_factors_of_the_unusual() -> None:
    unusual = torch.tensor([0.0, math.nan, math.inf, 4.0])
    assert clip_factors(unusual, 1.0).tolist() == [1.0, 0.0, 0.0, 0.25]
    assert clip_factors(torch.zeros(2), 1e-60).tolist() == [1.0, 1.0]
    assert clip_factors(torch.zeros(0), 1.0).shape == (0,)


@pytest.mark.parametrize(("gamma", "norm"), [(0.01, 0.5), (2.0, 3.0), (1e-6, 7.0)])
def test_automatic_clipping_scales_by_the_bound_over_norm_plus_gamma(
    gamma: float, norm: float
) -> None:
    """AUTO-S (Bu et al. 2022): a factor of C / (norm + gamma), so that no row moves by C."""
    clipping = AutomaticClipping(gamma)
    lengths = torch.tensor([0.0, 1e-3, 0.2, 5.0, 4e4], dtype=torch.float64)
    factors, scale = clipping.factors(lengths, norm), clipping.scale(norm)
    assert scale == norm / gamma
    torch.testing.assert_close(factors * scale, norm / (lengths + gamma), rtol=1e-12, atol=0)
    assert bool((factors * scale * lengths < norm).all()) and bool((factors <= 1).all())
    assert float((factors * scale * lengths)[-1]) > 0.99 * norm
    unusual = clipping.factors(torch.tensor([math.nan, math.inf, -math.inf]), norm)
    assert unusual.tolist() == [0.0, 0.0, 0.0]
    # One group for all parameters: norms are those of whole gradients.
    assert clipping.groups(["a", "b", "c"]) == (0, 0, 0)


def test_parameters_are_grouped_as_the_style_clips_them() -> None:
    names = ["body.weight", "body.bias", "head.weight"]
    assert FlatClipping().groups(names) == AutomaticClipping().groups(names) == (0, 0, 0)
    assert PerLayerClipping().groups(names) == (0, 0, 1)


def test_any_number_of_layers_may_have_weights() -> None:
    style = PerLayerClipping((1.0,) * 300)
    names = [f"{number}.weight" for number in range(300)]
    assert style.groups(names) == tuple(range(300))
    with pytest.raises(ValueError, match="to hold 299 numbers"):
        style.groups(names[1:])


def test_automatic_clipping_refuses_scales_beyond_floats() -> None:
    assert AutomaticClipping(1e-6).scale(9e23) == pytest.approx(9e29)
    with pytest.raises(ValueError, match="1e30 x gamma"):
        AutomaticClipping(1e-6).scale(2e24)
    with pytest.raises(ValueError, match="clipping_norm=0"):
        AutomaticClipping().scale(0.0)
    with pytest.raises(ValueError, match="1e-6"):
        AutomaticClipping(9e-7)


# ------------------------------------------------------------------------- clipped by somebody else


@given(values, st.floats(1e-30, 1e30), orders, dtypes)
def test_what_was_clipped_keeps_its_bits_when_it_is_clipped_again(
    numbers: list[float], norm: float, order: float, dtype: torch.dtype
) -> None:
    clipped = clip(as_type(numbers, dtype), norm, order=order)
    assert clip_again(clipped, norm, 1, order=order) is clipped


@given(values, st.floats(1e-30, 1e30), orders, st.integers(1, 9))
def test_nobody_gets_more_than_the_bound_through(
    numbers: list[float], norm: float, order: float, contributions: int
) -> None:
    sent = torch.tensor(numbers, dtype=torch.float64)
    kept = clip_again(sent, norm, contributions, order=order)
    assert exact_norm(kept, order) <= contributions * norm * (1 + 2 * RECLIPPING_SLACK)
    if exact_norm(sent, order) <= contributions * norm:
        assert kept is sent


def test_the_slack_is_for_rounding_only() -> None:
    at_the_bound = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert clip_again(at_the_bound * (1 + 0.5e-9), 1.0, 1)[0] > 1.0
    assert clip_again(at_the_bound * (1 + 3e-9), 1.0, 1)[0] <= 1.0
    assert clip_again(at_the_bound * 1.5, 1.0, 2)[0] == 1.5
    assert clip_again(at_the_bound * math.nan, 1.0, 2).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="contributions=0"):
        clip_again(at_the_bound, 1.0, 0)
