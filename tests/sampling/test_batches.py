"""Batches: drawn as they are accounted, by counting and against published figures."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from privtrain.accounting.epsilon import epsilon
from privtrain.accounting.event import (
    fixed_size_sampled,
    gaussian_event,
    poisson_sampled,
    repeated,
    truncated_poisson_sampled,
)
from privtrain.core.errors import BudgetExceededError, UnsupportedError
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Budget, Relation
from privtrain.data.canaries import with_canaries
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.ledgers.run import JournalLedger
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.runs.calibrating import calibrate
from privtrain.runs.fitting import fit
from privtrain.sampling.batches import (
    FixedSizeBatches,
    PoissonBatches,
    ShuffledEpochs,
    TruncatedPoissonBatches,
)
from privtrain.sampling.cyclic import CyclicPoisson, FixedOrder
from privtrain.sampling.figures import BatchSampling
from privtrain.sampling.sampling import (
    FixedSize,
    Poisson,
    Sampling,
    Shuffled,
    TruncatedPoisson,
)
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from tests.trainers.federations import STAR, TASK, a_federation

DATA = a_federation(30, 11)
SAMPLINGS = (PoissonBatches(), FixedSizeBatches(), ShuffledEpochs(), ShuffledEpochs(True))


class Watching:
    """Per-example gradients by book-keeping, and a list of the batches that were asked for."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def engine(self, model: Any, loss: Any) -> Any:
        inner = BookKeeping().engine(model, loss)

        def clipped_sum(batch: Any, bound: float) -> Any:
            self.batches.append(batch.inputs.clone())
            return inner.clipped_sum(batch, bound)

        offered = {"notes": inner.notes, "assumptions": (), "close": inner.close}
        offered["try_on"] = inner.try_on
        return SimpleNamespace(clipped_sum=clipped_sum, **offered)


def trainer(sampling: BatchSampling, noise: float = 1.0, **options: Any) -> DPSGD:
    release = Release(Gaussian(1.0, noise))
    settings: dict[str, Any] = {"epochs": 3, "expected_batch": 8.0, **options}
    return DPSGD(release=release, sampling=sampling, **settings)


def seen(sampling: BatchSampling, **options: Any) -> list[Tensor]:
    watching = Watching()
    made = trainer(sampling, gradients=watching, **options)
    fit(made, TASK, DATA, runtimes=STAR, delta=1e-3)
    return watching.batches


def public(sampling: BatchSampling, delta: float = 1e-5, **options: Any) -> Any:
    result = fit(trainer(sampling, **options), TASK, DATA, runtimes=STAR, delta=delta)
    return next(g for g in result.statement.guarantees if g.observer.name == "public")


def rows_of(batches: list[Tensor]) -> list[list[float]]:
    return [row for batch in batches for row in batch.flatten(1).tolist()]


# ---------------------------------------------------------------------- what is drawn


def test_batches_of_fixed_size_are_of_that_size_without_repeats() -> None:
    batches = seen(FixedSizeBatches())
    assert len(batches) == 16  # 3 x 41 / 8, rounded up
    for batch in batches:
        assert len(batch) == len({tuple(row) for row in batch.flatten(1).tolist()}) == 8


def test_an_epoch_holds_every_row_once() -> None:
    batches = seen(ShuffledEpochs())
    everything = sorted(DATA.pooled().inputs.flatten(1).tolist())
    assert len(batches) == 3 * 6
    epochs = [batches[first : first + 6] for first in range(0, 18, 6)]
    assert all(sorted(rows_of(epoch)) == everything for epoch in epochs)
    assert rows_of(epochs[0]) != rows_of(epochs[1])
    assert all(6 <= len(batch) <= 8 for batch in batches)


def pairs_are_uniform(sampling: Sampling, size: int, population: int = 6) -> bool:
    """Whether every pair of rows is drawn together as often as without replacement."""
    generator, counts = np.random.default_rng(0), np.zeros((population, population))
    draws = 4000
    for _ in range(draws):
        drawn = sampling.choose(population, generator)[:size]
        for one in drawn:
            for other in drawn:
                counts[one, other] += one < other
    found = counts[np.triu_indices(population, 1)]
    expected = draws * size * (size - 1) / (population * (population - 1))
    return bool(((found - expected) ** 2 / expected).sum() <= stats.chi2.ppf(1 - 1e-4, len(found)))


@pytest.mark.parametrize("sampling", [FixedSize(3), Shuffled()])
def test_every_pair_of_rows_is_as_likely_as_another(sampling: Sampling) -> None:
    assert pairs_are_uniform(sampling, 3)


def test_coins_are_told_from_batches_of_fixed_size() -> None:
    """Pairs of independent coins of rate 1/2 come together in 1/4 of draws, not in 1/5."""
    assert not pairs_are_uniform(Poisson(0.5), 6)
    sizes = {len(Poisson(0.5).choose(6, np.random.default_rng(i))) for i in range(50)}
    assert len(sizes) > 1


# ---------------------------------------------------------------------- what it costs


def test_a_fixed_size_at_rate_one_costs_what_was_published() -> None:
    """One Gaussian with noise multiplier 1, replaced row, RDP: 10.726; unhalved it reads 4.729."""
    event = fixed_size_sampled(100, 100, gaussian_event(1.0))
    assert epsilon(event, 1e-5, relation=REPLACE_ONE, accountant="rdp") == pytest.approx(
        10.726, abs=1e-3
    )


def test_the_statement_for_fixed_sizes_is_that_of_samples_without_replacement() -> None:
    found = public(FixedSizeBatches())
    step = fixed_size_sampled(41, 8, gaussian_event(1.0))
    assert found.relation is REPLACE_ONE
    stated = epsilon(repeated(step, 16), 1e-5, relation=REPLACE_ONE)
    assert found.epsilon == pytest.approx(stated)
    as_poisson = epsilon(repeated(poisson_sampled(8 / 41, gaussian_event(1.0)), 16), 1e-5)
    assert found.epsilon > 1.2 * as_poisson
    assert any("41" in assumption for assumption in found.assumptions)


@pytest.mark.parametrize(("size", "steps"), [(41.0, 1), (40.0, 2)])
def test_batches_of_all_rows_promise_what_smaller_ones_do(size: float, steps: int) -> None:
    """At rate 1 the published figure, of a replaced row, and not that of zero-out."""
    found = public(FixedSizeBatches(), epochs=1, expected_batch=size)
    assert (found.relation, found.accountant, found.releases) == (REPLACE_ONE, "pld", steps)
    step = fixed_size_sampled(41, int(size), gaussian_event(1.0))
    stated = epsilon(repeated(step, steps), 1e-5, relation=REPLACE_ONE)
    assert found.epsilon == pytest.approx(stated)
    if steps == 1:
        assert found.epsilon == pytest.approx(9.997, abs=1e-3)
        assert found.cross_check == pytest.approx(10.726, abs=1e-3)


@pytest.mark.parametrize(
    ("sampling", "relation"),
    [
        (ShuffledEpochs(), ZERO_OUT),
        pytest.param(ShuffledEpochs(replace_one=True), REPLACE_ONE, marks=pytest.mark.slow),
    ],
)
def test_epochs_cost_as_many_gaussians_and_are_not_amplified(
    sampling: ShuffledEpochs, relation: Relation
) -> None:
    found = public(sampling)
    assert (found.relation, found.releases) == (relation, 3)
    expected = epsilon(repeated(gaussian_event(1.0), 3), 1e-5, relation=relation)
    assert found.epsilon == pytest.approx(expected)
    amplified = repeated(poisson_sampled(8 / 41, gaussian_event(1.0)), 18)
    assert found.epsilon > 1.2 * epsilon(amplified, 1e-5, relation=ADD_REMOVE)


def test_a_batch_in_an_epoch_costs_nothing_more() -> None:
    few, many = (public(ShuffledEpochs(), expected_batch=size) for size in (41.0, 1.0))
    assert few.epsilon == many.epsilon


@pytest.mark.slow
def test_truncated_batches_are_bounded_and_stated_as_such() -> None:
    sampling = TruncatedPoissonBatches(9)
    sizes = [len(batch) for batch in seen(sampling, epochs=20)]
    assert max(sizes) == 9 and min(sizes) < 8 and len(sizes) == 103
    plain = [len(batch) for batch in seen(PoissonBatches(), epochs=20)]
    assert max(plain) > 9, "the bound must have something to cut"
    found = public(sampling)
    step = truncated_poisson_sampled(41, 8 / 41, 9, gaussian_event(1.0))
    assert found.relation is ZERO_OUT and found.cross_check is None
    assert found.epsilon == epsilon(repeated(step, 16), 1e-5, relation=ZERO_OUT)
    poisson = repeated(poisson_sampled(8 / 41, gaussian_event(1.0)), 16)
    assert found.epsilon > 1.05 * epsilon(poisson, 1e-5, relation=ZERO_OUT)
    calibrated = calibrate(trainer(sampling), DATA, epsilon=3.0, delta=1e-5, runtimes=STAR)
    result = fit(calibrated, TASK, DATA, runtimes=STAR, delta=1e-5)
    assert 2.9 < result.statement.epsilon("public") <= 3.0


def test_more_than_all_rows_are_expected_at_rate_one() -> None:
    made = DPSGD(epochs=3, expected_batch=64, sampling=TruncatedPoissonBatches(50)).batches(DATA)
    assert (made.sampling, made.steps) == (TruncatedPoisson(1.0, 50), 3)
    single = DPSGD(epochs=3, expected_batch=1, sampling=TruncatedPoissonBatches(1))
    made = single.batches(replace(DATA, train={"a": DATA.pooled().take(torch.arange(1))}))
    assert (made.sampling, made.steps, made.population) == (TruncatedPoisson(1.0, 1), 3, 1)


def test_a_budget_halts_at_the_beginning_of_an_epoch() -> None:
    limit = epsilon(repeated(gaussian_event(1.0), 2), 1e-5, relation=ZERO_OUT)
    watching = Watching()
    result = fit(
        trainer(ShuffledEpochs(), epochs=5, gradients=watching),
        *(TASK, DATA),
        runtimes=STAR,
        budget=Budget(limit + 1e-3, 1e-5),
    )
    assert len(watching.batches) == 2 * 6
    assert result.statement.epsilon("public") <= limit + 1e-3


def test_a_part_of_a_release_that_never_began_is_refused() -> None:
    plans = trainer(ShuffledEpochs()).plan(DATA, STAR)
    ledger = JournalLedger(plans, budget=None, delta=1e-5)
    with pytest.raises(BudgetExceededError):
        ledger.use(0)


# ---------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize("make", [ShuffledEpochs, FixedOrder, Shuffled])
def test_what_is_neither_true_nor_false_is_refused(make: Any) -> None:
    for value in (1, None, "no"):
        with pytest.raises(ValueError, match=f"replace_one={value!r} to be True or False"):
            make(value)
    with pytest.raises(ValueError, match="replace_one=1"):
        FixedSize(3, replace_one=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size_is_public='yes'"):
        Poisson(0.5, 3.0, "yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, 0.1, "PoissonBatches", Poisson(0.1), PoissonBatches])
def test_what_draws_no_batches_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected sampling=.* such as PoissonBatches"):
        DPSGD(sampling=value)


@pytest.mark.parametrize("value", [None, 1.0, "Gaussian", Gaussian(1.0, 1.0), Release])
def test_what_is_no_release_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected release=.* such as Release\(Gaussian"):
        DPSGD(release=value)
    with pytest.raises(ValueError, match=r"Expected gradients=.* such as BookKeeping"):
        DPSGD(gradients=value)


@pytest.mark.parametrize(
    ("sampling", "expected_batch", "mean"),
    [
        (PoissonBatches(), 8, None),
        (PoissonBatches(), 64, 41),
        (TruncatedPoissonBatches(20), 16, None),
        (TruncatedPoissonBatches(4), 16, 4),
        (FixedSizeBatches(), 16, None),
        (ShuffledEpochs(), 14, None),
        (ShuffledEpochs(), 40, 20.5),
        (FixedOrder(), 40, 20.5),
        (CyclicPoisson(4), 8, None),
        (CyclicPoisson(8), 16, 41 / 8),
    ],
    ids=str,
)
def test_batches_of_another_size_than_the_divisor_are_noted(
    sampling: BatchSampling, expected_batch: int, mean: float | None
) -> None:
    made = DPSGD(epochs=3, expected_batch=expected_batch, sampling=sampling).batches(DATA)
    if mean is None:
        assert made.notes == ()
        return
    (note,) = made.notes
    assert f"batches hold {mean:.3g} rows on average" in note
    assert f"expected_batch={expected_batch:g}" in note


def test_a_stated_rate_is_noted_where_it_gives_other_batches() -> None:
    data = replace(DATA, public_rows=41)
    for sampling in (PoissonBatches(), TruncatedPoissonBatches(40)):
        asked = DPSGD(expected_batch=64, sampling_rate=0.5, sampling=sampling).batches(data)
        assert "batches hold 20.5 rows on average" in asked.notes[0]
        fits = DPSGD(expected_batch=20.5, sampling_rate=0.5, sampling=sampling).batches(data)
        assert fits.notes == ()
    local = DPSteps(Gaussian(1.0, 1.0), epochs=1, sampling_rate=0.1, expected_batch=2.05)
    for steps, noted in ((local, False), (replace(local, sampling_rate=0.9), True)):
        result = fit(FedAvg(rounds=1, local=steps), TASK, data, runtimes=STAR, delta=1e-3)
        assert any("rows on average" in note for note in result.notes) == noted


@pytest.mark.parametrize(
    "sampling", [FixedSizeBatches(), ShuffledEpochs(), TruncatedPoissonBatches(20), FixedOrder()]
)
def test_a_sampling_that_makes_the_number_public_refuses_canaries(sampling: BatchSampling) -> None:
    rows = DATA.test.take(torch.arange(4))
    planted = with_canaries(replace(DATA, public_rows=41), rows)
    with pytest.raises(UnsupportedError, match="how many canaries were planted"):
        fit(trainer(sampling), TASK, planted, runtimes=STAR, delta=1e-3)


def test_the_noted_sizes_are_those_that_are_drawn() -> None:
    for sampling in (TruncatedPoissonBatches(4), ShuffledEpochs(), CyclicPoisson(8)):
        made = DPSGD(epochs=200, expected_batch=30.0, sampling=sampling).batches(DATA)
        generator = np.random.default_rng(0)
        drawn = [len(batch) for _ in range(made.draws) for batch in made.draw(41, generator)]
        noted = float(made.notes[0].split()[2])
        assert sum(drawn) / len(drawn) == pytest.approx(noted, rel=0.1)
