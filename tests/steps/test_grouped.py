"""One pass of many models, and its gradients, against each model by itself."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, stack_module_state

from privtrain.core.task import cross_entropy
from privtrain.steps.grouped import forward_of, losses_of, max_pool


@settings(deadline=None, max_examples=40)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_max_pooling_is_torchs_with_ties_and_gradients(
    kernel: tuple[int, int], stride: tuple[int, int], padded: bool, seed: int
) -> None:
    padding = tuple(size // 2 for size in kernel) if padded else (0, 0)
    layer = nn.MaxPool2d(kernel, stride, padding)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    # Whole numbers: most windows have several maxima.
    images = torch.randint(-2, 2, (2, 3, 7, 6, 4), generator=generator).double().requires_grad_()
    ours = max_pool(images, layer)
    theirs = layer(images.movedim(-1, 0).flatten(0, 1)).unflatten(0, (4, 2)).movedim(0, -1)
    assert torch.equal(ours, theirs)
    weights = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    (mine,) = torch.autograd.grad((ours * weights).sum(), images, retain_graph=True)
    (other,) = torch.autograd.grad((theirs * weights).sum(), images)
    assert torch.allclose(mine, other, atol=1e-12)


def gradients(model: Any, shape: tuple[int, ...]) -> float:
    """The largest difference of outputs and gradients of three models."""
    generator = torch.Generator().manual_seed(1)
    models = [model().double() for _ in range(3)]
    inputs = torch.randn(3, 4, *shape, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (3, 4), generator=generator)
    weights, kept = stack_module_state(models)
    outputs = forward_of(models[0])({**weights, **kept}, inputs)
    losses = losses_of(cross_entropy)(outputs, targets)
    losses.sum().backward()
    far = 0.0
    for number, each in enumerate(models):
        alone = functional_call(each, {}, (inputs[number],))
        far = max(far, float((alone - outputs[number]).detach().abs().max()))
        loss = cross_entropy(alone, targets[number])
        far = max(far, float((loss - losses[number]).detach().abs().max()))
        loss.sum().backward()
        for name, parameter in each.named_parameters():
            gradient = weights[name].grad
            assert gradient is not None and parameter.grad is not None
            far = max(far, float((gradient[number] - parameter.grad).abs().max()))
    return far


@pytest.mark.parametrize(
    ("model", "shape", "known"),
    [
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3)), (5,), True),
        (lambda: nn.Linear(5, 3), (5,), True),
        (
            lambda: nn.Sequential(
                nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
            ),
            (1, 4, 4),
            True,
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(2, 2, 2, groups=2, dilation=2), nn.Flatten(), nn.Linear(8, 3)
            ),
            (2, 4, 4),
            False,
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten(), nn.Linear(32, 3)
            ),
            (1, 4, 4),
            False,
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(1, 2, 1), nn.Linear(4, 4), nn.Flatten(), nn.Linear(32, 3)
            ),
            (1, 4, 4),
            False,
        ),
    ],
)
def test_outputs_losses_and_gradients_are_those_of_each_model(
    model: Any, shape: tuple[int, ...], known: bool
) -> None:
    assert forward_of(model()).is_same_in_evaluation == known
    assert gradients(model, shape) < 1e-12


def test_what_a_hook_would_change_is_not_left_out() -> None:
    model = nn.Sequential(nn.Linear(5, 3)).double()
    model[0].register_forward_hook(lambda layer, inputs, outputs: outputs * 2)
    assert not forward_of(model).is_same_in_evaluation
