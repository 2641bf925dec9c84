"""Ranges that were measured: what they say, and that they say whose they are."""

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError
from privtrain.mpc.bounds import Bounds
from privtrain.mpc.dense import Descent
from privtrain.mpc.layers import softmax, translate
from privtrain.mpc.measured import PROVES_NOTHING, Batch, MeasuredRanges, measure
from privtrain.mpc.ring64.engine import Ring64
from tests.mpc.models import Residual, drawn, made, stepped

TARGETS = torch.tensor([0, 2, 1, 1])


def batches(count: int, rate: float = 0.5, inputs: Tensor | None = None) -> list[Batch]:
    rows = drawn(4, 6) if inputs is None else inputs
    return [(rows, nn.functional.one_hot(TARGETS, 3).double(), Descent(rate / 4, 0.5))] * count


def measured(count: int = 3, rate: float = 0.5) -> MeasuredRanges:
    return measure(translate(made(Residual)), Ring64(), batches(count, rate), softmax)


def test_magnitudes_are_those_of_torch() -> None:
    model, ranges = made(Residual), measured(1)
    reached: dict[str, float] = {}
    handed: dict[str, float] = {}

    def keep(name: str) -> None:
        layer = dict(model.named_modules())[name]

        def forward(_: nn.Module, __: tuple[Tensor, ...], outputs: Tensor) -> None:
            bias = 0 if layer.bias is None else layer.bias
            both = outputs.abs().max(), (outputs - bias).abs().max()
            reached[name] = float(torch.stack(both).detach().max())

        def backward(_: nn.Module, inputs: tuple[Tensor, ...], __: object) -> None:
            handed[name] = float(inputs[0].abs().max())

        layer.register_forward_hook(forward)
        layer.register_full_backward_hook(backward)

    for name in ("first", "second", "head"):
        keep(name)
    rows = drawn(4, 6).requires_grad_()
    loss = nn.functional.cross_entropy(model(rows), TARGETS, reduction="sum")
    torch.autograd.backward(loss)
    layers, gradients = dict(ranges.layers), dict(ranges.gradients)
    for name in ("first", "second", "head"):
        assert layers[name] == pytest.approx(reached[name])
    for name in ("second", "head"):
        assert gradients[name] == pytest.approx(handed[name])
    # Nothing before the first trained weight needs a gradient.
    assert set(gradients) == {"second", "head", "model"}
    assert ranges.rows == float(drawn(4, 6).abs().max())


def test_weights_are_the_largest_of_any_step() -> None:
    model = made(Residual)
    cross_entropy = nn.functional.cross_entropy
    after = [
        float(stepped(model, drawn(4, 6), lambda z: cross_entropy(z, TARGETS), 0.5, n).abs().max())
        for n in range(6)
    ]
    assert after[5] > after[0]
    assert [measured(count).weights for count in (0, 5)] == pytest.approx([after[0], max(after)])
    assert measured(5).steps == 5
    # With a learning rate that shrinks them, the first ones are the largest.
    assert measured(2, rate=1e-9).weights == pytest.approx(after[0])


def test_weights_that_shrink_were_as_large_as_they_were() -> None:
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0], [-3.0]]))
    inputs, targets = torch.ones(4, 1).double(), torch.tensor([[0.0, 1.0]]).double().expand(4, 2)
    batch = (inputs, targets, Descent(0.1 / 4, 0.0))
    assert measure(translate(model), Ring64(), [batch] * 5, softmax).weights == 3.0


def test_they_become_bounds_with_room() -> None:
    ranges = measured()
    bounds = ranges.bounds(1.5)
    assert (bounds.rows, bounds.weights) == (ranges.rows * 1.5, ranges.weights * 1.5)
    assert bounds.of_layer("second") == dict(ranges.layers)["second"] * 1.5
    assert bounds.of_gradient("head") == dict(ranges.gradients)["head"] * 1.5
    assert ranges.bounds() == ranges.bounds(2.0)
    for factor in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"factor=.* > 0"):
            ranges.bounds(factor)
    with pytest.raises(ValueError, match=r"rows=.* < 4096"):
        ranges.bounds(1e4)


def test_a_layer_of_zeros_gets_no_bound() -> None:
    nothing = batches(1, inputs=torch.zeros(4, 6, dtype=torch.float64))
    model = nn.Linear(6, 3, bias=False)
    ranges = measure(translate(model), Ring64(), nothing, softmax)
    assert (ranges.rows, ranges.layers) == (0.0, (("model", 0.0),))
    with pytest.raises(ValueError, match=r"rows=0\.0 > 0"):
        ranges.bounds()
    assert Bounds(rows=1, weights=1, layers=[pair for pair in ranges.layers if pair[1]])


def test_the_table_says_bits_and_that_it_proves_nothing() -> None:
    ranges = measured()
    lines = str(ranges).splitlines()
    assert lines[0].split() == ["operation", "reached", "bits", "of"]
    first = ranges.operations[0]
    assert lines[1].startswith("product (layer 'first')")
    assert lines[1].split()[-3:] == [f"{first.largest:.4g}", f"{first.used:.1f}", "62.0"]
    assert len(lines) == len(ranges.operations) + 3
    assert lines[-1] == PROVES_NOTHING
    assert "proves nothing for others" in PROVES_NOTHING
    assert "lacks" not in str(ranges)
    large = batches(1, inputs=drawn(4, 6) * 1e10)
    wide = measure(translate(nn.Linear(6, 3)), Ring64(), large, softmax)
    (lacking, *_) = wide.operations
    assert str(wide).splitlines()[1].endswith(f"62.0  lacks {lacking.lacks}")
    assert lacking.lacks > 0


def test_a_training_that_diverges_says_so() -> None:
    with pytest.raises(DataError, match=r"diverged on these rows, in plaintext, in step \d"):
        measured(500, rate=1e200)
