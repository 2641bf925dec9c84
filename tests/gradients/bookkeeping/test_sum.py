"""Styles of clipping: every one keeps a contribution's norm at or below the clipping norm."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.task import Rows, cross_entropy
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.bookkeeping.torch_func import TorchFuncEngine
from privtrain.mechanisms.clipping import (
    AutomaticClipping,
    Clipping,
    FlatClipping,
    PerLayerClipping,
)
from tests.gradients.bookkeeping.cases import CASES, ROUNDING, C
from tests.gradients.bookkeeping.test_norms import cancelling, difference_of_two
from tests.gradients.loops import (
    Make,
    Outside,
    Shared,
    Tied,
    cnn,
    example_gradients,
    group_norm,
    in_float64,
    layer_norm,
    mlp,
    rows_for,
)

MODELS: list[Make] = [mlp, cnn, group_norm, layer_norm, Shared, Tied, Outside]
STYLES: list[Clipping] = [
    FlatClipping(),
    PerLayerClipping(),
    AutomaticClipping(),
    AutomaticClipping(0.5),
]


def layers(model: nn.Module) -> list[tuple[int, int]]:
    """First and last place of each layer's values in the flat gradient."""
    found: dict[str, tuple[int, int]] = {}
    end = 0
    for name, parameter in model.named_parameters():
        start, end = end, end + parameter.numel()
        layer = name.rpartition(".")[0]
        found[layer] = (found.get(layer, (start, 0))[0], end)
    return list(found.values())


def by_formula(style: Clipping, model: nn.Module, gradients: Tensor) -> Tensor:
    """What each paper says, one gradient after the other."""
    kept = []
    for gradient in gradients:
        if isinstance(style, AutomaticClipping):
            kept.append(gradient * C / (gradient.norm() + style.gamma))
        elif isinstance(style, PerLayerClipping):
            places = layers(model)
            weights = style.weights or (1.0,) * len(places)
            size = math.sqrt(sum(weight**2 for weight in weights))
            parts = [gradient[start:end] for start, end in places]
            bounds = [C * weight / size for weight in weights]
            pairs = zip(parts, bounds, strict=True)
            kept.append(torch.cat([p / max(1.0, float(p.norm()) / b) for p, b in pairs]))
        else:
            kept.append(gradient / max(1.0, float(gradient.norm()) / C))
    return torch.stack(kept)


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("style", STYLES, ids=str)
@pytest.mark.parametrize("make", MODELS)
def test_sums_are_those_of_the_formula(
    make: Make, style: Clipping, micro_batch: int | None
) -> None:
    rows = rows_for(make)
    engine = BookKeeping(micro_batch, style).engine(in_float64(make), cross_entropy)
    found = engine.clipped_sum(rows, C)
    gradients = example_gradients(in_float64(make), rows)
    wanted = by_formula(style, in_float64(make), gradients).sum(dim=0)
    torch.testing.assert_close(found.value, wanted, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.norms, gradients.norm(dim=1), rtol=1e-4, atol=1e-12)
    assert bool((found.norms >= gradients.norm(dim=1)).all())
    if style != FlatClipping():
        flat = BookKeeping().engine(in_float64(make), cross_entropy).clipped_sum(rows, C)
        assert not torch.allclose(flat.value, found.value), "the styles must differ"


@pytest.mark.parametrize("style", STYLES, ids=str)
@pytest.mark.parametrize("make", [mlp, cnn, layer_norm])
def test_gradients_one_by_one_give_the_same(make: Make, style: Clipping) -> None:
    rows = rows_for(make)
    by_formulas = BookKeeping(clipping=style).engine(in_float64(make), cross_entropy)
    formed = TorchFuncEngine(in_float64(make), cross_entropy, style)
    a, b = by_formulas.clipped_sum(rows, C), formed.clipped_sum(rows, C)
    torch.testing.assert_close(a.value, b.value, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(a.norms, b.norms, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_scale_of_a_style_is_taken_whatever_it_is(scale: float) -> None:
    style, rows = AutomaticClipping(C / scale), rows_for(mlp)
    found = BookKeeping(clipping=style).engine(in_float64(mlp), cross_entropy)
    wanted = by_formula(style, in_float64(mlp), example_gradients(in_float64(mlp), rows))
    torch.testing.assert_close(found.clipped_sum(rows, C).value, wanted.sum(dim=0))


def test_weights_share_the_bound_out() -> None:
    style, rows = PerLayerClipping((3.0, 4.0)), rows_for(mlp)
    found = BookKeeping(clipping=style).engine(in_float64(mlp), cross_entropy)
    wanted = by_formula(style, in_float64(mlp), example_gradients(in_float64(mlp), rows))
    torch.testing.assert_close(found.clipped_sum(rows, C).value, wanted.sum(dim=0))
    tiny = found.clipped_sum(rows.take(torch.tensor([0])), 1e-3).value
    first, second = (tiny[start:end].norm() for start, end in layers(in_float64(mlp)))
    assert float(first) == pytest.approx(0.6e-3, rel=1e-3)
    assert float(second) == pytest.approx(0.8e-3, rel=1e-3)
    with pytest.raises(ValueError, match=r"weights=.* to hold 2 numbers.*: 0, 2\."):
        BookKeeping(clipping=PerLayerClipping((1.0,))).engine(in_float64(mlp), cross_entropy)
    with pytest.raises(ValueError, match=r"weights\[1\]=-1"):
        PerLayerClipping((1.0, -1.0))


@pytest.mark.parametrize("style", STYLES, ids=str)
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e3, 1e12])
@pytest.mark.parametrize("case", ["wide groups", "time wide", "rms norm", "in place"])
def test_no_contribution_exceeds_the_bound_in_float32(
    case: str, scale: float, style: Clipping
) -> None:
    make = CASES[case].make
    model = in_float64(make).float()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return scale * cross_entropy(logits, targets)

    engine = BookKeeping(clipping=style).engine(model, loss)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        inputs = torch.randn(1, *CASES[case].shape, generator=generator)
        rows = Rows(inputs, torch.zeros(1, dtype=torch.long))
        for bound in (1e-3, C, 1e3):
            found = engine.clipped_sum(rows, bound).value.double().norm()
            assert 0 < float(found) <= bound * ROUNDING


@pytest.mark.parametrize("style", STYLES, ids=str)
@pytest.mark.parametrize("scale", [1e1, 1e4, 1e8])
def test_sequences_that_cancel_stay_within_the_bound(scale: float, style: Clipping) -> None:
    model = nn.Sequential(nn.Linear(40, 12), nn.Linear(12, 4, bias=False))
    engine = BookKeeping(clipping=style).engine(model, difference_of_two)
    for seed in range(10):
        found = engine.clipped_sum(cancelling(seed, 4, 40, scale), C).value.double().norm()
        assert 0 < float(found) <= C * ROUNDING


@pytest.mark.parametrize("style", STYLES, ids=str)
@pytest.mark.parametrize("make_engine", [BookKeeping, None])
def test_a_row_that_is_not_finite_adds_nothing(
    style: Clipping, make_engine: Callable[..., BookKeeping] | None
) -> None:
    rows = rows_for(mlp)
    rows.inputs[2] = torch.inf
    model = in_float64(mlp)
    engine = (
        TorchFuncEngine(model, cross_entropy, style)
        if make_engine is None
        else make_engine(clipping=style).engine(model, cross_entropy)
    )
    found = engine.clipped_sum(rows, C)
    others = engine.clipped_sum(rows.take(torch.tensor([0, 1, 3, 4, 5, 6])), C)
    torch.testing.assert_close(found.value, others.value)
    assert found.non_finite == 1


def test_automatic_clipping_refuses_what_rounding_could_decide() -> None:
    with pytest.raises(ValueError, match="gamma=1e-09"):
        AutomaticClipping(1e-9)
    with pytest.raises(ValueError, match=r"clipping_norm=1e\+30"):
        AutomaticClipping().scale(1e30)


class Summed(AutomaticClipping):
    """The broken twin: normalises, but does not shrink."""

    def factors(self, norms: Tensor, clipping_norm: float) -> Tensor:
        return torch.ones_like(norms)


def test_a_style_that_does_not_bound_is_caught() -> None:
    rows = rows_for(mlp).take(torch.tensor([0]))
    found = BookKeeping(clipping=Summed()).engine(in_float64(mlp), cross_entropy)
    assert float(found.clipped_sum(rows, C).value.norm()) > C * ROUNDING
