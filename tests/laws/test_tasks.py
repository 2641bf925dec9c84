"""Tasks beside classification: each trainer that can take one does, others refuse beforehand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import privtrain as pt
from privtrain.core.errors import DataError, UnsupportedError
from privtrain.steps.plain import PlainSteps
from privtrain.trainers.mpc_sgd import MPCSGD

INPUTS = torch.randn(260, 4, generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
HERE = pt.Runtimes(star=pt.InProcess())


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = functional.mse_loss(outputs, targets.reshape(outputs.shape), reduction="none")
    return losses.reshape(len(losses), -1).mean(dim=1)


def binary(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = functional.binary_cross_entropy_with_logits(
        outputs, targets.reshape(outputs.shape).to(outputs.dtype), reduction="none"
    )
    return losses.reshape(len(losses), -1).mean(dim=1)


@dataclass(frozen=True)
class Linear:
    """Makes a linear map; of one output as `(rows,)` where `flat` is set."""

    outputs: int = 1
    flat: bool = False

    def __call__(self) -> nn.Module:
        layers = nn.Linear(4, self.outputs)
        return nn.Sequential(layers, nn.Flatten(0)) if self.flat else layers


REAL = INPUTS @ WEIGHTS
YES = (INPUTS[:, 0] > 0.5).float()
REGRESSION = {"rmse": pt.rmse, "r2": pt.r2}
CLASSES = {"accuracy": pt.accuracy, "auc": pt.auc}
Given = tuple[Linear, Callable[[Tensor, Tensor], Tensor], dict[str, Any], Tensor]
TASKS: dict[str, Given] = {
    "real values, (rows, 1)": (Linear(), squared, REGRESSION, REAL[:, :1]),
    "real values, (rows,)": (Linear(flat=True), squared, REGRESSION, REAL[:, 0]),
    "real values, a column of outputs": (Linear(), squared, REGRESSION, REAL[:, 0]),
    "several real values": (Linear(3), squared, REGRESSION, REAL),
    "a single logit": (Linear(), binary, CLASSES, YES),
    "a single logit, (rows,)": (Linear(flat=True), binary, CLASSES, YES.long()),
    "a single logit, a column of targets": (Linear(), binary, CLASSES, YES.reshape(-1, 1)),
    "several labels": (Linear(3), binary, CLASSES, (REAL > 0.7).float()),
}
TRAINERS = {
    "SGD": pt.SGD(epochs=2),
    "DP-SGD": pt.DPSGD(epochs=0.5, expected_batch=32.0),
    "FedAvg": pt.FedAvg(rounds=2),
    "FedAvg, DPSteps": pt.FedAvg(rounds=1, local=pt.DPSteps(pt.Gaussian(1.0, 1.1))),
}


def made(name: str) -> tuple[pt.Task, pt.FederatedData]:
    model, loss, metrics, targets = TASKS[name]

    def part(start: int, end: int) -> pt.Rows:
        return pt.Rows(INPUTS[start:end], targets[start:end])

    data = pt.FederatedData(
        train={"a": part(0, 80), "b": part(80, 160)},
        test=part(160, 210),
        validation=part(210, 260),
        public_rows=160,
        digest="ab" * 32,
    )
    return pt.Task(model=model, loss=loss, metrics=metrics), data


@pytest.mark.parametrize("name", TASKS)
def test_every_trainer_takes_it_and_its_curves_are_those_of_the_task(name: str) -> None:
    task, data = made(name)
    rows = pt.compare(TRAINERS, task, data, attacks=[pt.LossThreshold()], runtimes=HERE).rows
    for row in rows:
        assert row.error is None and not row.failures, row
        assert list(row.measurements) == list(task.metrics)
        assert all(one.interval is not None for one in row.measurements.values())
        assert row.leakage[0].metrics["auc"] is not None
        assert row.history is not None
        curves = {n for n in row.history.unprotected if n.startswith("validation_")}
        assert curves == {f"validation_{metric}" for metric in task.metrics}
    result = pt.fit(TRAINERS["SGD"], task, data)
    assert data.validation is not None
    outputs = result.predictor(data.validation.inputs)
    for metric, compute in task.measures.items():
        last = result.history.unprotected[f"validation_{metric}"][-1][1]
        assert last == compute(outputs, data.validation.labels)


@pytest.mark.parametrize("name", TASKS)
def test_the_others_refuse_it_by_name_before_anything_is_spent(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data = made(name)
    for trained in (PlainSteps, MPCSGD):
        called = "__call__" if trained is PlainSteps else "_deal"
        monkeypatch.setattr(trained, called, lambda *given, **named: pytest.fail("it was trained"))
    votes = pt.PATE(teachers=2, queries=5, release=pt.Release(pt.GNMax(1.0), finish=pt.ARGMAX))
    study = pt.StudyLedger(data, budget=pt.Budget(1000.0, 1e-5))
    with pytest.raises((DataError, UnsupportedError), match="PATE"):
        pt.fit(votes, task, data, study_ledger=study)
    assert study.charges == ()
    with pytest.raises(UnsupportedError, match="MPCSGD"):
        pt.fit(pt.MPCSGD(epochs=1), task, data)


def test_real_values_without_a_metric_of_their_own_are_refused_before_training() -> None:
    _, data = made("real values, (rows, 1)")
    task = pt.Task(model=Linear(), loss=squared)
    with pytest.raises(DataError, match=r"metrics\['accuracy'\].*pt\.rmse"):
        pt.compare({"SGD": pt.SGD(epochs=1)}, task, data, runtimes=HERE)
    # Nor is there a curve that says something else.
    history = pt.fit(pt.SGD(epochs=1), task, data).history
    assert not any(name.startswith("validation") for name in history.unprotected)
