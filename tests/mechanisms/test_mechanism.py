"""Every mechanism passes the contract, and its noise has the stated law."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from privtrain.core.errors import UnsupportedError
from privtrain.core.observers import Exposure
from privtrain.core.seeding import SeededEntropy
from privtrain.core.statement import REPLACE_ONE, ZERO_OUT
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.mechanisms.mechanism import Exact, Mechanism, l2_bound_of, widened
from privtrain.mechanisms.votes import GNMax, LNMax
from tests.contracts.mechanism import CHECKS, drawn
from tests.statistics import (
    Check,
    assert_power,
    independent,
    laplace_scale_is,
    mean_is_zero,
    normal_with_std,
    std_is,
)

MECHANISMS: tuple[Mechanism, ...] = (
    Exact(),
    Gaussian(1.0, 1.0),
    Gaussian(0.1, 2.5),
    Gaussian(2.0, 0.0),
    Gaussian(1.0, 1.0, secure=True),
    Gaussian(0.1, 2.5, secure=True),
    Gaussian(2.0, 0.0, secure=True),
    Laplace(1.0, 1.0),
    Laplace(0.5, 3.0),
    GNMax(sigma=4.0),
    LNMax(scale=20.0),
)
LAWS: tuple[tuple[Mechanism, float, tuple[Check, ...]], ...] = (
    (Gaussian(0.5, 3.0), 1.5, (std_is, normal_with_std)),
    (Gaussian(4.0, 0.25), 1.0, (std_is, normal_with_std)),
    (Gaussian(0.5, 3.0, secure=True), 1.5, (std_is, normal_with_std)),
    (Gaussian(4.0, 0.25, secure=True), 1.0, (std_is, normal_with_std)),
    (GNMax(sigma=7.0), 7.0, (std_is, normal_with_std)),
    (Laplace(0.5, 3.0), 1.5, (laplace_scale_is,)),
    (LNMax(scale=7.0), 7.0, (laplace_scale_is,)),
)
MANY = torch.zeros(4000, dtype=torch.float64)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
def test_contract(mechanism: Mechanism, check: Callable[[Mechanism], None]) -> None:
    check(mechanism)


@pytest.mark.parametrize(
    ("mechanism", "scale", "checks"),
    LAWS,
    ids=[f"{mechanism}-{scale}" for mechanism, scale, _ in LAWS],
)
def test_noise_has_the_stated_law(
    mechanism: Mechanism, scale: float, checks: tuple[Check, ...]
) -> None:
    samples = drawn(mechanism, MANY, seed=1).numpy()
    for check in checks:
        assert_power(check, samples, scale)
    std = scale if std_is in checks else scale * np.sqrt(2)
    assert mean_is_zero(samples, std)
    assert independent(samples[:-1], samples[1:])


@pytest.mark.parametrize("mechanism", [Gaussian(0.5, 3.0), GNMax(sigma=1.5)], ids=str)
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_fraction_is_one_of_the_variance(mechanism: Mechanism, fraction: float) -> None:
    samples = drawn(mechanism, MANY, seed=2, fraction=fraction).numpy()
    assert_power(std_is, samples, 1.5 * fraction**0.5)


@pytest.mark.parametrize("mechanism", [Laplace(1.0, 1.0), LNMax(20.0)], ids=str)
def test_parts_of_laplace_noise_are_refused_when_planned_and_when_drawn(
    mechanism: Mechanism,
) -> None:
    with pytest.raises(UnsupportedError, match="split"):
        drawn(mechanism, torch.zeros(3), fraction=0.5)
    part = Exposure(single_messages=True, knows_sample=True, noise_known=0.0, variance=0.5)
    with pytest.raises(UnsupportedError, match="split"):
        mechanism.event(part, REPLACE_ONE)
    # Sums and quotients of variances may lose their last digits.
    whole = Exposure(single_messages=False, knows_sample=False, noise_known=0.0, variance=1 - 1e-13)
    mechanism.event(whole, ZERO_OUT)


def test_only_l2_clipping_serves_per_example_gradients() -> None:
    assert l2_bound_of(Gaussian(0.3, 1.0)) == 0.3
    for mechanism in (Exact(), Laplace(1.0, 1.0), GNMax(1.0)):
        with pytest.raises(UnsupportedError, match="L2"):
            l2_bound_of(mechanism)


@pytest.mark.parametrize("mechanism", [m for m in MECHANISMS if m.about.noisy], ids=str)
def test_complex_numbers_are_refused(mechanism: Mechanism) -> None:
    # Their imaginary parts would be dropped by a norm, and published without noise.
    values, stream = torch.ones(3, dtype=torch.complex64), SeededEntropy(0)["noise", 0, ""]
    with pytest.raises(UnsupportedError, match=r"torch\.complex64"):
        mechanism.add(values, None, stream)
    if mechanism.sensitivity(ZERO_OUT) != mechanism.sensitivity(REPLACE_ONE):
        with pytest.raises(UnsupportedError, match=r"torch\.complex64"):
            mechanism.bound(values)
        with pytest.raises(UnsupportedError, match=r"torch\.complex64"):
            mechanism.bound_again(values, 1)


def test_noise_in_floats_is_drawn_for_float32_at_least() -> None:
    wide = {torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.long: torch.long}
    for given, wanted in wide.items():
        assert widened(torch.ones(3, dtype=given)).dtype is wanted
    same = torch.ones(3, dtype=torch.float64)
    assert widened(same) is same
    with pytest.raises(UnsupportedError, match=r"total of type torch\.complex64"):
        widened(torch.ones(3, dtype=torch.complex64))


@pytest.mark.parametrize("mechanism", [Gaussian(1.0, 1.0), Laplace(1.0, 1.0)], ids=str)
def test_coarse_sums_are_rounded_behind_the_noise(mechanism: Mechanism) -> None:
    coarse = torch.ones(1000, dtype=torch.bfloat16)
    stream = SeededEntropy(0)["noise", 0, ""]
    released, _ = mechanism.add(coarse, None, stream)
    exact, _ = mechanism.add(coarse.float(), None, stream)
    assert released.dtype is torch.bfloat16
    assert torch.equal(released, exact.bfloat16())
    # Coarse noise, added in bfloat16, would be a multiple of 2^-8 wherever the sum is near zero.
    near = released[released.abs() < 2.0**-4].double() * 2.0**9
    assert bool((near != near.round()).any())
