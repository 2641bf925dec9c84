"""Which code is known by its name."""

import collections
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import privtrain as pt
from privtrain.core.identity import value_digest
from privtrain.core.libraries import is_library, of_package


@pytest.mark.parametrize(
    "value",
    [
        *(torch.exp.__class__, nn.Linear, nn.functional.relu, nn.functional, torch.ops, np.mean),
        *(collections.Counter, collections.namedtuple, sys, int, dict, Path, pt.DPSGD, pt.fit, pt),
        *(pytest.raises, torch._C._nn),
    ],
)
def test_what_is_installed_is_known_by_its_name(value: Any) -> None:
    assert is_library(value)


def test_own_code_is_not() -> None:
    class Own:
        pass

    assert not is_library(Own)
    assert not is_library(test_own_code_is_not)
    assert not is_library(sys.modules[__name__])


@pytest.mark.parametrize("name", ["profile", "chunk", "timm", "rich"])
@pytest.mark.parametrize("what", ["Net", "loss", "module"])
def test_an_own_file_of_a_library_name_counts_by_its_code(
    name: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set before it is deleted, so that the end of the test leaves no own file in its place.
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    seen = []
    for number in (1, 2, 1):
        folder = tmp_path / str(len(seen))
        folder.mkdir()
        (folder / f"{name}.py").write_text(
            f"class Net:\n def forward(self, x): return x * {number}\n"
            f"def loss(o, t): return o * {number}\n"
        )
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = __import__(name)
        assert str(module.__file__).startswith(str(folder))
        seen.append(value_digest(module if what == "module" else getattr(module, what)))
    assert seen[0] == seen[2] != seen[1]


def test_a_module_without_a_file_is_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ModuleType("code")
    monkeypatch.setitem(sys.modules, "code", made)
    exec("class Net: pass", made.__dict__)
    assert not is_library(made) and not is_library(made.Net)


def test_packages_tell_apart_what_bears_one_name() -> None:
    assert of_package(np.ndarray) == "numpy."
    assert of_package(nn.Linear) == of_package(pt.DPSGD) == ""
