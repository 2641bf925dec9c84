"""Norms are upper bounds, rounding included: no contribution exceeds the bound."""

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.task import Rows, cross_entropy
from privtrain.gradients.bookkeeping.engine import BookKeeping
from tests.gradients.bookkeeping.cases import CASES, ROUNDING, C, Case
from tests.gradients.loops import (
    in_float64,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


def difference_of_two(logits: Tensor, targets: Tensor) -> Tensor:
    """Adds up over time with alternating signs, so that equal steps cancel."""
    signs = torch.ones(logits.shape[1]).to(logits)
    signs[1::2] = -1
    return ((logits[..., 0] - logits[..., 1]) * signs).sum(dim=1)


def cancelling(seed: int, time: int, width: int, scale: float) -> Rows:
    """Pairs of steps that are nearly equal, at a scale at which float32 loses the difference."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(1, time // 2, 1, width, generator=generator).repeat(1, 1, 2, 1)
    noise = torch.randn(1, time, width, generator=generator)
    return Rows(scale * steps.reshape(1, time, width) + noise, torch.zeros(1))


@pytest.mark.parametrize("scale", [1e1, 1e3, 1e4, 1e6, 1e8])
@pytest.mark.parametrize(("time", "width", "height"), [(2, 6, 4), (4, 40, 12), (16, 64, 48)])
def test_sequences_that_cancel_stay_within_the_bound(
    time: int, width: int, height: int, scale: float
) -> None:
    model = nn.Sequential(nn.Linear(width, height, bias=False))
    engine = BookKeeping().engine(model, difference_of_two)
    largest = 0.0
    for seed in range(20):
        found = engine.clipped_sum(cancelling(seed, time, width, scale), C)
        largest = max(largest, float(found.value.double().norm()))
        assert largest <= C * ROUNDING
    assert largest > 0
    if scale <= 1e3:
        assert largest > C / 2, "the bound must not be met by adding nothing"


def test_gram_matrices_in_float32_would_not_have_stayed_within_the_bound() -> None:
    """The cases above are hard: the same norms without float64 and without an error lose."""
    lost = 0.0
    for seed in range(20):
        inputs = cancelling(seed, 4, 40, 1e4).inputs
        outputs = torch.zeros(1, 4, 12)
        outputs[0, :, 0] = torch.tensor([1.0, -1.0, 1.0, -1.0])
        outputs[0, :, 1] = -outputs[0, :, 0]
        grams = inputs @ inputs.mT * (outputs @ outputs.mT)
        true = (outputs.double().mT @ inputs.double()).norm()
        lost = max(lost, float(true / grams.sum().clamp_min(1e-30).sqrt()))
    assert lost > 1.5


def test_convolutions_that_cancel_stay_within_the_bound() -> None:
    model = nn.Sequential(nn.Conv1d(40, 12, 2, bias=False))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return difference_of_two(outputs.mT, targets)

    engine = BookKeeping().engine(model, loss)
    for seed in range(20):
        rows = cancelling(seed, 6, 40, 1e4)
        found = engine.clipped_sum(Rows(rows.inputs.mT.contiguous(), rows.labels), C)
        assert 0 < float(found.value.double().norm()) <= C * ROUNDING


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1.0, 1e3, 1e15])
def test_no_contribution_exceeds_the_bound_in_float32(case: Case, scale: float) -> None:
    rows = case.rows(count=6)
    inputs = rows.inputs.float() if case.tokens else scale * rows.inputs.float()
    rows = Rows(inputs, rows.labels)
    engine = BookKeeping().engine(
        in_float64(case.make).float(), lambda out, y: cross_entropy(out, y) / scale
    )
    for i in range(len(rows)):
        one = engine.clipped_sum(rows.take(torch.tensor([i])), C).value
        assert float(one.double().norm()) <= C * ROUNDING
