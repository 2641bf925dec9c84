"""What can be reached from a module, and whether it has changed."""

import collections
import functools
import queue
import threading
from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtrain.core.reachable import changed, inside, snapshot, tensor_digest, walk

SEEN: list[Any] = []
TOTAL = 0.0
X = torch.arange(10.0).reshape(2, 5)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.keep(x.detach())
        return self.inner(x)  # type: ignore[no-any-return]

    def keep(self, x: Tensor) -> None:
        """Overridden."""


class Slotted:
    __slots__ = ("content",)


class InList(Layer):
    seen: ClassVar[list[Any]] = []

    def keep(self, x: Tensor) -> None:
        self.seen.append(x)


class InFloats(Layer):
    seen: ClassVar[list[Any]] = []

    def keep(self, x: Tensor) -> None:
        self.seen.extend(x.flatten().tolist())


class InParent(InList):
    """Keeps what it saw in a list of its parent."""


class InAttribute(Layer):
    def keep(self, x: Tensor) -> None:
        type(self).last = x  # type: ignore[attr-defined]


class InNumber(Layer):
    total: ClassVar[float] = 0.0

    def keep(self, x: Tensor) -> None:
        type(self).total += float(x.sum())


class InPlace(Layer):
    table = torch.zeros(5)

    def keep(self, x: Tensor) -> None:
        self.table.copy_(x[0])


class InArray(Layer):
    table = np.zeros(5)

    def keep(self, x: Tensor) -> None:
        self.table[:] = x[0].numpy()


class InDeque(Layer):
    seen: ClassVar[Any] = collections.deque(maxlen=1)

    def keep(self, x: Tensor) -> None:
        self.seen.append(x)


class InKeys(Layer):
    seen: ClassVar[dict[Any, int]] = {}

    def keep(self, x: Tensor) -> None:
        self.seen[x] = 1


class InObject(Layer):
    memory: ClassVar[Any] = Slotted()

    def keep(self, x: Tensor) -> None:
        self.memory.content = x


class InNamespace(Layer):
    memory: ClassVar[Any] = SimpleNamespace()

    def keep(self, x: Tensor) -> None:
        self.memory.content = x


class InQueue(Layer):
    memory: ClassVar[Any] = queue.Queue()

    def keep(self, x: Tensor) -> None:
        self.memory.put(x)


class InNumbers(Layer):
    memory: ClassVar[Any] = array("d")

    def keep(self, x: Tensor) -> None:
        self.memory.extend(x.flatten().tolist())


class InThread(Layer):
    memory: ClassVar[Any] = threading.local()

    def keep(self, x: Tensor) -> None:
        self.memory.content = x


class InDefault(Layer):
    def keep(self, x: Tensor, kept: list[Any] = []) -> None:  # noqa: B006 - what is tried
        kept.append(x)


class InKeyword(Layer):
    def keep(self, x: Tensor, *, kept: list[Any] = []) -> None:  # noqa: B006 - what is tried
        kept.append(x)


class InGlobal(Layer):
    def keep(self, x: Tensor) -> None:
        SEEN.append(x)


class InNumberOfTheModule(Layer):
    def keep(self, x: Tensor) -> None:
        global TOTAL
        TOTAL += float(x.sum())


def helper(x: Tensor) -> None:
    SEEN.append(x)


class InFunction(Layer):
    def keep(self, x: Tensor) -> None:
        (lambda: helper(x))()


class InCache(Layer):
    @staticmethod
    @functools.lru_cache
    def remembered(x: Tensor) -> Tensor:
        return x

    def keep(self, x: Tensor) -> None:
        self.remembered(x)


class InAttributeOfAFunction(Layer):
    def keep(self, x: Tensor) -> None:
        helper.last = x  # type: ignore[attr-defined]


def grab(store: list[Any], layer: nn.Module, inputs: Any, output: Any) -> None:
    store.append(inputs[0].detach())


def in_closure() -> nn.Module:
    kept: list[Any] = STORES.setdefault("closure", [])
    layer = Layer()
    layer.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0].detach()))
    return layer


def in_partial() -> nn.Module:
    layer = Layer()
    layer.register_forward_hook(functools.partial(grab, STORES.setdefault("partial", [])))
    return layer


STORES: dict[str, list[Any]] = {}
KEEPERS: list[Callable[[], nn.Module]] = [
    *(InList, InFloats, InParent, InAttribute, InNumber, InPlace, InArray, InDeque, InKeys),
    *(InObject, InDefault, InKeyword, InGlobal, InNumberOfTheModule, InFunction, InCache),
    *(InNamespace, InQueue, InNumbers, InThread),
    *(InAttributeOfAFunction, in_closure, in_partial),
]


@pytest.mark.parametrize("make", KEEPERS, ids=lambda make: make.__name__)
def test_what_a_model_keeps_outside_of_itself_is_seen_from_another_one(
    make: Callable[[], nn.Module],
) -> None:
    other, model = make(), make()
    for number in range(2):
        before = snapshot(other)
        assert changed(before, snapshot(other)) == []
        model(X + number)
        assert changed(before, snapshot(other)) != []


@pytest.mark.parametrize(
    "make",
    [Layer, lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))],
    ids=["own", "torch"],
)
def test_training_and_what_stays_within_a_model_change_nothing_outside(
    make: Callable[[], nn.Module],
) -> None:
    other, model = make(), make()
    before = snapshot(other)
    model.train()(X).sum().backward()
    model.eval()
    model.peek = X  # type: ignore[assignment]
    assert changed(before, snapshot(other)) == []
    assert changed(snapshot(Layer()), snapshot(Layer())) == []


def test_a_tensor_is_named_before_a_number() -> None:
    before = {"b": "1", "c": "2"}
    after = {"a": "3", "b": "1", "c": "Tensor ab", "d": "ndarray cd"}
    assert changed(before, after) == ["c", "d", "a"]
    assert changed(after, before) == ["c"]


def test_paths_are_those_of_a_reader() -> None:
    model = nn.Sequential(Layer())
    layer: Any = model[0]
    layer.memory = {"rows": [X], 3: (X + 1,)}
    paths = {path for path, value in walk(model, inside) if isinstance(value, Tensor)}
    assert paths == {
        "0.inner.weight",
        "0.inner.bias",
        "0.memory['rows'][0]",
        "0.memory[1][0]",
    }


def test_what_hangs_on_a_parameter_is_reached() -> None:
    layer: Any = nn.Linear(5, 2)
    layer(X).sum().backward()
    layer.weight.note = X
    paths = {path for path, _ in walk(layer, inside)}
    assert {"weight.grad", "bias.grad", "weight.note"} <= paths


def test_a_value_that_holds_itself_ends() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    assert [path for path, _ in walk(ring, inside)] == ["", "[0]"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_digest_is_that_of_values_shape_and_type(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[1, 0], [0, 1]]).to(dtype)
    digest = tensor_digest(tensor)
    assert digest == tensor_digest(tensor.t().contiguous().t())
    assert digest != tensor_digest(tensor.reshape(4))
    assert digest != tensor_digest(tensor.to(torch.float64))
    assert digest != tensor_digest(torch.zeros_like(tensor))
    assert tensor_digest(torch.ones(())) != tensor_digest(torch.zeros(()))
