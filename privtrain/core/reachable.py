"""What can be reached from a module: its own state, and what its classes and functions hold.

A model keeps what it saw wherever Python lets it: in attributes, in lists on its class, in the
closure of a hook, in a default argument. The walks here find tensors, arrays and plain values.
"""

import functools
import hashlib
import inspect
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, complex, str, bytes, bytearray, array, type(None))
CONTAINERS = (list, tuple, set, frozenset, deque, Mapping)
MUTABLE = (list, dict, set, deque, bytearray, array)

# Objects of the standard library that exist to hold something.
_HOLDERS = frozenset({"types", "queue", "_thread"})

# Packages whose classes keep nothing that a model saw; their tables are large.
_LIBRARIES = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "privtrain", "opacus"}

_TABLES = frozenset(vars(nn.Module()))

Snapshot = dict[str, str]
"""Path to a print of what lies there."""

Children = Callable[[Any], Iterable[tuple[str, Any]]]
"""What lies directly under a value, each with the step of its path."""


def walk(root: object, children: Children) -> Iterator[tuple[str, Any]]:
    """Everything that can be reached from a value, each object once, with its path.

    Args:
        root: Where the walk begins.
        children: `inside` for a module's own state, `anywhere` for classes and functions, too.

    Returns:
        Paths such as `layer.weight`, and what lies there.
    """
    # Values and not their numbers alone: a number could come to be another object's.
    seen: dict[int, Any] = {}
    stack: list[tuple[str, Any]] = [("", root)]
    while stack:
        path, value = stack.pop()
        if not isinstance(value, PLAIN):
            if id(value) in seen:
                continue
            seen[id(value)] = value
        yield path.lstrip("."), value
        stack.extend((path + step, child) for step, child in reversed(list(children(value))))


def inside(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds itself: attributes, items of containers, modules within modules."""
    if isinstance(value, nn.Module):
        # Every model is put into training and back.
        own = {name: item for name, item in vars(value).items() if name != "training"}
        for table in ("_parameters", "_buffers", "_modules"):
            yield from _named(own.pop(table, None) or {})
        # Every module has a dozen empty tables of hooks.
        yield from _named({k: v for k, v in own.items() if k not in _TABLES or v})
    elif isinstance(value, Tensor):
        yield from _named({"grad": value.grad if value.is_leaf else None, **vars(value)})
    elif isinstance(value, Mapping):
        # Hooks stand under numbers that count on from model to model.
        for place, (key, item) in enumerate(list(value.items())):
            yield f"[{key!r}]" if isinstance(key, str) else f"[{place}]", item
            if not isinstance(key, PLAIN):
                yield f"[{place}]'", key
    elif isinstance(value, CONTAINERS):
        yield from ((f"[{place}]", item) for place, item in enumerate(list(value)))
    elif isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif isinstance(value, MethodType):
        yield ".__self__", value.__self__
    elif _is_of_user(type(value)) and not isinstance(value, type):
        slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
        yield from _named({name: getattr(value, name) for name in slots if hasattr(value, name)})
        yield from _named(getattr(value, "__dict__", {}))
    elif type(value).__module__ in _HOLDERS and not isinstance(value, (FunctionType, ModuleType)):
        yield from _named(getattr(value, "__dict__", {}))


def anywhere(value: Any) -> Iterator[tuple[str, Any]]:
    """What `inside` finds, and what classes, functions and their globals hold."""
    yield from inside(value)
    if isinstance(value, (MethodType, staticmethod, classmethod)):
        yield ".__func__", value.__func__
    elif isinstance(value, property):
        yield from ((".fget", value.fget), (".fset", value.fset))
    elif isinstance(value, FunctionType):
        yield from _of_function(value)
    elif isinstance(value, type):
        if _is_of_user(value):
            # By its own table: what a parent holds is found at the parent.
            yield from _named({k: v for k, v in vars(value).items() if not k.startswith("__")})
            yield from ((f"<{parent.__name__}>", parent) for parent in value.__bases__)
    elif isinstance(value, functools._lru_cache_wrapper):
        yield ".__wrapped__", value.__wrapped__
    elif isinstance(value, nn.Module) or _is_of_user(type(value)):
        yield f"<{type(value).__name__}>", type(value)


def _of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"({name})", cell.cell_contents
        except ValueError:  # a name that was never given a value
            continue
    yield from ((f"({n})", default) for n, default in enumerate(function.__defaults__ or ()))
    yield from ((f"({n})", value) for n, value in (function.__kwdefaults__ or {}).items())
    yield from _named({k: v for k, v in vars(function).items() if not k.startswith("__")})
    # Of the user's own files alone: a library's functions lead through all of the library.
    own = function.__module__ is None or not _is_library(function.__module__)
    if own and not _installed(code.co_filename):
        for name in sorted(_names(code) & function.__globals__.keys()):
            value = function.__globals__[name]
            if not isinstance(value, (ModuleType, BuiltinFunctionType)):
                yield f"(global {name})", value


def _names(code: CodeType) -> set[str]:
    """The names that a function and the functions within it look up."""
    within = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*within)


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((f".{name}", value) for name, value in list(values.items()))


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if not name.startswith("__"))


def _is_library(name: str | None) -> bool:
    return (name or "builtins").partition(".")[0] in _LIBRARIES


def _installed(file: str) -> bool:
    return "site-packages" in file or "dist-packages" in file


def _is_of_user(kind: type) -> bool:
    """Whether a class is the user's, or a module's of a package other than torch."""
    if _is_library(kind.__module__):
        return False
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    return issubclass(kind, nn.Module) or not _installed(file)


# ------------------------------------------------------------------------------------- prints


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's shape, type and values."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
    digest.update(values.data)
    return digest.hexdigest()


def snapshot(module: nn.Module) -> Snapshot:
    """What can be reached from a module, its own parameters and buffers left out.

    Args:
        module: A module.

    Returns:
        Path to print. Two snapshots of a module that nothing happened to are equal.
    """
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    return {path: _print(v) for path, v in walk(module, anywhere) if id(v) not in own}


def changed(before: Snapshot, after: Snapshot) -> list[str]:
    """The paths of what is new or differs, what holds most first: tensors and arrays."""
    paths = [path for path, text in after.items() if before.get(path) != text]
    return sorted(paths, key=lambda path: not after[path].startswith(("Tensor", "ndarray")))


def _print(value: Any) -> str:
    if isinstance(value, Tensor):
        try:
            return f"Tensor {tensor_digest(value)}"
        except (RuntimeError, NotImplementedError, TypeError):  # one without storage or values
            return f"Tensor {id(value)} {value._version}"
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return f"ndarray {hashlib.sha256(repr(value.tolist()).encode()).hexdigest()}"
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"ndarray {value.shape} {value.dtype} {content}"
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, functools._lru_cache_wrapper):
        # What it keeps cannot be reached; how much it keeps can.
        return f"cache {value.cache_info().currsize}"
    if inspect.isclass(value):
        return f"class {value.__qualname__}"
    return type(value).__qualname__
