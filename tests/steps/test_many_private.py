"""Noised sums of many models are those of each model's own engine, with the noise of its own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.runtime import Draws
from privtrain.core.seeding import OnceOnly, SeededEntropy, Seeds, global_generator
from privtrain.core.task import Rows, cross_entropy
from privtrain.data.models import CNN, MLP
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.opacus import Opacus
from privtrain.mechanisms.clipping import AutomaticClipping, Clipping, PerLayerClipping
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.steps.many import Models
from privtrain.steps.many_private import NoisedSums
from privtrain.steps.optimizers import GradientVector

SIZES = (5, 0, 20, 1)


def made_rows(dtype: torch.dtype) -> Rows:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(600, 6, generator=generator, dtype=dtype)
    return Rows(inputs, torch.randint(3, (600,), generator=generator))


def made_models(factory: Callable[[], nn.Module], count: int = len(SIZES)) -> list[nn.Module]:
    models = []
    for number in range(count):
        with global_generator(Seeds(0)["model", number, ""]):
            models.append(factory().train())
    return models


def drawn(number: int) -> Draws:
    return Draws(Seeds(number), OnceOnly(SeededEntropy(number)), 0, "curator")


def batches_of(sizes: tuple[int, ...]) -> list[Tensor]:
    return [torch.arange(size) + 7 * number for number, size in enumerate(sizes)]


def both(
    factory: Callable[[], nn.Module],
    rows: Rows,
    clipping: Clipping,
    noise: float = 0.5,
    sizes: tuple[int, ...] = SIZES,
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of two steps of each model, by its own engine and at once."""
    engine, mechanism = BookKeeping(clipping=clipping), Gaussian(0.2, noise)
    models = made_models(factory)
    first, batches = [], batches_of(sizes)
    for number, (model, batch) in enumerate(zip(models, batches, strict=True)):
        own, gradient = drawn(number), GradientVector(list(model.parameters()))
        alone = engine.engine(model, cross_entropy)
        for step in range(2):
            value = alone.clipped_sum(rows.take(batch), 0.2).value
            stream = own.entropy["noise/gradient", step, AGGREGATOR_NAME]
            gradient.set(mechanism.add(value, None, stream)[0], 4.0)
            first.append(torch.cat([p.grad.flatten() for p in model.parameters()]))  # type: ignore[union-attr]
    stacked = Models(models, cross_entropy)
    sums = NoisedSums(stacked, models[0], cross_entropy, engine, mechanism, 4.0)
    draws, second = [drawn(number) for number in range(len(models))], dict[int, list[Tensor]]()
    for step in range(2):
        sums.write(step, batches, rows, draws)
        for number in range(len(models)):
            parts = [weight.gradients[number].flatten() for weight in stacked.weights.values()]
            second.setdefault(number, []).append(torch.cat(parts))
    return first, [each for number in range(len(models)) for each in second[number]]


@pytest.mark.parametrize(
    "clipping", [BookKeeping().clipping, PerLayerClipping(), AutomaticClipping()]
)
@pytest.mark.parametrize(
    "factory",
    [
        MLP((6, 3), torch.float64),
        MLP((6, 9, 4, 3), torch.float64),
        lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)).double(),
    ],
)
def test_sums_are_those_of_each_models_engine(factory: Any, clipping: Clipping) -> None:
    first, second = both(factory, made_rows(torch.float64), clipping)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    # No two of them share noise.
    assert len({tuple(each.tolist()) for each in second}) == 2 * len(SIZES)


def test_large_batches_are_added_up_in_double_precision() -> None:
    rows = made_rows(torch.float32)
    first, second = both(MLP((6, 9, 3)), rows, BookKeeping().clipping, 0.0, (300, 8, 0, 257))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-8)


def test_an_example_without_a_finite_gradient_counts_as_zero() -> None:
    rows = made_rows(torch.float64)
    rows.inputs[2] = torch.inf
    rows.inputs[14] = torch.nan
    # Where no hidden unit is active, the second layer alone has a finite gradient.
    rows.inputs[16:34] = 1e200 * rows.inputs[16:34].sign()
    first, second = both(MLP((6, 2, 3), torch.float64), rows, PerLayerClipping(), 0.0)
    assert all(bool(each.isfinite().all()) for each in second)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_no_row_counts_more_than_the_bound() -> None:
    """The bound by itself: one row each, at most 0.2 before the division by 4."""
    rows = made_rows(torch.float64)
    rows.inputs.mul_(100)
    sizes = (1, 1, 1, 1)
    _, second = both(MLP((6, 4, 3), torch.float64), rows, BookKeeping().clipping, 0.0, sizes)
    norms = torch.stack([torch.linalg.vector_norm(each) for each in second])
    assert bool((norms <= 0.05 * (1 + 1e-12)).all()) and bool((norms > 0.04).any())


def test_a_model_that_takes_no_step_draws_no_noise() -> None:
    models = made_models(MLP((6, 3)), 2)
    stacked, draws = Models(models, cross_entropy), [drawn(0), drawn(1)]
    mechanism = Gaussian(0.2, 1.0)
    sums = NoisedSums(stacked, models[0], cross_entropy, BookKeeping(), mechanism, 4.0)
    sums.write(0, [torch.arange(3), None], made_rows(torch.float32), draws)
    _ = draws[1].entropy["noise/gradient", 0, AGGREGATOR_NAME]
    with pytest.raises(RuntimeError, match="twice"):
        _ = draws[0].entropy["noise/gradient", 0, AGGREGATOR_NAME]


@pytest.mark.parametrize(
    ("factory", "gradients"),
    [
        (MLP((6, 3)), Opacus()),
        (MLP((6, 3)), BookKeeping(micro_batch=4)),
        (CNN(), BookKeeping()),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)), BookKeeping()),
    ],
)
def test_what_has_no_sums_at_once_is_refused(factory: Any, gradients: Any) -> None:
    models = made_models(factory, 2)
    mechanism = Gaussian(0.2, 1.0)
    with pytest.raises(UnsupportedError, match="one"):
        NoisedSums(
            Models(models, cross_entropy), models[0], cross_entropy, gradients, mechanism, 4.0
        )


def test_linear_layers_over_time_are_refused() -> None:
    rows = Rows(torch.zeros(9, 4, 6), torch.zeros(9, 4, dtype=torch.long))
    models = made_models(MLP((6, 3)), 2)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs.flatten(0, 1), targets.flatten()).view(len(targets), -1).sum(1)

    mechanism = Gaussian(0.2, 1.0)
    sums = NoisedSums(Models(models, loss), models[0], loss, BookKeeping(), mechanism, 4.0)
    with pytest.raises(UnsupportedError, match="more than one vector"):
        sums.write(0, [torch.arange(3), torch.arange(2)], rows, [drawn(0), drawn(1)])
