"""Which code is a library's, and known by its name, and which is the user's own."""

import os
import sys
import sysconfig
from pathlib import Path
from types import FunctionType, MethodDescriptorType, ModuleType
from typing import Any

import numpy as np
import torch

_INSTALLED = frozenset(
    {
        *("privtrain", "torch", "numpy", "scipy", "sklearn", "opacus", "flwr", "crypten"),
        *("dp_accounting", "cloudpickle", "pandas", "torchvision", "kymatio", "ray", "tqdm"),
        *("matplotlib", "PIL", "pytest", "_pytest", "pluggy", "hypothesis", "transformers", "timm"),
        "rich",
    }
)

# By name, since nobody but a release changes them: their code differs from version to version of
# Python, and reads state of the whole process.
LIBRARIES = _INSTALLED | sys.stdlib_module_names
"""Packages whose functions and classes are known by their name, where they lie as installed."""

_STANDARD = tuple(
    {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.dirname(os.__file__)}
)
_OWN_PACKAGE = str(Path(__file__).parents[1])
_SITES = ("site-packages", "dist-packages")

_MADE_BY_CLASS_STATEMENT = 1 << 9
"""Py_TPFLAGS_HEAPTYPE."""


def is_library(value: Any) -> bool:
    """Whether a function, a class or a module is known by its name.

    Args:
        value: The user may have a file of a library's name, which is not known by it.
    """
    if isinstance(value, FunctionType):
        # Where it was written: a decorator may give it the name and module of what it wraps, and
        # code that was executed without a file may have none.
        space = value.__globals__
        return _lies_there(str(space.get("__name__")), space.get("__spec__"))
    if isinstance(value, ModuleType):
        # A part in C has no place of its own.
        name, spec = value.__name__, value.__dict__.get("__spec__")
        whole = sys.modules.get(name.partition(".")[0])
        return _lies_there(name, spec or (whole and whole.__spec__))
    if package(value) == "builtins" and isinstance(value, type):
        return not value.__flags__ & _MADE_BY_CLASS_STATEMENT
    whole = sys.modules.get(package(value))
    return whole is not None and _lies_there(package(value), whole.__spec__)


def _lies_there(name: str, spec: Any) -> bool:
    """Whether what was loaded under a name is the library of that name."""
    top = name.partition(".")[0]
    if top not in LIBRARIES or spec is None:
        return False
    origin = str(spec.origin)
    if top in sys.stdlib_module_names:
        standard = any(origin.startswith(path + os.sep) for path in _STANDARD)
        return origin in ("built-in", "frozen") or (
            standard and not any(site in origin for site in _SITES)
        )
    if top == "privtrain":
        return origin.startswith(_OWN_PACKAGE)
    # Loaded before any code of the user's, wherever they lie.
    loaded = sys.modules.get(top) in (torch, np)
    return loaded or any(site in Path(origin).parts for site in _SITES)


def package(value: Any) -> str:
    """The package that a function, a class or an object says it is of."""
    return str(getattr(value, "__module__", "") or "").partition(".")[0]


def of_package(value: Any) -> str:
    """Tells apart what two libraries call alike; nothing for those that a run always stands on."""
    name = package(value)
    if isinstance(value, FunctionType):
        name = str(value.__globals__.get("__name__")).partition(".")[0]
        return "" if name == "privtrain" else f"{name}."
    plain = name in ("privtrain", "torch") or name in sys.stdlib_module_names
    return f"{name}." if is_library(value) and not plain else ""


def name_in_c(value: Any) -> str:
    """The name of a function that was written in C."""
    if isinstance(value, np.ufunc):
        return f"ufunc.{value.__name__}"
    owner = value.__objclass__ if isinstance(value, MethodDescriptorType) else value
    return f"{package(owner)}.{value.__qualname__}"
