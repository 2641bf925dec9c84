"""What is refused before a run."""

import math
import tempfile
from dataclasses import dataclass, replace
from functools import partial
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
from privtrain.data.models import MLP
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
    caveats: tuple[str, ...] = ()

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


def paid_nothing(
    task: Task, data: FederatedData, trainers: tuple[Trainer, ...], **how: Any
) -> None:
    """Each trainer refuses, with nothing charged and nothing written."""
    data = replace(data, digest="ab" * 32)
    study = StudyLedger(data, delta=1e-3)
    for trainer in trainers:
        with (
            tempfile.TemporaryDirectory() as folder,
            pytest.raises(how.get("raises", DataError), match=how["match"]),
        ):
            try:
                fit(trainer, task, data, delta=1e-3, study_ledger=study, folder=folder)
            finally:
                assert not list(Path(folder).iterdir())
        assert study.charges == ()


PRIVATE: tuple[Trainer, ...] = (
    DPSGD(epochs=1),
    FedAvg(rounds=1, local=DPSteps(Gaussian(1.0, 1.0))),
    FedAvg(rounds=1, release=NOISY),
    PATE(queries=2, teachers=4),
)
ALL: tuple[Trainer, ...] = (SGD(epochs=1), FedAvg(rounds=1), *PRIVATE)
PUBLIC_TOO = replace(a_federation(12, 9, public_rows=21), public=Rows(X))
CE = partial(nn.functional.cross_entropy, reduction="none")


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (lambda o, t: None, "returned a NoneType"),
        (lambda o, t: 1.0, "returned a float"),
        (lambda o, t: list(CE(o, t)), "returned a list"),
        (lambda o, t: (CE(o, t), 0), "returned a tuple"),
        (lambda o, t: (o.argmax(1) != t).long(), "torch.int64"),
        (lambda o, t: (o.argmax(1) != t).to(o), "gradient"),
        (lambda o, t: CE(o.detach(), t), "gradient"),
        (lambda o, t: CE(o, t).mean(), r"shape \(\).*reduction='none'"),
        (lambda o, t: CE(o, t)[:, None], "shape"),
        (lambda o, t: CE(o, t) * math.nan, "NaN"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_costs_nothing(loss: Any, match: str) -> None:
    paid_nothing(replace(TASK, loss=loss), PUBLIC_TOO, ALL, match=match)


def test_an_own_error_is_raised_as_it_is_before_anything_is_spent() -> None:
    def failing(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise KeyError("mine")

    class Failing(nn.Linear):
        only_in_training = False

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.training or not self.only_in_training:
                raise KeyError("mine")
            return super().forward(inputs)

    class InTraining(Failing):
        only_in_training = True

    own: Any = {"raises": KeyError, "match": "mine"}
    paid_nothing(replace(TASK, loss=failing), PUBLIC_TOO, ALL, **own)
    for layer in (Failing, InTraining):
        model = partial(layer, 5, 3, dtype=torch.float64)
        paid_nothing(replace(TASK, model=model), PUBLIC_TOO, ALL, **own)


class Packed(nn.Linear):
    """Gives its logits inside something else."""

    def __init__(self, pack: Any) -> None:
        super().__init__(5, 3, dtype=torch.float64)
        self.pack = pack

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.pack(super().forward(inputs))


def test_a_model_without_logits_of_each_class_costs_nothing() -> None:
    for pack, match in (
        (lambda o: (o, o), "returned a tuple"),
        (lambda o: {"logits": o}, "returned a dict"),
        (lambda o: o[:, 0], r"shape \(rows, classes\)"),
    ):
        paid_nothing(replace(TASK, model=partial(Packed, pack)), PUBLIC_TOO, ALL, match=match)


def test_a_party_without_labels_is_named() -> None:
    data = replace(PUBLIC_TOO, train={**PUBLIC_TOO.train, "p1": Rows(X)})
    paid_nothing(TASK, data, ALL, match=r"data\.train\['p1'\].*leave this party out")


def test_numbers_beyond_an_embedding_are_named() -> None:
    task = Task(model=lambda: nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(20, 3)))
    good = torch.arange(60).reshape(12, 5) % 10
    for number in (10, 99, -1):
        bad = good.clone()
        bad[7, 3] = number
        data = FederatedData(train={"a": Rows(bad, Y)}, test=Rows(good, Y), public=Rows(good))
        paid_nothing(task, data, ALL, match=r"data\.train\['a'\].*Embedding.*Unprotected")
        data = FederatedData(train={"a": Rows(good, Y)}, test=Rows(bad, Y), public=Rows(good))
        paid_nothing(task, data, ALL, match=r"data\.test.*Embedding")


V = X[:, 0] * 2 + 0.5
BROADCASTING: list[tuple[Any, torch.Tensor]] = [
    (lambda o, t: nn.functional.mse_loss(o, t, reduction="none").mean(dim=1), V),
    (lambda o, t: ((o - t) ** 2).sum(1), V),
    (lambda o, t: ((o - t) ** 2).mean(0), V),
    (lambda o, t: ((o - t) ** 2).mean(1).sqrt(), V),
    (lambda o, t: (o.squeeze(1) - t).abs().mean(1), V[:, None]),
    (lambda o, t: ((o[:, 0] - t) ** 2).mean(1), V[:, None]),
    (lambda o, t: (nn.functional.softplus(o) - o * t).sum(1), (V > 0).double()),
]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("case", range(len(BROADCASTING)))
def test_a_loss_over_all_pairs_of_rows_is_refused(case: int) -> None:
    """It would learn the mean target, without a word."""
    loss, targets = BROADCASTING[case]
    rows = Rows(X, targets)
    data = FederatedData(train={"a": rows, "b": rows}, test=rows)
    task = Task(model=partial(MLP((5, 1), torch.float64)), loss=loss)
    paid_nothing(task, data, ALL[:-1], match="broadcasting.*one shape")


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_honest_losses_are_no_false_alarm() -> None:
    functional = nn.functional
    weights = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    pixels, tokens = torch.stack([V, -V], 1), torch.stack([Y, Y.flip(0)], 1)

    def focal(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        each = CE(outputs, targets)
        return (1 - torch.exp(-each)) ** 2 * each

    def contrastive(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        near = outputs @ outputs.T
        return CE(near, torch.arange(len(outputs)))

    cases: list[tuple[int, Any, torch.Tensor]] = [
        (1, lambda o, t: (o.squeeze(1) - t) ** 2, V),
        (1, lambda o, t: (o - t.unsqueeze(1)).abs().mean(1), V),
        (1, lambda o, t: ((o.reshape(t.shape) - t) ** 2).flatten(1).mean(1), V[:, None, None]),
        (2, lambda o, t: ((o - t) ** 2).mean(1), pixels),
        (2, lambda o, t: functional.gaussian_nll_loss(
            o[:, 0], t, o[:, 1].exp(), reduction="none"), V),
        (3, partial(CE, ignore_index=-100), torch.where(Y == 2, -100, Y)),
        (3, partial(CE, weight=weights), Y),
        (3, partial(CE, label_smoothing=0.1), Y),
        (3, focal, Y),
        (3, contrastive, Y),
        (3, lambda o, t: functional.binary_cross_entropy_with_logits(
            o, t, reduction="none").mean(1), functional.one_hot(Y, 3).double()),
        (6, lambda o, t: CE(o.view(-1, 3, 2), t).mean(1), tokens),
    ]  # fmt: skip
    for outputs, loss, targets in cases:
        rows = Rows(X, targets)
        for test in (rows, rows.take(torch.arange(1)), Rows(X)):
            task = Task(model=MLP((5, outputs), torch.float64), loss=loss)
            data = FederatedData(train={"a": rows}, test=test)
            check_fits(task, data, initial_model(task, STREAM))
