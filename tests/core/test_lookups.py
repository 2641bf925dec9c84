"""What a function looks up when it runs."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest
import torch

from privtrain.core.identity import value_digest
from privtrain.core.lookups import all_names, imported_by, lookups
from privtrain.core.task import FederatedData, Rows

CALLS: list[int] = []
COUNT = 0
RATES = [0.5]


def recording(x: float) -> float:
    """Writes down, and reads nothing of it."""
    global COUNT
    COUNT += 1
    CALLS.append(1)
    return x


def annealing(x: float) -> float:
    global COUNT
    COUNT += 1
    return x * COUNT


def looking_back(x: float) -> float:
    RATES.append(x)
    return x * RATES[0]


def handing_on(x: float) -> int:
    log = CALLS
    log.append(1)
    return len(log)


def nested(x: float) -> list[float]:
    return [scaled(x) for _ in range(2)]


def scaled(x: float) -> float:
    return x * RATES[-1]


def names_read(code: CodeType, value: object) -> set[str]:
    """Names of which the code learns something, where such a value stands under each."""
    return {each.name for each in lookups(code) if each.learns(value)}


def test_what_is_only_written_down_is_not_read() -> None:
    assert names_read(recording.__code__, []) == set()
    assert names_read(annealing.__code__, 1) == {"COUNT"}
    assert names_read(looking_back.__code__, []) == {"RATES"}
    assert "CALLS" in names_read(handing_on.__code__, [])


def test_a_function_that_counts_its_calls_stays_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed() -> Callable[[float], float]:
        seen: list[float] = []
        number = 0

        def function(x: float) -> float:
            nonlocal number
            number += 1
            seen.append(x)
            return x

        return function

    own = closed()
    before = value_digest(recording), value_digest(own)
    recording(1.0), own(1.0)
    assert (value_digest(recording), value_digest(own)) == before
    steps = value_digest(annealing), value_digest(looking_back)
    monkeypatch.setitem(globals(), "COUNT", 9)
    monkeypatch.setitem(globals(), "RATES", [0.1])
    assert not {*steps} & {value_digest(annealing), value_digest(looking_back)}


def test_names_of_functions_inside_count() -> None:
    assert "scaled" in names_read(nested.__code__, scaled)
    assert "range" in all_names(nested.__code__)


def written(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_modules_that_a_function_imports_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def local(x: float) -> Any:
        from own_lookups_local import change  # type: ignore[import-not-found]

        return change(x)

    seen = []
    for number in (1, 2, 1):
        text = f"def change(x): return x + {number}"
        written(tmp_path / str(len(seen)), "own_lookups_local", text, monkeypatch)
        seen.append(value_digest(local))
    assert seen[0] == seen[2] != seen[1]


def test_installed_and_missing_modules_count_by_their_name() -> None:
    def local() -> None:
        import no_such_module_at_all  # type: ignore[import-not-found]  # noqa: F401
        import numpy  # noqa: F401

    assert dict(imported_by(local)) == {
        "no_such_module_at_all": "no_such_module_at_all",
        "numpy": "numpy",
    }


def own(source: str, name: str = "own", **space: object) -> Any:
    """What a text defines under a name."""
    exec("import functools, importlib, math, numpy, types, torch\n" + source, space)
    return space[name]


@pytest.mark.parametrize(
    "source",
    [
        "S = torch.tensor([{n}.0])\ndef own(o): return S.add(o)",
        "S = torch.tensor([{n}.0])\ndef own(o): S.add(o)",
        "def made(s):\n def f(o): return s.add(o)\n return f\nown = made(torch.ones({n}))",
        "class H:\n def update(self, x): return x * {n}\nS = H()\ndef own(o): return S.update(o)",
        "class H:\n def update(self, x): x.mul_({n})\nS = H()\ndef own(o): S.update(o)",
        "class H:\n @staticmethod\n def add(x): return x * {n}\ndef own(o): return H.add(o)",
        "class H(list):\n def append(self, x): x.mul_({n})\nS = H()\ndef own(o): S.append(o)",
        "S = types.SimpleNamespace(put=lambda x: x * {n})\ndef own(o): return S.put(o)",
        "S = [{n}]\ndef own(o): return S.extend(o)",
        "S = [{n}]\ndef own(o): (S.append if o else S.extend)(o)",
        "ops = types.ModuleType('ops')\nops.add = lambda x: x * {n}\ndef own(o): return ops.add(o)",
        "K = {n}\ndef own(o): return eval('K') * o",
        "K = {n}\ndef own(o): return globals()['K'] * o",
        "def own(p, lr={n}, wd=3 - {n}): return p",
        "own = [lambda p, a=.5, b=0: (p, a), lambda p, b=.5, a=0: (p, b)][{n} - 1]",
        "own = [lambda *a: len(a), lambda **a: len(a)][{n} - 1]",
    ],
)
def test_what_only_looks_like_a_record_counts(source: str) -> None:
    one, same, other = (value_digest(own(source.format(n=n))) for n in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(
    "source",
    [
        "S = {kind}\ndef own(o):\n S.{call}\n return o",
        "S = {kind}\ndef own(o):\n def f(): S.{call}\n f()\n return o",
        "def made(S):\n def own(o):\n  S.{call}\n  return o\n return own\nown = made({kind})",
    ],
)
@pytest.mark.parametrize(
    ("kind", "call"), [("[]", "append(max(o, 3))"), ("set()", "add(o)"), ("{}", "update(a=o)")]
)
def test_a_plain_record_changes_nothing(source: str, kind: str, call: str) -> None:
    function = own(source.format(kind=kind, call=call))
    before = value_digest(function)
    function(1)
    assert value_digest(function) == before


def settings(scale: float, name: str = "own_settings", **further: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(SCALE=scale, **further)
    return module


PASSED = {
    "closure": "def made(cfg):\n def own(o): return o * cfg.SCALE\n return own\nown = made(CFG)",
    "partial": "def f(c, o): return o * c.SCALE\nown = functools.partial(f, CFG)",
    "default": "def own(o, c=CFG): return o * c.SCALE",
    "handed on": "def f(c, o): return o * c.SCALE\ndef own(o): return f(CFG, o)",
    "attribute": "class A:\n def __call__(self, o): return self.c.SCALE\nown = A(); own.c = CFG",
    "by name": "def own(o): return getattr(CFG, 'SCA' + 'LE') * o",
    "dictionary": "def own(o): return CFG.__dict__['SCALE'] * o",
    "alias": "def own(o):\n c = CFG\n return c.SCALE",
    "within": "def f(c, o): return c.SCALE\ndef own(o): return f(OUTER.inner, o)",
}


@pytest.mark.parametrize("source", PASSED.values(), ids=PASSED)
def test_a_module_that_is_passed_on_counts(source: str) -> None:
    seen = []
    for name, scale in (("one", 1.0), ("moved", 1.0), ("one", 2.0)):
        cfg = settings(scale, name)
        outer = settings(0.0, name + "_outer", inner=cfg)
        seen.append(value_digest(own(source, CFG=cfg, OUTER=outer)))
    assert seen[0] == seen[1] != seen[2]


def test_of_a_module_only_what_is_named_counts() -> None:
    source = "def own(o): return o * CFG.SCALE"
    one, other = (value_digest(own(source, CFG=settings(1.0, other=n))) for n in (1, 2))
    assert one == other


def test_modules_of_libraries_count_by_their_name() -> None:
    sources = ("def own(x): return M.log(x)", "def own(x, m=M): return m.log(x)", "own = M")
    for source in sources:
        seen = {value_digest(own(f"import {name} as M\n{source}")) for name in ("math", "numpy")}
        assert len(seen) == 2


class Lazy(dict[str, Rows]):
    """Very many parties, whose rows nobody asks for."""

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, name: str) -> Rows:
        raise AssertionError(name)


def test_rows_that_a_function_reads_count_and_a_million_parties_are_not_loaded() -> None:
    rows = [Rows(torch.full((2, 2), float(n)), torch.zeros(2)) for n in (1, 2)]
    read = "def own(o): return o - R.inputs.mean()"
    assert value_digest(own(read, R=rows[0])) != value_digest(own(read, R=rows[1]))
    held = [
        FederatedData(train={"a": rows[n]}, test=rows[m], digest="same")
        for n, m in ((0, 0), (1, 0), (0, 1))
    ]
    many = [
        FederatedData(train=Lazy(), test=rows[0], digest=digest) for digest in ("a", "a", "b", "")
    ]
    read = "def own(o): return o - R.test.inputs.mean()"
    assert len({value_digest(own(read, R=data)) for data in held}) == 3
    assert len({value_digest(own(read, R=data)) for data in many}) == 3
