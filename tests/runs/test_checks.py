"""What is refused before a run."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from privtrain.core.errors import (
    DataError,
    UnsoundReleaseError,
)
from privtrain.core.observers import AGGREGATOR, PUBLIC, Observer, coalition
from privtrain.core.parameters import initial_model
from privtrain.core.result import Predictor, TrainResult
from privtrain.core.runtime import Runtimes
from privtrain.core.seeding import Seeds
from privtrain.core.statement import REPLACE_ONE, Budget, InputPrivacy, Unit
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import PrivacyPlan, Run, Trainer
from privtrain.ledgers.run import check_one_plan
from privtrain.ledgers.study import StudyLedger
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.calibrating import calibrate
from privtrain.runs.checks import check_data, check_fits, check_plans
from privtrain.runs.fitting import fit
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.mpc_sgd import MPCSGD
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD
from tests.trainers.federations import STAR, TASK, a_federation, some_rows

DATA = a_federation(12, 9, 15, public_rows=36)
STREAM = Seeds(0)["initialisation", 0, ""]
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


@dataclass(frozen=True, kw_only=True)
class Planning:
    """A trainer with plans of its own, that must not come to training."""

    plans: tuple[PrivacyPlan, ...]
    token: str = "planning"

    def plan(self, data: FederatedData, runtimes: Runtimes) -> tuple[PrivacyPlan, ...]:
        return self.plans

    def input_privacy(self, data: FederatedData, runtimes: Runtimes) -> tuple[InputPrivacy, ...]:
        return ()

    def with_noise(self, scale: float) -> "Planning":
        return self

    def train(self, task: Task, data: FederatedData, run: Run) -> Predictor:
        raise AssertionError("trained")


def planned(*observers: Observer, unit: Unit = Unit.CLIENT) -> tuple[PrivacyPlan, ...]:
    return Release(Gaussian(1.0, 9.0)).plans(unit=unit, count=3, parties=3, observers=observers)


def test_two_plans_to_one_observer_and_unit_are_refused_before_anything_is_spent(
    tmp_path: Path,
) -> None:
    """Each would hold for a part of what the observer sees, and the smaller would be printed."""
    study = StudyLedger(replace(DATA, digest="ab" * 32), delta=1e-3)
    data = study.data
    zero_out = planned(PUBLIC)
    replaced = tuple(replace(plan, relation=REPLACE_ONE) for plan in zero_out)
    for plans in ((*zero_out, *planned(PUBLIC)), (*zero_out, *replaced)):
        trainer = Planning(plans=plans)
        with pytest.raises(UnsoundReleaseError, match=r"2 plans.*public sees of one client.*one"):
            fit(trainer, TASK, data, runtimes=STAR, delta=1e-3, folder=tmp_path, study_ledger=study)
        with pytest.raises(UnsoundReleaseError, match="2 plans"):
            calibrate(trainer, data, epsilon=1.0, delta=1e-3, runtimes=STAR)
    assert study.charges == ()
    assert list(tmp_path.iterdir()) == []
    check_plans((*zero_out, *planned(PUBLIC, unit=Unit.EXAMPLE), *planned(AGGREGATOR)), data, 1e-3)


def test_no_built_in_trainer_plans_a_unit_twice() -> None:
    trainers: tuple[Trainer, ...] = (
        SGD(),
        DPSGD(),
        FedAvg(),
        FedAvg(release=NOISY),
        FedAvg(local=DPSteps(Gaussian(1.0, 1.0))),
        FedAvg(local=DPSteps(Gaussian(1.0, 1.0)), release=NOISY),
        PATE(queries=5, release=Release(GNMax(1.0), finish=ARGMAX)),
        MPCSGD(),
    )
    for trainer in trainers:
        check_one_plan(trainer.plan(DATA, STAR))


def test_a_plan_about_a_party_that_is_not_there_is_refused() -> None:
    there, typo = coalition({"p0", "p1"}), coalition({"p0", "P1"})
    check_plans(planned(there, coalition({"p0", "aggregator"})), DATA, 1e-3)
    trainer = Planning(plans=planned(PUBLIC, typo))
    for budget in (None, Budget(3.0, 1e-3, typo)):
        with pytest.raises(ValueError, match=r"'P1' does not\. Known are p0, p1, p2"):
            fit(trainer, TASK, DATA, runtimes=STAR, delta=1e-3, budget=budget)
    with pytest.raises(ValueError, match="'P1' does not"):
        calibrate(trainer, DATA, epsilon=1.0, delta=1e-3, observer=typo, runtimes=STAR)


@pytest.mark.parametrize("name", ["aggregator", "curator", "public", "student", "computing-0", ""])
def test_a_party_named_like_a_role_is_refused_before_anything_is_spent(name: str) -> None:
    good = some_rows(2)
    data = replace(data_of(north=good, **{name: good}), digest="ab" * 32, public_rows=24)
    study = StudyLedger(data, delta=1e-3)
    trainers: tuple[Trainer, ...] = (SGD(epochs=1), DPSGD(epochs=1), FedAvg(rounds=1))
    for trainer in trainers:
        with pytest.raises(DataError, match=f"party {name!r} to have a name of its own"):
            fit(trainer, TASK, data, runtimes=STAR, delta=1e-3, study_ledger=study)
    assert study.charges == ()


def test_names_of_a_million_parties_are_looked_at_without_their_rows() -> None:
    class Unread(dict[str, Rows]):
        def __getitem__(self, name: str) -> Rows:
            raise AssertionError("loaded")

    train = Unread.fromkeys(f"client-{number}" for number in range(20_000))
    data = FederatedData(train=train, test=some_rows(1))
    check_data(data)
    train["dealer"] = some_rows(2)
    with pytest.raises(DataError, match="party 'dealer'"):
        check_data(data)


def rows_with(inputs: torch.Tensor | None = None, targets: torch.Tensor | None = None) -> Rows:
    like = some_rows(2)
    return Rows(
        like.inputs if inputs is None else inputs, like.labels if targets is None else targets
    )


X, Y = some_rows(2).inputs, some_rows(2).labels
OWN = replace(TASK, loss=lambda o, t: nn.functional.cross_entropy(o, t, reduction="none"))
ODD_INPUTS: list[tuple[torch.Tensor, str]] = [
    (X.to_sparse(), "to_dense"),
    (X + 0j, "complex"),
    (torch.zeros(X.shape, device="meta"), "without values"),
    (torch.zeros(X.shape).to(torch.uint16), r"\.long\(\)"),
    (X.clone().requires_grad_(), r"\.detach\(\)"),
    (X.float(), "Expected the model to take .* type torch.float32.*Convert"),
    (X.bfloat16(), "Expected the model to take .* type torch.bfloat16"),
    (X.long(), "Expected the model to take .* type torch.int64"),
    (X[:, :2], "Expected the model to take .* shape"),
]
ODD_TARGETS = [
    Y * 5 + 5, -1 - Y, Y.int(), Y.short(), Y.bool(), Y.double(), Y.to(torch.uint64),
    nn.functional.one_hot(Y),
]  # fmt: skip


@pytest.mark.parametrize("part", ["train", "test", "validation"])
def test_rows_that_cannot_be_trained_on_cost_nothing(part: str) -> None:
    """Of rows made by hand, in every part, and under losses of every kind."""
    good = replace(data_of(a=some_rows(2)), digest="ab" * 32)
    study = StudyLedger(good, delta=1e-3)
    odd = [(rows_with(inputs), TASK, message) for inputs, message in ODD_INPUTS]
    odd += [(rows_with(None, y), task, "targets") for y in ODD_TARGETS for task in (TASK, OWN)]
    for rows, task, message in odd:
        given: Any = {part: {"a": rows} if part == "train" else rows}
        for trainer in (SGD(epochs=1), DPSGD(epochs=1)):
            with pytest.raises(DataError, match=message) as refused:
                fit(trainer, task, replace(good, **given), delta=1e-3, study_ledger=study)
            assert part in str(refused.value)
    assert study.charges == ()


def test_labels_beyond_the_outputs_are_named_with_their_row() -> None:
    labels = Y.clone()
    labels[4] = 7
    for trainer in (SGD(epochs=1), FedAvg(rounds=1), DPSGD(epochs=1), PATE(queries=2)):
        public = Rows(X)
        with pytest.raises(DataError, match=r"0\.\.2, as the model has 3 .*row 4 holds 7.*Unprot"):
            fit(trainer, TASK, replace(data_of(a=rows_with(None, labels)), public=public))
    assert fit(SGD(epochs=1), TASK, data_of(a=rows_with(None, Y.byte()))).halted is None


def test_public_rows_are_looked_at_as_well() -> None:
    with pytest.raises(DataError, match=r"data\.public to be finite"):
        fit(SGD(epochs=1), TASK, replace(data_of(a=some_rows(2)), public=Rows(X * math.nan)))


def test_an_own_loss_may_take_what_it_likes() -> None:
    """Regression, probabilities, and a loss that fails in its own way are the user's business."""
    probabilities = nn.functional.one_hot(Y, 3).double()
    rows = rows_with(None, probabilities)
    fit(SGD(epochs=1), TASK, FederatedData(train={"a": rows}, test=rows))

    def failing(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise KeyError("mine")

    check_fits(replace(TASK, loss=failing), data_of(a=some_rows(2)), initial_model(TASK, STREAM))
