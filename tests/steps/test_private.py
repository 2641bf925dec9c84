"""Private steps: public figures, Poisson batches, noise of the right size."""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtrain.accounting.epsilon import epsilon
from privtrain.accounting.event import charged, gaussian_event, poisson_sampled, repeated
from privtrain.core.errors import UnsupportedError
from privtrain.core.runtime import Draws
from privtrain.core.seeding import OnceOnly, SeededEntropy, Seeds
from privtrain.core.statement import ADD_REMOVE, ZERO_OUT, Unit
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import RELEASE
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.opacus import Opacus
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.mechanisms.mechanism import Exact
from privtrain.steps.private import DPSteps, averaged, diagnostics, try_gradients
from tests.gradients.loops import clipped, example_gradients, in_float64, mlp, rows_for
from tests.statistics import assert_power, mean_is_zero, normal_with_std, std_is


class Linear:
    """Makes a linear model in float64 that starts at zero."""

    def __call__(self) -> nn.Module:
        layer = nn.Linear(40, 25, dtype=torch.float64)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer


def no_signal(logits: Tensor, targets: Tensor) -> Tensor:
    """A loss without any gradient: what moves the model is noise alone."""
    return 0.0 * logits.sum(dim=1)


SILENT = Task(model=Linear(), loss=no_signal)


def held(
    rows: Rows, *, round: int = 0, name: str = "a", seed: int = 0, **options: Any
) -> tuple[Rows, Draws]:
    return rows, Draws(Seeds(seed), OnceOnly(SeededEntropy(seed)), round, name, **options)


def empty_rows(count: int = 8) -> Rows:
    return Rows(torch.zeros(count, 40, dtype=torch.float64), torch.zeros(count, dtype=torch.long))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


class Locked(Mapping[str, Rows]):
    """Parties whose rows nobody may look at."""

    def __getitem__(self, party: str) -> Rows:
        raise AssertionError(f"somebody looked at the rows of {party}")

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(("a", "b"))

    def __len__(self) -> int:
        return 2


def test_a_counted_number_of_rows_is_an_assumption_under_zero_out() -> None:
    data = FederatedData(train={"a": empty_rows(30), "b": empty_rows(10)}, test=empty_rows())
    plans = DPSteps(Gaussian(1.0, 1.0)).plans(data, 3)
    assert {plan.relation for plan in plans} == {ZERO_OUT}
    declared = FederatedData(train=data.train, test=empty_rows(), public_rows=50)
    assert {p.relation for p in DPSteps(Gaussian(1.0, 1.0)).plans(declared, 3)} == {ADD_REMOVE}


def moved(steps: DPSteps, rows: Rows, draws: Draws) -> Tensor:
    """What one round moved a model that feels noise alone, over the learning rate."""
    model = Linear()()
    steps(model.train(), SILENT, rows, draws)
    return -weights(model) / steps.learning_rate


@pytest.mark.parametrize("batch", [1.0, 6.0])
def test_the_noise_of_a_step_has_the_stated_size(batch: float) -> None:
    steps = DPSteps(Gaussian(0.5, 3.0), sampling_rate=1.0, expected_batch=batch, learning_rate=0.1)
    samples = moved(steps, *held(empty_rows()))
    assert_power(std_is, samples, 0.5 * 3.0 / batch)
    assert_power(normal_with_std, samples, 0.5 * 3.0 / batch)
    assert mean_is_zero(samples, 1.5 / batch)


def test_steps_of_a_round_draw_noise_of_their_own() -> None:
    steps = DPSteps(Gaussian(1.0, 2.0), sampling_rate=0.25, expected_batch=1.0)  # four steps
    samples = moved(steps, *held(empty_rows()))
    assert_power(std_is, samples, 2.0 * math.sqrt(4))


def test_no_noise_is_used_twice() -> None:
    steps = DPSteps(Gaussian(1.0, 1.0), sampling_rate=1.0, expected_batch=1.0)
    found = [
        moved(steps, *held(empty_rows(), round=round, name=name, seed=seed))
        for round in (0, 1)
        for name in ("a", "b")
        for seed in (0, 1)
    ]
    table = torch.stack(found)
    correlation = torch.corrcoef(table) - torch.eye(len(found))
    assert float(correlation.abs().max()) < 0.2  # 1,025 coordinates: six standard errors
    assert torch.equal(found[0], moved(steps, *held(empty_rows())))


def test_without_noise_steps_equal_a_loop_over_examples() -> None:
    rows = rows_for(mlp, count=20)
    steps = DPSteps(
        Gaussian(0.4, 0.0), epochs=1.5, sampling_rate=0.25, expected_batch=5.0, learning_rate=0.3
    )
    model = in_float64(mlp)
    steps(model.train(), Task(model=mlp), *held(rows, round=3))
    twin = in_float64(mlp)
    for step in range(6):
        coins = SeededEntropy(0)[f"sample/{step}", 3, "a"].numpy().random(20)
        batch = rows.take(torch.from_numpy(np.flatnonzero(coins < 0.25)))
        total = torch.zeros_like(weights(twin))
        if len(batch):
            total = clipped(example_gradients(twin, batch), 0.4).sum(dim=0)
        start = 0
        with torch.no_grad():
            for parameter in twin.parameters():
                part = total[start : start + parameter.numel()].view_as(parameter)
                parameter -= 0.3 * part / 5.0
                start += parameter.numel()
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-10, atol=1e-12)
    assert not torch.equal(weights(model), weights(in_float64(mlp)))


def test_a_party_without_rows_still_noises() -> None:
    steps = DPSteps(Gaussian(1.0, 1.0), sampling_rate=1.0, expected_batch=1.0)
    assert bool(moved(steps, *held(empty_rows(0))).any())


@pytest.mark.parametrize("epochs", [1.0, 0.5, 2.2])
def test_the_plan_is_the_composition_of_poisson_gaussians(epochs: float) -> None:
    data = FederatedData(train=Locked(), test=empty_rows(), public_rows=100)
    steps = DPSteps(Gaussian(2.0, 1.3), epochs=epochs, sampling_rate=0.2)
    plans = steps.plans(data, 4)
    assert [plan.observer.name for plan in plans] == ["public", "participant", "aggregator"]
    by_hand = repeated(poisson_sampled(0.2, gaussian_event(1.3)), 4 * math.ceil(epochs / 0.2))
    for plan in plans:
        assert (plan.unit, plan.charges[RELEASE].count) == (Unit.EXAMPLE, 4)
        found = epsilon(charged(plan.charges), 1e-5, relation=plan.relation)
        assert found == pytest.approx(epsilon(by_hand, 1e-5), rel=1e-9)


def test_as_many_steps_are_made_as_are_planned() -> None:
    class Counting(SeededEntropy):
        def __getitem__(self, name):  # type: ignore[no-untyped-def]
            names.append(name)
            return super().__getitem__(name)

    names: list[tuple[str, int, str]] = []
    rows, draws = held(empty_rows())
    steps = DPSteps(Gaussian(1.0, 1.0), epochs=0.9, sampling_rate=0.2, expected_batch=1.0)
    moved(steps, rows, replace(draws, entropy=Counting(0)))
    # A sample, what the model draws, and a noise for each step.
    assert len(names) == len(set(names)) == 3 * 5


def test_what_a_model_draws_comes_from_the_partys_entropy_fresh_in_each_step() -> None:
    drawn: list[tuple[float, ...]] = []

    class Drawing(Linear):
        def __call__(self) -> nn.Module:
            layer = super().__call__()
            layer.register_forward_hook(
                lambda *_: drawn.append((*torch.rand(2).tolist(), np.random.rand()))
            )
            return layer

    class Closed(Seeds):
        def __getitem__(self, name):  # type: ignore[no-untyped-def]
            raise AssertionError(f"{name} was asked for while training privately")

    def draws(seed: int, **of_party: Any) -> list[tuple[float, ...]]:
        drawn.clear()
        rows, own = held(empty_rows(), seed=seed, **of_party)
        steps = DPSteps(Gaussian(1.0, 1.0), epochs=3, sampling_rate=1.0, expected_batch=1.0)
        steps(Drawing()().train(), SILENT, rows, replace(own, seeds=Closed(0)))
        # Before them the first batch was tried, under draws that are held fixed.
        return drawn[-3:]

    one = draws(0)
    assert draws(0) == one
    assert len(set(one)) == 3
    for other in (draws(1), draws(0, round=1), draws(0, name="b")):
        assert not set(other) & set(one)


def test_settled_figures_do_not_depend_on_a_silos_own_rows() -> None:
    data = FederatedData(
        train={"a": empty_rows(90), "b": empty_rows(10)}, test=empty_rows(), public_rows=100
    )
    settled = DPSteps(Gaussian(1.0, 1.0), sampling_rate=0.2).settled(data)
    assert settled.expected_batch == pytest.approx(10.0)


def test_diagnostics_of_an_empty_batch_are_empty() -> None:
    engine = Opacus().engine(in_float64(mlp), nn.CrossEntropyLoss(reduction="none"))
    rows = rows_for(mlp)
    assert diagnostics(engine.clipped_sum(rows.take(torch.zeros(0).long()), 1.0), 1.0) == {}
    seen = diagnostics(engine.clipped_sum(rows, 1e-9), 1e-9)
    assert seen["fraction_clipped"] == 1.0
    assert math.isfinite(seen["training_loss"])


def test_the_diagnostics_of_a_round_are_means_of_its_steps() -> None:
    """The loss of the last batch stood beside the round's mean of `PlainSteps`."""
    seen: list[dict[str, float]] = []

    class Watching:
        def engine(self, model: Any, loss: Any) -> Any:
            inner = BookKeeping().engine(model, loss)

            def clipped_sum(batch: Any, bound: float) -> Any:
                found = inner.clipped_sum(batch, bound)
                seen.append(diagnostics(found, bound))
                return found

            offered = {"notes": (), "assumptions": (), "close": inner.close}
            return SimpleNamespace(clipped_sum=clipped_sum, try_on=inner.try_on, **offered)

    rows, model = rows_for(mlp, count=9), in_float64(mlp)
    steps = DPSteps(
        Gaussian(0.5, 0.0), epochs=3, sampling_rate=0.2, expected_batch=2.0, gradients=Watching()
    )
    said = steps(model, Task(model=mlp), *held(rows))
    filled = [step for step in seen if step]
    assert len(seen) == 15 > len(filled) > 5
    losses = [step["training_loss"] for step in filled]
    assert said.numbers["training_loss"] == pytest.approx(sum(losses) / len(filled))
    assert len({*losses}) > 5
    fractions = [step["fraction_clipped"] for step in filled]
    assert said.numbers["fraction_clipped"] == pytest.approx(sum(fractions) / len(filled))
    broken = {"training_loss": math.nan, "fraction_clipped": 1.0, "non_finite": 3.0}
    whole = {"training_loss": 0.5, "fraction_clipped": 0.5, "non_finite": 1.0}
    assert averaged([{}, broken, whole]) == {
        "training_loss": 0.5,
        "fraction_clipped": 0.75,
        "non_finite": 4.0,
    }
    assert averaged([{}, {}]) == {}


@pytest.mark.parametrize("mechanism", [Exact(), Laplace(1.0, 1.0)])
def test_mechanisms_that_do_not_clip_in_l2_are_refused(mechanism: object) -> None:
    with pytest.raises(UnsupportedError, match="Gaussian"):
        DPSteps(mechanism)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0.0}, {"sampling_rate": 0.0}, {"sampling_rate": 1.1}, {"learning_rate": 0}]
)
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DPSteps(Gaussian(1.0, 1.0), **wrong)  # type: ignore[arg-type]


def test_noise_is_scaled() -> None:
    scaled = DPSteps(Gaussian(2.0, 1.0)).with_scale(4.0)
    assert scaled is not None
    assert scaled.mechanism == Gaussian(2.0, 4.0)


@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan"), float("inf"), True, "64"])
def test_an_expected_batch_is_a_positive_number(value: Any) -> None:
    with pytest.raises(ValueError, match="expected_batch=") as caught:
        DPSteps(Gaussian(1.0, 1.0), expected_batch=value)
    assert f"expected_batch={value!r}" in str(caught.value)


def test_a_model_is_tried_on_public_rows_or_on_rows_for_testing_like_those_for_training() -> None:
    tried: list[Rows] = []
    engine = SimpleNamespace(try_on=tried.append, close=lambda: None)
    gradients: Any = SimpleNamespace(engine=lambda model, loss: engine)

    def rows_tried(test: Rows, public: Rows | None = None) -> list[int]:
        tried.clear()
        data = FederatedData(train={"a": empty_rows(5)}, test=test, public=public)
        try_gradients(gradients, SILENT, data, Linear()(), count=4.0)
        return [len(rows) for rows in tried]

    assert rows_tried(empty_rows(30)) == [16]
    assert rows_tried(empty_rows(3)) == [3]
    assert rows_tried(empty_rows(30), public=empty_rows(9)) == [4]
    # What is of another shape or type, or has no labels, says nothing of training.
    other = empty_rows(30)
    assert rows_tried(Rows(other.inputs[:, 1:], other.labels)) == []
    assert rows_tried(Rows(other.inputs.float(), other.labels)) == []
    assert rows_tried(Rows(other.inputs, other.labels.float())) == []
    assert rows_tried(Rows(other.inputs)) == []


def test_a_worker_prepares_a_model_once() -> None:
    model, other, scratch = in_float64(mlp), in_float64(mlp), dict[str, Any]()
    task, rows = Task(model=mlp), rows_for(mlp)

    def engine_after(steps: DPSteps, model: nn.Module) -> object:
        steps(model.train(), task, *held(rows, cache=scratch))
        assert scratch["engine"][0] is model
        return scratch["engine"][-1]

    steps = DPSteps(Gaussian(1.0, 1.0), gradients=Opacus())
    first = engine_after(steps, model)
    assert engine_after(steps, model) is first
    assert engine_after(steps, other) is not first
    assert engine_after(replace(steps, gradients=BookKeeping()), other) is not first
    assert not any(layer._backward_hooks for layer in (*model.modules(), *other.modules()))
