"""What identifies a value by what it does, wherever its code lies.

Two settings that compute the same have the same digest, in every process and after every move of a
file: no module path, no source text, no line number and no place in memory enters.
"""

import copyreg
import functools
import hashlib
import os
import re
import sys
import weakref
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from privtrain.core.lookups import all_names, global_names, imported_by, names_read

_PLAIN = (type(None), bool, int, float, complex, str, bytes)

# By name, since nobody but a release changes them: their code differs from version to version of
# Python, and reads state of the whole process.
LIBRARIES = {
    *sys.stdlib_module_names,
    *("privtrain", "torch", "numpy", "scipy", "sklearn", "opacus", "flwr", "crypten"),
    *("dp_accounting", "cloudpickle", "pandas", "torchvision", "kymatio", "ray", "tqdm", "rich"),
    *("matplotlib", "PIL", "pytest", "_pytest", "pluggy", "hypothesis", "transformers", "timm"),
}
"""Packages whose functions and classes are known by their name."""

# Where a module lies, which moves.
_PLACES = frozenset({"__file__", "__name__", "__package__", "__spec__", "__loader__", "__doc__"})

_MADE_BY_CLASS_STATEMENT = 1 << 9
"""Py_TPFLAGS_HEAPTYPE."""


def value_digest(*values: object) -> bytes:
    """SHA-256 over everything that values consist of.

    Dataclasses count by their fields, tensors and arrays by their values, modules by their print,
    parameters, buffers and code, functions by their compiled code, constants, defaults, closures
    and the globals that they read.

    Args:
        values: Settings, functions, modules, tensors.

    Returns:
        32 bytes. A callable without compiled code, such as one written in C, counts by its name
        where it is a function of a module, by what it pickles as, or else as one of its kind: then
        no two digests are equal.
    """
    walk = _Walk()
    walk.value(values)
    return walk.state.digest()


def without_addresses(text: str) -> str:
    """A printed value without places in memory, which are others in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


_OF_MODULES = frozenset(vars(nn.Module()))
"""What every `nn.Module` keeps of its own, some of it by numbers that count in a whole process."""

_ROWS = ("FederatedData", "Rows")
"""Data sets that a script holds beside its functions: they count by the rows that are trained on,
and a name alone must not load a million parties."""


class _Walk:
    """Writes values into one hash, each with its kind and its length, so that none run together."""

    def __init__(self) -> None:
        self.state = hashlib.sha256()
        # What is being written now: a value that holds itself must end. What merely stands twice
        # is written twice, since equal values need not be one object.
        self._path: dict[int, int] = {}
        # What was written already, and kept alive: written again, a net of functions that call
        # each other would take exponential time.
        self._known: dict[int, tuple[bytes, object]] = {}

    def _put(self, kind: str, content: bytes = b"") -> None:
        self.state.update(f"{kind}:{len(content)};".encode() + content)

    def value(self, value: Any) -> None:
        """One value of any kind."""
        if isinstance(value, Enum):
            self._put("enum", f"{type(value).__name__}.{value.name}".encode())
            return None if _is_library(type(value)) else self.value(value.value)
        if isinstance(value, _PLAIN):
            # `repr`, by which 1, 1.0 and True differ, and no digit of a float is lost.
            return self._put(type(value).__name__, repr(value).encode())
        if isinstance(value, ModuleType):
            return self._put("module")
        # A value that holds itself, such as a function that calls itself.
        if id(value) in self._path:
            return self._put("again", str(self._path[id(value)]).encode())
        if id(value) not in self._known:
            outer, self.state = self.state, hashlib.sha256()
            self._path[id(value)] = len(self._path)
            self._composed(value)
            del self._path[id(value)]
            self._known[id(value)] = (self.state.digest(), value)
            self.state = outer
        return self._put("value", self._known[id(value)][0])

    def _composed(self, value: Any) -> None:
        if isinstance(value, (Tensor, np.ndarray)):
            self._array(value)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, CodeType):
            self._code(value)
        elif isinstance(value, Mapping):
            self._own_class(value)
            self._put("mapping", str(len(value)).encode())
            for key, item in value.items():
                self.value(key)
                self.value(item)
        elif isinstance(value, Set):
            # A set has no order of its own: that of its digests is the same everywhere.
            self._put("set", b"".join(sorted(value_digest(item) for item in value)))
        elif isinstance(value, Sequence) or type(value).__name__ == "deque":
            self._own_class(value)
            self._put("sequence", str(len(value)).encode())
            for item in value:
                self.value(item)
        elif callable(value) and not is_dataclass(value):
            self._callable(value)
        else:
            self._object(value)

    def _array(self, value: Tensor | np.ndarray[Any, Any]) -> None:
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                return self.value(value.tolist())
            self._put("array", f"{value.shape} {value.dtype.str}".encode())
            return self._put("bytes", np.ascontiguousarray(value).tobytes())
        if is_lazy(value):  # it has no values before the first batch
            return self._put("lazy")
        self._put("array", f"{tuple(value.shape)} {value.dtype}".encode())
        if value.is_meta:
            return None
        whole = value.detach().to_dense().cpu().resolve_conj().resolve_neg().contiguous()
        # As bytes: numpy has no bfloat16.
        return self._put("bytes", whole.reshape(-1).view(torch.uint8).numpy().tobytes())

    def _module(self, value: nn.Module) -> None:
        self._put("nn.Module", without_addresses(repr(value)).encode())
        for name, tensor in (*value.named_parameters(), *value.named_buffers()):
            self._put("tensor", name.encode())
            self._array(tensor)
            if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
                self._put("frozen")
        for layer in value.modules():
            if isinstance(layer, torch.jit.ScriptModule):
                self._script(layer)
                continue
            # Two models may print alike and compute another function of the same layers.
            self._class(type(layer))
            hidden = type(layer).__module__.startswith("torch.")
            own = {
                name: kept
                for name, kept in vars(layer).items()
                if name not in _OF_MODULES and not (hidden and name.startswith("_"))
            }
            self.value((layer.training, own))
            # By their values: the keys count the hooks of a whole process.
            for hooks in (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_hooks):
                self.value(tuple(hooks.values()))

    def _class(self, value: type) -> None:
        """A class by its name and, as far as it is the user's own, by what its methods compute."""
        for base in value.__mro__:
            self._put("class", f"{_of_package(base)}{base.__name__}".encode())
            if _is_library(base):
                continue
            for name in sorted(vars(base)):
                member = _function_of(vars(base)[name])
                if isinstance(member, FunctionType) or not name.startswith("__"):
                    self._put("member", name.encode())
                    self.value(member)

    def _own_class(self, value: Any) -> None:
        if not _is_library(type(value)):
            self._class(type(value))

    def _code(self, code: CodeType, doc: str | None = None) -> None:
        # Neither file, name, line nor source; `co_code` is the same before and after it ran.
        self._put("code", code.co_code)
        consts = code.co_consts
        if doc is not None and consts and consts[0] == doc:
            consts = consts[1:]
        self.value((consts, code.co_names, code.co_freevars, code.co_argcount))

    def _function(self, value: FunctionType) -> None:
        cells = value.__closure__ or ()
        library = _is_library(value)
        if library:
            # The code's name: a wrapper of a library may bear the name of what it wraps.
            name = value.__code__.co_qualname
            self._put("library", f"{_of_package(value)}{name}".encode())
        else:
            self._code(value.__code__, value.__doc__)
        # A library's function may be one that was made of the user's own.
        if cells or not library:
            self.value((value.__defaults__, value.__kwdefaults__))
            named = zip(value.__code__.co_freevars, cells, strict=True)
            reads = names_read(value.__code__)
            self.value(tuple(_content(cell) if name in reads else None for name, cell in named))
        if not library:
            self._globals(value)
            # What it keeps on itself it can read by its own name.
            for name in sorted(vars(value).keys() - {"__wrapped__"}):
                self.value((name, vars(value)[name]))

    def _globals(self, value: FunctionType) -> None:
        known = value.__globals__
        read = {name: known[name] for name in global_names(value.__code__) if name in known}
        read |= {f"import {name}": module for name, module in imported_by(value)}
        for name in sorted(read.keys() - _PLACES):
            self._put("global", name.encode())
            self._global(read[name], all_names(value.__code__))

    def _global(self, read: Any, names: frozenset[str]) -> None:
        if isinstance(read, ModuleType):
            # A module of the user's own, such as one of settings, by what the function may name.
            if read.__name__.partition(".")[0] not in LIBRARIES and id(read) not in self._path:
                self._path[id(read)] = len(self._path)
                for name in sorted((names & set(vars(read))) - _PLACES):
                    self._put("named", name.encode())
                    self._global(vars(read)[name], names)
                del self._path[id(read)]
        elif _package(type(read)) == "privtrain" and type(read).__name__ in _ROWS:
            self._put("rows")
        else:
            self.value(read)

    def _script(self, value: Any) -> None:
        self._put("script", value.save_to_buffer())

    def _callable(self, value: Any) -> None:
        if isinstance(value, functools.partial):
            self._put("partial")
            self.value((value.func, value.args, value.keywords))
        elif isinstance(value, MethodType):
            self.value((value.__func__, value.__self__))
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, functools._lru_cache_wrapper):
            self.value(value.__wrapped__)
        elif isinstance(value, (BuiltinFunctionType, MethodDescriptorType, np.ufunc)):
            self._put("builtin", _name_in_c(value).encode())
            owner = getattr(value, "__self__", None)
            if not isinstance(owner, (ModuleType, type(None))):
                self.value(owner)
        elif isinstance(value, torch.jit.ScriptFunction):
            self._script(value)
        elif isinstance(value, weakref.ref):
            self._put("weak")
        else:
            self._object(value)

    def _object(self, value: Any) -> None:
        kind = type(value)
        self._put("object", kind.__name__.encode())
        if is_dataclass(value):
            self._class(kind)
            for field in fields(value):
                self._put("field", field.name.encode())
                self.value(getattr(value, field.name))
        elif not _is_library(kind) or (callable(value) and hasattr(value, "__dict__")):
            # What an object computes is its class's; what it holds alone would not tell.
            self._class(kind)
            slots = {name: getattr(value, name) for name in _slots(kind) if hasattr(value, name)}
            if slots or hasattr(value, "__dict__"):
                self.value({**getattr(value, "__dict__", {}), **slots})
            else:
                self._reduced(value)
        else:
            self._reduced(value)

    def _reduced(self, value: Any) -> None:
        """What is of another language or a library: by what it pickles as."""
        if callable(value):
            self._class(type(value))
        try:
            registered: Any = copyreg.dispatch_table.get(type(value))
            parts = registered(value) if registered else value.__reduce_ex__(2)
        except Exception:  # whatever a library raises for what it does not pickle
            # Nothing tells what it computes: two runs must not draw the same noise for it.
            text = without_addresses(repr(value)).encode()
            parts = os.urandom(32) if callable(value) else text
        self.value(parts)


def _package(value: Any) -> str:
    return str(getattr(value, "__module__", "") or "").partition(".")[0]


def _is_library(value: Any) -> bool:
    """Whether a function or a class is known by its name."""
    if isinstance(value, FunctionType):
        # Where it was written: a decorator may give it the name and module of what it wraps, and
        # code that was executed without a file may have none.
        return str(value.__globals__.get("__name__")).partition(".")[0] in LIBRARIES
    if _package(value) == "builtins" and isinstance(value, type):
        return not value.__flags__ & _MADE_BY_CLASS_STATEMENT
    return _package(value) in LIBRARIES


def _of_package(value: Any) -> str:
    """Tells apart what two libraries call alike; nothing for those that a run always stands on."""
    package = _package(value)
    if isinstance(value, FunctionType):
        package = str(value.__globals__.get("__name__")).partition(".")[0]
        return "" if package == "privtrain" else f"{package}."
    plain = package in ("privtrain", "torch") or package in sys.stdlib_module_names
    return f"{package}." if _is_library(value) and not plain else ""


def _name_in_c(value: Any) -> str:
    """The name of a function that was written in C."""
    if isinstance(value, np.ufunc):
        return f"ufunc.{value.__name__}"
    owner = value.__objclass__ if isinstance(value, MethodDescriptorType) else value
    return f"{_package(owner)}.{value.__qualname__}"


def _function_of(member: Any) -> Any:
    """What a class's member computes with, of the wrappers that a class body has."""
    if isinstance(member, (staticmethod, classmethod)):
        return member.__func__
    if isinstance(member, property):
        return member.fget
    if isinstance(member, (functools.cached_property, functools.singledispatchmethod)):
        return member.func
    return member


def _slots(kind: type) -> list[str]:
    named = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    return [n for some in named for n in ((some,) if isinstance(some, str) else some)]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet: a function that is defined further below
        return None
