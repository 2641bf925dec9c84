"""What classes, objects and layers hold of their own."""

import functools
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from privtrain.core.libraries import is_library, package
from privtrain.core.lookups import all_names

OF_MODULES = frozenset(vars(nn.Module()))
"""What every `nn.Module` keeps of its own, some of it by numbers that count in a whole process."""

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks")

OF_CLASS_STATEMENTS = frozenset(
    {
        *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__"),
        *("__slots__", "__parameters__", "__orig_bases__", "__abstractmethods__", "__annotate__"),
        *("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__firstlineno__"),
        *("__static_attributes__", "__protocol_attrs__", "__non_callable_proto_members__"),
        *("__annotate_func__", "__annotations_cache__", "__annotate_cached__"),
    }
)
"""What Python writes into a class, and no method computes with."""


LOADED = 10_000
"""Parties whose rows are loaded at most; what holds more may make them when it is asked."""


def is_of_dataclass(value: Any) -> bool:
    """Whether a value has the fields of a dataclass, whatever its class says when it is asked."""
    return any("__dataclass_fields__" in vars(kind) for kind in type(value).__mro__)


def has_many_parties(value: Any) -> bool:
    """Whether a value is a data set whose rows must not all be loaded."""
    kind = type(value)
    federated = kind.__name__ == "FederatedData" and package(kind) == "privtrain"
    return federated and len(value.train) > LOADED


def function_of(member: Any) -> Any:
    """What a class's member computes with, of the wrappers that a class body has."""
    if isinstance(member, (staticmethod, classmethod)):
        return member.__func__
    if isinstance(member, property):
        return (member.fget, member.fset, member.fdel)
    if isinstance(member, functools.cached_property):
        return member.func
    if isinstance(member, functools.singledispatchmethod):
        return (member.func, dict(member.dispatcher.registry))
    return member


def attributes_of(value: Any) -> dict[str, Any]:
    """All that an object keeps on itself."""
    placed = {name: getattr(value, name) for name in slots(type(value)) if hasattr(value, name)}
    return {**getattr(value, "__dict__", {}), **placed}


def set_by_torch(layer: nn.Module) -> frozenset[str]:
    """The hidden attributes that torch's own code of a layer sets, which follow from the others."""
    hidden = {name for name in vars(layer) if name.startswith("_")} - OF_MODULES
    if not hidden or not type(layer).__module__.startswith("torch.") or not is_library(type(layer)):
        return frozenset()
    members = [function_of(each) for kind in type(layer).__mro__ for each in vars(kind).values()]
    named = [all_names(each.__code__) for each in members if isinstance(each, FunctionType)]
    # `torch.compile` notes a place in memory.
    compiled = {name for name in hidden if name.startswith("_torchdynamo_")}
    return frozenset(hidden & (compiled.union(*named)))


def slots(kind: type) -> list[str]:
    """Names of the places that classes declare instead of a dictionary."""
    named = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    return [n for some in named for n in ((some,) if isinstance(some, str) else some)]


def further_hooks(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """The seldom kinds of hooks of a layer, those that are there, and flags of the usual ones."""
    numbers = [*layer._forward_pre_hooks, *layer._forward_hooks]
    for name in sorted(OF_MODULES):
        kept = vars(layer).get(name)
        if not kept or "hook" not in name or name in _HOOKS:
            continue
        # Flags of hooks stand under the hooks' own numbers.
        if name.endswith(("_with_kwargs", "_always_called")):
            yield name, tuple(number in kept for number in numbers)
        else:
            yield name, tuple(kept.values()) if isinstance(kept, Mapping) else kept


def gradient_hooks(tensor: Tensor) -> Iterator[tuple[Any, ...]]:
    """What changes a tensor's gradient, of the kinds that are there."""
    for hooks in (tensor._backward_hooks, tensor._post_accumulate_grad_hooks):
        if hooks:
            yield tuple(hooks.values())
