"""What every engine does with examples of infinite loss, and with batches of many."""

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.task import Loss, Rows, cross_entropy
from privtrain.gradients import opacus
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.gradients import MOST_ROWS, NARROW_ROWS, Gradients, sum_type
from privtrain.gradients.opacus import Opacus
from privtrain.mechanisms.clipping import AutomaticClipping
from tests.gradients.loops import clipped, example_gradients, in_float64, mlp, rows_for

C = 0.4
ENGINES = (BookKeeping(), BookKeeping(micro_batch=2), Opacus())
LARGE = (BookKeeping(), BookKeeping(micro_batch=30_000), Opacus())


def broken_by(value: float, label: int) -> Loss:
    """A loss that is not finite for one class; its gradient is that of cross entropy."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets) + torch.where(targets == label, value, 0.0)

    return loss


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("gradients", ENGINES, ids=str)
def test_an_example_without_a_finite_loss_adds_nothing(gradients: Gradients, value: float) -> None:
    rows = rows_for(mlp)
    label = int(rows.labels[0])
    loss = broken_by(value, label)
    good = rows.take((rows.labels != label).nonzero().squeeze(1))
    assert 0 < len(good) < len(rows)
    assert bool(example_gradients(in_float64(mlp), rows, loss).isfinite().all())
    engine = gradients.engine(in_float64(mlp), loss)
    for _ in range(2):
        found = engine.clipped_sum(rows, C)
    expected = clipped(example_gradients(in_float64(mlp), good), C).sum(dim=0)
    torch.testing.assert_close(found.value, expected, rtol=1e-9, atol=1e-12)
    assert found.non_finite == len(rows) - len(good)


def test_neither_does_it_where_every_gradient_is_normalised() -> None:
    rows = rows_for(mlp)
    every = Rows(rows.inputs, torch.zeros_like(rows.labels))
    settings = BookKeeping(clipping=AutomaticClipping())
    found = settings.engine(in_float64(mlp), broken_by(torch.inf, 0)).clipped_sum(every, C)
    assert not found.value.any()
    assert found.non_finite == len(rows)


def moved(gradients: Gradients, count: int) -> float:
    """By how many clipping norms one of many rows that agree moves their sum."""
    torch.manual_seed(0)
    inputs = (1 + 0.3 * torch.randn(count, 8)).abs()
    rows = Rows(inputs, torch.zeros(count, dtype=torch.long))
    engine = gradients.engine(nn.Linear(8, 3), cross_entropy)
    engine.try_on(rows.take(torch.arange(20)))
    whole = engine.clipped_sum(rows, 0.3).value.double()
    places = torch.arange(count)
    others = [
        engine.clipped_sum(rows.take(places[places != place]), 0.3).value.double()
        for place in torch.randint(count, (3,)).tolist()
    ]
    engine.close()
    return max(float(torch.linalg.vector_norm(whole - other)) for other in others) / 0.3


@pytest.mark.parametrize("count", [NARROW_ROWS, NARROW_ROWS + 1, 2**17])
@pytest.mark.parametrize("gradients", LARGE, ids=str)
def test_one_of_many_rows_that_agree_moves_the_sum_by_the_norm(
    gradients: Gradients, count: int
) -> None:
    assert 0.99 < moved(gradients, count) <= 1 + 2.0**-11


@pytest.mark.parametrize("gradients", LARGE, ids=str)
def test_no_rounding_cancels_where_the_type_of_the_sum_changes(gradients: Gradients) -> None:
    """One row more, and the error of a whole float32 sum stands against it."""
    reach = []
    for seed in (81, 93, 219, 254):
        source = torch.Generator().manual_seed(seed)
        columns, norm = 1 + seed % 7, 10.0 ** -(seed % 4)
        inputs = 3 * torch.randn(columns, generator=source)
        torch.manual_seed(seed + 1)
        engine = gradients.engine(nn.Linear(columns, 2 + seed % 3), cross_entropy)
        more, fewer = (
            engine.clipped_sum(
                Rows(inputs.repeat(count, 1), torch.zeros(count, dtype=torch.long)), norm
            ).value.double()
            for count in (NARROW_ROWS + 1, NARROW_ROWS)
        )
        reach.append(float(torch.linalg.vector_norm(more - fewer)) / norm)
    assert 0.99 < max(reach) <= 1 + 2.0**-10


def test_so_many_in_float32_would_not_be_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opacus, "sum_type", lambda parameters, rows: torch.float32)
    # How far depends on the order in which a processor's library adds: from 1.005 to over 1.05.
    assert max(moved(Opacus(), count) for count in (2**17, 2**18)) > 1 + 2.0**-10


def test_sums_of_many_rows_are_in_float64_and_of_too_many_refused() -> None:
    parameters = list(nn.Linear(2, 1).bfloat16().parameters())
    assert sum_type(parameters, NARROW_ROWS) is torch.float32
    assert sum_type(parameters, NARROW_ROWS + 1) is torch.float64
    # Two sums of n terms, each off by n u times the sum of the norms.
    unit = 2.0**-53
    assert 2 * MOST_ROWS * unit / (1 - MOST_ROWS * unit) * MOST_ROWS <= 2.0**-8 * (1 + 1e-6)
    assert sum_type(parameters, MOST_ROWS) is torch.float64
    with pytest.raises(UnsupportedError, match="4194305 rows is too large"):
        sum_type(parameters, MOST_ROWS + 1)
