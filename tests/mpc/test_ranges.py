import pytest
import torch
from torch import nn

from privtrain.core.errors import DataError
from privtrain.core.task import Rows
from privtrain.mpc.crypten.engine import CrypTen
from privtrain.mpc.ranges import (
    LARGEST_OUTPUT,
    check_logits,
    check_weights,
    largest_output,
    largest_product,
    wrong_truncations,
)
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.sigmoid import REACH
from privtrain.mpc.sharing import LARGEST
from tests.mpc.one_party import few_bits


def a_model(weight: float, second: float = 1.0) -> nn.Sequential:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    for layer, value in ((model[1], weight), (model[3], second)):
        nn.init.constant_(layer.weight, value)
        nn.init.zeros_(layer.bias)
    return model


def test_the_expected_number_of_wrong_truncations_is_counted_over_all_layers() -> None:
    rows = Rows(torch.ones(5, 3))
    # Five rows and two outputs a layer: 30 and 60 of them, integers at 32 bits, over 2^64.
    expected = 5 * 2 * (30 + 60) * 2.0**32 / 2.0**64
    assert wrong_truncations(a_model(10.0), rows, weights="initial") == pytest.approx(expected)
    # What a rectifier leaves out does not reach the next layer.
    halved = wrong_truncations(a_model(-10.0), rows, weights="initial")
    assert halved == pytest.approx(5 * 2 * 30 * 2.0**-32)


@pytest.mark.parametrize(("first", "second", "layer"), [(2.0**19, 1.0, 0), (2.0, 2.0**18, 1)])
def test_the_layer_and_the_column_out_of_range_are_named(
    first: float, second: float, layer: int
) -> None:
    inputs = torch.ones(4, 1, 3)
    inputs[2, 0, 1] = 2.5
    with pytest.raises(DataError, match=rf"linear layer {layer} .*opened.*Column \(0, 1\) .* to 2"):
        wrong_truncations(a_model(first, second), Rows(inputs), weights="opened")
    assert LARGEST_OUTPUT < 2.0**31, "where products wrap around"


def test_outputs_stay_below_what_the_engine_has_bits_for() -> None:
    assert largest_product(Ring64()) == largest_product(CrypTen()) == LARGEST_OUTPUT
    # 42 bits, of which both factors have 16 after the point.
    limit = largest_product(few_bits())
    assert limit == 2.0**10
    # Each layer multiplies by three times its weight, and then by two.
    for weight, fits in ((128.0, True), (256.0, False)):
        rows = Rows(torch.full((1, 3), 1.2))
        model = a_model(weight, 1.0)
        assert largest_output(model, rows) == pytest.approx(weight * 7.2)
        if fits:
            wrong_truncations(model, rows, weights="initial", limit=limit)
            continue
        with pytest.raises(DataError, match=r"values from 1024 on are cut"):
            wrong_truncations(model, rows, weights="initial", limit=limit)
        wrong_truncations(model, rows, weights="initial")


def test_initial_weights_that_cannot_be_shared_are_named() -> None:
    check_weights(a_model(LARGEST - 1))
    # What rounds up to the bound depends on the bits.
    close = a_model(1.0).double()
    nn.init.constant_(close[1].weight, LARGEST - 2.0**-15)
    check_weights(close)
    with pytest.raises(DataError, match=r"'1\.weight'"):
        check_weights(close, 14)
    with pytest.raises(DataError, match=r"'3\.weight'"):
        check_weights(a_model(1.0, LARGEST))


def test_pictures_and_sums_are_looked_at() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    rows = Rows(torch.ones(2000, 1, 3, 3))
    # Four outputs of 12 and two of 45 a row, without biases, in two parts of the rows.
    expected = 2000 * (4 * 12 + 2 * 45) * 2.0**-32
    assert wrong_truncations(model, rows, weights="initial") == pytest.approx(expected)
    nn.init.constant_(model[0].weight, 2.0**19)
    with pytest.raises(DataError, match=r"the convolution '0' reach 2\.09715e\+06"):
        wrong_truncations(model, rows, weights="initial")

    class Doubles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.head(inputs + inputs)  # type: ignore[no-any-return]

    with pytest.raises(DataError, match="the addition in 'model' reach"):
        wrong_truncations(Doubles(), Rows(torch.full((2, 3), 2.0**19)), weights="initial")


def test_logits_beyond_the_reach_of_the_logistic_function_are_refused() -> None:
    layer = nn.Linear(3, 1, bias=False)
    nn.init.constant_(layer.weight, REACH / 3)
    rows = Rows(-torch.ones(2000, 3))
    assert largest_output(layer, rows) == pytest.approx(REACH)
    nn.init.constant_(layer.weight, 18.5)
    check_logits(layer, Rows(torch.ones(4, 3)))
    rows.inputs[-1] = 1.5
    with pytest.raises(DataError, match=r"reach 83\.25 .*initial.* beyond 56.*Column 0"):
        check_logits(layer, rows)
