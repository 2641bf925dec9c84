"""Law: no model, loss or metric changes rows that are used again.

Each of them here writes into all that it is given, so that whoever is given the rows themselves
leaves others behind: the next epoch, engine, seed, trainer or attack would see those.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from privtrain.attacks.membership import LossThreshold
from privtrain.core.parameters import ModelPredictor
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import Trainer
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.comparing import compare
from privtrain.runs.fitting import fit
from privtrain.sampling.passes import row_batches
from privtrain.steps.plain import PlainSteps
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD

WRITING = {"on": True}
"""Whether they write, or copy first what they are given."""


def given(values: Tensor) -> Tensor:
    return values if WRITING["on"] else values.clone()


class Normalising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(given(x).sub_(0.5).div_(2.0))
        return answer


class Free(Normalising):
    """A parameter outside of all layers: `torch.func` computes its gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(given(x).sub_(0.5).div_(2.0) * self.scale)
        return answer


def swapping(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of the other class."""
    return nn.functional.cross_entropy(outputs, given(targets).neg_().add_(1), reduction="none")


def correct(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == given(targets).neg_().add_(1)).double().mean())


@pytest.fixture(autouse=True)
def _writing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Noise follows from a model and what it reads, which differs between the two.
    monkeypatch.setattr("privtrain.runs.fitting.noise_root", lambda *_: b"")
    WRITING["on"] = True
    yield
    WRITING["on"] = True


def rows(seed: int, count: int) -> Rows:
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return Rows(inputs, (inputs[:, 0] > 0).long())


def some_data() -> FederatedData:
    # Values in a dictionary: nothing is loaded anew, so whatever is written stays.
    return FederatedData(
        train={f"p{number}": rows(number, 16) for number in range(2)},
        test=rows(7, 30),
        validation=rows(8, 10),
        public=rows(9, 20),
        public_rows=32,
    )


STEPS = PlainSteps(epochs=3, batch_size=None, learning_rate=0.5)
TRAINERS: dict[str, Trainer] = {
    "sgd": SGD(epochs=3),
    "sgd-whole": SGD(epochs=3, batch_size=None),
    "fedavg-whole": FedAvg(rounds=2, local=STEPS),
    "fedavg-private": FedAvg(rounds=2, local=DPSteps(Gaussian(1.0, 1.0), sampling_rate=1.0)),
    "dp_sgd": DPSGD(epochs=3, sampling_rate=1.0, expected_batch=32.0),
    "dp_sgd-pieces": DPSGD(epochs=2, expected_batch=16.0, gradients=BookKeeping(micro_batch=3)),
}


def weights(trainer: Trainer, task: Task, data: FederatedData) -> Tensor:
    made: nn.Module = fit(trainer, task, data, seed=3).predictor.module  # type: ignore[attr-defined]
    return torch.cat([p.detach().reshape(-1) for p in made.parameters()])


def unchanged(data: FederatedData) -> bool:
    before = some_data()
    pairs = [(data.train[name], before.train[name]) for name in before.train]
    for name in ("test", "validation", "public"):
        pairs.append((getattr(data, name), getattr(before, name)))
    return all(
        torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels) for a, b in pairs
    )


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("model", [Normalising, Free])
def test_who_writes_into_rows_trains_as_who_does_not(name: str, model: type[nn.Module]) -> None:
    data, task = some_data(), Task(model=model, loss=swapping)
    first = weights(TRAINERS[name], task, data)
    assert unchanged(data)
    assert torch.equal(weights(TRAINERS[name], task, data), first), "the next fit"
    WRITING["on"] = False
    assert torch.equal(weights(TRAINERS[name], task, some_data()), first)


def test_teachers_vote_on_the_queries_that_were_asked() -> None:
    # Three teachers a party: the second one's queries are those that the first one was given.
    trainer = PATE(
        teachers=6,
        queries=10,
        release=Release(GNMax(sigma=0.5), finish=ARGMAX),
        steps=STEPS,
        student=STEPS,
    )
    data = some_data()
    first = weights(trainer, Task(model=Normalising), data)
    assert unchanged(data)
    WRITING["on"] = False
    assert torch.equal(weights(trainer, Task(model=Normalising), some_data()), first)


def test_rows_of_a_comparison_are_measured_and_attacked_on_the_same_rows() -> None:
    whole, fedavg = TRAINERS["sgd-whole"], TRAINERS["fedavg-whole"]
    trainers: dict[str, Trainer] = {"a": whole, "b": whole, "c": fedavg}
    data = some_data()
    task = Task(model=Normalising, loss=swapping, metrics={"accuracy": correct})
    made = compare(trainers, task, data, seeds=[1, 2], attacks=(LossThreshold(),))
    assert unchanged(data)
    WRITING["on"] = False
    twin = compare(trainers, task, some_data(), seeds=[1, 2], attacks=(LossThreshold(),))
    assert [row.error for row in made.rows] == [None] * 6
    assert [row.accuracy for row in made.rows] == [row.accuracy for row in twin.rows]
    assert [row.leakage[0].metrics for row in made.rows] == [
        row.leakage[0].metrics for row in twin.rows
    ]


def test_answers_share_nothing_with_the_rows() -> None:
    inputs = torch.ones(3, 4)
    # A model that returns what it was given: who writes into its answer writes into no row.
    ModelPredictor(nn.Identity())(inputs).zero_()
    assert bool((inputs == 1).all())


def test_batches_of_all_rows_are_copies() -> None:
    held = rows(1, 5)
    for inputs, targets in row_batches(held, None, 2, torch.Generator()):
        assert torch.equal(inputs, held.inputs)
        assert torch.equal(targets, held.labels)
        inputs.zero_()
        targets.zero_()
