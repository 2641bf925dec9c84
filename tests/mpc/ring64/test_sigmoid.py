"""The sine series against the logistic function, in its reach and for every ring value."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from privtrain.mpc.ring64.sigmoid import (
    BITS,
    ERROR,
    LARGEST,
    PERIOD_BITS,
    REACH,
    TERMS,
    coefficients,
    public_factors,
    waves,
)
from tests.mpc.ring64.functions import dealt_bytes, ran_on

PERIOD = 2.0**PERIOD_BITS


def series(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The twin: plain sines in float64."""
    odd = (2 * np.arange(TERMS) + 1).reshape(-1, 1)
    sines = coefficients(PERIOD, TERMS).reshape(-1, 1) * np.sin(2 * np.pi * odd * x / PERIOD)
    return sines.sum(0) + 0.5


def test_series_stays_within_0_and_1_at_every_value() -> None:
    # One period is every value: the ring has 2^64 / 2^23 of them, without a rest.
    values = series(np.linspace(-PERIOD / 2, PERIOD / 2, 100_001))
    assert -1e-5 < values.min() < 0
    assert 1 < values.max() < 1 + 1e-5


@pytest.mark.parametrize("bits", [16, 32])
def test_results_stay_within_what_is_said_of_them(bits: int) -> None:
    x = (torch.linspace(-130, 130, 50_000, dtype=torch.float64) * 2.0**bits).long()
    _, (found,) = ran_on(lambda session, v: (session.sigmoid(v),), x, bits=bits)
    farthest = max(float(found.max()) - 1, -float(found.min()))
    # Rounding reaches beyond the series.
    assert 1e-5 < farthest < LARGEST / 2**BITS - 1 < 3e-4


def test_series_is_the_logistic_function_within_reach() -> None:
    x = np.linspace(-REACH, REACH, 100_001)
    assert np.abs(series(x) - 1 / (1 + np.exp(-x))).max() < 3.5e-4
    inner = np.abs(x) <= 48
    assert np.abs(series(x) - 1 / (1 + np.exp(-x)))[inner].max() < 4e-5


def test_a_fit_by_least_squares_would_leave_it() -> None:
    """Why the factors are those of the alternating sum."""
    x = np.linspace(-15, 15, 1000)
    k = np.arange(1, 17).reshape(-1, 1)
    fitted = np.linalg.lstsq(np.sin(2 * np.pi * k * x / 64).T, 1 / (1 + np.exp(-x)) - 0.5)[0]
    beyond = np.linspace(15, 32, 200)
    assert np.abs(fitted @ np.sin(2 * np.pi * k * beyond / 64)).max() > 0.51


def test_waves_are_cosines_and_sines_of_odd_multiples() -> None:
    integers = torch.tensor([0, 5, -7, 2**63 - 1])
    turns = integers.numpy().astype(object) * 2 % 2**12
    odd = (2 * np.arange(TERMS) + 1).reshape(-1, 1)
    angles = (odd * turns % 2**12).astype(np.float64) * np.pi / 2**12 * 2
    found = waves(integers, 2**11)
    np.testing.assert_allclose(found[:TERMS], np.cos(angles), atol=1e-12)
    np.testing.assert_allclose(found[TERMS:], np.sin(angles), atol=1e-12)
    assert public_factors(integers, 2**11).shape == (2 * TERMS, 4)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("bits", [16, 32])
def test_error_on_shares(count: int, bits: int) -> None:
    x = torch.linspace(-REACH, REACH, 1001, dtype=torch.float64)
    integers = (x * 2.0**bits).round().long()
    _, (result,) = ran_on(lambda session, v: (session.sigmoid(v),), integers, count, bits=bits)
    assert float((result - torch.sigmoid(x)).abs().max()) < ERROR
    inner = x.abs() <= 48
    assert float((result - torch.sigmoid(x)).abs()[inner].max()) < 2e-4


def test_every_region_of_the_ring_stays_within_0_and_1() -> None:
    generator = np.random.default_rng(0)
    anywhere = generator.integers(-(2**63), 2**63 - 1, 4000, dtype=np.int64)
    edges = np.array([-(2**63), 2**63 - 1, 64 << 16, -(64 << 16), 128 << 16])
    integers = torch.from_numpy(np.concatenate([anywhere, edges]))
    _, (result,) = ran_on(lambda session, v: (session.sigmoid(v),), integers)
    assert float(result.min()) > -2.2e-4
    assert float(result.max()) < 1 + 2.2e-4
    # It repeats: half of the ring's values are on the wrong side.
    assert float((result[-3:] - 0.5).abs().max()) < 2.2e-4


def test_rounds_bytes_and_material() -> None:
    ran, _ = ran_on(lambda session, v: (session.sigmoid(v),), torch.arange(1000))
    assert (ran.rounds(), ran.bytes()) == (1, 8000)
    assert 512_000 <= dealt_bytes(ran) <= 512_200
