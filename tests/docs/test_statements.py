"""What the threat model says stands in every statement."""

import pytest

import privtrain as pt


@pytest.mark.slow
def test_limits_of_the_engine_are_printed_wherever_it_computes() -> None:
    task, data = pt.data.digits(parties=2, seed=0)
    release = pt.Release(aggregation=pt.SharedSum())
    statement = pt.fit(pt.FedAvg(rounds=1, release=release), task, data).statement
    assert set(pt.Ring64().caveats) <= set(statement.caveats)
    assert len(set(statement.caveats)) == len(statement.caveats)
    assert statement.epsilon("aggregator") == float("inf")  # the sum is exact
    assert "shares" in str(statement)


@pytest.mark.parametrize(
    ("trainer", "in_floats"),
    [
        (pt.SGD(epochs=1), False),
        (pt.DPSGD(epochs=0.1), True),
        (pt.DPSGD(epochs=0.1, release=pt.Release(pt.Gaussian(1.0, 1.0, secure=True))), False),
        (pt.FedAvg(rounds=1, release=pt.Release(pt.Gaussian(1.0, 1.0, secure=True))), False),
        (pt.FedAvg(rounds=1, local=pt.DPSteps(pt.Gaussian(1.0, 1.0))), True),
        (pt.FedAvg(rounds=1, local=pt.DPSteps(pt.Gaussian(1.0, 1.0, secure=True))), False),
    ],
    ids=["sgd", "dp", "dp secure", "clients secure", "silos", "silos secure"],
)
def test_general_caveats_are_printed(
    trainer: pt.SGD | pt.DPSGD | pt.FedAvg, in_floats: bool
) -> None:
    task, data = pt.data.digits(parties=2, seed=0)
    caveats = " ".join(pt.fit(trainer, task, data).statement.caveats)
    assert "timing and sizes" in caveats
    assert "not counted" in caveats
    assert ("float noise: research use" in caveats) == in_floats
