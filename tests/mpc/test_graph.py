"""Which layers a module runs, and on what, and what is refused by name."""

import operator
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privtrain.core.errors import UnsupportedError
from privtrain.mpc.graph import calls_of


class Applies(nn.Module):
    """Applies a function to itself and the rows; has a layer of each kind."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.odd = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1))
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, rows: Tensor) -> Any:
        return self.function(self, rows)


def kinds(function: Callable[[Any, Tensor], Any]) -> list[tuple[str, str, tuple[int, ...]]]:
    calls = calls_of(Applies(function))
    return [(call.name, type(call.layer).__name__, call.sources) for call in calls]


def test_layers_in_the_order_in_which_they_run_with_what_they_take() -> None:
    assert kinds(lambda m, x: m.inner(m.inner[0](x)) + x) == [
        ("inner.0", "Linear", (0,)),
        ("inner.0", "Linear", (1,)),
        ("inner.1", "ReLU", (2,)),
        ("model", "Addition", (3, 0)),
    ]


def test_a_single_layer_is_a_model() -> None:
    (call,) = calls_of(nn.Linear(3, 2))
    assert (call.name, call.sources) == ("model", (0,))


def test_what_the_result_does_not_depend_on_is_left_out() -> None:
    def forward(model: Any, rows: Tensor) -> Tensor:
        model.odd(rows)
        return rows.relu()

    assert kinds(forward) == [("model", "ReLU", (0,))]


def test_a_subclass_with_the_forward_of_its_parent_is_a_layer() -> None:
    class Small(nn.Linear):
        def reset_parameters(self) -> None:
            nn.init.zeros_(self.weight)

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    assert len(calls_of(Small(3, 2))) == 1
    with pytest.raises(UnsupportedError, match="'model'"):
        calls_of(Doubled(3, 2))


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda m, x: functional.relu(x), "ReLU"),
        (lambda m, x: functional.relu(x, inplace=True), "ReLU"),
        (lambda m, x: torch.relu(x), "ReLU"),
        (lambda m, x: x.relu(), "ReLU"),
        (lambda m, x: torch.flatten(x, 1), "Flatten"),
        (lambda m, x: x.flatten(start_dim=1), "Flatten"),
        (lambda m, x: x.view(-1, 3), "Flatten"),
        (lambda m, x: x.view((x.size(0), -1)), "Flatten"),
        (lambda m, x: x.reshape(x.shape[0], -1), "Flatten"),
        (lambda m, x: torch.reshape(x, (x.size()[0], 3)), "Flatten"),
        (lambda m, x: x + x, "Addition"),
        (lambda m, x: operator.iadd(x, x), "Addition"),
        (lambda m, x: torch.add(x, x), "Addition"),
        (lambda m, x: x.add(x), "Addition"),
        (lambda m, x: functional.avg_pool2d(x, 2, padding=1), "AvgPool2d"),
        (lambda m, x: functional.adaptive_avg_pool2d(x, 1), "AdaptiveAvgPool2d"),
    ],
)
def test_functions_stand_as_layers(function: Callable[[Any, Tensor], Any], kind: str) -> None:
    ((name, found, sources),) = kinds(function)
    assert (name, found, set(sources)) == ("model", kind, {0})


def test_a_function_keeps_its_settings() -> None:
    call = calls_of(Applies(lambda m, x: functional.avg_pool2d(x, 3, 2, padding=1)))[0]
    assert (call.layer.kernel_size, call.layer.stride, call.layer.padding) == (3, 2, 1)
    assert calls_of(Applies(lambda m, x: x.flatten(1, 2)))[0].layer.end_dim == 2


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda m, x: m.odd(x), r"The layer 'odd\.1' \(Dropout"),
        (lambda m, x: functional.max_pool2d(x, 2), "max_pool2d in 'model'"),
        (lambda m, x: torch.tanh(x), "tanh in 'model'"),
        (lambda m, x: x.view(3, -1), "view.* in 'model'"),
        (lambda m, x: x.view(-1), "view.* in 'model'"),
        (lambda m, x: x.view(x.size(1), -1), "size.* in 'model'"),
        (lambda m, x: x.view(x.shape), "view.* in 'model'"),
        (lambda m, x: x.view(x.size(0) * 2, -1), "mul.* in 'model'"),
        (lambda m, x: x.reshape(x.shape[1], -1), "getitem.* in 'model'"),
        (lambda m, x: x.sum(x.size(0)), "sum in 'model'"),
        (lambda m, x: x + x.size(0), "size.* in 'model'"),
        (lambda m, x: x + 1, "add.* in 'model', with a constant"),
        (lambda m, x: torch.add(x, x, alpha=2), "alpha.* in 'model'"),
        (lambda m, x: x + m.weight, "tensor 'weight', which a function in 'model' reads"),
        (lambda m, x: functional.linear(x, m.weight), "tensor 'weight'"),
        (lambda m, x: x if x.sum() > 0 else -x, "control flow"),
        (lambda m, x: (x.relu(), x), "returns"),
    ],
)
def test_what_is_no_known_layer_is_named(function: Callable[[Any, Tensor], Any], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        calls_of(Applies(function))


class Slow(nn.Module):
    """Lets other threads run between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, rows: Tensor) -> Any:
        values = self.first(rows)
        time.sleep(0.005)
        return self.second(values)


def test_models_are_followed_in_several_threads_at_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: len(calls_of(Slow())), range(12))) == {2}
