"""What is refused before a run."""

import math
from pathlib import Path

import pytest
import torch

from privtrain.core.errors import (
    DataError,
    UnsoundReleaseError,
)
from privtrain.core.result import TrainResult
from privtrain.core.task import FederatedData, Rows
from privtrain.core.trainer import Trainer
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.runs.fitting import fit
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.sgd import SGD
from tests.trainers.federations import STAR, TASK, a_federation, some_rows

DATA = a_federation(12, 9, 15, public_rows=36)
NOISY = Release(Gaussian(1.0, 1.0))


def run(trainer: Trainer, folder: Path | None = None, **options: object) -> TrainResult:
    return fit(trainer, TASK, DATA, runtimes=STAR, folder=folder, **options)  # type: ignore[arg-type]


def data_of(**train: Rows) -> FederatedData:
    return FederatedData(train=train, test=some_rows(1))


def test_odd_data_is_refused_with_a_name() -> None:
    good = some_rows(2)
    bad = Rows(good.inputs.clone(), good.labels)
    bad.inputs[3, 1] = math.nan
    unknown = Rows(good.inputs, torch.full((12,), math.inf))
    for data, text in (
        (data_of(), "at least one party"),
        (data_of(a=good, b=some_rows(3, 0)), "party 'b' holds no rows"),
        (data_of(a=good, b=bad), r"train\[b\].*\[3, 1\]"),
        (data_of(a=unknown), r"train\[a\].targets"),
        (FederatedData(train={"a": good}, test=some_rows(1, 0)), "data.test"),
        (FederatedData(train={"a": good}, test=bad), "test"),
    ):
        with pytest.raises(ValueError, match=text):
            fit(SGD(epochs=1), TASK, data, runtimes=STAR)


@pytest.mark.parametrize(
    ("trainer", "delta", "population"),
    [
        (DPSGD(epochs=1), 1 / 36, 36),
        (FedAvg(rounds=1, release=NOISY), 1 / 3, 3),
        (FedAvg(rounds=1, local=DPSteps(Gaussian(1.0, 1.0))), 1 / 30, 36),
    ],
)
def test_delta_has_to_be_below_one_over_the_units(
    trainer: Trainer, delta: float, population: int
) -> None:
    with pytest.raises(UnsoundReleaseError, match=f"1 / {population}"):
        run(trainer, delta=delta)
    assert run(trainer, delta=0.9 / population).statement.epsilon() < math.inf


def test_without_a_promise_delta_does_not_matter() -> None:
    assert run(SGD(epochs=1), delta=0.5).statement.epsilon() == math.inf


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_is_a_probability(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        run(SGD(epochs=1), delta=delta)


@pytest.mark.parametrize("device", ["warp", "cuda:99", "meta:x"])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="device="):
        run(SGD(epochs=1), device=device)


def test_data_errors_are_value_errors() -> None:
    assert issubclass(DataError, ValueError)
