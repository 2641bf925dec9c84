"""Law: what is released moves between neighbours by at most the stated sensitivity."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from privtrain.core.errors import UnsoundReleaseError
from privtrain.core.runtime import Draws, Party, Payload, Runtimes, Seen
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Relation
from privtrain.core.task import FederatedData, Rows, Task, cross_entropy
from privtrain.core.trainer import PrivacyPlan, Run
from privtrain.data.models import MLP
from privtrain.gradients.opacus import Opacus
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.release.door import Release
from privtrain.runs.fitting import fit
from privtrain.runtimes.in_process import InProcess
from privtrain.sampling.sampling import Everyone, Poisson, Sampling
from privtrain.steps.plain import PlainSteps
from privtrain.steps.weights import ByExamples, Uniform, Weights
from privtrain.trainers.clients import ClientStep
from privtrain.trainers.fedavg import FedAvg
from tests.contracts.deviating import Deviating
from tests.gradients.loops import in_float64, layer_norm, mlp
from tests.trainers.federations import STAR, module, vector

C = 0.7
ROUNDING = 1 + 1e-6


def rows(seed: int, count: int, scale: float) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    inputs = scale * torch.randn(count, 6, generator=generator)
    return Rows(inputs, torch.randint(3, (count,), generator=generator))


ENGINES = {
    name: Opacus().engine(in_float64(make).float(), cross_entropy)
    for name, make in (("mlp", mlp), ("layer_norm", layer_norm))
}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(0, 12),
    scale=st.sampled_from([1e-6, 1e-2, 1.0, 1e2, 1e6, 1e19]),
    broken=st.booleans(),
)
def test_clipped_sums_of_gradients(
    engine: object, seed: int, count: int, scale: float, broken: bool
) -> None:
    kept = rows(seed, count, 1.0)
    changed = [rows(seed + offset, 1, scale) for offset in (1, 2)]
    if broken:
        changed[1].inputs[0, 0] = float("nan")

    def total(*more: Rows) -> Tensor:
        parts = [kept, *more]
        whole = Rows(
            torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts])
        )
        value: Tensor = engine.clipped_sum(whole, C).value  # type: ignore[attr-defined]
        return value.double()

    mechanism = Gaussian(C, 1.0)
    # Float32 sums of `count` contributions round; that is named as a caveat of every statement.
    slack = 1e-6 * C * (count + 2)
    assert float((total(changed[0]) - total()).norm()) <= mechanism.sensitivity(ADD_REMOVE) + slack
    difference = float((total(changed[0]) - total(changed[1])).norm())
    assert difference <= mechanism.sensitivity(REPLACE_ONE) + slack


def test_the_bound_is_reached_so_that_the_law_says_something() -> None:
    engine = ENGINES["mlp"]
    loud = engine.clipped_sum(rows(1, 1, 1e3), C).value
    assert float(loud.norm()) == pytest.approx(C, rel=1e-5)
    unclipped = engine.clipped_sum(rows(1, 1, 1e3), 1e12).value
    assert float(unclipped.norm()) > 10 * C


TASK = Task(model=MLP((6, 5, 3)))


def update(held: Rows, release: Release, weights: Uniform | ByExamples, start: Tensor) -> Tensor:
    step = ClientStep(TASK, PlainSteps(epochs=2, learning_rate=0.5), release, weights, True)
    party = Party(
        name="a",
        round=0,
        train={"a": held},
        state={},
        seeds=Seeds(0),
        entropy=SeededEntropy(0),
    )
    return step({"model": start}, party).message["update"].double()


@pytest.mark.parametrize("weights", [Uniform(), ByExamples(bound=6)], ids=["uniform", "bounded"])
@pytest.mark.parametrize(
    ("mechanism", "order"), [(Gaussian(C, 1.0), 2), (Laplace(C, 1.0), 1)], ids=["l2", "l1"]
)
@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    counts=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    scale=st.sampled_from([1e-3, 1.0, 1e3, 1e20]),
)
def test_updates_of_clients(
    mechanism: Gaussian | Laplace,
    order: int,
    weights: Uniform | ByExamples,
    seed: int,
    counts: tuple[int, int],
    scale: float,
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        start = nn.utils.parameters_to_vector(TASK.model().parameters()).detach()
    release = Release(mechanism)
    one, other = (
        update(rows(seed + i, count, scale), release, weights, start)
        for i, count in enumerate(counts)
    )
    moved: dict[Relation, Tensor] = {ADD_REMOVE: one, ZERO_OUT: other, REPLACE_ONE: one - other}
    for relation, difference in moved.items():
        norm = float(np.linalg.norm(difference.numpy(), order))
        assert norm <= mechanism.sensitivity(relation) * ROUNDING


# ------------------------------------------------------------- weighted clients, whole federations

BOUND = 6


@dataclass(frozen=True)
class Pull:
    """Local steps that move every parameter by the first value of a client's first row."""

    def __call__(self, model: nn.Module, task: Task, rows: Rows, draws: Draws) -> Seen:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += float(rows.inputs[0, 0])
        return Seen()

    def settled(self, data: FederatedData) -> "Pull":
        return self

    def plans(self, data: FederatedData, rounds: int) -> tuple[PrivacyPlan, ...]:
        return ()

    def with_scale(self, scale: float) -> None:
        return


@dataclass(frozen=True)
class Uncapped:
    """The broken twin of `ByExamples(bound)`: it says that it is bounded, and counts all rows."""

    bounded: bool = True
    uniform: bool = False

    def weight(self, rows: float) -> float:
        return rows / BOUND


@dataclass(frozen=True, kw_only=True)
class ByWhatCame(FedAvg):
    """The broken twin of the public divisor: it divides by the weights that the clients have."""

    def _divisor(self, data: FederatedData, run: Run) -> float | None:
        return sum(self.weights.weight(len(held)) for held in data.train.values())


def a_client(pull: float, count: int) -> Rows:
    return Rows(torch.full((count, 6), pull), torch.zeros(count, dtype=torch.long))


OTHERS = {"a": a_client(1e3, 9), "b": a_client(0.2, 4), "c": a_client(5.0, BOUND)}
CHANGED = [a_client(pull, count) for pull in (-1e12, -0.3, 1e3) for count in (1, 5, 6, 700)]


def after(trainer: FedAvg, changed: Rows | None, *, silent: bool = False) -> Tensor:
    """The model after a round, with one more client, or without it, or with its update zeroed."""
    train = dict(OTHERS) if changed is None else {**OTHERS, "d": changed}
    # The stated number of rows is one for all neighbours.
    data = FederatedData(train=train, test=a_client(0.0, 1), public_rows=20)

    def zeroed(sent: Payload, reply: Payload) -> Payload:
        return {**reply, "update": torch.zeros_like(reply["update"])}

    where = Runtimes(star=Deviating("d", zeroed, InProcess())) if silent else STAR
    return vector(module(fit(trainer, TASK, data, runtimes=where, delta=1e-3))).double()


def largest_moves(trainer: FedAvg, divisor: float) -> dict[Relation, float]:
    """How far the undivided sum moves at most between neighbouring federations."""
    models = [after(trainer, changed) for changed in CHANGED]
    models_zeroed = [after(trainer, changed, silent=True) for changed in CHANGED[::5]]
    moved = {
        REPLACE_ONE: max(float((one - other).norm()) for one in models for other in models),
        ZERO_OUT: max(float((o - z).norm()) for o in models for z in models_zeroed),
    }
    if trainer.sampling != Everyone():  # who takes part is public there
        without = after(trainer, None)
        moved[ADD_REMOVE] = max(float((model - without).norm()) for model in models)
    return {relation: distance * divisor for relation, distance in moved.items()}


@pytest.mark.parametrize(
    ("weights", "sampling", "divisor"),
    [
        (Uniform(), Everyone(), 4.0),
        (ByExamples(bound=BOUND), Everyone(), 4 * 5 / BOUND),
        (ByExamples(bound=BOUND), Poisson(1.0, expected_size=3.0), 3.0),
    ],
    ids=["uniform", "everyone", "poisson"],
)
def test_one_client_moves_a_weighted_round_by_at_most_the_sensitivity(
    weights: Weights, sampling: Sampling, divisor: float
) -> None:
    """Noise is drawn on the sum: what it has to cover is the sum between neighbours."""
    mechanism = Gaussian(C, 0.0)
    settings: dict[str, Any] = {"local": Pull(), "weights": weights, "sampling": sampling}
    settings |= {"rounds": 1, "release": Release(mechanism)}
    moved = largest_moves(FedAvg(**settings), divisor)
    for relation, distance in moved.items():
        assert distance <= mechanism.sensitivity(relation) * (1 + 1e-5), relation
    # The bound is reached, so that the law says something.
    assert moved[REPLACE_ONE] > 1.99 * C
    if not weights.uniform:
        found = largest_moves(ByWhatCame(**settings), divisor)
        assert any(found[r] > 1.1 * mechanism.sensitivity(r) for r in found)


def test_a_weight_without_its_cap_is_caught() -> None:
    start = torch.zeros(sum(p.numel() for p in TASK.model().parameters()))

    def sent(weights: Weights, noise: float, count: int) -> Tensor:
        step = ClientStep(TASK, Pull(), Release(Gaussian(C, noise)), weights, True)
        party = Party(
            name="a",
            round=0,
            train={"a": a_client(1e3, count)},
            state={},
            seeds=Seeds(0),
            entropy=SeededEntropy(0),
        )
        return step({"model": start}, party).message["update"]

    assert float(sent(ByExamples(bound=BOUND), 1.0, 700).norm()) <= C * ROUNDING
    assert float(sent(Uncapped(), 0.0, 700).norm()) > 100 * C
    with pytest.raises(UnsoundReleaseError, match="factor="):
        sent(Uncapped(), 1.0, 700)
