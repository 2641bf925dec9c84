"""What classes, objects and layers hold of their own counts."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from privtrain.core.identity import value_digest
from privtrain.core.members import attributes_of, set_by_torch

CLASSES = [
    "class A:\n __call__ = functools.partial(lambda k, o: o * k, {n})",
    "class A:\n def g(self, k, o): return o * k\n __call__ = functools.partialmethod(g, {n})",
    "class A:\n @property\n def k(self): return self._k\n @k.setter\n"
    " def k(self, v): self._k = v * {n}",
    "class A:\n @property\n def k(self): return 1\n @k.deleter\n def k(self): self.j = {n}",
    "class A:\n __k__ = {n}",
    "class M(type):\n def __getattr__(cls, name): return {n}\nclass A(metaclass=M): pass",
    "class A(float):\n def __mul__(self, x): return x * {n}",
    "class A(str):\n def apply(self, x): return x * {n}",
    "class A(int):\n pass\nown = A(3); own.k = {n}",
    "class A(list): pass\nown = A([1]); own.k = {n}",
    "class A(dict): pass\nown = A(); own.k = {n}",
    "class A(set): pass\nown = A(); own.k = {n}",
    "from enum import Enum\nclass E(Enum):\n X = 1\n def rate(self): return {n}\nown = E.X",
    "from enum import Enum\nclass E(str, Enum):\n X = 'x'\n def rate(self): return {n}\nown = E.X",
    "from dataclasses import dataclass\n@dataclass\nclass A:\n x: int = 1\nown = A(); own.k = {n}",
    "own = collections.defaultdict(lambda: {n})",
    "own = [1, 0] if {n} == 1 else (1, 0)",
    "own = torch.ones(2); own.k = {n}",
    "class A:\n @functools.singledispatchmethod\n def f(self, x): return 0\n"
    " @f.register\n def _(self, x: int): return {n}",
    "@functools.singledispatch\ndef own(x): return 0\n@own.register\ndef g(x: int): return {n}",
]


def executed(source: str) -> Any:
    space: dict[str, Any] = {}
    exec("import functools, collections, torch\n" + source, space)
    return space["own"] if "own" in space else space["A"]()


@pytest.mark.parametrize("source", CLASSES)
def test_whatever_a_class_or_an_object_holds_counts(source: str) -> None:
    one, same, other = (value_digest(executed(source.format(n=n))) for n in (1, 1, 2))
    assert one == same != other


def test_calls_of_a_dispatching_function_change_nothing() -> None:
    own = executed("@functools.singledispatch\ndef own(x): return 0")
    before = value_digest(own)
    own(1), own("a")
    assert value_digest(own) == before


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(2, 2)


def hooked(kind: str, n: int) -> nn.Module:
    made = layer()
    if kind == "gradient":
        made.weight.register_hook(lambda g: g * n)
    elif kind == "accumulated":
        made.weight.register_post_accumulate_grad_hook(lambda p: p.mul_(n))
    elif kind == "attribute":
        setattr(made, "_scale", n)  # noqa: B010
    elif kind == "of the weight":
        setattr(made.weight, "scale", n)  # noqa: B010
    elif kind == "keywords":
        made.register_forward_hook(lambda *given: None, with_kwargs=n == 2)
    else:
        getattr(made, kind)(lambda *given: given[n])
    return made


@pytest.mark.parametrize(
    "kind",
    [
        *("gradient", "accumulated", "attribute", "of the weight", "keywords"),
        *("register_full_backward_pre_hook", "register_full_backward_hook"),
        *("register_forward_hook", "register_forward_pre_hook", "register_state_dict_post_hook"),
        *("register_load_state_dict_pre_hook", "register_load_state_dict_post_hook"),
    ],
)
def test_hooks_and_attributes_of_layers_count(kind: str) -> None:
    if kind == "register_state_dict_post_hook" and not hasattr(nn.Module, kind):
        pytest.skip("another version of torch")
    one, same, other = (value_digest(hooked(kind, n)) for n in (1, 1, 2))
    assert one == same != other
    assert one != value_digest(layer())


@pytest.mark.parametrize(
    "make",
    [
        lambda: parametrizations.weight_norm(layer()),
        lambda: parametrizations.spectral_norm(layer()),
        lambda: nn.utils.weight_norm(layer()),
        lambda: nn.TransformerEncoderLayer(4, 2, batch_first=True),
        lambda: nn.LSTM(2, 2),
        lambda: nn.Conv2d(1, 2, 3, padding=1),
    ],
)
def test_equal_layers_of_torch_have_equal_digests(make: Any) -> None:
    seen = []
    for _ in range(2):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seen.append(value_digest(make()))
    assert seen[0] == seen[1]


def test_what_torch_sets_itself_is_told_from_what_a_user_sets() -> None:
    made = nn.Conv2d(1, 2, 3, padding=1)
    made._own = 3  # type: ignore[assignment]
    assert set_by_torch(made) == {"_reversed_padding_repeated_twice"}
    assert attributes_of(made)["_own"] == 3
