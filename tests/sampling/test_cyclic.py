"""Rows that take part at regular steps: drawn so, charged so, and refused where they are not."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from privtrain.accounting.epsilon import epsilon
from privtrain.accounting.event import gaussian_event, poisson_sampled, repeated
from privtrain.command.tables import from_table, to_table
from privtrain.core.errors import BudgetExceededError, UnsoundReleaseError
from privtrain.core.result import TrainResult
from privtrain.core.seeding import SeededEntropy
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Budget
from privtrain.core.trainer import RELEASE
from privtrain.ledgers.run import JournalLedger
from privtrain.mechanisms.banded import BandedMatrix
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.runs.calibrating import calibrate
from privtrain.runs.fitting import fit
from privtrain.sampling.batches import (
    FixedSizeBatches,
    PoissonBatches,
    ShuffledEpochs,
)
from privtrain.sampling.cyclic import CyclicPoisson, FixedOrder
from privtrain.sampling.figures import BatchSampling
from privtrain.trainers.dp_sgd import DPSGD
from tests.mechanisms.test_banded import matrix
from tests.sampling.test_batches import Watching
from tests.statistics import assert_power, std_is
from tests.trainers.federations import STAR, TASK, a_federation, module, vector
from tests.trainers.test_dp_sgd import SILENT

DATA = a_federation(30, 10, public_rows=40)
BANDED = BandedMatrix(1.0, 1.0, bands=4, steps=15)


def trainer(sampling: BatchSampling, mechanism: Any = BANDED, **options: Any) -> DPSGD:
    settings: dict[str, Any] = {"epochs": 3, "expected_batch": 8.0, **options}
    return DPSGD(release=Release(mechanism), sampling=sampling, **settings)


def run(made: DPSGD, **options: Any) -> TrainResult:
    return fit(made, TASK, DATA, runtimes=STAR, **options)


def stop_at(place: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == place:
            raise KeyboardInterrupt

    return progress


# ---------------------------------------------------------------------- who takes part


# ---------------------------------------------------------------------- what it costs


def gaussians(count: int, noise: float, delta: float, sensitivity: float = 1.0) -> float:
    """Epsilon of Gaussian releases in closed form (Balle and Wang 2018, theorem 8)."""
    mu = sensitivity * math.sqrt(count) / noise

    def excess(value: float) -> float:
        upper = stats.norm.cdf(mu / 2 - value / mu)
        return float(upper - math.exp(value) * stats.norm.cdf(-mu / 2 - value / mu) - delta)

    return float(optimize.brentq(excess, 0.0, 100.0))


def public(made: DPSGD, **options: Any) -> Any:
    result = run(made, delta=1e-5, **options)
    return next(g for g in result.statement.guarantees if g.observer.name == "public")


@pytest.mark.parametrize(
    ("groups", "rate", "turns_at_most"),
    [pytest.param(4, 0.8, 4, marks=pytest.mark.slow), (5, 1.0, 3), (7, 1, 3)],
)
def test_cyclic_batches_cost_a_sampled_gaussian_for_each_turn_of_a_group(
    groups: int, rate: float, turns_at_most: int
) -> None:
    """15 steps at rate 8/40; with 5 groups and more every row of a group takes its turn."""
    found = public(trainer(CyclicPoisson(groups)))
    assert (found.relation, found.releases, found.accountant) == (ADD_REMOVE, 1, "pld")
    assert "Choquette-Choo et al. 2023" in found.theorem
    assert any(f"{groups} groups" in text for text in found.assumptions)
    charge = repeated(poisson_sampled(rate, gaussian_event(1.0)), turns_at_most)
    assert found.epsilon == pytest.approx(epsilon(charge, 1e-5), rel=1e-9)
    unsampled = gaussians(turns_at_most, 1.0, 1e-5)
    if rate == 1:
        assert found.epsilon == pytest.approx(unsampled, rel=2e-3)
    else:
        assert gaussians(1, 1.0, 1e-5) < found.epsilon < unsampled
        coin = DPSGD(epochs=3, expected_batch=8.0)
        assert found.epsilon > epsilon(coin.plan(DATA, STAR)[0].charges[RELEASE].event, 1e-5)


def test_counted_rows_make_it_zero_out() -> None:
    (plan, curator) = trainer(CyclicPoisson(4)).plan(replace(DATA, public_rows=None), STAR)
    assert plan.relation is ZERO_OUT
    assert math.isinf(epsilon(curator.charges[RELEASE].event, 1e-5))


@pytest.mark.parametrize(("relation", "sensitivity"), [(ZERO_OUT, 1.0), (REPLACE_ONE, 2.0)])
def test_a_fixed_order_costs_a_gaussian_for_each_epoch(relation: Any, sensitivity: float) -> None:
    found = public(trainer(FixedOrder(relation is REPLACE_ONE)))
    assert (found.relation, found.releases) == (relation, 1)
    assert found.epsilon == pytest.approx(gaussians(3, 1.0, 1e-5, sensitivity), rel=2e-3)
    begun = public(trainer(FixedOrder(relation is REPLACE_ONE), epochs=2.2))
    assert begun.epsilon == found.epsilon


@pytest.mark.slow
def test_one_band_costs_what_dp_sgd_costs_and_is_it() -> None:
    one = BandedMatrix(1.0, 1.0, bands=1, steps=15)
    made, plain = (trainer(PoissonBatches(), mechanism) for mechanism in (one, Gaussian(1.0, 1.0)))
    assert public(made).epsilon == public(plain).epsilon
    # Two fits share no noise: under one stream the two draw the same.
    total, stream = torch.zeros(39, dtype=torch.float64), SeededEntropy(0)["noise", 0, ""]
    drawn, _ = one.add(total, None, stream)
    assert torch.equal(drawn, Gaussian(1.0, 1.0).add(total, None, stream)[0])


@pytest.mark.slow
def test_calibration_finds_the_noise_of_the_whole_run() -> None:
    found = calibrate(trainer(CyclicPoisson(4)), DATA, epsilon=3.0, delta=1e-5, runtimes=STAR)
    assert isinstance(found, DPSGD)
    assert isinstance(found.release.mechanism, BandedMatrix)
    assert 2.9 < public(found).epsilon <= 3.0


# ---------------------------------------------------------------------- paid for as a whole


def test_the_first_release_charges_the_whole_run(tmp_path: Path) -> None:
    made = trainer(CyclicPoisson(4))
    whole = public(made)
    with pytest.raises(KeyboardInterrupt):
        run(made, progress=stop_at(1), folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().split("\n")[1:]]
    assert lines[-1] == {"spent_up_to": 1}
    ledger = JournalLedger(made.plan(DATA, STAR), delta=1e-5, journal=tmp_path / "journal.jsonl")
    assert ledger.spent == ledger.limit == 1
    assert not ledger.spend()
    assert epsilon(made.plan(DATA, STAR)[0].charges[RELEASE].event, 1e-5) == whole.epsilon


def test_an_interrupted_run_is_not_taken_up_but_a_finished_one_is(tmp_path: Path) -> None:
    made, steps = trainer(CyclicPoisson(4)), list[int]()
    for place in (1, 8):
        folder = tmp_path / str(place)
        with pytest.raises(KeyboardInterrupt):
            run(made, progress=stop_at(place), folder=folder)
        for _ in range(2):
            with pytest.raises(BudgetExceededError, match="interrupted"):
                run(made, progress=lambda done, _: steps.append(done), folder=folder)
    assert steps == []
    first, again = (run(made, folder=tmp_path / "whole") for _ in range(2))
    assert torch.equal(vector(module(first)), vector(module(again)))
    assert first.statement.epsilon() == again.statement.epsilon()
    assert again.halted is None
    assert again.history.unprotected == first.history.unprotected
    assert len(first.history.unprotected["training_loss"]) > 5


def test_a_budget_stops_it_before_the_first_step_or_not_at_all() -> None:
    watching = Watching()
    made = trainer(CyclicPoisson(4), gradients=watching)
    whole = public(trainer(CyclicPoisson(4))).epsilon
    with pytest.raises(BudgetExceededError, match="Not one release fits"):
        run(made, budget=Budget(0.99 * whole))
    assert watching.batches == []
    assert run(made, budget=Budget(1.01 * whole)).halted is None
    assert len(watching.batches) == 15


# ---------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("sampling", [CyclicPoisson(6), FixedOrder()], ids=str)
def test_the_model_carries_the_correlated_noise(sampling: BatchSampling) -> None:
    """Without a signal the model is the sum of all noises; independent ones would be larger."""
    mechanism = BandedMatrix(0.5, 2.0, bands=4, steps=15)
    made = trainer(sampling, mechanism, expected_batch=8.0, learning_rate=8.0)
    data = a_federation(30, 10)
    samples = vector(module(fit(made, SILENT, data, runtimes=STAR)))
    last = np.linalg.inv(matrix(mechanism.coefficients, 15)).cumsum(axis=0)[-1]
    predicted = 1.0 * float(np.linalg.norm(last))
    assert predicted < math.sqrt(15) / 1.55
    assert_power(std_is, samples.numpy(), predicted)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "sampling",
    [
        PoissonBatches(),
        FixedSizeBatches(),
        ShuffledEpochs(),
        ShuffledEpochs(True),
        CyclicPoisson(3),
        FixedOrder(),
    ],
    ids=str,
)
def test_turns_that_are_too_close_are_refused(sampling: BatchSampling) -> None:
    made = trainer(sampling, expected_batch=14.0)  # three batches in an epoch
    for use in (run, lambda made: made.plan(DATA, STAR)):
        with pytest.raises(UnsoundReleaseError, match=r"CyclicPoisson\(groups=4\)"):
            use(made)
    with pytest.raises(UnsoundReleaseError, match="bands=4"):
        calibrate(made, DATA, epsilon=1.0, runtimes=STAR)
    trainer(CyclicPoisson(4), expected_batch=14.0).plan(DATA, STAR)
    trainer(FixedOrder(), expected_batch=10.0).plan(DATA, STAR)


def test_a_study_file_holds_it() -> None:
    for sampling in (CyclicPoisson(4), FixedOrder(True)):
        for part in (Release(BANDED), sampling):
            assert from_table(to_table(part)) == part
