"""Law: an optimizer trains all that it is given, or the run is refused before anything is spent.

A model that keeps its initial weights beside a stated epsilon was paid for and never trained.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from privtrain.core.statement import Budget
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import Trainer
from privtrain.ledgers.study import StudyLedger
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.fitting import fit
from privtrain.steps.optimizers import try_optimizer
from privtrain.steps.plain import PlainSteps
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD

Parameters = list[nn.Parameter]
Plain = torch.optim.SGD


def scheduler(parameters: Parameters, lr: float = 0.1) -> Any:
    return torch.optim.lr_scheduler.StepLR(Plain(parameters, lr=lr), 1)


def nothing(parameters: Parameters, lr: float = 0.1) -> Any:
    Plain(parameters, lr=lr)


def a_class(parameters: Parameters, lr: float = 0.1) -> Any:
    return torch.optim.Adam


def a_generator(parameters: Parameters, lr: float = 0.1) -> Iterator[Optimizer]:
    yield Plain(parameters, lr=lr)


def a_wrapper(parameters: Parameters, lr: float = 0.1) -> Any:
    @dataclass
    class Wrapper:
        optimizer: Optimizer

        def step(self) -> None:
            return None

    return Wrapper(Plain(parameters, lr=lr))


def in_a_tuple(parameters: Parameters, lr: float = 0.1) -> Any:
    return Plain(parameters, lr=lr), None


def of_copies(parameters: Parameters, lr: float = 0.1) -> Optimizer:
    return Plain([p.detach().clone().requires_grad_() for p in parameters], lr=lr)


def of_views(parameters: Parameters, lr: float = 0.1) -> Optimizer:
    return Plain([p.data for p in parameters], lr=lr)


def of_another_model(parameters: Parameters, lr: float = 0.1) -> Optimizer:
    return Plain(nn.Linear(4, 2).parameters(), lr=lr)


def of_more(parameters: Parameters, lr: float = 0.1) -> Optimizer:
    return Plain([*parameters, nn.Parameter(torch.zeros(2))], lr=lr)


def of_the_first(parameters: Parameters, lr: float = 0.1) -> Optimizer:
    return Plain(parameters[:1], lr=lr)


def with_closure(parameters: Parameters, lr: float = 0.1) -> Optimizer:
    return torch.optim.LBFGS(parameters, lr=lr)


def of_sparse_gradients(parameters: Parameters, lr: float = 0.1) -> Optimizer:
    return torch.optim.SparseAdam(parameters, lr=lr)


def at_rest(parameters: Parameters, lr: float = 0.1) -> Optimizer:
    return Plain(parameters, lr=0.0)


def first_at_rest(parameters: Parameters, lr: float = 0.1) -> Optimizer:
    return Plain([{"params": parameters[:1], "lr": 0.0}, {"params": parameters[1:]}], lr=lr)


def decaying_at_rest(parameters: Parameters, lr: float = 0.1) -> Optimizer:
    last = {"params": parameters[1:], "lr": 0.0, "weight_decay": 0.1}
    return torch.optim.AdamW([{"params": parameters[:1]}, last], lr=lr)


def of_two_arguments(parameters: Parameters) -> Optimizer:
    return Plain(parameters, lr=0.1, momentum=2.0, nesterov="yes", dampening=3)


class Cached:
    """Returns what it returned first."""

    def __init__(self) -> None:
        self.made: Optimizer | None = None

    def __call__(self, parameters: Parameters, lr: float = 0.1) -> Optimizer:
        if self.made is None:
            self.made = Plain(parameters, lr=lr)
        return self.made


WRONG: list[tuple[Callable[..., Any], str]] = [
    (scheduler, "not a StepLR of one. Return the SGD itself"),
    (nothing, "not None. End the function with return"),
    (a_class, "not the class Adam. Call it"),
    (a_generator, "not a generator"),
    (a_wrapper, "not a Wrapper of one"),
    (in_a_tuple, "not a tuple"),
    (of_copies, "are others, such as copies"),
    (of_views, "are others, such as copies"),
    (of_another_model, "are others, such as copies"),
    (of_more, "1 of the 3 tensors"),
    (of_the_first, r"1 are missing .* requires_grad_\(False\)"),
    (with_closure, "step.* LBFGS wants closure"),
    (of_sparse_gradients, "dense gradients; its step.. raised RuntimeError"),
    (at_rest, r"32 steps .* 2 of 2 are .*shape \(2, 4\) in param_groups\[0\] with lr=0.0"),
    (first_at_rest, r"1 of 2 are .* shape \(2, 4\) in param_groups\[0\] with lr=0.0.* freeze"),
    (decaying_at_rest, r"1 of 2 are .* shape \(2,\) in param_groups\[1\] with lr=0.0"),
    (of_two_arguments, "it is given; it raised (Type|Value)Error"),
    (Plain([nn.Parameter(torch.zeros(1))]), "such as functools.partial"),
    (Cached, "a new optimizer at each call"),
]


def rows(seed: int, count: int) -> Rows:
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return Rows(inputs, (inputs[:, 0] > 0).long())


DATA = FederatedData(
    train={"a": rows(0, 20), "b": rows(1, 20)},
    test=rows(2, 20),
    public=rows(3, 20),
    public_rows=40,
    digest="0" * 64,
)
TASK = Task(model=functools.partial(nn.Linear, 4, 2))
VOTES = Release(GNMax(sigma=5.0), finish=ARGMAX)
PATES = PATE(teachers=2, queries=5, release=VOTES, steps=PlainSteps(), student=PlainSteps())
TRAINERS: dict[str, Callable[[Any], Trainer]] = {
    "sgd": lambda make: SGD(epochs=1, optimizer=make),
    "dp_sgd": lambda make: DPSGD(epochs=1, expected_batch=10.0, optimizer=make),
    "fedavg": lambda make: FedAvg(rounds=1, local=PlainSteps(optimizer=make)),
    "fedavg-private": lambda make: FedAvg(
        rounds=1, local=DPSteps(Gaussian(1.0, 1.0), optimizer=make)
    ),
    "fedavg-server": lambda make: FedAvg(
        rounds=1, release=Release(Gaussian(1.0, 1.0)), server_optimizer=make
    ),
    "teachers": lambda make: replace(PATES, steps=PlainSteps(optimizer=make)),
    "student": lambda make: replace(PATES, student=PlainSteps(optimizer=make)),
}


@pytest.mark.parametrize(
    ("name", "factory", "way_out"),
    # Where each is looked at is one function: every trainer with a few, two of them with all.
    [
        pytest.param(name, *wrong, id=f"{name}-{getattr(wrong[0], '__name__', 'made')}")
        for name in TRAINERS
        for wrong in (WRONG if name in ("dp_sgd", "fedavg-server") else (WRONG[0], WRONG[-1]))
    ],
)
def test_what_would_not_train_is_refused_before_anything_is_spent(
    name: str, factory: Callable[..., Any], way_out: str, tmp_path: Path
) -> None:
    study = StudyLedger(DATA, budget=Budget(1e6, 1e-5))
    make = Cached() if factory is Cached else factory
    argument = "server_optimizer=" if name == "fedavg-server" else "optimizer="
    with pytest.raises(ValueError, match=f"(?s)Expected {argument}.*({way_out})"):
        fit(
            TRAINERS[name](make),
            TASK,
            DATA,
            folder=tmp_path / "run",
            delta=1e-5,
            study_ledger=study,
        )
    assert not (tmp_path / "run").exists(), "not even a journal was opened"
    assert study.charges == ()


class Frozen(nn.Module):
    """What shall stay as it is requires no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        self.first.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(self.first(x))
        return answer


class Warming(Plain):
    """Its first step has a learning rate of zero."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.begun = getattr(self, "begun", -1) + 1
        if self.begun:
            super().step()


class Accumulating(Plain):
    """Adds gradients up, and steps at every fourth call."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.calls = getattr(self, "calls", 0) + 1
        own = [p for group in self.param_groups for p in group["params"]]
        for p in own:
            self.state[p]["sum"] = self.state[p].get("sum", 0.0) + p.grad / 4
        if self.calls % 4 == 0:
            for p in own:
                p.grad = self.state[p].pop("sum")
            super().step()


class InTurn(Plain):
    """Moves one parameter at a call."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        own = [p for group in self.param_groups for p in group["params"]]
        self.calls = getattr(self, "calls", -1) + 1
        p = own[self.calls % len(own)]
        p.sub_(p.grad, alpha=self.param_groups[0]["lr"])


class Centred(Plain):
    """Subtracts the mean of the gradients of each matrix (Yong et al. 2020, arXiv:2004.01461)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in (p for group in self.param_groups for p in group["params"]):
            p.grad = p.grad - p.grad.mean(dim=1, keepdim=True) if p.ndim > 1 else p.grad
        super().step()


class Differences(Plain):
    """Steps along what changed since the last gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in (p for group in self.param_groups for p in group["params"]):
            last = self.state[p].get("last", p.grad)
            self.state[p]["last"], p.grad = p.grad, p.grad - last
        super().step()


OWN = [Accumulating, InTurn, Centred, Differences, Warming]
OF_TORCH = [
    *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam"),
    *("RMSprop", "Rprop", "SGD"),
]


@pytest.mark.parametrize("optimizer", [*OWN, *OF_TORCH])
@pytest.mark.parametrize("rate", [1.0, 1e-6])
def test_what_moves_all_parameters_in_its_own_way_is_no_error(optimizer: Any, rate: float) -> None:
    for kind in (torch.float32, torch.bfloat16):
        shapes: list[tuple[int, ...]] = [(4, 4), (4,)] * 20
        # A parameter without values has nothing to move; torch's Adafactor divides by their number.
        shapes += [] if optimizer == "Adafactor" else [(0, 4)]
        parameters = [nn.Parameter(torch.zeros(shape, dtype=kind)) for shape in shapes]
        try_optimizer(optimizer, parameters, rate)


def in_groups(parameters: Parameters, lr: float) -> Optimizer:
    return Plain([{"params": parameters[:1]}, {"params": parameters[1:], "lr": lr / 2}], lr=lr)


@pytest.mark.parametrize("name", sorted(TRAINERS))
@pytest.mark.parametrize(
    "optimizer", [in_groups, Warming, functools.partial(Plain, momentum=0.9), torch.optim.Adam]
)
def test_own_optimizers_of_all_parameters_train(name: str, optimizer: Any) -> None:
    if name == "fedavg-server":
        optimizer = functools.partial(optimizer, lr=0.1)
    before = torch.get_rng_state()
    result = fit(TRAINERS[name](optimizer), Task(model=Frozen), DATA, delta=1e-5)
    assert torch.equal(before, torch.get_rng_state())
    assert result.cost is not None


def test_a_trial_draws_from_no_generator_of_the_caller() -> None:
    class Noisy(Plain):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(torch.randn_like(parameter))

    before = torch.get_rng_state()
    try_optimizer(Noisy, list(nn.Linear(3, 2).parameters()), 0.1)
    assert not torch.equal(before, torch.get_rng_state()), "nn.Linear itself draws"
    before = torch.get_rng_state()
    model = [nn.Parameter(torch.zeros(3))]
    try_optimizer(Noisy, model, 0.1)
    assert torch.equal(before, torch.get_rng_state())
