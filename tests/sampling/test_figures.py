"""Public figures of batches, and batches as parts of one draw."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from scipy import stats

from privtrain.core.errors import UnsupportedError
from privtrain.core.seeding import SeededEntropy
from privtrain.core.task import FederatedData, Rows
from privtrain.sampling.batches import (
    PoissonBatches,
    TruncatedPoissonBatches,
)
from privtrain.sampling.cyclic import CyclicPoisson, FixedOrder
from privtrain.sampling.figures import (
    Batches,
    BatchSampling,
    poisson_figures,
    rows_at,
)
from privtrain.sampling.sampling import Poisson, Shuffled
from tests.sampling.test_batches import DATA, SAMPLINGS, rows_of, trainer
from tests.statistics import ALARM


def empty_rows(count: int = 8) -> Rows:
    return Rows(torch.zeros(count, 3), torch.zeros(count, dtype=torch.long))


class Locked(Mapping[str, Rows]):
    """Parties whose rows nobody may look at."""

    def __getitem__(self, party: str) -> Rows:
        raise AssertionError(f"somebody looked at the rows of {party}")

    def __iter__(self) -> Iterator[str]:
        return iter(("a", "b"))

    def __len__(self) -> int:
        return 2


def test_public_figures_are_taken_as_they_are() -> None:
    data = FederatedData(train=Locked(), test=empty_rows(), public_rows=1000)
    declared = poisson_figures(data, epochs=3, sampling_rate=None, expected_batch=50.0)
    assert declared[:2] == (Poisson(0.05, 50.0), 60)
    assert declared[0].size_is_public is False
    given = FederatedData(train=Locked(), test=empty_rows())
    sampling, steps, assumptions = poisson_figures(
        given, epochs=2, sampling_rate=0.1, expected_batch=33.0
    )
    assert (sampling.rate, sampling.expected_size, steps) == (0.1, 33.0, 20)
    assert not any("rows" in text for text in assumptions)


def test_a_single_public_row_is_in_every_batch() -> None:
    data = FederatedData(train=Locked(), test=empty_rows(), public_rows=1)
    found = poisson_figures(data, epochs=3, sampling_rate=None, expected_batch=1.0)
    assert found[:2] == (Poisson(1.0, 1.0), 3)
    # Half a row a party counts as one.
    found = poisson_figures(data, epochs=3, sampling_rate=None, expected_batch=0.5, parties=2)
    assert found[:2] == (Poisson(0.5, 0.5), 6)


def test_a_draw_ends_with_its_last_part_and_with_the_run() -> None:
    cut = Batches(Shuffled(), steps=5, assumptions=(), per_draw=2)
    assert [cut.begins_draw(step) for step in range(5)] == [True, False, True, False, True]
    assert [cut.ends_draw(step) for step in range(5)] == [False, True, False, True, True]
    assert cut.draws == 3
    whole = Batches(Poisson(0.5, 4.0), steps=3, assumptions=())
    assert all(whole.begins_draw(step) and whole.ends_draw(step) for step in range(3))


def test_a_counted_number_of_rows_is_an_assumption() -> None:
    data = FederatedData(train={"a": empty_rows(30), "b": empty_rows(10)}, test=empty_rows())
    sampling, _, assumptions = poisson_figures(
        data, epochs=1, sampling_rate=None, expected_batch=10.0
    )
    assert (sampling.rate, sampling.size_is_public) == (0.25, True)
    assert any("40, is public" in text for text in assumptions)


def test_a_rate_or_a_batch_is_needed() -> None:
    data = FederatedData(train=Locked(), test=empty_rows(), public_rows=10)
    with pytest.raises(ValueError, match="sampling_rate=None"):
        poisson_figures(data, epochs=1, sampling_rate=None, expected_batch=None)


def poisson_batch(rows: Rows, sampling: Poisson, generator: np.random.Generator) -> Rows:
    return rows_at(rows, sampling.choose(len(rows), generator))


def test_batches_are_poisson() -> None:
    rows = Rows(torch.arange(200, dtype=torch.float64).unsqueeze(1), torch.zeros(200))
    source = SeededEntropy(9)
    drawn = 2_000
    counts, taken = [], np.zeros(200)
    together = 0
    for step in range(drawn):
        batch = poisson_batch(rows, Poisson(0.1), source["sample", step, ""].numpy())
        index = batch.inputs[:, 0].long().numpy()
        counts.append(len(batch))
        taken[index] += 1
        together += {3, 4} <= set(index.tolist())

    def binomial_with(rate: float) -> bool:
        """Sizes of batches follow Binomial(200, rate): mean, and variance of its own."""
        mean, variance = 200 * rate, 200 * rate * (1 - rate)
        bound = stats.norm.ppf(1 - ALARM / 4)
        spread = (drawn - 1) * np.var(counts, ddof=1) / variance
        low, high = stats.chi2.ppf([ALARM / 4, 1 - ALARM / 4], drawn - 1)
        centred = abs(np.mean(counts) - mean) <= bound * math.sqrt(variance / drawn)
        return bool(centred and low <= spread <= high)

    assert binomial_with(0.1)
    assert not binomial_with(0.1 * 2 / 3)
    assert not binomial_with(0.1 * 3 / 2)
    each = ALARM / 200
    assert min(stats.binomtest(int(n), drawn, 0.1).pvalue for n in taken) > each
    assert stats.binomtest(together, drawn, 0.01).pvalue > ALARM  # independent coins


def test_an_empty_batch_is_drawn_now_and_then() -> None:
    source = SeededEntropy(1)
    sizes = [
        len(poisson_batch(empty_rows(5), Poisson(0.1), source["s", i, ""].numpy()))
        for i in range(50)
    ]
    assert 0 in sizes


def test_twice_in_an_epoch_is_one_gaussian_too_few() -> None:
    """The broken twin: rows drawn anew for every batch share rows, and cost a Gaussian each."""
    drawn = Poisson(0.5).choose(41, np.random.default_rng(0))
    again = Poisson(0.5).choose(41, np.random.default_rng(1))
    assert set(drawn) & set(again)
    batches = Batches(Shuffled(), 6, (), per_draw=6, population=41)
    rows = DATA.pooled()
    drawn_in = list(batches.draw(41, np.random.default_rng(0)))
    assert len(drawn_in) == 6
    parts = [rows_of([rows_at(rows, chosen).inputs]) for chosen in drawn_in]
    for number, part in enumerate(parts):
        for other in parts[number + 1 :]:
            assert not {tuple(row) for row in part} & {tuple(row) for row in other}


@pytest.mark.parametrize("sampling", SAMPLINGS[1:])
def test_figures_that_do_not_fit_are_refused(sampling: BatchSampling) -> None:
    for size in (8.5, 42.0):
        with pytest.raises(ValueError, match=f"expected_batch={size}"):
            trainer(sampling, expected_batch=size).batches(DATA)
    with pytest.raises(UnsupportedError, match=r"sampling_rate=0\.1"):
        trainer(sampling, sampling_rate=0.1).batches(DATA)


def test_an_empty_party_changes_nothing(data: FederatedData = DATA) -> None:
    counts = {len(trainer(sampling).batches(data).assumptions) for sampling in SAMPLINGS}
    assert counts <= {1, 2}


@pytest.mark.parametrize(
    "sampling", [*SAMPLINGS, TruncatedPoissonBatches(9), FixedOrder(), CyclicPoisson(2)]
)
def test_more_steps_than_can_be_counted_are_refused(sampling: BatchSampling) -> None:
    for epochs in (1e300, 1.7e308):
        with pytest.raises(ValueError, match=r"epochs=.* to take fewer than 2\^53 steps"):
            trainer(sampling, epochs=epochs).batches(DATA)
    if isinstance(sampling, (PoissonBatches, TruncatedPoissonBatches, CyclicPoisson)):
        with pytest.raises(ValueError, match=r"fewer than 2\^53 steps; it takes inf"):
            trainer(sampling, epochs=1, sampling_rate=1e-320).batches(DATA)
