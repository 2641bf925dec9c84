"""What identifies a value by what it does, wherever its code lies.

Two settings that compute the same have the same digest, in every process and after every move of a
file: no module path, no source text, no line number and no place in memory enters.
"""

import copyreg
import functools
import hashlib
import inspect
import os
import re
import weakref
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields
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

from privtrain.core.fields import told_fields
from privtrain.core.libraries import is_library, name_in_c, of_package
from privtrain.core.lookups import (
    DYNAMIC,
    GROWING,
    PLACES,
    Lookup,
    all_names,
    content_of,
    imported_by,
    lookups,
)
from privtrain.core.members import (
    OF_CLASS_STATEMENTS,
    OF_MODULES,
    attributes_of,
    function_of,
    further_hooks,
    gradient_hooks,
    has_many_parties,
    is_of_dataclass,
    set_by_torch,
    slots,
)

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def value_digest(*values: object, earlier: "Snapshot | None" = None) -> bytes:
    """SHA-256 over everything that values consist of.

    Dataclasses count by their fields, tensors and arrays by their values, modules by their print,
    parameters, buffers and code, functions by their compiled code, constants, defaults, closures
    and the globals that they read.

    Args:
        values: Settings, functions, modules, tensors.
        earlier: Whatever it holds counts as it was then.

    Returns:
        32 bytes. A callable without compiled code, such as one written in C, counts by its name
        where it is a function of a module, by what it pickles as, or else as one of its kind: then
        no two digests are equal.
    """
    walk = _Walk()
    walk._known |= {} if earlier is None else earlier.known
    walk.value(values)
    return walk.state.digest()


class Snapshot:
    """What values were at one time: what keeps a count of its calls is another one afterwards.

    Args:
        values: Kept alive, with all that they hold.
    """

    def __init__(self, *values: object) -> None:
        walk = _Walk()
        walk.value(values)
        self.known = walk._known


def without_addresses(text: str) -> str:
    """A printed value without places in memory, which are others in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


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
        known = is_library(type(value))
        if known and isinstance(value, Enum):
            return self._put("enum", f"{type(value).__name__}.{value.name}".encode())
        if known and isinstance(value, _PLAIN):
            # `repr`, by which 1, 1.0 and True differ, and no digit of a float is lost.
            return self._put(type(value).__name__, repr(value).encode())
        if isinstance(value, ModuleType) and is_library(value):
            return self._put("module", value.__name__.encode())
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
            self._held(value)
        elif isinstance(value, ModuleType):
            self._namespace(vars(value))
        elif isinstance(value, Enum):
            self._put("enum", f"{type(value).__name__}.{value.name}".encode())
            self.value((value.value, type(value)))
        elif isinstance(value, _PLAIN):
            plain = next(kind for kind in _PLAIN[1:] if isinstance(value, kind))
            self._put(plain.__name__, plain.__repr__(value).encode())
            self._held(value)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, CodeType):
            self._code(value)
        elif isinstance(value, Mapping):
            self._held(value)
            self._put("mapping", str(len(value)).encode())
            if isinstance(value, defaultdict):
                self.value(value.default_factory)
            for key, item in value.items():
                self.value(key)
                self.value(item)
        elif isinstance(value, Set):
            self._held(value)
            # A set has no order of its own: that of its digests is the same everywhere.
            self._put("set", b"".join(sorted(self._apart(item) for item in value)))
        elif isinstance(value, (Sequence, deque)):
            self._held(value)
            if isinstance(value, list):  # as an index of a tensor it is no tuple
                self._put("list")
            self._put("sequence", str(len(value)).encode())
            for item in value:
                self.value(item)
        elif callable(value) and not is_of_dataclass(value):
            self._callable(value)
        else:
            self._object(value)

    def _apart(self, value: Any) -> bytes:
        walk = _Walk()
        walk._path, walk._known = dict(self._path), self._known
        walk.value((value,))
        return walk.state.digest()

    def _held(self, value: Any) -> None:
        """What a value holds beside what its kind is made of: attributes, methods, hooks."""
        kind = type(value)
        own = not is_library(kind)
        if own:
            self._class(kind)
        held = attributes_of(value) if own or isinstance(value, Tensor) else {}
        if held:
            self._put("held")
            self.value(held)
        for hooks in gradient_hooks(value) if isinstance(value, Tensor) else ():
            self._put("hooks")
            self.value(hooks)

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
            self._held(tensor)
            if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
                self._put("frozen")
        for layer in value.modules():
            if isinstance(layer, torch.jit.ScriptModule):
                self._script(layer)
                continue
            # Two models may print alike and compute another function of the same layers.
            self._class(type(layer))
            hidden = set_by_torch(layer)
            own = {
                name: kept
                for name, kept in vars(layer).items()
                if name not in OF_MODULES and name not in hidden
            }
            self.value((layer.training, own))
            self._hooks(layer)

    def _hooks(self, layer: nn.Module) -> None:
        # By their values: the keys count the hooks of a whole process.
        for hooks in (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_hooks):
            self.value(tuple(hooks.values()))
        for name, kept in further_hooks(layer):
            self._put("hooks", name.encode())
            self.value(kept)

    def _class(self, value: type) -> None:
        """A class by its name and, as far as it is the user's own, by what its methods compute."""
        if not is_library(type(value)):
            self._put("metaclass")
            self.value(type(value))
        for base in value.__mro__:
            self._put("class", f"{of_package(base)}{base.__name__}".encode())
            if is_library(base):
                continue
            for name in sorted(vars(base).keys() - OF_CLASS_STATEMENTS):
                self._put("member", name.encode())
                self.value(function_of(vars(base)[name]))

    def _code(self, code: CodeType, doc: str | None = None) -> None:
        # Neither file, name, line nor source; `co_code` is the same before and after it ran.
        self._put("code", code.co_code)
        consts = code.co_consts
        if doc is not None and consts and consts[0] == doc:
            consts = consts[1:]
        self.value((consts, code.co_names, code.co_freevars, code.co_argcount))
        # By its names it is called, and by its flags its arguments are collected.
        named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        flags = code.co_flags & ~inspect.CO_NEWLOCALS & ~inspect.CO_OPTIMIZED & ~inspect.CO_NESTED
        self.value((named, code.co_posonlyargcount, flags, code.co_exceptiontable))

    def _function(self, value: FunctionType) -> None:
        cells = value.__closure__ or ()
        library = is_library(value)
        if library:
            # The code's name: a wrapper of a library may bear the name of what it wraps.
            name = value.__code__.co_qualname
            self._put("library", f"{of_package(value)}{name}".encode())
        else:
            self._code(value.__code__, value.__doc__)
        # A library's function may be one that was made of the user's own.
        if cells or not library:
            self.value((value.__defaults__, value.__kwdefaults__))
            found = lookups(value.__code__)
            for name, cell in zip(value.__code__.co_freevars, cells, strict=True):
                grows = library and name in GROWING
                self._looked_up(name, content_of(cell), () if grows else found)
        if not library:
            self._globals(value)
            # What it keeps on itself it can read by its own name.
            for name in sorted(vars(value).keys() - {"__wrapped__"}):
                self.value((name, vars(value)[name]))

    def _globals(self, value: FunctionType) -> None:
        known, names = value.__globals__, all_names(value.__code__)
        if names & DYNAMIC:
            self._namespace(known)
        found = [each for each in lookups(value.__code__) if each.everywhere]
        for name in sorted(({each.name for each in found} & known.keys()) - PLACES):
            self._looked_up(name, known[name], found)
        for name, module in sorted(dict(imported_by(value)).items()):
            self._put("import", name.encode())
            own = isinstance(module, ModuleType) and not is_library(module)
            named = names & vars(module).keys() if own else frozenset()
            if named and not names & {"vars", "getattr", "__dict__"}:
                self._taken(module, {(each,) for each in named})
            else:
                self.value(module)

    def _looked_up(self, name: str, value: Any, found: Sequence[Lookup]) -> None:
        """What code may learn of a value that stands under a name."""
        taken = {each.attributes for each in found if each.name == name and each.learns(value)}
        if taken:
            self._put("global", name.encode())
            self._taken(value, taken)

    def _taken(self, value: Any, taken: set[tuple[str, ...]]) -> None:
        """A value of which some attributes are read; of an own module no more than those."""
        reached = {each[0] for each in taken if each}
        own = isinstance(value, ModuleType) and not is_library(value)
        # Who has the module itself may read all of it.
        if not own or () in taken or reached - vars(value).keys() - PLACES:
            self.value(value)
            return
        for name in sorted(reached - PLACES):
            self._put("named", name.encode())
            self._taken(vars(value)[name], {each[1:] for each in taken if each[0] == name})

    def _namespace(self, space: dict[str, Any]) -> None:
        """All of a module."""
        if id(space) in self._path:
            self._put("again", str(self._path[id(space)]).encode())
            return
        self._path[id(space)] = len(self._path)
        hidden = {n for n in space if n.startswith("__") and n != "__getattr__"}
        for name in sorted(space.keys() - hidden):
            self._put("named", name.encode())
            self.value(space[name])
        del self._path[id(space)]

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
            self._put("builtin", name_in_c(value).encode())
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
        if is_of_dataclass(value):
            self._class(kind)
            # Not what a field that came later adds while it stands at its default: seeded runs keep
            # their noise, and folders their identity.
            for field in told_fields(value):
                self._put("field", field.name.encode())
                if field.name == "train" and has_many_parties(value):
                    # Without a digest they are told apart by nothing.
                    self._put("parties", value.digest.encode() or os.urandom(32))
                else:
                    self.value(getattr(value, field.name))
            further = attributes_of(value).keys() - {field.name for field in fields(value)}
            if further and not is_library(kind):
                self.value({name: getattr(value, name) for name in sorted(further)})
        elif not is_library(kind) or (callable(value) and hasattr(value, "__dict__")):
            # What an object computes is its class's; what it holds alone would not tell.
            self._class(kind)
            if slots(kind) or hasattr(value, "__dict__"):
                self.value(attributes_of(value))
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
