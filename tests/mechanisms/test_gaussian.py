"""Gaussian and Laplace mechanisms: their events and arguments; broken twins are caught."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from privtrain.accounting.approximate import Approximate
from privtrain.accounting.epsilon import epsilon, rdp_curve
from privtrain.accounting.event import laplace_event
from privtrain.core.errors import UnsupportedError
from privtrain.core.observers import Exposure
from privtrain.core.seeding import Stream
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT
from privtrain.mechanisms.discrete import RELEASE_DISTANCE, charged_multiplier
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.mechanisms.mechanism import About, Mechanism, State
from privtrain.mechanisms.reach import laplace_reach
from tests.contracts.mechanism import PUBLIC_SUM, drawn, stream
from tests.statistics import (
    assert_power,
    independent,
    std_is,
)

MANY = torch.zeros(4000, dtype=torch.float64)


def test_several_laplace_noises_are_charged_as_one() -> None:
    several = Exposure(single_messages=False, knows_sample=False, noise_known=0.1, variance=10.0)
    assert Laplace(1.0, 2.0).event(several, ZERO_OUT) == laplace_event(2.0)


def test_laplace_noise_is_charged_by_its_scale_over_the_clipping_norm() -> None:
    """Dwork et al. 2006: noise of scale b hides a move of b x epsilon."""
    mechanism = Laplace(0.5, 4.0)
    assert mechanism.about.theorem.startswith("Laplace mechanism")
    assert (mechanism.sensitivity(ADD_REMOVE), mechanism.sensitivity(REPLACE_ONE)) == (0.5, 1.0)
    assert mechanism.event(PUBLIC_SUM, ADD_REMOVE) == laplace_event(4.0)
    # At a tiny delta: 1 / 4 where a unit leaves. RDP: 2 / 4 where it is replaced.
    assert epsilon(laplace_event(4.0), 1e-9) == pytest.approx(0.25, rel=5e-3)
    (replaced,) = rdp_curve(laplace_event(4.0), [1e4], REPLACE_ONE).rdp
    assert replaced == pytest.approx(0.5, rel=1e-3)
    assert mechanism.with_scale(9.0) == Laplace(0.5, 9.0)
    assert mechanism.about.noisy and not Laplace(0.5, 0.0).about.noisy
    for hidden, noise, private in ((1.0, 4.0, True), (0.0, 4.0, False), (1.0, 0.0, False)):
        seen = Exposure(
            single_messages=False, knows_sample=False, noise_known=1 - hidden, variance=1.0
        )
        event = Laplace(0.5, noise).event(seen, ADD_REMOVE)
        assert (epsilon(event, 1e-5) < math.inf) is private
    half = Exposure(single_messages=False, knows_sample=False, noise_known=0.5, variance=1.0)
    with pytest.raises(UnsupportedError):
        mechanism.event(half, ADD_REMOVE)


def test_laplace_messages_are_bounded_and_reach_as_far_as_their_own_noise() -> None:
    mechanism, message = Laplace(0.5, 4.0), torch.tensor([3.0, -1.0], dtype=torch.float64)
    assert mechanism.bound(message).abs().sum() == pytest.approx(0.5)
    assert mechanism.bound_again(message, 2).abs().sum() == pytest.approx(1.0)
    expected = laplace_reach(message.reshape(1, -1), 3 * 0.5, 0.5 * 4.0)
    assert mechanism.reach(message, 3, fraction=1.0) == expected
    assert expected.radius > 1.5


def test_gaussian_events_carry_the_noise_that_stays_hidden() -> None:
    part = Exposure(single_messages=True, knows_sample=True, noise_known=0.75, variance=4.0)
    assert Gaussian(3.0, 1.7).event(part, REPLACE_ONE).noise_multiplier == pytest.approx(1.7)
    part = Exposure(single_messages=True, knows_sample=True, noise_known=0.0, variance=0.25)
    assert Gaussian(3.0, 1.7).event(part, REPLACE_ONE).noise_multiplier == pytest.approx(0.85)


def test_secure_noise_is_charged_with_its_distance_from_the_gaussian() -> None:
    """Decision 013: a little less noise than is drawn, and a distance that goes into delta."""
    charged = Gaussian(2.0, 1.5, secure=True).event(PUBLIC_SUM, ADD_REMOVE)
    assert isinstance(charged, Approximate)
    assert charged.distance == RELEASE_DISTANCE > 0
    assert charged.event.noise_multiplier == charged_multiplier(1.5) < 1.5


def test_the_clipping_norm_does_not_change_an_epsilon() -> None:
    for norm in (1e-3, 1.0, 50.0):
        event = Gaussian(norm, 1.0).event(PUBLIC_SUM, ADD_REMOVE)
        assert epsilon(event, 1e-5) == pytest.approx(4.377, abs=5e-4)


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("make", [Gaussian, Laplace])
def test_a_clipping_norm_is_positive(
    make: Callable[[float, float], Mechanism], norm: float
) -> None:
    with pytest.raises(ValueError, match=r"clipping_norm=.* > 0"):
        make(norm, 1.0)


@pytest.mark.parametrize("noise", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("make", [Gaussian, Laplace])
def test_a_noise_multiplier_is_not_negative(
    make: Callable[[float, float], Mechanism], noise: float
) -> None:
    with pytest.raises(ValueError, match="noise_multiplier="):
        make(1.0, noise)


def test_float32_noise_has_the_same_law() -> None:
    samples = drawn(Gaussian(0.5, 3.0), MANY.float(), seed=3).numpy()
    assert_power(std_is, samples, 1.5)


@dataclass(frozen=True)
class Twin:
    """A Gaussian mechanism with one part replaced."""

    true: Gaussian
    factor: float = 1.0
    clips: bool = True
    reuses: bool = False

    @property
    def about(self) -> About:
        return self.true.about

    def bound(self, contribution: Tensor) -> Tensor:
        return self.true.bound(contribution) if self.clips else contribution

    def add(
        self, total: Tensor, state: State, stream: Stream, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        source = Stream(bytes(32)) if self.reuses else stream
        released, state = self.true.add(total, state, source, fraction=fraction)
        return total + (released - total) * self.factor, state


def noise_is_right(mechanism: Any) -> bool:
    """The statistics a mechanism's noise has to pass, on two releases in a row."""
    first, state = mechanism.add(MANY, None, stream(4))
    second, _ = mechanism.add(MANY, state, stream(5))
    both = np.concatenate([first.numpy(), second.numpy()])
    return bool(np.any(both)) and std_is(both, 1.5) and independent(first, second)


def bound_is_right(mechanism: Any) -> bool:
    contributions = [torch.randn(100, generator=torch.Generator().manual_seed(s)) for s in range(9)]
    return all(float(mechanism.bound(c).double().norm()) <= 0.5 for c in contributions)


def test_the_true_mechanism_passes() -> None:
    assert noise_is_right(Twin(Gaussian(0.5, 3.0)))
    assert bound_is_right(Twin(Gaussian(0.5, 3.0)))


@pytest.mark.parametrize(
    "twin",
    [
        Twin(Gaussian(0.5, 3.0), factor=0.0),
        Twin(Gaussian(0.5, 3.0), factor=2 / 3),
        Twin(Gaussian(0.5, 3.0), factor=3 / 2),
        Twin(Gaussian(0.5, 3.0), reuses=True),
    ],
    ids=["no noise", "two thirds", "three halves", "reused"],
)
def test_wrong_noise_is_caught(twin: Twin) -> None:
    assert not noise_is_right(twin)


def test_a_dropped_clip_is_caught() -> None:
    assert not bound_is_right(Twin(Gaussian(0.5, 3.0), clips=False))
