"""What every engine does with an example whose loss is not finite, though its gradient is."""

import pytest
import torch
from torch import Tensor

from privtrain.core.task import Loss, Rows, cross_entropy
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.gradients import Gradients
from privtrain.gradients.opacus import Opacus
from privtrain.mechanisms.clipping import AutomaticClipping
from tests.gradients.loops import clipped, example_gradients, in_float64, mlp, rows_for

C = 0.4
ENGINES = (BookKeeping(), BookKeeping(micro_batch=2), Opacus())


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
