"""Optimizers, and one step by hand."""

import functools
import re
import sys
from typing import Any

import pytest
import torch
from torch import nn

from privtrain.core.task import Loss
from privtrain.steps.optimizers import GradientVector, advance, descend, make_optimizer
from tests.steps.test_plain import TASK, a_model, some_rows, weights


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


@pytest.mark.parametrize(
    ("shape", "loss"),
    [
        ((8, 8), lambda o, t: (o - t) ** 2),
        ((8, 1), lambda o, t: (o - t.unsqueeze(1)) ** 2),
        ((), lambda o, t: nn.functional.mse_loss(o.squeeze(1), t)),
        ((1,), lambda o, t: (o.squeeze(1) - t).square().mean().reshape(1)),
    ],
)
def test_a_loss_has_one_value_for_each_example(shape: tuple[int, ...], loss: Loss) -> None:
    model = nn.Linear(3, 1)
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(ValueError, match=re.escape(f"of shape (8,); it returned shape {shape}")):
        descend(model, optimizer, loss, torch.randn(8, 3), torch.randn(8))
    assert torch.equal(weights(model), before)
    descend(
        *(model, optimizer, lambda o, t: (o.squeeze(1) - t) ** 2), torch.randn(8, 3), torch.randn(8)
    )
    assert not torch.equal(weights(model), before)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam"])
def test_advancing_is_stepping(name: str) -> None:
    ended = []
    for step in (advance, lambda optimizer: optimizer.step()):
        parameter = nn.Parameter(torch.linspace(-1, 1, 7))
        optimizer = make_optimizer(name, [parameter], 0.1)
        for scale in (1.0, -2.0, 0.5):
            parameter.grad = scale * torch.arange(7.0)
            step(optimizer)
        ended.append(parameter.detach())
    assert torch.equal(*ended)


class Counted:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: object) -> None:
        self.calls += 1


HOOKS = ["register_step_pre_hook", "register_step_post_hook"]


@pytest.mark.parametrize("where", ["optimizer", "everywhere"])
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_run_at_each_step(where: str, hook: str) -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = make_optimizer("SGD", [parameter], 0.1)
    counted = Counted()
    # Torch hides the module behind the function of its name.
    hooked = optimizer if where == "optimizer" else sys.modules["torch.optim.optimizer"]
    name = hook if where == "optimizer" else hook.replace("register", "register_optimizer")
    handle = getattr(hooked, name)(counted)
    try:
        advance(optimizer)
        advance(optimizer)
    finally:
        handle.remove()
    advance(optimizer)
    assert counted.calls == 2


def test_a_step_that_a_user_wrapped_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(torch.optim.SGD):
        pass

    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = Own([parameter], lr=0.1)
    advance(optimizer)
    taken = Counted()
    inner = Own.step

    @functools.wraps(inner)
    def wrapped(*given: Any) -> Any:
        taken()
        return inner(*given)

    monkeypatch.setattr(Own, "step", wrapped)
    advance(optimizer)
    # As a scheduler does it: on the optimizer itself.
    monkeypatch.setattr(optimizer, "step", taken)
    advance(optimizer)
    assert taken.calls == 2


def test_a_profiler_sees_each_step_by_name() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = make_optimizer("SGD", [parameter], 0.1)
    with torch.autograd.profiler.profile() as profile:
        advance(optimizer)
    assert "Optimizer.step#SGD.step" in [event.name for event in profile.function_events]


def test_a_small_step_is_not_wrapped() -> None:
    """Where torch changes what is private here, a step is only slower: this tells us."""
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = make_optimizer("SGD", [parameter], 0.1)
    with pytest.MonkeyPatch.context() as patch:
        refused = Counted()
        patch.setattr(torch.autograd.profiler.record_function, "__enter__", refused)
        advance(optimizer)
    assert refused.calls == 0


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
