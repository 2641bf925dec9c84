"""Models that are made anew: what two calls share is refused, and a value is copied."""

import collections
import copy
import functools
import gc
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from privtrain.core.models import (
    _MADE,
    Model,
    check_alike,
    described,
    made_anew,
    new_module,
    stream_of,
)
from privtrain.core.seeding import Seeds

STREAM = Seeds(0)["initialisation", 0, ""]
TABLE = torch.randn(2, 5)
MEAN = torch.zeros(5)
ARRAY = np.zeros(5, dtype=np.float32)


def linear() -> nn.Module:
    return nn.Linear(5, 2)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(linear())  # type: ignore[no-any-return]


def twice(model: Model) -> tuple[nn.Module, nn.Module]:
    first, second = made_anew(model, STREAM), made_anew(model, STREAM)
    check_alike(model, first, second)
    return first, second


class Holder(nn.Module):
    """A linear layer that holds something beside it."""

    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 2)
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


class Buffered(Holder):
    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", value)


class OfTheClass(nn.Module):
    weight_of_all = nn.Parameter(torch.randn(2, 5))

    def __init__(self) -> None:
        super().__init__()
        self.weight = OfTheClass.weight_of_all


class Box:
    """A user's own object."""

    def __init__(self, content: Any) -> None:
        self.content = content


def in_turn(count: int) -> Callable[[], nn.Module]:
    """A factory that returns one of a few equal modules in turn."""
    first = linear()
    pool = collections.deque(copy.deepcopy(first) for _ in range(count))

    def take() -> nn.Module:
        pool.rotate(1)
        return pool[0]

    return take


def same(value: Any) -> Callable[[], Any]:
    return lambda: value


def reset_of(net: nn.Linear) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net.reset_parameters()
        return net

    return make


def shared_backbone(*, frozen: bool) -> Callable[[], nn.Module]:
    backbone = nn.Linear(5, 8).requires_grad_(not frozen)
    return lambda: nn.Sequential(backbone, nn.Linear(8, 2))


def tied() -> nn.Module:
    net = nn.Linear(5, 2, bias=False)
    net.weight = nn.Parameter(TABLE)
    return net


def tied_view() -> nn.Module:
    net = nn.Linear(4, 2, bias=False)
    net.weight = nn.Parameter(TABLE[:, 1:])
    return net


SHARING: dict[str, tuple[Callable[[], Any], str]] = {
    "one module": (same(linear()), "the parameter 'weight'"),
    "cached": (functools.lru_cache(linear), "the parameter 'weight'"),
    "two in turn": (in_turn(2), "the parameter 'weight'"),
    "reset": (reset_of(nn.Linear(5, 2)), "the parameter 'weight'"),
    "backbone": (shared_backbone(frozen=False), "the parameter '0.weight'"),
    "frozen backbone": (shared_backbone(frozen=True), "the parameter '0.weight'"),
    "weights of the class": (OfTheClass, "the parameter 'weight'"),
    "a table": (tied, "the parameter 'weight'"),
    "a view of a table": (tied_view, "the parameter 'weight'"),
    "a buffer": (lambda: Buffered(MEAN), "the buffer 'mean'"),
    "a buffer over an array": (lambda: Buffered(torch.from_numpy(ARRAY)), "the buffer 'mean'"),
    "a tensor": (lambda: Holder(mean=MEAN), "the attribute 'mean'"),
    "an array": (lambda: Holder(mean=ARRAY), "the attribute 'mean'"),
    "a view of an array": (lambda: Holder(mean=ARRAY[2:]), "the attribute 'mean'"),
    "a tensor in a tuple": (lambda: Holder(held=(1, MEAN)), r"the attribute 'held\[1\]'"),
    "a tensor in an object": (lambda: Holder(box=Box(MEAN)), "the attribute 'box.content'"),
    "a list": (functools.partial(Holder, held=[]), "the list 'held'"),
    "a dict": (functools.partial(Holder, held={}), "the dict 'held'"),
    "a set": (functools.partial(Holder, held=set()), "the set 'held'"),
    "a deque": (functools.partial(Holder, held=collections.deque()), "the deque 'held'"),
    "a list in an object": (functools.partial(Holder, box=Box([])), "the list 'box.content'"),
    "scripted": (same(scripted()), "the parameter 'weight'"),
}


@pytest.mark.parametrize("name", SHARING)
def test_what_two_calls_share_is_refused_by_name(name: str) -> None:
    make, what = SHARING[name]
    with pytest.raises(ValueError, match=f"to make a new module .*{what}"):
        for _ in range(3):  # two modules in turn show only when the first one comes back
            twice(make)


NET, ACTIVATION = nn.Linear(5, 2), nn.ReLU()
MADE_ANEW: dict[str, Callable[[], nn.Module]] = {
    "plain": linear,
    "copy": lambda: copy.deepcopy(NET),
    "one activation for all": lambda: nn.Sequential(nn.Linear(5, 2), ACTIVATION),
    "own list": lambda: Holder(held=[1, 2], more={"a": np.zeros(2)}),
    "a shared tuple": functools.partial(Holder, held=(1, 2)),
    "not a number": lambda: Buffered(torch.full((3,), torch.nan)),
    "scripted": scripted,
    "compiled": lambda: torch.compile(linear(), backend="eager"),  # type: ignore[return-value]
    "tied within": lambda: tied_within(),
    "empty": lambda: Buffered(torch.zeros(0)),
}


def tied_within() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    return net


@pytest.mark.parametrize("name", MADE_ANEW)
def test_what_is_made_anew_passes(name: str) -> None:
    for _ in range(3):
        first, second = twice(MADE_ANEW[name])
        assert first is not second


def test_a_value_is_copied_without_its_gradients() -> None:
    net = nn.Linear(5, 2)
    net(torch.ones(1, 5)).sum().backward()
    first, second = twice(net)
    assert torch.equal(first.weight, net.weight)  # type: ignore[arg-type]
    assert first.weight.grad is None and net.weight.grad is not None
    with torch.no_grad():
        first.weight.fill_(7.0)  # type: ignore[operator]
    assert not bool((net.weight == 7.0).any() or (second.weight == 7.0).any())


def test_a_copy_keeps_what_is_frozen_tied_or_scripted() -> None:
    net = tied_within()
    net[0].bias.requires_grad_(False)  # type: ignore[index]
    copied: Any = new_module(net)
    assert copied[0].weight is copied[1].weight
    assert not copied[0].bias.requires_grad and copied[1].bias.requires_grad
    assert all(p.is_leaf and p.requires_grad for p in new_module(scripted()).parameters())


def test_a_value_that_holds_a_graph_says_so() -> None:
    net = Holder()
    net.peek = net(torch.ones(1, 5))
    with pytest.raises(ValueError, match="model=Holder to be a module that can be copied"):
        new_module(net)


def test_what_is_random_outside_of_the_stream_is_refused() -> None:
    generator = np.random.default_rng(0)

    def own() -> nn.Module:
        return Holder(matrix=generator.normal(size=3))

    with pytest.raises(ValueError, match="two calls differ in the attribute 'matrix'"):
        twice(own)
    count = iter(range(9))
    with pytest.raises(ValueError, match="two calls differ in the parameter"):
        twice(lambda: nn.Linear(5, 1 + next(count)))
    names = iter("ab")
    with pytest.raises(ValueError, match=r"two calls differ in the parameter 'a\.bias'"):
        twice(lambda: nn.Sequential(collections.OrderedDict({next(names): linear()})))
    dtypes = iter((torch.float32, torch.float64))
    with pytest.raises(ValueError, match="two calls differ in the buffer 'mean'"):
        twice(lambda: Buffered(torch.zeros(3, dtype=next(dtypes))))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: 3, "to return an nn.Module, not 3"),
        (lambda: nn.LazyLinear(2), "the parameter 'weight' has none yet. Give lazy layers"),
        (lambda: nn.Linear(5, 2, device="meta"), "the parameter 'weight' has none yet"),
    ],
)
def test_what_is_no_module_with_values_is_refused(make: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        made_anew(make, STREAM)


def test_a_place_may_be_used_again_once_its_model_is_gone() -> None:
    """Thousands of models are made in a run, and memory is given out again."""
    known = len(_MADE._known)
    for _ in range(50):
        made_anew(linear, STREAM)
    gc.collect()
    assert len(_MADE._known) <= known + 8


def test_a_model_knows_its_stream() -> None:
    made = made_anew(linear, STREAM)
    assert stream_of(made) == STREAM
    assert stream_of(nn.Linear(5, 2)) is None


def test_a_value_is_described_by_its_layers_and_values() -> None:
    net, other = nn.Linear(5, 2), nn.Linear(5, 2)
    assert described(net) == described(copy.deepcopy(net)) != described(other)
    assert described(net).startswith("Linear(in_features=5")


def test_a_module_of_inference_mode_is_refused_by_name() -> None:
    def frozen_mean() -> nn.Module:
        module = nn.BatchNorm1d(5)
        with torch.inference_mode():
            module.register_buffer("running_mean", torch.zeros(5))
        return module

    with pytest.raises(ValueError, match=r"'running_mean' was made within torch.inference_mode"):
        made_anew(frozen_mean, STREAM)
