"""What the page on sharp edges says is refused: combinations that promise what they cannot keep."""

from dataclasses import replace

import pytest
from torch import nn

import privtrain as pt
from privtrain.core.trainer import Trainer


def normalised_by_running_statistics() -> nn.Module:
    layer = nn.InstanceNorm2d(1, affine=False, track_running_stats=True)
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), layer, nn.Flatten(), nn.Linear(64, 10))


def normalised_within_examples() -> nn.Module:
    layer = nn.InstanceNorm2d(1, affine=False, track_running_stats=False)
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), layer, nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize(
    "placement", [pt.AT_PARTY, pt.SPLIT(honest_survivors=2)], ids=["at party", "split"]
)
def test_pooled_dp_sgd_refuses_noise_that_nobody_would_draw(placement: object) -> None:
    with pytest.raises(pt.UnsoundReleaseError, match="pooled"):
        pt.DPSGD(release=pt.Release(pt.Gaussian(1.0, 1.0), placement))  # type: ignore[arg-type]


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
