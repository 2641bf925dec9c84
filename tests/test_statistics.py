"""The statistical checks accept what they should and have power against a factor of 3/2."""

import numpy as np

from tests.statistics import (
    assert_power,
    independent,
    laplace_scale_is,
    mean_is_zero,
    normal_with_std,
    std_is,
    uniform_over_ring,
)

SAMPLES = 2_000


def generator() -> np.random.Generator:
    return np.random.default_rng(20)


def test_checks_of_a_scale_have_power_both_ways() -> None:
    draws = generator()
    assert_power(std_is, draws.normal(0, 3.0, SAMPLES), 3.0)
    assert_power(normal_with_std, draws.normal(0, 0.1, SAMPLES), 0.1)
    assert_power(laplace_scale_is, draws.laplace(0, 7.0, SAMPLES), 7.0)


def test_shapes_and_means_are_seen() -> None:
    draws = generator()
    assert not normal_with_std(draws.laplace(0, 1 / np.sqrt(2), SAMPLES), 1.0)
    assert not laplace_scale_is(draws.normal(0, np.sqrt(np.pi / 2), SAMPLES), 1.0)
    noise = draws.normal(0, 1.0, SAMPLES)
    assert mean_is_zero(noise, 1.0)
    assert not mean_is_zero(noise + 0.2, 1.0)
    assert independent(noise, draws.normal(0, 1.0, SAMPLES))
    assert not independent(noise, noise + draws.normal(0, 1.0, SAMPLES))


def test_false_alarms_are_as_rare_as_stated() -> None:
    draws = generator()
    rejected = sum(not std_is(draws.normal(0, 1.0, 100), 1.0, alarm=0.05) for _ in range(400))
    assert 5 <= rejected <= 40  # 20 expected; within four standard deviations of it


def test_uniform_shares_pass_and_plain_values_do_not() -> None:
    draws = generator()
    limits = np.iinfo(np.int64)
    shares = draws.integers(limits.min, limits.max, 20_000, dtype=np.int64, endpoint=True)
    assert uniform_over_ring(shares)
    assert not uniform_over_ring((draws.normal(0, 1, 20_000) * 2**16).astype(np.int64))
    assert not uniform_over_ring(shares & ~np.int64(1))  # one dead bit
    assert not uniform_over_ring(np.abs(shares))
    assert uniform_over_ring(draws.integers(0, 2**36, 20_000), bits=36)
