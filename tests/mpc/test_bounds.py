"""What is stated of rows, weights and layers, and what its holders check of it."""

import pickle
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import nn

from privtrain.core.errors import DataError
from privtrain.core.task import Rows
from privtrain.mpc.bounds import Bounds
from privtrain.mpc.layers import translate
from tests.mpc.models import PICTURE, Residual, convolutional, drawn, made


def test_bounds_of_layers_are_pairs_and_stay_as_they_are() -> None:
    layers = {"head": 3.0}
    bounds = Bounds(rows=1.0, weights=2.0, layers=layers, gradients=[["head", 5]])
    layers["head"] = 4.0
    assert bounds.layers == (("head", 3.0),)
    assert (bounds.of_layer("head"), bounds.of_gradient("head")) == (3.0, 5)
    assert bounds.of_layer("first") == bounds.of_gradient("first") == inf
    assert hash(bounds) == hash(pickle.loads(pickle.dumps(bounds)))


@pytest.mark.parametrize("value", [-1.0, 0.0, nan, inf, True, "1"])
@pytest.mark.parametrize("name", ["rows", "weights", "layers", "gradients"])
def test_a_bound_is_a_positive_finite_number(name: str, value: float) -> None:
    by_layer = name in ("layers", "gradients")
    given = {"rows": 1.0, "weights": 1.0, name: {"head": value} if by_layer else value}
    with pytest.raises(ValueError, match=rf"Expected {name}.*={value!r} > 0"):
        Bounds(**given)  # type: ignore[arg-type]  # a mixed dict


def test_what_fixed_point_does_not_hold_is_no_bound() -> None:
    with pytest.raises(ValueError, match="weights=4096 < 4096"):
        Bounds(rows=1, weights=4096)
    for odd in ("head", [["head"]], [[3.0, "head"]]):
        with pytest.raises(ValueError, match=r"layers=.* \{'head': 50\.0\}"):
            Bounds(rows=1, weights=1, layers=odd)  # type: ignore[arg-type]  # that is the test


def test_layers_that_the_model_has_not_are_refused_with_the_nearest() -> None:
    nodes = translate(Residual())
    Bounds(rows=1, weights=1, layers={"model": 3.0, "head": 4.0}).check_model(nodes)
    with pytest.raises(ValueError, match=r"'secnd', but 'first', .*Did you mean 'second'\?"):
        Bounds(rows=1, weights=1, layers={"secnd": 1.0}).check_model(nodes)
    with pytest.raises(ValueError, match=r"gradients of the bounds .*'tail'"):
        Bounds(rows=1, weights=1, gradients={"tail": 1.0}).check_model(nodes)


def test_initial_weights_beyond_their_bound_are_refused_and_frozen_ones_are_not() -> None:
    first, last = nn.Linear(2, 2), nn.Linear(2, 2)
    nn.init.constant_(first.weight, 9.0)
    nn.init.constant_(last.bias, -7.5)
    first.weight.requires_grad_(False)
    model = nn.Sequential(first, nn.ReLU(), last)
    Bounds(rows=1, weights=7.5).check_model(translate(model))
    with pytest.raises(DataError, match=r"layer '2' reach 7\.5, beyond the stated weights=7\.4\."):
        Bounds(rows=1, weights=7.4).check_model(translate(model))


def test_rows_beyond_their_bound_are_refused_at_who_holds_them() -> None:
    inputs = torch.ones(4, 3)
    inputs[2, 1] = -2.5
    Bounds(rows=2.5, weights=1).check_rows(inputs, "party-1")
    with pytest.raises(DataError, match=r"party-1 reach 2\.5, .*rows=2\.4.*Column 1 .*-2\.5"):
        Bounds(rows=2.4, weights=1).check_rows(inputs, "party-1")


@pytest.mark.parametrize("name", ["0", "2", "4", "5"])
def test_the_layer_that_exceeds_its_bound_is_named(name: str) -> None:
    model, rows = made(convolutional), Rows(drawn(4, *PICTURE))
    model.requires_grad_(False)
    values, reached = rows.inputs, dict[str, float]()
    layer: Any
    for number, layer in enumerate(model.children()):
        before, values = values, layer(values)
        if number in (0, 2, 5):
            bias = layer.bias[:, None, None] if number < 5 else layer.bias
            reached[str(number)] = float(torch.maximum(values.abs(), (values - bias).abs()).max())
        if number == 4:
            reached["4"] = float(before.abs().max())
    enough = Bounds(rows=9, weights=9, layers={name: reached[name] * 1.0001})
    assert enough.broken(model, rows) == ""
    enough.check_layers(model, rows)
    small = Bounds(rows=9, weights=9, layers={name: reached[name] * 0.9999})
    with pytest.raises(DataError, match=rf"initial weights: the layer '{name}' computes .*beyond"):
        small.check_layers(model, rows)


def test_a_bias_does_not_hide_what_is_truncated_before_it() -> None:
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 3.0)
    nn.init.constant_(layer.bias, -3.0)
    model, rows = nn.Sequential(layer), Rows(torch.ones(2, 1))
    said = Bounds(rows=1, weights=3, layers={"0": 1.0}).broken(model, rows)
    assert said == "the layer '0' computes 3, beyond the stated 1.0"
    assert "weights of the layer '0' reach 3" in Bounds(rows=1, weights=2.5).broken(model, rows)
