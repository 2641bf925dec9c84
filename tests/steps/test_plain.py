"""Plain steps against loops written out."""

import functools

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.runtime import PartyRun
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import Rows, Task
from privtrain.data.models import MLP
from privtrain.sampling.passes import batches
from privtrain.steps.optimizers import GradientVector, descend, make_optimizer
from privtrain.steps.plain import PlainSteps

TASK = Task(model=MLP((5, 4, 3), torch.float64))


def a_party(rows: Rows, seed: int = 0, round: int = 0) -> PartyRun:
    return PartyRun(
        party="a",
        round=round,
        train={"a": rows},
        state={},
        seeds=Seeds(seed),
        entropy=SeededEntropy(seed),
    )


def some_rows(count: int = 11) -> Rows:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return Rows(inputs, torch.randint(3, (count,), generator=generator))


def a_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return TASK.model()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize(("rows", "size"), [(11, 4), (12, 4), (3, 4), (1, 1), (7, 1)])
def test_every_epoch_holds_every_row_once(rows: int, size: int) -> None:
    found = list(batches(rows, size, 3, torch.Generator().manual_seed(0)))
    full = [torch.arange(rows) if index is None else index for index in found]
    assert len(full) == 3 * -(-rows // size)
    per_epoch = len(full) // 3
    for epoch in range(3):
        seen = torch.cat(full[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert torch.equal(seen.sort().values, torch.arange(rows))
    assert all(len(index) <= size for index in full)


def test_epochs_have_orders_of_their_own() -> None:
    found = [i for i in batches(64, 32, 2, torch.Generator().manual_seed(0)) if i is not None]
    assert not torch.equal(found[0], found[2])


def test_all_rows_stay_in_their_own_order() -> None:
    assert list(batches(9, None, 2, torch.Generator())) == [None, None]
    assert list(batches(9, 9, 1, torch.Generator())) == [None]


@pytest.mark.parametrize(
    ("optimizer", "by_hand"),
    [
        ("SGD", torch.optim.SGD),
        ("Adam", torch.optim.Adam),
        (
            functools.partial(torch.optim.SGD, momentum=0.9),
            functools.partial(torch.optim.SGD, momentum=0.9),
        ),
    ],
    ids=["sgd", "adam", "momentum"],
)
def test_epochs_equal_a_plain_loop_to_the_bit(optimizer: object, by_hand: object) -> None:
    rows, party = some_rows(), a_party(some_rows(), seed=3, round=2)
    steps = PlainSteps(epochs=2, batch_size=4, learning_rate=0.05, optimizer=optimizer)  # type: ignore[arg-type]
    model = a_model().train()
    seen = steps(model, TASK, party)

    twin = a_model()
    order = Seeds(3)["order", 2, "a"].torch()
    loop = by_hand(twin.parameters(), lr=0.05)  # type: ignore[operator]
    losses = []
    for _ in range(2):
        for index in torch.randperm(11, generator=order).split(4):
            loss = nn.functional.cross_entropy(twin(rows.inputs[index]), rows.labels[index])
            loop.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            loop.step()
            losses.append(float(loss.detach()))
    assert torch.equal(weights(model), weights(twin))
    assert not torch.equal(weights(model), weights(a_model()))
    assert float(seen["training_loss"]) == pytest.approx(sum(losses) / 6, rel=1e-6)


def test_the_same_round_repeats_and_another_one_differs() -> None:
    def run(round: int, seed: int = 0) -> Tensor:
        model = nn.Sequential(a_model(), nn.Dropout(0.5)).train()
        PlainSteps(batch_size=4)(model, TASK, a_party(some_rows(), seed=seed, round=round))
        return weights(model)

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    assert not torch.equal(run(0), run(0, seed=1))


def test_global_generators_stay_as_they_were() -> None:
    before = torch.get_rng_state()
    PlainSteps()(nn.Sequential(a_model(), nn.Dropout(0.5)).train(), TASK, a_party(some_rows()))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_single_row_is_enough() -> None:
    model = a_model()
    PlainSteps()(model, TASK, a_party(some_rows(1)))
    assert not torch.equal(weights(model), weights(a_model()))


def test_frozen_parameters_stay() -> None:
    model = a_model()
    first = next(model.parameters())
    first.requires_grad_(False)
    before = first.clone()
    PlainSteps(epochs=2)(model, TASK, a_party(some_rows()))
    assert torch.equal(first, before)
    assert not torch.equal(weights(model), weights(a_model()))


def test_descend_steps_on_the_mean_loss() -> None:
    rows, model = some_rows(), a_model()
    loss = descend(
        model, torch.optim.SGD(model.parameters(), lr=1.0), TASK.loss, rows.inputs, rows.labels
    )
    twin = a_model()
    expected = nn.functional.cross_entropy(twin(rows.inputs), rows.labels)
    expected.backward()  # type: ignore[no-untyped-call]
    moved = torch.cat([(p - p.grad).reshape(-1) for p in twin.parameters() if p.grad is not None])
    torch.testing.assert_close(weights(model), moved.detach(), rtol=1e-13, atol=1e-15)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-12)


def test_a_gradient_is_copied_not_aliased() -> None:
    model = a_model()
    parameters = list(model.parameters())
    gradient = torch.arange(weights(model).numel(), dtype=torch.float64)
    vector = GradientVector(parameters)
    vector.set(gradient, 2.0)
    gradient.zero_()
    assert parameters[-1].grad is not None
    assert float(parameters[-1].grad[-1]) == (weights(model).numel() - 1) / 2
    with pytest.raises(ValueError, match=r"gradient.shape=\(3,\)"):
        vector.set(torch.zeros(3))


def test_gradients_come_back_when_an_optimizer_drops_them() -> None:
    model = a_model()
    vector = GradientVector(list(model.parameters()))
    for value in (1.0, 2.0):
        vector.set(torch.full((weights(model).numel(),), value, dtype=torch.float64))
        assert all(bool((p.grad == value).all()) for p in model.parameters() if p.grad is not None)
        assert all(p.grad is not None for p in model.parameters())
        model.zero_grad()


def test_gradients_have_the_types_of_their_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    vector = GradientVector(list(model.parameters()))
    for value in (1.0, 2.0):
        vector.set(torch.full((12,), value, dtype=torch.float64))
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert parameter.grad.dtype is parameter.dtype
            assert float(parameter.grad.sum()) == value * parameter.numel()


@pytest.mark.parametrize("name", ["Nonsense", "lr_scheduler", "Optimizer2"])
def test_an_unknown_optimizer_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"optimizer='{name}'"):
        make_optimizer(name, list(a_model().parameters()), 0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}],
)
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PlainSteps(**wrong)  # type: ignore[arg-type]
