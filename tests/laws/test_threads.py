"""Law: a fit gives what its seed gives alone, whatever other threads of the process do meanwhile.

Models draw from the global generators of torch, numpy and Python, which threads share: fits take
turns there.
"""

import copy
import itertools
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtrain.accounting.selection import RandomTrials
from privtrain.core import seeding
from privtrain.core.seeding import Seeds, global_generator, kept_generators
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import Trainer
from privtrain.gradients.opacus import Opacus
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.comparing import compare
from privtrain.runs.fitting import fit
from privtrain.runs.scoring import PublicRows
from privtrain.runs.tuning import tune
from privtrain.steps.plain import PlainSteps
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD

THREADS, PATIENCE = 4, 60.0


class Drawing(nn.Module):
    """Draws from three global generators: initially, in training, and when it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.last = nn.Linear(8, 3)
        with torch.no_grad():
            self.last.bias += float(np.random.rand()) + random.random()

    def forward(self, x: Tensor) -> Tensor:
        kept = nn.functional.dropout(self.first(x).relu(), 0.3, training=True)
        answer: Tensor = self.last(kept)
        return answer * (1 + 0.1 * np.random.rand() + 0.1 * random.random())


class Dropping(nn.Module):
    """What private training takes: each row's own draws, of torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        with torch.no_grad():
            self.layers[3].bias += float(np.random.rand()) + random.random()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layers(x)
        return answer


class Noisy(torch.optim.SGD):
    """An optimizer that draws."""

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(torch.randn_like(parameter), alpha=0.01)


def rows(seed: int, count: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 5, generator=generator)
    return Rows(inputs, inputs[:, :3].argmax(dim=1))


DATA = FederatedData(
    train={f"p{number}": rows(number, 24) for number in range(3)},
    test=rows(8, 40),
    validation=rows(9, 20),
    public=rows(10, 30),
    public_rows=72,
)
STEPS = PlainSteps(epochs=2, batch_size=8)
PRIVATE = DPSteps(Gaussian(1.0, 1.0), expected_batch=6.0)
TRAINERS: dict[str, tuple[Trainer, Callable[[], nn.Module]]] = {
    "sgd": (SGD(epochs=3, batch_size=8, optimizer=Noisy), Drawing),
    "fedavg": (FedAvg(rounds=3, local=STEPS), Drawing),
    "fedavg-server": (
        FedAvg(rounds=3, local=STEPS, server_optimizer=partial(Noisy, lr=0.5)),
        Drawing,
    ),
    "fedavg-private": (FedAvg(rounds=2, local=PRIVATE), Dropping),
    "pate": (
        PATE(
            teachers=3,
            queries=9,
            release=Release(GNMax(sigma=2.0), finish=ARGMAX),
            steps=STEPS,
            student=STEPS,
        ),
        Drawing,
    ),
    "dp_sgd": (DPSGD(epochs=2, expected_batch=12.0), Dropping),
    "dp_sgd-opacus": (DPSGD(epochs=2, expected_batch=12.0, gradients=Opacus()), Dropping),
}
TURNS = pytest.mark.parametrize("name", TRAINERS)


def outcome(name: str, seed: int) -> tuple[Tensor, list[tuple[int, float]]]:
    """The weights of a fit, and its learning curve, for which the model is asked."""
    trainer, model = TRAINERS[name]
    result = fit(trainer, Task(model=model), DATA, seed=seed)
    made: nn.Module = result.predictor.module  # type: ignore[attr-defined]
    weights = torch.cat([p.detach().reshape(-1) for p in made.parameters()])
    return weights, result.history.unprotected["validation_accuracy"]


def together(function: Callable[[int], object]) -> list[object]:
    """What a function gives for four seeds in four threads that start at once."""
    start = threading.Barrier(THREADS)

    def begin(seed: int) -> object:
        start.wait(PATIENCE)
        return function(seed)

    with ThreadPoolExecutor(THREADS) as threads:
        pending = [threads.submit(begin, seed) for seed in range(THREADS)]
        return [each.result(PATIENCE) for each in pending]


@TURNS
def test_each_thread_gets_what_its_seed_gives_alone(name: str) -> None:
    before = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
    alone = [outcome(name, seed) for seed in range(THREADS)]
    for (weights, curve), (others, seen) in zip(
        alone,
        together(partial(outcome, name)),  # type: ignore[arg-type]
        strict=True,
    ):
        assert torch.equal(weights, others)
        assert curve == seen
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])
    assert random.getstate() == before[2]


def test_trainers_of_all_kinds_at_once_leave_each_other_alone() -> None:
    names = ["sgd", "dp_sgd", "pate", "fedavg-private"]
    alone = [outcome(name, 1) for name in names]
    for (weights, curve), (others, seen) in zip(
        alone,
        together(lambda number: outcome(names[number], 1)),  # type: ignore[arg-type]
        strict=True,
    ):
        assert torch.equal(weights, others)
        assert curve == seen


def test_comparisons_in_threads_equal_those_alone() -> None:
    trainers = {name: TRAINERS[name][0] for name in ("sgd", "fedavg")}

    def accuracies(seed: int) -> list[float | None]:
        made = compare(trainers, Task(model=Drawing), DATA, seeds=[seed], attacks=())
        return [row.accuracy for row in made.rows]

    alone = [accuracies(seed) for seed in range(THREADS)]
    assert not any(None in each for each in alone)
    assert together(accuracies) == alone


def test_tuning_in_threads_equals_tuning_alone() -> None:
    """Models that draw when they are asked: also scores follow from nothing else."""
    trainers = {"short": SGD(epochs=1, batch_size=8), "long": SGD(epochs=2, batch_size=8)}

    def tuned(seed: int) -> tuple[str, float, list[float]]:
        best = tune(
            trainers,
            Task(model=Drawing),
            DATA,
            score=PublicRows(rows(11, 40)),
            trials=RandomTrials(mean=2.0),
            seed=seed,
        )
        made: nn.Module = best.result.predictor.module  # type: ignore[attr-defined]
        weights = torch.cat([p.detach().reshape(-1) for p in made.parameters()])
        return best.label, best.score, weights.tolist()

    alone = [tuned(seed) for seed in range(THREADS)]
    assert together(tuned) == alone


def test_fits_within_fits_do_not_wait_for_each_other() -> None:
    def pretrained() -> nn.Module:
        # A factory is called while its fit has the turn.
        inner = fit(SGD(epochs=1), Task(model=Drawing), DATA)
        return copy.deepcopy(inner.predictor.module)  # type: ignore[attr-defined]

    calls = itertools.count()

    def measured(outputs: Tensor, targets: Tensor) -> float:
        # A metric is called while no fit has it, so that it may even wait for other threads. It is
        # asked for each sample of its interval, too: some of the calls are enough.
        if next(calls) >= 6 * THREADS:
            return 0.0
        with ThreadPoolExecutor(2) as threads:
            fits = [threads.submit(outcome, "sgd", seed) for seed in range(2)]
            return float(sum(each.result(PATIENCE)[0].sum() for each in fits))

    task = Task(model=pretrained, metrics={"accuracy": lambda o, t: measured(o, t) * 0 + 0.5})

    def nested(seed: int) -> float | None:
        made = compare({"a": SGD(epochs=1)}, task, DATA, seeds=[seed], attacks=())
        assert made.rows[0].error is None, made.rows[0].error
        return made.rows[0].accuracy

    assert together(nested) == [0.5] * THREADS


def test_generators_are_put_back_when_private_fits_overlap() -> None:
    """The last of several threads puts back what the first one found."""
    entered, leave = threading.Event(), threading.Event()

    def keeper() -> None:
        with kept_generators():
            with global_generator(Seeds(1)["layers", 0, ""]):
                np.random.rand()
            # What a step leaves there is nobody's to read, and must not be put back by others.
            entered.set()
            leave.wait(PATIENCE)

    np.random.seed(5)
    random.seed(5)
    before = np.random.get_state(legacy=False), random.getstate()
    first = threading.Thread(target=keeper)
    first.start()
    entered.wait(PATIENCE)
    with kept_generators():
        leave.set()
        first.join(PATIENCE)
    np.testing.assert_equal(np.random.get_state(legacy=False), before[0])
    assert random.getstate() == before[1]


def test_without_turns_the_law_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def __enter__(self) -> None:
            return None

        def __exit__(self, *_: object) -> None:
            return None

    alone = [outcome("sgd", seed)[0] for seed in range(THREADS)]
    monkeypatch.setattr(seeding, "_BORROWED", Nothing())
    for _ in range(5):
        try:
            mixed: list[tuple[Tensor, object]] = together(partial(outcome, "sgd"))  # type: ignore[assignment]
        except ValueError:  # two modules of one seed differ
            return
        if any(not torch.equal(a, b) for a, (b, _) in zip(alone, mixed, strict=True)):
            return
    pytest.fail("four threads that share one generator gave the weights of their seeds")
