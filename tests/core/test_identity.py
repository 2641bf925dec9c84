"""What identifies a value: what it computes, and nothing of where it lies."""

import functools
import math
import operator
import os
import subprocess
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtrain.core.identity import value_digest, without_addresses

SOURCE = """
SCALE = {scale}
def helper(x):
    return x * SCALE
def loss(outputs, targets, weight={weight}):
    "{doc}"
    return [helper(outputs) + weight + {constant} for _ in range(2)]
def made(inner):
    def closed(x):
        return x + inner
    return closed
class Net:
    rate = {rate}
    def forward(self, x):
        return x {sign} self.rate
"""
USUAL = {"scale": 2, "weight": 1, "doc": "What.", "constant": 3, "rate": 0.5, "sign": "+"}


def compiled(name: str = "one", before: str = "", **other: Any) -> Any:
    """A module of that text, under a name and behind some lines."""
    module = ModuleType(name)
    code = compile(before + SOURCE.format(**(USUAL | other)), f"/somewhere/{name}.py", "exec")
    module.__dict__["__name__"] = name
    exec(code, module.__dict__)
    return module


def test_a_function_that_moved_is_the_same() -> None:
    here, there = compiled("one"), compiled("other", before="# a comment\n\n\n")
    assert value_digest(here.loss) == value_digest(there.loss)
    assert value_digest(here.made(4)) == value_digest(there.made(4))
    assert value_digest(here.Net) == value_digest(there.Net)
    assert value_digest(compiled(doc="Another text.").loss) == value_digest(here.loss)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"constant": 4}, "loss"),
        ({"weight": 1.0}, "loss"),
        ({"scale": 3}, "loss"),
        ({"rate": 0.25}, "Net"),
        ({"sign": "-"}, "Net"),
    ],
)
def test_a_function_that_computes_something_else_is_another(
    change: dict[str, Any], what: str
) -> None:
    assert value_digest(getattr(compiled(), what)) != value_digest(
        getattr(compiled(**change), what)
    )


def test_closures_defaults_and_partials_count() -> None:
    module = compiled()
    assert value_digest(module.made(4)) != value_digest(module.made(5))
    sgd = functools.partial(torch.optim.SGD, momentum=0.9)
    assert value_digest(sgd) == value_digest(functools.partial(torch.optim.SGD, momentum=0.9))
    assert value_digest(sgd) != value_digest(functools.partial(torch.optim.SGD, momentum=0.8))
    assert value_digest(sgd) != value_digest(functools.partial(torch.optim.RMSprop, momentum=0.9))


def test_a_function_that_ran_is_the_same() -> None:
    module = compiled()
    before = value_digest(module.helper)
    for _ in range(10_000):  # the interpreter specialises what runs often
        module.helper(3)
    assert value_digest(module.helper) == before


def test_what_calls_itself_ends() -> None:
    def turn(x: int) -> int:
        return 0 if x == 0 else turn(x - 1)

    assert value_digest(turn) == value_digest(turn)


class Same(nn.Module):
    """Prints like its twin and has the same layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x))


def twin() -> nn.Module:
    """A model of the same name, print and weights that computes something else."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x))

    kind: Any = type("Same", (nn.Module,), {"forward": forward, "__module__": __name__})
    model = kind()
    model.layer = nn.Linear(2, 2)
    assert isinstance(model, nn.Module)
    return model


def test_models_count_by_print_weights_and_code() -> None:
    torch.manual_seed(0)
    one, other = Same(), Same()
    assert value_digest(one) != value_digest(other)
    other.load_state_dict(one.state_dict())
    assert value_digest(one) == value_digest(other)
    unlike = twin()
    unlike.load_state_dict(one.state_dict())
    assert repr(unlike) == repr(one)
    assert value_digest(one) != value_digest(unlike)
    other.scale = 2.0  # type: ignore[assignment]
    assert value_digest(one) != value_digest(other)


def test_hooks_count_by_what_they_do_and_not_by_their_number() -> None:
    def hook(*given: object) -> None:
        return None

    def made(hooks: int) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        for _ in range(hooks):
            model.register_forward_hook(hook)
        return model

    assert value_digest(made(1)) == value_digest(made(1))
    assert value_digest(made(1)) != value_digest(made(2))


@dataclass(frozen=True)
class Setting:
    """A value with a field."""

    size: Any = 1


@dataclass(frozen=True)
class OtherSetting:
    """Another kind with the same field."""

    size: Any = 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        ("1", 1),
        (("ab", "c"), ("a", "bc")),
        ((1, (2,)), ((1, 2),)),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (Setting(), OtherSetting()),
        (Setting(0.1), Setting(0.1 + 1e-17 + 2e-17)),
        (torch.zeros(2), torch.zeros(2, 1)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (np.zeros(2), np.ones(2)),
        (operator.itemgetter(0), operator.itemgetter(1)),
        (math.sin, math.cos),
        (nn.MSELoss(reduction="none"), nn.L1Loss(reduction="none")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_values_have_other_digests(one: object, other: object) -> None:
    assert value_digest(one) != value_digest(other)
    assert value_digest(one) == value_digest(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({1, 2, 3}, {3, 2, 1}),
        (Setting((1, 2)), Setting((1, 2))),
        (torch.ones(2, 3).t(), torch.ones(3, 2)),
        (torch.ones(2).bfloat16(), torch.ones(2).bfloat16()),
        (operator.itemgetter(0), operator.itemgetter(0)),
        (object(), object()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_equal_values_have_equal_digests(one: object, other: object) -> None:
    assert value_digest(one) == value_digest(other)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_scripted_function_counts_by_its_code() -> None:
    def plus(x: Tensor) -> Tensor:
        return x + 1

    def minus(x: Tensor) -> Tensor:
        return x - 1

    script: Any = torch.jit.script
    assert value_digest(script(plus)) == value_digest(script(plus))
    assert value_digest(script(plus)) != value_digest(script(minus))


def test_addresses_are_left_out() -> None:
    assert without_addresses("<function f at 0x7f00>") == "<function f>"


READ = SimpleNamespace(smooth=0.0)
CRITERION: Any = nn.CrossEntropyLoss(reduction="none")
NAMES = np.array(["no", "yes"])


def reads_a_namespace(x: float) -> float:
    return x * READ.smooth


def calls_a_criterion(x: Tensor, y: Tensor) -> Tensor:
    out: Tensor = CRITERION(x, y)
    return out


def reads_words() -> int:
    return len(NAMES)


def test_whatever_a_function_reads_from_its_module_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [value_digest(f) for f in (reads_a_namespace, calls_a_criterion, reads_words)]
    monkeypatch.setitem(globals(), "READ", SimpleNamespace(smooth=0.9))
    smooth = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.5)
    monkeypatch.setitem(globals(), "CRITERION", smooth)
    monkeypatch.setitem(globals(), "NAMES", np.array(["no", "or"]))
    after = [value_digest(f) for f in (reads_a_namespace, calls_a_criterion, reads_words)]
    assert not set(before) & set(after)


def test_a_hidden_attribute_of_a_module_counts() -> None:
    class Focal(nn.Module):
        def __init__(self, gamma: float) -> None:
            super().__init__()
            self._gamma = gamma

    assert value_digest(Focal(1.0)) != value_digest(Focal(2.0))
    assert value_digest(Focal(1.0)) == value_digest(Focal(1.0))


def test_a_dataclass_counts_by_its_code_too() -> None:
    made = []
    for sign in (1, -1):
        space: dict[str, Any] = {"dataclass": dataclass, "__name__": "own"}
        code = f"@dataclass(frozen=True)\nclass Own:\n    def __call__(self, x): return {sign} * x"
        exec(code, space)
        made.append(value_digest(space["Own"]()))
    assert made[0] != made[1]


def test_a_function_of_a_library_that_was_made_of_an_own_one_counts_by_it() -> None:
    def one(x: Tensor) -> Tensor:
        return x + 1

    def other(x: Tensor) -> Tensor:
        return x - 1

    assert value_digest(torch.vmap(one)) != value_digest(torch.vmap(other))
    assert value_digest(torch.no_grad()(one)) != value_digest(torch.no_grad()(other))


def test_equal_parts_count_alike_whether_they_are_one_object() -> None:
    part = Setting(1)
    assert value_digest((part, part)) == value_digest((Setting(1), Setting(1)))


def test_a_name_of_an_attribute_is_no_global(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(layer: Any) -> Any:
        return layer.weight.data

    before = value_digest(scaled)
    monkeypatch.setitem(globals(), "data", "something of the script")
    assert value_digest(scaled) == before


@pytest.mark.parametrize(
    "value",
    [
        np.array(["a", "b"]),
        np.array(["2026-01-01"], dtype="datetime64[D]"),
        np.arange(6)[::-2],
        np.array([1, None], dtype=object),
        torch.zeros(2, device="meta"),
        torch.view_as_complex(torch.ones(2, 2)).conj(),
        torch.eye(3).to_sparse(),
        nn.LazyLinear(3),
        nn.LSTM(2, 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_unusual_arrays_have_a_digest(value: object) -> None:
    assert value_digest(value) == value_digest(value)


def executed(source: str, **space: Any) -> Any:
    """What a cell of a notebook makes, which has no file and perhaps no name."""
    exec(source, space)
    return space["own"]


@pytest.mark.parametrize(
    "source",
    [
        "def own(x): return x + {n}",
        "own = lambda x: x + {n}",
        "class own:\n def __call__(self, x): return x + {n}",
        "class A:\n def rate(self): return {n}\nown = A()",
        "class A:\n def rate(self): return {n}\nown = A().rate",
        "class A:\n __slots__ = ('rate',)\nown = A(); own.rate = {n}",
        "class A(tuple):\n def __call__(self, x): return {n}\nown = A()",
        "class A(dict):\n def rate(self): return {n}\nown = A()",
        "import functools\nclass A:\n @functools.cached_property\n def rate(self): return {n}\n"
        "own = A()",
        "import functools, torch\n@functools.wraps(torch.relu_)\ndef f(x): return x + {n}\nown = f",
        "import functools\nfrom torch.nn.functional import relu\n@functools.wraps(relu)\n"
        "def own(x): return x + {n}",
        "import functools\ndef f(x, y): return x + y\nown = functools.partial(f, {n})",
        "def own(x): return own.rate * x\nown.rate = {n}",
        "from enum import Enum\nclass Rate(Enum):\n HIGH = {n}\nown = Rate.HIGH",
        "import numpy as np\nown = np.random.default_rng({n})",
        "import re\nown = re.compile('a' * 300 + '{n}')",
        "def outer():\n k = {n}\n def inner(x): return x + k\n return inner\nown = outer()",
    ],
)
def test_code_without_a_file_counts_by_what_it_does(source: str) -> None:
    one, same, other = (value_digest(executed(source.format(n=n))) for n in (1, 1, 2))
    assert one == same != other


def test_functions_of_libraries_that_bear_one_name_are_told_apart() -> None:
    values = [math.exp, np.exp, torch.exp, str.upper, bytes.upper, torch.Tensor.add, torch.add]
    assert len({value_digest(value) for value in values}) == len(values)


def test_frozen_weights_are_another_model() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    before = value_digest(model)
    model.weight.requires_grad_(False)
    assert value_digest(model) != before


def test_a_long_table_counts_by_all_its_cells() -> None:
    pandas = pytest.importorskip("pandas")
    column = list(range(1000))
    one, same = (pandas.DataFrame({"a": column}) for _ in range(2))
    other = pandas.DataFrame({"a": [*column[:500], -1, *column[501:]]})
    assert repr(one) == repr(other)
    assert value_digest(one) == value_digest(same) != value_digest(other)


def test_a_module_within_a_module_counts() -> None:
    inner, outer = ModuleType("own_outer.inner"), ModuleType("own_outer")
    inner.__dict__["RATE"] = 1
    outer.__dict__["inner"] = inner
    read = executed("def own(x): return x * outer.inner.RATE", outer=outer)
    before = value_digest(read)
    inner.__dict__["RATE"] = 2
    assert value_digest(read) != before


PROCESS = """
import functools, torch, privtrain as pt
from privtrain.core.identity import value_digest
def own(x): return x in {"a", "b", "c"} and {1, 2, "z"}
class Called:
    known = {"x", "y", "zz"}
    def __call__(self, x): return own(x)
parts = (own, Called(), Called().__call__, functools.partial(torch.optim.SGD, momentum=0.5))
print(value_digest(*parts, pt.DPSGD(optimizer=own), pt.FedAvg(), torch.exp).hex())
"""


@pytest.mark.slow
def test_every_process_finds_the_same_digest() -> None:
    made = [
        subprocess.run(
            [sys.executable, "-c", PROCESS],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert made[0] == made[1] != b""
