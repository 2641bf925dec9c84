"""What a function looks up when it runs."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from privtrain.core.identity import value_digest
from privtrain.core.lookups import all_names, imported_by, lookups

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
