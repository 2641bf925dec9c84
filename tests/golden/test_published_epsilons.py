"""Epsilons that papers and tutorials print, and the same plans under the tight accountant."""

import pytest

from privtrain.accounting.epsilon import Accountant, epsilon
from privtrain.accounting.event import fixed_size_sampled, gaussian_event, poisson_sampled, repeated
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Relation

DELTA = 1e-5

# Source, sampling rate, noise multiplier, steps, printed epsilon (RDP, classic conversion), and
# the PLD accountant's epsilon of the same plan.
PUBLISHED = [
    ("TF Privacy tutorial, 15 epochs", 256 / 60_000, 1.3, 15 * 60_000 // 256, 1.19, 0.869),
    ("TF Privacy tutorial, 60 epochs", 256 / 60_000, 1.1, 60 * 60_000 // 256, 3.01, 2.391),
    ("TF Privacy tutorial, 45 epochs", 256 / 60_000, 0.7, 45 * 60_000 // 256, 7.10, 5.643),
    ("Abadi et al. 2016, Section 3.2", 0.01, 4.0, 10_000, 1.26, 0.960),
    ("Tramer and Boneh 2021, MNIST CNN", 512 / 60_000, 1.23, 4_680, 2.992, 2.364),
    ("Tramer and Boneh 2021, Fashion-MNIST CNN", 2048 / 60_000, 2.15, 1_160, 3.003, 2.377),
    ("Tramer and Boneh 2021, CIFAR-10 CNN", 1024 / 50_000, 1.54, 1_440, 3.002, 2.366),
]


def decimals(printed: float) -> float:
    """Half a unit of the last of the printed digits: two for short values, three for long ones."""
    return 0.005 if round(printed, 2) == printed and printed in (1.19, 3.01, 7.10, 1.26) else 0.0005


@pytest.mark.parametrize(("source", "rate", "noise", "steps", "printed", "tight"), PUBLISHED)
def test_published_plans(
    source: str, rate: float, noise: float, steps: int, printed: float, tight: float
) -> None:
    event = repeated(poisson_sampled(rate, gaussian_event(noise)), steps)
    classic = epsilon(event, DELTA, accountant="rdp", conversion="classic")
    improved = epsilon(event, DELTA, accountant="rdp")
    pld = epsilon(event, DELTA)
    assert classic == pytest.approx(printed, abs=decimals(printed)), source
    assert pld == pytest.approx(tight, abs=0.0005), source
    assert pld < improved < classic


@pytest.mark.parametrize(
    ("accountant", "relation", "expected"),
    [
        ("rdp", ADD_REMOVE, 4.729),
        ("pld", ADD_REMOVE, 4.377),
        ("rdp", ZERO_OUT, 4.729),
        ("pld", ZERO_OUT, 4.377),
        ("rdp", REPLACE_ONE, 10.726),
        ("pld", REPLACE_ONE, 9.997),
    ],
)
def test_one_gaussian_under_both_conventions(
    accountant: Accountant, relation: Relation, expected: float
) -> None:
    """Noise multiplier 1. A replaced row has twice the sensitivity, whoever does the doubling."""
    value = epsilon(gaussian_event(1.0), DELTA, relation=relation, accountant=accountant)
    assert value == pytest.approx(expected, abs=0.0006)


def test_a_fixed_size_sample_of_everybody_is_the_gaussian_itself() -> None:
    event = fixed_size_sampled(100, 100, gaussian_event(1.0))
    value = epsilon(event, DELTA, relation=REPLACE_ONE, accountant="rdp")
    assert value == pytest.approx(10.726, abs=0.0005)


@pytest.mark.parametrize(
    ("noise_multiplier", "relation", "expected"),
    [
        (1.0, ZERO_OUT, 4.377),  # noise at the aggregator, the public
        (0.7**0.5, ZERO_OUT, 5.388),  # 30 of 100 parties subtract their share of the noise
        (0.1, REPLACE_ONE, 284.4),  # a single message carries 1/100 of the variance
        (10.0, ZERO_OUT, 0.341),  # 100 parties each add the whole noise
        (1.0, REPLACE_ONE, 9.997),  # a single message with the whole noise
    ],
)
def test_gaussians_behind_the_table_of_observers(
    noise_multiplier: float, relation: Relation, expected: float
) -> None:
    value = epsilon(gaussian_event(noise_multiplier), DELTA, relation=relation)
    assert value == pytest.approx(expected, abs=0.05 if expected > 100 else 0.0005)
