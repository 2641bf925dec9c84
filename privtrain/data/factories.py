"""Factories of models as plain values, and back: a file makes none but those of privtrain."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from privtrain.core.failures import OWN_ERRORS
from privtrain.core.identity import without_addresses
from privtrain.core.models import Model
from privtrain.data.models import CNN, MLP, LogisticRegression

FACTORIES: Mapping[str, Callable[..., Any]] = {
    kind.__name__: kind for kind in (CNN, MLP, LogisticRegression)
}
"""Name to factory: all that a file may ask for."""

_TYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (torch.float32, torch.float64, torch.bfloat16)
}
_LONGEST = 4_000
_MOST = 2**31
"""So many characters of a print, layers, and units in one, at most."""


def factory_to_plain(model: Model) -> dict[str, Any]:
    """A factory as what JSON can hold.

    Args:
        model: What a task's model is made of.

    Returns:
        `{"name": ..., "arguments": {...}}` of a factory of `pt.data`; of any other value
        `{"printed": ...}`, from which nothing is ever made.
    """
    for name, kind in FACTORIES.items():
        # Not a subclass, which may make something else.
        if type(model) is kind:
            arguments = {each.name: getattr(model, each.name) for each in fields(model)}  # type: ignore[arg-type]
            return {"name": name, "arguments": {n: _to_plain(v) for n, v in arguments.items()}}
    return {"printed": _printed(model)}


def _printed(model: Model) -> str:
    if isinstance(model, nn.Module):
        kind = type(model)
        return f"a module given as a value: {kind.__module__}:{kind.__qualname__}"
    named = getattr(model, "__qualname__", None)
    if named:
        return f"{model.__module__}:{named}"
    try:
        return without_addresses(repr(model))[:_LONGEST]
    except OWN_ERRORS:  # a user's own repr may raise anything
        return f"a {type(model).__qualname__}"


def _to_plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return [int(item) for item in value] if isinstance(value, (list, tuple)) else value


def factory_from_plain(plain: Mapping[str, Any]) -> Callable[[], nn.Module] | None:
    """The factory that plain values stand for; None where they only say how one printed.

    Nothing is imported and no code is looked up by a name in the file, whoever wrote it.

    Raises:
        ValueError: If it is none of `FACTORIES`, or an argument is of another kind.
    """
    if "name" not in plain:
        if type(plain.get("printed")) is not str:
            raise ValueError("it names no factory")
        return None
    name, given = plain["name"], plain["arguments"]
    if type(name) is not str or name not in FACTORIES:
        raise ValueError(
            f"it names the factory {name!r}, and only {', '.join(sorted(FACTORIES))} are made from "
            "a file"
        )
    kind = FACTORIES[name]
    kinds = {each.name: each.type for each in fields(kind)}  # type: ignore[arg-type]
    if given.keys() != kinds.keys():
        raise ValueError(f"{name} takes {', '.join(kinds)}, not {', '.join(given)}")
    made: Callable[[], nn.Module] = kind(**{n: _from_plain(n, given[n], kinds[n]) for n in given})
    return made


def _from_plain(name: str, value: Any, kind: Any) -> Any:
    if kind is torch.dtype and type(value) is str and value in _TYPES:
        return _TYPES[value]
    if kind is bool and type(value) is bool:
        return value
    if kind is int and type(value) is int and 0 < value < _MOST:
        return value
    if name == "sizes" and type(value) is list and 2 <= len(value) <= _LONGEST:
        return tuple(_from_plain("width", width, int) for width in value)
    raise ValueError(f"{name}={value!r:.80} is none of its values")
