"""The discrete Gaussian against its law, every decision against exact rationals, the charge."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from privtrain.core.errors import UnsoundReleaseError, UnsupportedError
from privtrain.core.seeding import Stream
from privtrain.mechanisms import discrete
from privtrain.mechanisms.clipping import clip
from privtrain.mechanisms.discrete import (
    ASSUMPTION,
    BITS,
    FLOAT_ERROR,
    LARGEST_DIMENSION,
    RELEASE_DISTANCE,
    Heights,
    add_discrete,
    charged_multiplier,
    discrete_gaussian,
    distance,
    quantised,
    strips_of,
)
from privtrain.mechanisms.gaussian import Gaussian
from tests.statistics import ALARM, assert_power, independent, normal_with_std, std_is


def words(seed: int = 0) -> discrete.WordSource:
    return Stream(seed.to_bytes(32, "little")).words()


def law(s: float, reach: int) -> np.ndarray:
    """Probabilities of -reach..reach."""
    values = np.arange(-reach, reach + 1)
    weights = np.exp(-(values**2) / (2 * s**2))
    return np.asarray(weights / weights.sum())


# --------------------------------------------------------------------- the plain sampler as oracle


def coin(chance: Fraction, generator: np.random.Generator) -> bool:
    """Canonne, Kamath and Steinke 2020, Algorithm 1, number by number."""
    while chance > 1:
        if not coin(Fraction(1), generator):
            return False
        chance -= 1
    k = 1
    while int(generator.integers(chance.denominator * k)) < chance.numerator:
        k += 1
    return k % 2 == 1


def plain_laplace(t: int, generator: np.random.Generator) -> int:
    """Algorithm 2 with s = 1."""
    while True:
        u, v = int(generator.integers(t)), 0
        if not coin(Fraction(u, t), generator):
            continue
        while coin(Fraction(1), generator):
            v += 1
        value, negative = u + t * v, bool(generator.integers(2))
        if not (negative and value == 0):
            return -value if negative else value


def plain_gaussian(s: int, generator: np.random.Generator) -> int:
    """Algorithm 3."""
    t = s + 1
    while True:
        value = plain_laplace(t, generator)
        if coin((abs(value) - Fraction(s * s, t)) ** 2 / (2 * s * s), generator):
            return value


def has_law(samples: np.ndarray, s: float) -> bool:
    """Chi-square over single integers, tails together; false alarms below 1e-4."""
    reach = max(4, math.ceil(3.5 * s))
    expected = law(s, 10 * reach)
    middle = 10 * reach
    bins = expected[middle - reach : middle + reach + 1].copy()
    bins[0] += expected[: middle - reach].sum()
    bins[-1] += expected[middle + reach + 1 :].sum()
    counts = np.bincount(np.clip(samples, -reach, reach) + reach, minlength=2 * reach + 1)
    return bool(stats.chisquare(counts, bins * len(samples)).pvalue >= ALARM)


def test_the_oracle_has_the_law_and_so_does_the_fast_sampler() -> None:
    generator = np.random.default_rng(0)
    plain = np.array([plain_gaussian(16, generator) for _ in range(4000)])
    fast = discrete_gaussian(4000, words(1), 4)
    for samples in (plain, fast):
        assert_power(has_law, samples, 16.0)  # type: ignore[arg-type] # integers are what is tested
    assert stats.ks_2samp(plain, fast).pvalue >= ALARM


@pytest.mark.parametrize("bits", [4, 5, 6, 7])
def test_exact_probabilities(bits: int) -> None:
    samples = discrete_gaussian(300_000, words(bits), bits)
    assert_power(has_law, samples, 2.0**bits)  # type: ignore[arg-type] # as above
    assert int(np.abs(samples).max()) < 2 ** (bits + 4)


def test_large_scales_have_the_moments_and_the_shape() -> None:
    drawn = discrete_gaussian(200_000, words(2))
    samples = drawn / 2.0**BITS
    assert_power(std_is, samples, 1.0)
    assert_power(normal_with_std, samples, 1.0)
    assert independent(samples[:-1], samples[1:])
    assert independent(samples[:-1] ** 2, samples[1:] ** 2)
    for bit in range(20):  # the low bits are fair and not those of a float
        ones = int(((drawn >> bit) & 1).sum())
        assert stats.binomtest(ones, len(drawn), 0.5).pvalue > ALARM / 20


@pytest.mark.parametrize("count", [0, 1, 7, 2**15 + 1, 100_000])
def test_any_number_of_draws(count: int) -> None:
    assert discrete_gaussian(count, words(3)).shape == (count,)


# ------------------------------------------------------------ decisions against exact rationals


def test_a_strip_and_its_rejection_make_the_law() -> None:
    """Weight of a strip x exp(-gamma) is exp(-y^2 / (2 s^2)), as an identity of rationals."""
    for bits in (4, 7, 12):
        s, inner = 2**bits, bits - 4
        for strip in (0, 1, 17, 255):
            for place in {0, 2**inner - 1, 2**inner // 2}:
                gamma = Fraction(place * ((strip << (inner + 1)) + place), 2 ** (2 * inner + 9))
                y = (strip << inner) + place
                assert Fraction(strip * strip, 512) + gamma == Fraction(y * y, 2 * s * s)
                assert gamma < 1


@settings(max_examples=300)
@given(
    bits=st.sampled_from([4, 5, 20, 35, 36, 40, 44, 48]),
    strip=st.integers(0, 255),
    share=st.floats(0, 1),
    parts=st.integers(1, 40),
)
def test_cells_bracket_the_threshold(bits: int, strip: int, share: float, parts: int) -> None:
    inner = bits - 4
    place = min(2**inner - 1, int(share * 2**inner))
    heights = Heights.of(np.array([strip], np.uint64), np.array([place], np.uint64), inner)
    gamma = Fraction(place * ((strip << (inner + 1)) + place), 2 ** (2 * inner + 9))
    low, high = (int(cell[0]) for cell in heights.cells(parts))
    # Below the first cell every number is below the threshold; above the second none is.
    assert Fraction(low, 2**32) <= gamma / parts
    assert gamma / parts <= Fraction(high + 1, 2**32)
    assert high - low <= 2, "few numbers need more bits"


class Fixed:
    """Gives words that were written down."""

    def __init__(self, *given: int) -> None:
        self.given = list(given)

    def take(self, count: int) -> np.ndarray:
        taken, self.given = self.given[:count], self.given[count:]
        return np.array(taken, dtype=np.uint64)


@pytest.mark.parametrize("bits", [5, 48])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_open_decisions_are_taken_exactly(bits: int, parts: int) -> None:
    """Numbers next to the threshold, which 32 bits, and then 96 bits, cannot tell apart."""
    inner, strip = bits - 4, 23
    place = 2**inner - 1
    gamma = Fraction(place * ((strip << (inner + 1)) + place), 2 ** (2 * inner + 9)) / parts
    heights = Heights.of(np.array([strip], np.uint64), np.array([place], np.uint64), inner)
    cell = math.floor(gamma * 2**160)
    for number in (cell - 1, cell, cell + 1):
        prefix, middle, last = number >> 128, (number >> 64) % 2**64, number % 2**64
        source = Fixed(middle, last, 2**63)
        found = heights.below(np.array([prefix], np.uint64), parts, source)
        exact = Fraction(number, 2**160) + Fraction(1, 2**161) < gamma
        if number != cell or gamma * 2**160 == cell:
            assert bool(found[0]) == exact


def test_a_uniform_number_falls_into_the_right_strip() -> None:
    """Ends of strips by another way: mpmath, at 80 digits."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(80):
        weights = [mpmath.exp(-mpmath.mpf(i * i) / 512) for i in range(256)]
        total = mpmath.fsum(weights)
        below = mpmath.mpf(0)
        for strip, weight in enumerate(weights[:40]):
            below += weight
            number = int(mpmath.floor(below / total * 2**96))
            for offset, expected in ((-1, strip), (1, strip + 1)):
                near = number + offset
                source = Fixed(near % 2**64)
                assert int(strips_of(np.array([near >> 64], np.uint64), source)[0]) == expected
                coarse = np.array([(near >> 64) + 5 * offset], np.uint64)
                assert int(strips_of(coarse, Fixed())[0]) == expected


def test_the_last_cell_is_resolved_however_deep_it_lies() -> None:
    ones = 2**64 - 1
    prefix = np.array([2**32 - 1], np.uint64)
    strips = [int(strips_of(prefix, Fixed(*[ones] * n, 0, 0))[0]) for n in (0, 1, 2, 3)]
    assert strips == sorted(strips)
    assert 100 < strips[0] < strips[-1] == 255


# --------------------------------------------------------------------------------- what is charged


def rounded(s: float, reach: int) -> np.ndarray:
    """Probabilities of the rounded continuous Gaussian, without cancellation in the tails."""
    left = np.arange(1, reach + 1)
    tail = stats.norm.sf(left - 0.5, scale=s) - stats.norm.sf(left + 0.5, scale=s)
    middle = 1 - 2 * stats.norm.sf(0.5, scale=s)
    return np.concatenate([tail[::-1], [middle], tail])


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 4, 6])
def test_the_distance_is_a_bound_and_not_far_off(bits: int) -> None:
    s = 2.0**bits
    reach = int(12 * s) + 12
    found = 0.5 * float(np.abs(law(s, reach) - rounded(s, reach)).sum())
    assert found <= distance(bits)
    if bits >= 3:
        assert found >= 0.8 * distance(bits)


def test_the_charge_in_figures() -> None:
    """Stated in decision 013: the price in epsilon is the float error, all else is smaller."""
    assert RELEASE_DISTANCE < 2e-23
    assert 1e5 * RELEASE_DISTANCE * (1 + math.exp(25)) < 2e-7
    for multiplier in (0.3, 1.0, 10.0):
        assert 1 < multiplier / charged_multiplier(multiplier) < 1 + 2**-8 + 1e-6
    assert charged_multiplier(1e12) > charged_multiplier(1e9) > charged_multiplier(10.0)


def moved(one: np.ndarray, other: np.ndarray, grid: float) -> float:
    """L2 distance of two quantised sums, in the unit of the sums."""
    steps = quantised(one, grid).astype(object) - quantised(other, grid).astype(object)
    return math.sqrt(sum(int(step) ** 2 for step in steps)) * grid


def charged_sensitivity(mechanism: Gaussian) -> float:
    return mechanism.standard_deviation / charged_multiplier(mechanism.noise_multiplier)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    count=st.integers(0, 60),
    size=st.integers(1, 300),
    norm=st.sampled_from([1e-6, 0.3, 1.0, 50.0]),
    multiplier=st.sampled_from([1e-3, 0.5, 1.0, 100.0]),
    offset=st.sampled_from([0.0, 1e3, 1e8, 1e30]),
)
def test_quantised_sums_of_neighbours_stay_within_the_charge(
    seed: int, count: int, size: int, norm: float, multiplier: float, offset: float
) -> None:
    """Float32 sums, in two orders, also where they are clamped: offset stands for more rows."""
    mechanism = Gaussian(norm, multiplier, secure=True)
    generator = torch.Generator().manual_seed(seed)
    rows = [clip(10 * torch.randn(size, generator=generator), norm) for _ in range(count + 1)]
    base = rows[0] * 0 if not count else torch.stack(rows[:-1]).sum(dim=0)
    total = torch.stack(rows[::-1]).sum(dim=0)
    shift = offset * norm
    one, other = (value.double().numpy() + shift for value in (base, total))
    if shift > 1e6 * norm:  # the shift has rounded the rows away; here the clamp is what is tested
        other = one + rows[-1].double().numpy()
    grid = mechanism.about.grid
    assert grid is not None
    assert moved(one, other, grid) <= charged_sensitivity(mechanism)


def test_a_grid_that_is_too_coarse_exceeds_a_sensitivity_that_ignores_it() -> None:
    """The broken twin: rounding costs sqrt(d) x grid, and the charge has to know it."""
    grid, size = 1.0, 10_000
    one, other = np.full(size, 0.499), np.full(size, 0.501)
    norm = float(np.linalg.norm(other - one))
    found = moved(one, other, grid)
    assert found > 100 * norm * (1 + FLOAT_ERROR)
    assert found <= norm + math.sqrt(size) * grid
    fine = math.ldexp(norm, -BITS)
    assert moved(one, other, fine) <= norm * (1 + FLOAT_ERROR)


def test_nothing_overflows_and_broken_values_raise_nothing() -> None:
    values = np.array([np.inf, -np.inf, np.nan, 1e300, -1e300, 0.0, 2.0**62, 2.0**62 - 512])
    found = quantised(values, 1.0)
    assert found.tolist() == [2**62, -(2**62), 0, 2**62, -(2**62), 0, 2**62, 2**62 - 512]
    extreme = int(np.abs(discrete_gaussian(1000, words(4))).max())
    assert extreme < 2 ** (BITS + 4)
    assert 2**62 + 2 ** (BITS + 4) < 2**63
    huge = add_discrete(torch.tensor([1e30, float("nan")]), 1.0, Stream(bytes(32)))
    assert bool(torch.isfinite(huge).all())


# ------------------------------------------------------------------------------ the mechanism


def secure(norm: float = 1.0, multiplier: float = 1.0) -> Gaussian:
    return Gaussian(norm, multiplier, secure=True)


def test_the_aggregate_is_what_is_noised() -> None:
    like, stream = torch.linspace(-3, 3, 50, dtype=torch.float64), Stream(bytes(32))
    noise, _ = secure().add(torch.zeros_like(like), None, stream)
    both, _ = secure().add(like, None, stream)
    torch.testing.assert_close(both - noise, like, rtol=0, atol=1e-12)
    steps = both / 2.0**-BITS
    assert torch.equal(steps, steps.round()), "what is released lies on the grid"


def test_what_is_released_is_the_quantised_sum_plus_the_noise_that_was_drawn() -> None:
    like, grid = torch.linspace(-3, 3, 50, dtype=torch.float64), 2.0**-BITS
    drawn = discrete_gaussian(50, Stream(bytes(32)).words())
    wanted = torch.from_numpy((quantised(like.numpy(), grid) + drawn) * grid)
    assert torch.equal(add_discrete(like, 1.0, Stream(bytes(32))), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_type_and_shape_stay(dtype: torch.dtype) -> None:
    for shape in ((), (3,), (2, 5), (0,)):
        given = torch.ones(shape, dtype=dtype)
        released = add_discrete(given, 1.0, Stream(bytes(32)))
        assert (released.shape, released.dtype) == (given.shape, dtype)


def on_the_grid(values: Tensor, grid: float) -> bool:
    """Whether values are whole multiples of a number, rounded to float64."""
    return torch.equal(torch.from_numpy(quantised(values.numpy(), grid) * grid), values)


@pytest.mark.parametrize("multiplier", [0.3, 1.0, 7.7])
@pytest.mark.parametrize("norm", [1e-5, 1.3])
def test_what_is_released_are_the_whole_numbers_that_were_drawn(
    norm: float, multiplier: float
) -> None:
    """An aggregation on shares or masks encodes them as they are: no second rounding."""
    mechanism, key = secure(norm, multiplier), Stream(bytes(range(32)))
    total = torch.linspace(-3, 3, 1000, dtype=torch.float64) * norm * multiplier
    released, _ = mechanism.add(total, None, key)
    grid = mechanism.about.grid
    assert grid == norm * multiplier * 2.0**-48
    assert on_the_grid(released, grid)
    drawn = quantised(total.numpy(), grid) + discrete_gaussian(1000, key.words())
    assert np.array_equal(quantised(released.numpy(), grid), drawn)
    # Power: another grid, floats, or a sum that was rounded to float32 in between are caught.
    assert not on_the_grid(released, 3 * grid)
    assert not on_the_grid(Gaussian(norm, multiplier).add(total, None, key)[0], grid)
    assert not on_the_grid(released.float().double(), grid)


def test_only_secure_noise_has_a_grid_and_only_where_it_is_drawn() -> None:
    assert Gaussian(1.0, 1.0).about.grid is None
    assert secure(2.0, 0.0).about.grid is None
    assert secure(2.0, 0.0).about.assumptions == ()
    kept = torch.ones(3)
    assert secure(2.0, 0.0).add(kept, None, Stream(bytes(32)))[0] is kept
    assert secure(2.0, 1.0).about.assumptions == (ASSUMPTION,)
    assert "Canonne" in secure().about.theorem
    assert "Canonne" not in Gaussian(1.0, 1.0).about.theorem


def test_parts_of_noise_and_too_many_values_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="split"):
        secure().add(torch.zeros(3), None, Stream(bytes(32)), fraction=0.5)
    many = torch.zeros(1).expand(LARGEST_DIMENSION + 1)
    with pytest.raises(UnsoundReleaseError, match="charged for"):
        add_discrete(many, 1.0, Stream(bytes(32)))


@pytest.mark.parametrize("make", [lambda: secure(1e-200, 1e-100), lambda: secure(1e200, 1e200)])
def test_a_grid_that_floats_cannot_hold_is_refused(make: Callable[[], Gaussian]) -> None:
    with pytest.raises(ValueError, match="secure=True"):
        make()


@pytest.mark.parametrize("value", [1, None, "False"])
def test_secure_is_true_or_false(value: object) -> None:
    with pytest.raises(ValueError, match=f"secure={value!r} to be True or False"):
        Gaussian(1.0, 1.0, secure=value)  # type: ignore[arg-type]
