"""What the page on sharp edges says is refused: combinations that promise what they cannot keep."""

from dataclasses import replace

import pytest
from torch import nn

import privtrain as pt
from privtrain.core.trainer import Trainer
from privtrain.release.placement import Placement


def normalised_by_running_statistics() -> nn.Module:
    layer = nn.InstanceNorm2d(1, affine=False, track_running_stats=True)
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), layer, nn.Flatten(), nn.Linear(64, 10))


def normalised_within_examples() -> nn.Module:
    layer = nn.InstanceNorm2d(1, affine=False, track_running_stats=False)
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), layer, nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize(
    "placement", [pt.AT_PARTY, pt.SPLIT(honest_survivors=2)], ids=["at party", "split"]
)
def test_pooled_dp_sgd_refuses_noise_that_nobody_would_draw(placement: Placement) -> None:
    with pytest.raises(pt.UnsoundReleaseError, match="pooled"):
        pt.DPSGD(release=pt.Release(pt.Gaussian(1.0, 1.0), placement))


def test_pate_refuses_mechanisms_that_bound_no_vote() -> None:
    with pytest.raises(pt.UnsoundReleaseError, match="vote"):
        pt.PATE(release=pt.Release(pt.Gaussian(1.0, 1.0), finish=pt.ARGMAX))
    for mechanism in (pt.GNMax(5.0), pt.LNMax(5.0), pt.Exact()):
        pt.PATE(release=pt.Release(mechanism, finish=pt.ARGMAX))


@pytest.mark.parametrize("weights", [pt.ByExamples(), pt.ByExamples(bound=10)])
def test_weights_by_rows_are_refused_where_rows_are_protected(weights: pt.ByExamples) -> None:
    with pytest.raises(pt.UnsoundReleaseError, match="how many"):
        pt.FedAvg(weights=weights, local=pt.DPSteps(pt.Gaussian(1.0, 1.0)))
    pt.FedAvg(weights=weights)


@pytest.mark.parametrize(
    "trainer",
    [
        pt.DPSGD(epochs=0.1),
        pt.FedAvg(rounds=1, local=pt.DPSteps(pt.Gaussian(1.0, 1.0), epochs=0.5)),
    ],
    ids=["DPSGD", "DPSteps"],
)
def test_running_statistics_are_refused_under_example_level_noise(trainer: Trainer) -> None:
    task, data = pt.data.digits(parties=2)
    with pytest.raises(pt.UnsupportedError, match="running statistics"):
        pt.fit(trainer, replace(task, model=normalised_by_running_statistics), data)
    result = pt.fit(trainer, replace(task, model=normalised_within_examples), data)
    assert result.statement.epsilon() < float("inf")


def test_noise_at_parties_refuses_poisson_samples_of_clients() -> None:
    release = pt.Release(pt.Gaussian(1.0, 1.0), pt.AT_PARTY)
    with pytest.raises(pt.UnsoundReleaseError, match="Poisson"):
        pt.FedAvg(release=release, sampling=pt.Poisson(0.5))
    pt.FedAvg(release=release, sampling=pt.FixedSize(5))


def test_kept_payloads_are_refused_where_entropy_is_secret() -> None:
    task, data = pt.data.digits(parties=2)
    with pytest.raises(pt.UnsupportedError, match="keep_payloads"):
        pt.fit(pt.SGD(epochs=1), task, data, entropy=pt.SYSTEM, keep_payloads=True)


def test_delta_that_a_random_row_in_the_clear_would_meet_is_refused() -> None:
    task, data = pt.data.digits(parties=2)
    with pytest.raises(pt.UnsoundReleaseError, match="in the clear"):
        pt.fit(pt.DPSGD(epochs=0.1), task, data, delta=1e-3)


def test_laplace_noise_is_not_split() -> None:
    task, data = pt.data.digits(parties=2)
    release = pt.Release(pt.Laplace(1.0, 1.0), pt.SPLIT(honest_survivors=2))
    with pytest.raises(pt.UnsupportedError):
        pt.fit(pt.FedAvg(rounds=1, release=release), task, data)


def test_losses_that_average_and_layers_that_mix_are_refused() -> None:
    task, data = pt.data.digits(parties=2)
    with pytest.raises(ValueError, match="one value for each example"):
        pt.fit(pt.DPSGD(epochs=0.1), replace(task, loss=nn.functional.cross_entropy), data)
    with pytest.raises(pt.UnsupportedError, match="GroupNorm"):
        pt.fit(pt.DPSGD(epochs=0.1), replace(task, model=normalised_over_the_batch), data)


def normalised_over_the_batch() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))


@pytest.mark.parametrize(
    "placement", [pt.AT_AGGREGATOR, pt.AT_PARTY, pt.SPLIT(honest_survivors=2)], ids=str
)
def test_noise_over_sums_on_shares_is_refused(placement: Placement) -> None:
    task, data = pt.data.digits(parties=2)
    release = pt.Release(pt.Gaussian(1.0, 1.0), placement, pt.SharedSum())
    with pytest.raises(pt.UnsupportedError, match="on shares"):
        pt.fit(pt.FedAvg(rounds=1, release=release), task, data)
