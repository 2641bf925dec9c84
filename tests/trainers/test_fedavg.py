"""Federated averaging against loops written out, and what never leaves a client."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtrain.accounting.epsilon import epsilon
from privtrain.accounting.event import charged, gaussian_event, poisson_sampled, repeated
from privtrain.core.cost import Basis
from privtrain.core.errors import (
    DataError,
    PartyLostError,
    ProtocolError,
    UnsoundReleaseError,
    UnsupportedError,
)
from privtrain.core.parameters import initial_model
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.result import TrainResult
from privtrain.core.runtime import Party, Payload, Reply, Runtimes, Setting, Star, StarRuntime, Step
from privtrain.core.seeding import Seeds
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Unit
from privtrain.core.task import COLUMNS, FederatedData, Rows, Task
from privtrain.core.trainer import Run
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.release.aggregation import Gathering, Total
from privtrain.release.arrival import Expected
from privtrain.release.door import Release
from privtrain.release.placement import AT_PARTY, SPLIT
from privtrain.release.plain import PlainSum
from privtrain.release.shared import SharedSum as OnShares
from privtrain.runs.fitting import fit
from privtrain.runtimes.flower.grid import FlowerGrid
from privtrain.runtimes.in_process import InProcess
from privtrain.runtimes.threads import Threads
from privtrain.sampling.sampling import Everyone, FixedSize, Poisson, Sampling
from privtrain.steps.plain import PlainSteps
from privtrain.steps.private import DPSteps
from privtrain.steps.weights import ByExamples, Uniform, Weights
from privtrain.trainers.fedavg import FedAvg
from tests.contracts.aggregation import MaskedSum, SharedSum, a_run
from tests.extras import needing
from tests.gradients.loops import Own, mlp
from tests.statistics import assert_power, independent, mean_is_zero, std_is
from tests.trainers.federations import (
    STAR,
    TASK,
    a_federation,
    a_task,
    module,
    some_rows,
    vector,
)

LOCAL = PlainSteps(epochs=2, batch_size=5, learning_rate=0.2)


def run(trainer: FedAvg, data: FederatedData, task: Task = TASK, seed: int = 0) -> TrainResult:
    return fit(trainer, task, data, runtimes=STAR, seed=seed, delta=1e-5, keep_payloads=True)


def start(task: Task = TASK, seed: int = 0) -> nn.Module:
    return initial_model(task, Seeds(seed)["initialisation", 0, ""])


def set_vector(model: nn.Module, values: Tensor) -> None:
    nn.utils.vector_to_parameters(values.clone(), model.parameters())


def local_training(model: nn.Module, rows: Rows, round: int, party: str) -> Tensor:
    """What a client does, written out; returns its model."""
    twin = start()
    set_vector(twin, vector(model))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.2)
    order = Seeds(0)["order", round, party].torch()
    for _ in range(2):
        for index in torch.randperm(len(rows), generator=order).split(5):
            optimizer.zero_grad()
            losses = TASK.loss(twin(rows.inputs[index]), rows.labels[index])
            losses.mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return vector(twin)


# -------------------------------------------------------------------------- plain averaging


@pytest.mark.parametrize("weights", [Uniform(), ByExamples()])
def test_rounds_equal_a_loop_written_out(weights: Uniform | ByExamples) -> None:
    data = a_federation(12, 7, 20)
    model = start()
    for round in range(3):
        locals_ = [local_training(model, data.train[p], round, p) for p in data.parties]
        counts = [len(data.train[p]) if isinstance(weights, ByExamples) else 1 for p in data.train]
        total = sum((n * w for n, w in zip(counts, locals_, strict=True)), torch.zeros(()))
        set_vector(model, total / sum(counts))
    found = vector(module(run(FedAvg(rounds=3, local=LOCAL, weights=weights), data)))
    torch.testing.assert_close(found, vector(model), rtol=1e-12, atol=1e-14)


def test_weights_make_a_difference() -> None:
    data = a_federation(12, 7, 40)
    found = [
        vector(module(run(FedAvg(rounds=2, local=LOCAL, weights=weights), data)))
        for weights in (Uniform(), ByExamples(), ByExamples(bound=10))
    ]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_clients_move_away_from_the_global_model_and_do_not_move_it() -> None:
    result = run(FedAvg(rounds=2, local=LOCAL), a_federation(12, 7))
    by_kind: dict[tuple[str, int], list[Tensor]] = {}
    for entry in result.transcript.entries:
        assert entry.payload is not None
        by_kind.setdefault((entry.kind, entry.round), []).append(entry.payload)
    for round in range(2):
        sent, updates = by_kind["model", round], by_kind["update", round]
        assert torch.equal(sent[0], sent[1]), "the first client moved the global model"
        assert all(bool((update != sent[0]).any()) for update in updates)
        assert not torch.equal(updates[0], updates[1])
    assert torch.equal(by_kind["model", 0][0], vector(start()))


@pytest.mark.parametrize(
    "optimizer",
    ["Adam", functools.partial(torch.optim.SGD, momentum=0.9)],
    ids=["adam", "momentum"],
)
def test_any_optimizer_improves_locally(optimizer: object) -> None:
    local = PlainSteps(epochs=2, batch_size=5, learning_rate=0.02, optimizer=optimizer)  # type: ignore[arg-type]
    data = a_federation(30, 30)
    found = run(FedAvg(rounds=10, local=local), data)
    right = found.predictor(data.test.inputs).argmax(dim=1) == data.test.labels
    assert float(right.double().mean()) > 0.5


def test_adam_on_the_server_steps_on_the_mean_change() -> None:
    data = a_federation(12, 7, 20)
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    found = run(FedAvg(rounds=2, local=LOCAL, server_optimizer=adam), data)
    model = start()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for round in range(2):
        before = vector(model)
        changes = [local_training(model, data.train[p], round, p) - before for p in data.parties]
        mean = torch.stack(changes).mean(dim=0)
        first = 0
        for parameter in model.parameters():
            part = mean[first : first + parameter.numel()]
            parameter.grad = -part.view_as(parameter)
            first += parameter.numel()
        optimizer.step()
    torch.testing.assert_close(vector(module(found)), vector(model), rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------ running statistics


class Normalised:
    """Makes a model with batch normalisation."""

    def __call__(self) -> nn.Module:
        layers = [nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)]
        return nn.Sequential(*layers).double()


def statistics(model: nn.Module) -> Tensor:
    layer = model[1]  # type: ignore[index]
    return torch.cat([layer.running_mean, layer.running_var])


def test_exact_statistics_are_averaged() -> None:
    task, data = a_task(Normalised()), a_federation(12, 18)
    local = PlainSteps(batch_size=None, learning_rate=0.1)
    result = run(FedAvg(rounds=1, local=local), data, task)
    expected = []
    for party in data.parties:
        model = start(task).train()
        model(data.train[party].inputs)
        expected.append(statistics(model))
    torch.testing.assert_close(
        statistics(module(result)), torch.stack(expected).mean(dim=0), rtol=1e-12, atol=1e-14
    )
    size = vector(start(task)).numel()
    updates = [e for e in result.transcript.entries if e.kind == "update"]
    assert {e.shape for e in updates} == {(size + 12,)}


@pytest.mark.parametrize("noise", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_under_a_bound_statistics_neither_leave_nor_change(noise: float) -> None:
    task, data = a_task(Normalised()), a_federation(12, 18)
    trainer = FedAvg(rounds=3, local=LOCAL, release=Release(Gaussian(1.0, noise)))
    result = run(trainer, data, task)
    assert torch.equal(statistics(module(result)), statistics(start(task)))
    size = vector(start(task)).numel()
    assert {e.shape for e in result.transcript.entries} == {(size,)}


# --------------------------------------------------------------------------------- cohorts


def senders(result: TrainResult) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for entry in result.transcript.entries:
        if entry.kind == "update":
            found.setdefault(entry.round, []).append(entry.sender)
    return found


@pytest.mark.parametrize("release", [Release(), Release(Gaussian(1.0, 1.0))])
def test_fixed_cohorts_have_their_size_and_differ(release: Release) -> None:
    data = a_federation(*[4] * 10)
    local = PlainSteps(batch_size=None)
    trainer = FedAvg(rounds=8, sampling=FixedSize(3), local=local, release=release)
    found = senders(run(trainer, data))
    assert {len(cohort) for cohort in found.values()} == {3}
    assert len({tuple(cohort) for cohort in found.values()}) > 1


@pytest.mark.slow
def test_a_cohort_under_noise_does_not_follow_from_the_public_seed() -> None:
    """Amplification holds for those who do not know who was drawn."""
    data = a_federation(*[4] * 12)
    local = PlainSteps(batch_size=None)
    trainer = FedAvg(
        rounds=6, sampling=Poisson(0.5), local=local, release=Release(Gaussian(1.0, 1.0))
    )
    public = {
        round: [
            f"p{i}"
            for i in Poisson(0.5).choose(12, Seeds(0)["cohort", round, "aggregator"].numpy())
        ]
        for round in range(6)
    }
    assert senders(run(trainer, data)) != {r: names for r, names in public.items() if names}


def test_an_empty_cohort_changes_nothing_without_noise_and_is_noised_with_it() -> None:
    data = a_federation(6, 6)
    rare = Poisson(1e-9)
    still = run(FedAvg(rounds=2, sampling=rare, local=LOCAL), data)
    assert senders(still) == {}
    assert torch.equal(vector(module(still)), vector(start()))
    noisy = FedAvg(rounds=2, sampling=rare, local=LOCAL, release=Release(Gaussian(1.0, 1.0)))
    noised = run(noisy, data)
    assert senders(noised) == {}
    assert bool((vector(module(noised)) != vector(start())).all())
    assert noised.statement.guarantees[0].releases == 2


def test_a_cohort_larger_than_the_federation_is_refused() -> None:
    with pytest.raises(ValueError, match="size=5"):
        run(FedAvg(rounds=1, sampling=FixedSize(5)), a_federation(4, 4))


# ----------------------------------------------------------------------------------- noise


class Wide:
    """Makes a linear model that starts at zero, large enough for statistics."""

    def __call__(self) -> nn.Module:
        layer = nn.Linear(5, 400, dtype=torch.float64)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer


def no_signal(logits: Tensor, targets: Tensor) -> Tensor:
    return 0.0 * logits.sum(dim=1)


SILENT = Task(model=Wide(), loss=no_signal)
C, Z = 0.5, 2.0


@pytest.mark.parametrize(
    ("release", "sampling", "std"),
    [
        (Release(Gaussian(C, Z)), None, C * Z / 6),
        (Release(Gaussian(C, Z)), FixedSize(3), C * Z / 3),
        pytest.param(Release(Gaussian(C, Z)), Poisson(0.5), C * Z / 3, marks=pytest.mark.slow),
        (Release(Gaussian(C, Z), AT_PARTY), None, C * Z * math.sqrt(6) / 6),
        pytest.param(
            Release(Gaussian(C, Z), AT_PARTY),
            FixedSize(3),
            C * Z * math.sqrt(3) / 3,
            marks=pytest.mark.slow,
        ),
        (Release(Gaussian(C, Z), SPLIT(honest_survivors=6)), None, C * Z / 6),
        (Release(Gaussian(C, Z), SPLIT(honest_survivors=3)), None, C * Z * math.sqrt(2) / 6),
    ],
    ids=["central", "fixed", "poisson", "local", "local-fixed", "split", "split-3"],
)
def test_the_noise_of_a_round_has_the_stated_size(
    release: Release, sampling: FixedSize | Poisson | None, std: float
) -> None:
    trainer = FedAvg(rounds=1, local=LOCAL, release=release)
    if sampling is not None:
        trainer = FedAvg(rounds=1, local=LOCAL, release=release, sampling=sampling)
    samples = vector(module(run(trainer, a_federation(*[4] * 6), SILENT)))
    assert_power(std_is, samples, std)
    assert mean_is_zero(samples, std)


def test_rounds_draw_noise_of_their_own() -> None:
    trainer = FedAvg(rounds=2, local=LOCAL, release=Release(Gaussian(C, Z)))
    entries = run(trainer, a_federation(4, 4), SILENT).transcript.entries
    models = [e.payload for e in entries if e.kind == "model" and e.receiver in ("p0", "public")]
    assert models[1] is not None
    assert models[2] is not None
    first, second = models[1], models[2] - models[1]
    assert independent(first, second)
    assert not independent(first, first)


def test_every_silo_noises_before_its_update_leaves() -> None:
    local = DPSteps(Gaussian(C, Z), sampling_rate=1.0, expected_batch=4.0, learning_rate=0.1)
    result = run(FedAvg(rounds=1, local=local), a_federation(*[4] * 3), SILENT)
    updates = [e.payload for e in result.transcript.entries if e.kind == "update"]
    assert len(updates) == 3
    for update in updates:
        assert update is not None
        assert_power(std_is, update, 0.1 * C * Z / 4)
    assert independent(updates[0], updates[1])  # type: ignore[arg-type]


@pytest.mark.slow
def test_clipping_bounds_what_every_client_sends() -> None:
    local = PlainSteps(epochs=5, batch_size=4, learning_rate=5.0)
    result = run(
        FedAvg(rounds=2, local=local, release=Release(Gaussian(0.1, 0.5))), a_federation(9, 9)
    )
    updates = [e.payload for e in result.transcript.entries if e.kind == "update"]
    norms = [float(update.norm()) for update in updates if update is not None]
    assert len(norms) == 4
    assert max(norms) == pytest.approx(0.1, rel=1e-9)
    # The norm is measured with rounding of its own: in the last place it may be on the other side.
    assert max(norms) <= 0.1 * (1 + 4 * torch.finfo(torch.float64).eps)
    loose = run(FedAvg(rounds=1, local=local), a_federation(9, 9))
    start_, sent = (
        vector(start()),
        [e.payload for e in loose.transcript.entries if e.kind == "update"],
    )
    assert all(float((model - start_).norm()) > 0.2 for model in sent if model is not None)


# ------------------------------------------------------- clipped, then weighed; one public divisor


def clipped_change(rows: Rows, party: str, bound: float) -> Tensor:
    change = local_training(start(), rows, 0, party) - vector(start())
    return change * min(1.0, bound / float(change.norm()))


@pytest.mark.parametrize("bound", [0.3, 100.0], ids=["clips", "above all norms"])
@pytest.mark.parametrize("sampling", [Everyone(), FixedSize(2)], ids=str)
def test_clipped_changes_are_weighed_by_rows(bound: float, sampling: Sampling) -> None:
    """Weighed first, they were clipped to one length and divided by all rows."""
    data = a_federation(10, 30, 60)
    trainer = FedAvg(
        rounds=1,
        local=LOCAL,
        release=Release(Gaussian(bound, 0.0)),
        weights=ByExamples(),
        sampling=sampling,
    )
    result = run(trainer, data)
    came = [e.sender for e in result.transcript.entries if e.kind == "update"]
    counts = [len(data.train[party]) for party in came]
    total = sum(
        (n * clipped_change(data.train[p], p, bound) for n, p in zip(counts, came, strict=True)),
        torch.zeros(()),
    )
    expected = vector(start()) + total / sum(counts)
    torch.testing.assert_close(vector(module(result)), expected, rtol=1e-6, atol=1e-8)
    assert "bounded_again" not in result.history.unprotected


def test_equal_clients_weigh_the_same_by_rows() -> None:
    data = a_federation(8, 8, 8, public_rows=24)
    release = Release(Gaussian(0.2, 0.0))
    models = [
        vector(module(run(FedAvg(rounds=3, local=LOCAL, release=release, weights=weights), data)))
        for weights in (Uniform(), ByExamples(), ByExamples(bound=8), ByExamples(bound=50))
    ]
    for model in models[1:]:
        torch.testing.assert_close(model, models[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("noise", "weights", "sampling", "divisor"),
    [
        (0.0, Uniform(), Poisson(0.5), 2.5),
        (0.0, Uniform(), Poisson(0.5, expected_size=2.0), 2.0),
        (0.0, ByExamples(bound=8), Everyone(), 5 * 6 / 8),
        (1e-3, ByExamples(bound=8), Everyone(), 5 * 6 / 8),
        (0.0, ByExamples(bound=8), FixedSize(2), 2 * 6 / 8),
        pytest.param(*(1e-3, ByExamples(bound=8), FixedSize(2), 2 * 6 / 8), marks=pytest.mark.slow),
        (0.0, ByExamples(bound=8), Poisson(0.5), 2.5 * 6 / 8),
        (0.0, ByExamples(bound=8), Poisson(0.5, expected_size=2.0), 2.0),
    ],
    ids=str,
)
def test_sums_are_divided_by_one_public_number_with_noise_and_without(
    noise: float, weights: ByExamples | Uniform, sampling: Sampling, divisor: float
) -> None:
    """Without noise they were divided by what came: 50 points of accuracy between 0 and 0.001."""
    data = a_federation(4, 9, 12, 3, 7, public_rows=30)
    trainer = FedAvg(
        rounds=4,
        local=LOCAL,
        release=Release(Gaussian(0.2, noise)),
        weights=weights,
        sampling=sampling,
    )
    result = run(trainer, data)
    models = [vector(start()), *[vector(start())] * 4]
    for round in range(4):
        sent = [e for e in result.transcript.entries if e.round == round and e.kind == "update"]
        total = sum((e.payload for e in sent if e.payload is not None), torch.zeros(()))
        assert all(len(models[0]) == len(e.payload) for e in sent if e.payload is not None)
        models[round + 1] = models[round] + total / divisor
    # Four times the noise of four rounds, and a tenth of what another divisor would change.
    assert float((vector(module(result)) - models[-1]).norm()) < (8e-3 if noise else 1e-9)
    unknown = weights != Uniform() and sampling == Poisson(0.5, expected_size=2.0)
    assert any("as if each of them weighed 1" in note for note in result.notes) == unknown
    assert not any("weight" in one.reads for one in result.statement.input_privacy)


@dataclass(frozen=True)
class OnlyFirst(Poisson):
    """Draws everybody in the first round and nobody later."""

    drawn: list[int] = field(default_factory=list)

    def choose(self, population: int, generator: np.random.Generator) -> list[int]:
        self.drawn.append(population)
        return list(range(population)) if len(self.drawn) == 1 else []


def test_a_server_with_momentum_goes_on_in_an_empty_round_without_noise() -> None:
    """As it does under noise, where the emptiness of a round is no public figure."""
    data = a_federation(6, 6)
    trainer = FedAvg(
        rounds=3,
        local=LOCAL,
        release=Release(Gaussian(0.2, 0.0)),
        sampling=OnlyFirst(0.5),
        server_optimizer=functools.partial(torch.optim.SGD, lr=1.0, momentum=0.5),
    )
    found = vector(module(run(trainer, data)))
    first = sum((clipped_change(data.train[p], p, 0.2) for p in data.parties), torch.zeros(()))
    # The sum over one expected client of two; then half of it, then a quarter.
    expected = vector(start()) + first * (1 + 0.5 + 0.25)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


# -------------------------------------------------------------------------- plans and refusals


def test_plans_state_relations_and_amplification() -> None:
    data = a_federation(*[4] * 10)
    gaussian = Release(Gaussian(1.0, 1.0))

    def of(trainer: FedAvg) -> dict[str, tuple[object, float]]:
        return {
            p.observer.name: (
                p.relation,
                epsilon(charged(p.charges), 1e-5, relation=p.relation)
                if p.relation is not REPLACE_ONE
                else math.nan,
            )
            for p in trainer.plan(data, STAR)
        }

    everyone = of(FedAvg(rounds=3, release=gaussian))
    assert everyone["public"][0] is ZERO_OUT
    assert everyone["public"][1] == pytest.approx(epsilon(repeated(gaussian_event(1.0), 3), 1e-5))
    poisson = of(FedAvg(rounds=3, release=gaussian, sampling=Poisson(0.2, expected_size=2.0)))
    assert poisson["public"][0] is ADD_REMOVE
    sampled = repeated(poisson_sampled(0.2, gaussian_event(1.0)), 3)
    assert poisson["public"][1] == pytest.approx(epsilon(sampled, 1e-5))
    assert poisson["aggregator"][0] is REPLACE_ONE
    fixed = of(FedAvg(rounds=3, release=gaussian, sampling=FixedSize(2)))
    assert fixed["public"][0] is REPLACE_ONE


def test_silos_are_stated_per_example_and_clients_per_client() -> None:
    data = a_federation(8, 8, public_rows=16)
    both = FedAvg(
        rounds=2, local=DPSteps(Gaussian(1.0, 1.0)), release=Release(Gaussian(1.0, 1.0))
    ).plan(data, STAR)
    assert [(p.unit, p.observer.name) for p in both] == [
        (unit, name)
        for unit in (Unit.EXAMPLE, Unit.CLIENT)
        for name in ("public", "participant", "aggregator")
    ]
    only = FedAvg(rounds=2, local=DPSteps(Gaussian(1.0, 1.0))).plan(data, STAR)
    assert {p.unit for p in only} == {Unit.EXAMPLE}


@pytest.mark.parametrize(
    "make",
    [
        lambda: FedAvg(release=Release(Gaussian(1.0, 1.0)), weights=ByExamples()),
        lambda: FedAvg(local=DPSteps(Gaussian(1.0, 1.0)), weights=ByExamples()),
        lambda: FedAvg(local=DPSteps(Gaussian(1.0, 1.0)), weights=ByExamples(bound=5)),
        lambda: FedAvg(release=Release(Gaussian(1.0, 1.0), AT_PARTY), sampling=Poisson(0.5)),
        lambda: FedAvg(release=Release(Laplace(1.0, 1.0), AT_PARTY), sampling=Poisson(0.5)),
        lambda: FedAvg(
            release=Release(Gaussian(1.0, 1.0), SPLIT(honest_survivors=2)), sampling=Poisson(0.5)
        ),
    ],
)
def test_what_no_noise_covers_is_refused_with_the_way_out(make: Callable[[], FedAvg]) -> None:
    with pytest.raises(UnsoundReleaseError, match="Use"):
        make()


def test_columns_are_refused() -> None:
    data = FederatedData(train={"a": some_rows(1)}, test=some_rows(2), split=COLUMNS)
    with pytest.raises(UnsupportedError, match="MPCSGD"):
        run(FedAvg(rounds=1), data)


def broken_federation() -> FederatedData:
    """The third party's rows are finite, but its gradients are not."""
    data = a_federation(6, 6, 6)
    rows = data.train["p2"]
    huge = Rows(torch.full_like(rows.inputs, 1e300), rows.labels)
    return FederatedData(train={**data.train, "p2": huge}, test=data.test)


def test_a_broken_update_without_a_bound_is_an_error_that_names_the_client() -> None:
    with pytest.raises(DataError, match=r"diverged.*Column 0 .* to 1e\+300") as caught:
        run(FedAvg(rounds=2, local=LOCAL), broken_federation())
    assert "p2 in round 0" in str(caught.value.__notes__)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_broken_update_with_a_bound_counts_as_zero_and_is_counted(noise: float) -> None:
    trainer = FedAvg(rounds=1, local=LOCAL, release=Release(Gaussian(100.0, noise)))
    broken = run(trainer, broken_federation())
    assert bool(torch.isfinite(vector(module(broken))).all())
    assert broken.history.unprotected["non_finite"] == [(1, 1.0)]
    assert not any("non_finite" in entry.kind for entry in broken.transcript.entries)
    if noise:
        return
    two = a_federation(6, 6)
    changes = [local_training(start(), two.train[p], 0, p) - vector(start()) for p in two.parties]
    expected = vector(start()) + torch.stack(changes).sum(dim=0) / 3
    torch.testing.assert_close(vector(module(broken)), expected, rtol=1e-6, atol=1e-7)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="rounds=0"):
        FedAvg(rounds=0)
    with pytest.raises(ValueError, match="bound=0"):
        ByExamples(bound=0)


def test_who_reads_what() -> None:
    data = a_federation(4, 4)
    plain = FedAvg().input_privacy(data, STAR)
    assert any(item.reader == AGGREGATOR_NAME and "update" in item.reads for item in plain)
    silos = FedAvg(local=DPSteps(Gaussian(1.0, 1.0))).input_privacy(data, STAR)
    assert any("noised update" in item.reads for item in silos)


def notes_of(task: Task) -> tuple[str, ...]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 6, generator=generator)
    rows = Rows(inputs, torch.randint(3, (60,), generator=generator))
    train = {name: rows.take(torch.arange(20 * i, 20 * i + 20)) for i, name in enumerate("abc")}
    data = FederatedData(train=train, test=rows, public_rows=60)
    local = DPSteps(Gaussian(1.0, 1.0), expected_batch=5.0)
    result = fit(FedAvg(rounds=2, local=local), task, data, runtimes=STAR, delta=1e-3)
    assert set(result.history.unprotected) >= {"training_loss", "non_finite"}
    assert not [name for name in result.history.unprotected if "note" in name]
    return result.notes


def test_the_result_says_once_that_parties_could_not_book_the_model() -> None:
    (note,) = notes_of(Task(model=Own))
    assert "torch.func" in note
    assert "'weight'" in note


def test_what_the_engines_of_silos_assume_is_in_the_guarantee_once() -> None:
    trainer = FedAvg(rounds=2, local=DPSteps(Gaussian(1.0, 1.0), sampling_rate=0.5))
    result = fit(trainer, TASK, a_federation(8, 9), runtimes=STAR)
    public = result.statement.guarantees[0]
    assert len([text for text in public.assumptions if "influence one another" in text]) == 1
    assert not [name for name in result.history.unprotected if "assumption" in name]


def test_a_model_that_is_booked_needs_no_note() -> None:
    assert notes_of(Task(model=mlp)) == ()


# ------------------------------------------------------------------------ parties without rows


@dataclass(frozen=True)
class AddMail:
    """Adds what a party was mailed."""

    def __call__(self, payload: Payload, party: Party) -> Reply:
        letters = [party.mail[sender]["update"] for sender in sorted(party.mail)]
        return Reply({"sum": torch.stack(letters).double().sum(dim=0)})


@dataclass(frozen=True)
class AddedElsewhere(MaskedSum):
    """Clients mail their updates to a party without rows, which adds them."""

    others: ClassVar[tuple[str, ...]] = ("adder",)
    caveats: ClassVar[tuple[str, ...]] = ("the adder reads every update",)

    def seal(self, contribution: Tensor, party: Party, *, kind: str, grid: float | None) -> Reply:
        return Reply({}, {"adder": {kind: contribution}})

    def gather(self, gathering: Gathering, replies: Mapping[str, Reply], run: Run) -> Total:
        told = run.map(AddMail(), {"adder": {}}, round=gathering.round)
        return Total(*gathering.parted(told["adder"].message["sum"]))


@pytest.mark.parametrize(
    "star", [InProcess(), *needing("flwr", FlowerGrid)], ids=lambda star: star.name
)
def test_a_party_without_rows_adds_what_it_is_mailed(star: StarRuntime) -> None:
    data = a_federation(12, 9, 15)
    where = Runtimes(star=star)
    plain = fit(FedAvg(rounds=2), TASK, data, runtimes=where)
    trainer = FedAvg(rounds=2, release=Release(aggregation=AddedElsewhere()))
    mailed = fit(trainer, TASK, data, runtimes=where)
    assert torch.equal(vector(module(plain)), vector(module(mailed)))
    sent = {(e.receiver, e.kind) for e in mailed.transcript.entries if e.sender in data.parties}
    assert sent == {("adder", "update")}
    assert mailed.transcript.kinds_received_by("aggregator") == ("sum",)
    # The exchange with the clients, and the one with the adder.
    assert (plain.transcript.rounds, mailed.transcript.rounds) == (2, 4)
    assert "the adder reads every update" in mailed.statement.caveats


# ----------------------------------------------------- contributions lost after their messages


class Forgetting(MaskedSum):
    """A double that asks once more, and hears nothing of some parties any longer."""

    gone: ClassVar[tuple[str, ...]] = ("p2",)

    def gather(self, gathering: Gathering, replies: Mapping[str, Reply], run: Run) -> Total:
        there = {name: reply for name, reply in replies.items() if name not in self.gone}
        if not there:
            return Total(torch.zeros(39, dtype=torch.float64), parties=())
        return super().gather(gathering, there, run)


class ForgettingShared(Forgetting, SharedSum):
    """The same, with a total that stays sealed until it is opened."""


class ForgettingAll(Forgetting):
    """A double that loses everybody."""

    gone: ClassVar[tuple[str, ...]] = ("p0", "p1", "p2")


@pytest.mark.parametrize("weights", [Uniform(), ByExamples(bound=10)], ids=str)
@pytest.mark.parametrize("aggregation", [Forgetting(), ForgettingShared()], ids=repr)
def test_the_average_is_that_of_the_contributions_in_the_total(
    aggregation: MaskedSum, weights: Weights
) -> None:
    data = a_federation(12, 12, 12)
    release = Release(aggregation=aggregation)
    result = run(FedAvg(rounds=1, weights=weights, local=LOCAL, release=release), data)
    stayed = [local_training(start(), data.train[name], 0, name) for name in ("p0", "p1")]
    assert torch.allclose(vector(module(result)), torch.stack(stayed).mean(dim=0), atol=1e-12)
    assert result.notes == ("round 0 went on without p2: lost on the way",)
    # Whose contribution is in no model is no member of it.
    assert result.members is not None
    assert set(result.members.rows) == {"p0", "p1"}


def test_weights_are_held_to_the_contributions_in_the_total() -> None:
    class Claiming(Forgetting):
        def gather(self, gathering: Gathering, replies: Mapping[str, Reply], run: Run) -> Total:
            total = super().gather(gathering, replies, run)
            # Three times the largest weight, of two parties.
            return replace(total, weight=3.0)

    release = Release(aggregation=Claiming())
    with pytest.raises(ProtocolError, match="weights of 2 clients add up to 3"):
        run(FedAvg(rounds=1, weights=ByExamples(bound=10), release=release), a_federation(9, 9, 9))


def test_a_round_whose_contributions_are_all_lost_changes_nothing() -> None:
    release = Release(aggregation=ForgettingAll())
    result = run(FedAvg(rounds=2, release=release), a_federation(9, 9, 9))
    assert torch.equal(vector(module(result)), vector(start()))


@dataclass(frozen=True)
class GoneStep:
    """A step in which every party is gone before it replies."""

    def __call__(self, payload: Payload, party: Party) -> Reply:
        raise PartyLostError("the line is dead", party.name)


@dataclass
class GoneStar:
    """A star that nobody answers in."""

    star: Star

    def map(
        self,
        step: Step,
        payloads: Mapping[str, Payload],
        *,
        round: int,
        at_least: int | None = None,
    ) -> dict[str, Reply]:
        return self.star.map(GoneStep(), payloads, round=round, at_least=at_least)

    def states(self) -> dict[str, Payload]:
        return self.star.states()

    def restore(self, states: Mapping[str, Payload]) -> None:
        self.star.restore(states)


@dataclass(frozen=True)
class AllGone:
    """Where nobody ever replies."""

    name: ClassVar[str] = "all gone"
    real: ClassVar[bool] = False

    @contextmanager
    def open(self, setting: Setting) -> Iterator[Star]:
        with InProcess().open(setting) as star:
            yield GoneStar(star)


@pytest.mark.parametrize("sampling", [Poisson(0.15, expected_size=1), Everyone()], ids=str)
def test_an_empty_round_is_noised_and_asks_no_aggregation(sampling: Sampling) -> None:
    """Nobody drawn, or all of them lost: both look like any other round."""
    gathered = []

    class Agreed(MaskedSum):
        def begin(self, cohort: tuple[str, ...], run: Run, *, round: int, kind: str) -> Gathering:
            begun = super().begin(cohort, run, round=round, kind=kind)
            return replace(begun, at_least=0, known={"keys": torch.ones(1)})

        def gather(self, gathering: Gathering, replies: Mapping[str, Reply], run: Run) -> Total:
            # What it agreed on is there, and nobody who took no part.
            assert gathering.known["keys"].tolist() == [1.0]
            assert set(replies) <= {"p0", "p1"}
            gathered.append(gathering.round)
            return super().gather(gathering, replies, run)

    release = Release(Gaussian(1.0, 1.0), aggregation=Agreed())
    trainer = FedAvg(rounds=8, sampling=sampling, local=LOCAL, release=release)
    star = InProcess() if sampling != Everyone() else AllGone()
    result = fit(trainer, TASK, a_federation(9, 9), runtimes=Runtimes(star=star))
    assert len(gathered) < 8
    assert (len(gathered) > 0) == (sampling != Everyone())
    # All of them were paid for and noised.
    assert result.statement.guarantees[0].releases == 8
    assert not torch.equal(vector(module(result)), vector(start()))


def test_an_empty_round_has_the_noise_of_any_other() -> None:
    release = Release(Gaussian(0.5, 3.0), aggregation=MaskedSum())
    expected = Expected(shape=(3000,))
    nothing = release.arrive({}, a_run(), round=0, expected=expected)
    assert_power(std_is, nothing.value, 1.5)
    assert (nothing.value.dtype, nothing.contributors) == (torch.float64, ())
    zeros = release.arrive({"p0": Reply({"update": torch.zeros(3000)})}, a_run(), round=0)
    assert torch.equal(nothing.value, zeros.value)
    # Without noise, and where parties draw it, nothing is no sum.
    for other in (Release(), Release(Gaussian(0.5, 3.0), AT_PARTY)):
        with pytest.raises(ProtocolError, match="update"):
            other.arrive({}, a_run(), round=0, expected=expected)


@pytest.mark.parametrize("sampling", [Poisson(0.5, expected_size=1), Everyone()], ids=str)
def test_under_noise_nothing_published_tells_that_a_party_was_lost(sampling: Sampling) -> None:
    """A party that never replies must not show whether it was drawn, or is there at all."""
    release = Release(Gaussian(1.0, 1.0), aggregation=Forgetting())
    trainer = FedAvg(rounds=6, sampling=sampling, local=LOCAL, release=release)
    with_it = run(trainer, a_federation(12, 12, 12))
    without = run(trainer, a_federation(12, 12))
    lost = with_it.history.unprotected["lost"]
    assert 0 < len(lost) <= 6
    assert {count for _, count in lost} == {1.0}
    # Not in the notes, nor in what is published of costs.
    assert with_it.notes == without.notes == ()
    # Without noise it has a name.
    named = run(FedAvg(rounds=1, release=Release(aggregation=Forgetting())), a_federation(9, 9, 9))
    assert named.notes == ("round 0 went on without p2: lost on the way",)
    assert "lost" not in named.history.unprotected


def test_under_noise_no_cost_is_public_of_exchanges_with_parties_without_rows() -> None:
    class WithHelper(PlainSum):
        """Reads single messages, and asks a party without rows besides."""

        @property
        def others(self) -> tuple[str, ...]:
            return ("helper",)

    data, noise = a_federation(9, 9), Gaussian(1.0, 1.0)
    found = [
        run(FedAvg(rounds=1, sampling=Poisson(0.5, expected_size=1), release=release), data).cost
        for release in (Release(noise), Release(noise, aggregation=WithHelper()))
    ]
    assert [cost.basis for cost in found] == [Basis.PUBLIC, Basis.WITHHELD]
    assert found[0].bytes_sent is not None
    assert found[1].bytes_sent is None


def test_a_plain_sum_is_that_on_shares_up_to_fixed_point() -> None:
    trainer = FedAvg(rounds=2, release=Release(aggregation=OnShares()))
    plain = trainer.with_plain_sum()
    assert plain == FedAvg(rounds=2) and plain.with_plain_sum() is None
    data, here = a_federation(9, 8), Runtimes(star=InProcess(), mesh=Threads(timeout=20))
    results = [fit(each, TASK, data, runtimes=here) for each in (trainer, plain)]
    one, other = (vector(module(result)) for result in results)
    assert 0 < float((one - other).abs().max()) < 1e-6
