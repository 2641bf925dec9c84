"""What the threat model says stands in every statement."""

import pytest

import privtrain as pt


@pytest.mark.slow
def test_limits_of_the_engine_are_printed_wherever_it_computes() -> None:
    task, data = pt.data.digits(parties=2, seed=0)
    release = pt.Release(aggregation=pt.SharedSum())
    statement = pt.fit(pt.FedAvg(rounds=1, release=release), task, data).statement
    assert set(pt.CrypTen().caveats) <= set(statement.caveats)
    assert len(set(statement.caveats)) == len(statement.caveats)
    assert statement.epsilon("aggregator") == float("inf")  # the sum is exact
    assert "shares" in str(statement)


@pytest.mark.parametrize(
    ("trainer", "noisy"),
    [(pt.SGD(epochs=1), False), (pt.DPSGD(epochs=0.1), True)],
    ids=["sgd", "dp"],
)
def test_general_caveats_are_printed(trainer: pt.SGD | pt.DPSGD, noisy: bool) -> None:
    task, data = pt.data.digits(parties=2, seed=0)
    caveats = " ".join(pt.fit(trainer, task, data).statement.caveats)
    assert "timing and sizes" in caveats
    assert "not counted" in caveats
    assert ("floating point" in caveats) == noisy
