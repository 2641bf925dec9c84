"""Law: what is released moves between neighbours by at most the stated sensitivity."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from privtrain.core.runtime import PartyRun
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Relation
from privtrain.core.task import Rows, Task, cross_entropy
from privtrain.data.models import MLP
from privtrain.gradients.opacus import Opacus
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.release.door import Release
from privtrain.steps.plain import PlainSteps
from privtrain.steps.weights import ByExamples, Uniform
from privtrain.trainers.fedavg import ClientStep
from tests.gradients.loops import in_float64, layer_norm, mlp

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
    party = PartyRun(
        party="a",
        round=0,
        train={"a": held},
        state={},
        seeds=Seeds(0),
        entropy=SeededEntropy(0),
    )
    return step({"model": start}, party)["update"].double()


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
