"""Traps that other libraries were seen to fall into; each has a test that closes it here.

The wrong attention and the refused layers of Opacus are tested in tests/gradients/test_opacus.py,
memory at extreme epsilons in tests/accounting/test_epsilon.py and test_calibration.py.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtrain.accounting.epsilon import epsilon
from privtrain.accounting.event import charged, gaussian_event, poisson_sampled
from privtrain.core.statement import ADD_REMOVE
from privtrain.core.task import FederatedData, Loss, Rows, Task, cross_entropy
from privtrain.core.trainer import RELEASE
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.gradients import Gradients
from privtrain.gradients.opacus import Opacus
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.runs.fitting import fit
from privtrain.sampling.batches import (
    FixedSizeBatches,
    PoissonBatches,
    ShuffledEpochs,
    TruncatedPoissonBatches,
)
from privtrain.sampling.figures import BatchSampling
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD
from tests.trainers.federations import STAR

ENGINES: list[Gradients] = [BookKeeping(), Opacus()]
OTHERS: list[BatchSampling] = [
    FixedSizeBatches(),
    ShuffledEpochs(),
    ShuffledEpochs(True),
    TruncatedPoissonBatches(20),
]
TASK = Task(model=lambda: nn.Linear(2, 2, bias=False))


def equal_rows(count: int, public_rows: int | None = 100) -> FederatedData:
    rows = Rows(torch.ones(count, 2), torch.zeros(count, dtype=torch.long))
    return FederatedData(train={"office": rows}, test=rows, public_rows=public_rows)


def trainer(**options: Any) -> DPSGD:
    settings: dict[str, Any] = {
        "epochs": 1,
        "expected_batch": 20.0,
        "release": Release(Gaussian(1e-3, 1.0)),
        **options,
    }
    return DPSGD(**settings)


@pytest.mark.parametrize("sampling", OTHERS, ids=str)
def test_what_is_not_poisson_is_not_counted_as_poisson(sampling: BatchSampling) -> None:
    """Opacus counts any loader as Poisson when it is told not to sample."""
    data = equal_rows(100)
    public, *_ = trainer(sampling=sampling, epochs=10).plan(data, STAR)
    as_poisson, *_ = trainer(sampling=PoissonBatches(), epochs=10).plan(data, STAR)
    assert as_poisson.charges[RELEASE].event == poisson_sampled(0.2, gaussian_event(1.0))
    assert public.charges[RELEASE].event != as_poisson.charges[RELEASE].event
    cost = epsilon(charged(public.charges), 1e-3, relation=public.relation)
    assert cost > epsilon(charged(as_poisson.charges), 1e-3)
    assert public.relation is not ADD_REMOVE


def moved(count: int, gradients: Gradients) -> float:
    """How far one step over all rows moves, without noise."""
    quiet = Release(Gaussian(1e-3, 0.0))
    made = trainer(
        sampling_rate=1.0, learning_rate=1.0, release=quiet, gradients=gradients, epochs=1
    )
    result = fit(made, TASK, equal_rows(count), runtimes=STAR, delta=1e-3)
    still = fit(
        replace(made, learning_rate=1e-12), TASK, equal_rows(count), runtimes=STAR, delta=1e-3
    )
    ends = [next(iter(r.predictor.module.parameters())) for r in (result, still)]  # type: ignore[attr-defined]
    return float((ends[0] - ends[1]).detach().norm())


@pytest.mark.parametrize("gradients", ENGINES, ids=str)
def test_the_scale_is_public(gradients: Gradients) -> None:
    """Opacus divides by a batch size that it counts in the private rows."""
    assert moved(50, gradients) == pytest.approx(50 * 1e-3 / 20, rel=1e-3)
    assert moved(100, gradients) == pytest.approx(100 * 1e-3 / 20, rel=1e-3)


def test_the_plan_does_not_change_with_the_rows_where_their_number_is_private() -> None:
    assert trainer().plan(equal_rows(100), STAR) == trainer().plan(equal_rows(99), STAR)


def spoilt(logits: Tensor, targets: Tensor) -> Tensor:
    """Infinite or not a number for rows of class 1."""
    factor = torch.where(targets == 1, torch.full_like(logits[:, 0], math.inf), 1.0)
    return cross_entropy(logits, targets) * factor


@pytest.mark.parametrize("gradients", ENGINES, ids=str)
@pytest.mark.parametrize("spoil", ["loss", "inputs"])
def test_one_row_cannot_break_the_model(spoil: str, gradients: Gradients) -> None:
    """One infinite example makes all weights of an Opacus model NaN."""
    data = equal_rows(40)
    rows = data.train["office"]
    if spoil == "loss":
        rows.labels[7] = 1
    else:
        rows.inputs[7] = 3e38  # finite, but its gradient is not
    # Without noise, of which two fits have none in common.
    exact = Release(Gaussian(1e-3, 0.0))
    made = trainer(sampling_rate=1.0, epochs=3, gradients=gradients, release=exact)
    result = fit(made, replace(TASK, loss=spoilt), data, runtimes=STAR, delta=1e-3)
    weights = next(iter(result.predictor.module.parameters()))  # type: ignore[attr-defined]
    assert bool(torch.isfinite(weights).all())
    plain = fit(made, replace(TASK, loss=spoilt), equal_rows(39), runtimes=STAR, delta=1e-3)
    other = next(iter(plain.predictor.module.parameters()))  # type: ignore[attr-defined]
    if spoil == "loss":  # the row counts as zero, so that the model is the one without it
        assert torch.allclose(weights, other, atol=1e-6)


def _all_pairs(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, :1] - targets) ** 2


def _column(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets).unsqueeze(1)


def _averaged(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets).mean()


@pytest.mark.parametrize("loss", [_all_pairs, _column, _averaged])
@pytest.mark.parametrize(
    "trainer",
    [
        SGD(epochs=1),
        FedAvg(rounds=1),
        FedAvg(rounds=1, local=DPSteps(Gaussian(1.0, 1.0))),
        FedAvg(rounds=1, release=Release(Gaussian(1.0, 1.0))),
        DPSGD(epochs=1),
        PATE(teachers=2),
    ],
    ids=["sgd", "fedavg", "dp_steps", "dp_fedavg", "dp_sgd", "pate"],
)
def test_a_loss_that_is_not_one_value_for_each_row_is_refused(trainer: Any, loss: Loss) -> None:
    """Outputs `(rows, 1)` against targets `(rows,)` would train towards the mean target."""
    data = replace(equal_rows(40), public=Rows(torch.ones(8, 2)))
    with pytest.raises(ValueError, match="loss to return one value for each example"):
        fit(trainer, Task(model=lambda: nn.Linear(2, 2), loss=loss), data, runtimes=STAR)
