"""One pass: losses, and sums of gradients as their projections and norms."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from privtrain.core.task import Rows, cross_entropy
from privtrain.gradients.passes import DOUBLE, Pass, own_precision, run
from tests.gradients.loops import example_gradients, in_float64, mlp, rows_for


def passed(model: nn.Module, rows: Rows, *weights: Tensor) -> Pass:
    return run(model, cross_entropy, rows, range(len(rows)), DOUBLE, lambda _: weights)


def test_losses_and_norms_are_those_of_the_plain_loop() -> None:
    rows, model = rows_for(mlp), in_float64(mlp)
    weights = torch.linspace(-1, 1, len(rows), dtype=torch.float64)
    outcome = passed(model, rows, weights, torch.zeros(len(rows)))
    torch.testing.assert_close(outcome.losses, cross_entropy(model(rows.inputs), rows.labels))
    torch.testing.assert_close(
        outcome.sums[0, 1], (weights @ example_gradients(model, rows)).norm()
    )
    assert outcome.sums[1].tolist() == [0, 0]
    assert outcome.classes == 3
    assert outcome.unreached == ()


def test_projections_are_linear_and_see_one_row_in_ten_thousand() -> None:
    rows, model = rows_for(mlp), in_float64(mlp)
    one, other = torch.rand(2, len(rows), dtype=torch.float64)
    moved = one.clone()
    moved[3] *= 1 + 1e-4
    sums = passed(model, rows, one, other, one - 2 * other, moved).sums[:, 0]
    torch.testing.assert_close(sums[2], sums[0] - 2 * sums[1])
    assert abs(float(sums[3] - sums[0])) > 1e-6


def test_a_row_of_weight_zero_does_not_matter_even_if_it_is_infinite() -> None:
    rows, model = rows_for(mlp), in_float64(mlp)
    weights = torch.ones(len(rows), dtype=torch.float64)
    weights[2] = 0
    finite = passed(model, rows, weights)

    def spoilt(logits: Tensor, targets: Tensor) -> Tensor:
        losses = cross_entropy(logits, targets)
        return torch.where(torch.arange(len(losses)) == 2, torch.inf, losses)

    outcome = run(model, spoilt, rows, range(len(rows)), DOUBLE, lambda _: [weights])
    torch.testing.assert_close(outcome.sums, finite.sums)


def test_draws_follow_the_identities() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    rows, order = rows_for(mlp), torch.tensor([4, 0, 6, 2])
    whole = passed(model, rows)
    part = run(model, cross_entropy, rows.take(order), order.tolist(), DOUBLE, lambda _: [])
    torch.testing.assert_close(part.losses, whole.losses[order])
    assert list(whole.held.by_row) == ["bernoulli_"]


def test_parameters_that_are_not_reached_are_named() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.rest = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.body.weight)

    ones = torch.ones(7, dtype=torch.float64)
    assert passed(Half(), rows_for(mlp), ones).unreached == (
        "body.bias",
        "rest.weight",
        "rest.bias",
    )


def test_rounding_in_the_models_own_type_is_coarser() -> None:
    assert DOUBLE.sums < own_precision(mlp()).sums < own_precision(mlp().bfloat16()).sums
