"""Models are made anew: what a factory returns twice shares nothing, and a value is copied."""

import copy
import functools
import hashlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from privtrain.core.failures import OWN_ERRORS
from privtrain.core.reachable import MUTABLE, inside, tensor_digest, walk
from privtrain.core.seeding import Stream, global_generator

Model = Callable[[], nn.Module] | nn.Module
"""What a task's model is made of: a factory without arguments, or a module, which is copied."""

WAY_OUT = (
    "Make everything anew within the function, or give the module itself, as "
    "Task(model=net): it is copied for every use"
)


def new_module(model: Model) -> nn.Module:
    """What a factory returns, or a copy of a module."""
    return _copied(model) if isinstance(model, nn.Module) else model()


def made_anew(model: Model, stream: Stream) -> nn.Module:
    """A new module, whose random initial values come from a stream.

    Args:
        model: A factory, or a module, of which a copy is made.
        stream: Where random initial values come from.

    Returns:
        A module on the CPU that this process did not make before.

    Raises:
        ValueError: If a factory returns no module, one that it returned before, or one that shares
            a tensor with it; or if a module cannot be copied.
    """
    # On the CPU, whose generator is the same on every machine: a device has another one, and the
    # same seed would start from other weights.
    with global_generator(stream):
        module = new_module(model)
    if not isinstance(module, nn.Module):
        raise ValueError(f"Expected model={model!r} to return an nn.Module, not {module!r}.")
    check_values(model, module)
    for name, tensor in _tensors(module):
        if _MADE.has(tensor):
            raise ValueError(
                f"Expected model={_name(model)} to make a new module whenever it is called: {name} "
                f"belongs to one that it returned before. {WAY_OUT}."
            )
    if any(tensor.device.type != "cpu" for _, tensor in _named(module)):
        module = module.cpu()
    for _, tensor in _tensors(module):
        _MADE.add(tensor)
    _STREAMS[module] = stream
    return module


def check_values(model: Model, module: nn.Module) -> None:
    """Refuses a module whose parameters or buffers have no values yet.

    Args:
        model: What made it.
        module: The module, which was never run.

    Raises:
        ValueError: If a layer is lazy, or was made on the device "meta" or in inference mode.
    """
    for name, tensor in _named(module):
        if is_lazy(tensor) or tensor.is_meta:
            raise ValueError(
                f"Expected model={_name(model)} to make a module with values; {name} has none yet. "
                "Give lazy layers their widths, and make the module on the CPU."
            )
        if tensor.is_inference():
            raise ValueError(
                f"Expected model={_name(model)} to make a module that can be trained; {name} was "
                "made within torch.inference_mode(). Make it outside, or use torch.no_grad()."
            )


def described(module: nn.Module) -> str:
    """A module that is given as a value, by its layers and a digest of its values."""
    values = hashlib.sha256("".join(tensor_digest(t) for _, t in _named(module)).encode())
    return f"{module!r} of values {values.hexdigest()}"


def stream_of(module: nn.Module) -> Stream | None:
    """The stream that a module of this process was made from, or None for other modules."""
    return _STREAMS.get(module)


def check_alike(model: Model, first: nn.Module, second: nn.Module) -> None:
    """Refuses two modules of one factory and stream that share something, or differ.

    Args:
        model: What made them.
        first: A module.
        second: Another one, made from the same stream.

    Raises:
        ValueError: If they share a tensor, an array or a list, or if a value differs.
    """
    _check_apart(model, first, second)
    ones, others = dict(_tensors(first)), dict(_tensors(second))
    missing = sorted(ones.keys() ^ others.keys())
    differing = [name for name in ones if name in others and not _equal(ones[name], others[name])]
    for name in (*missing, *differing):
        raise ValueError(
            f"Expected model={_name(model)} to make equal modules from one seed; two calls differ "
            f"in {name}. Draw initial values from torch's, numpy's or Python's global generator, "
            "which each run starts from its own seed, and not from a generator of your own."
        )


def _check_apart(model: Model, first: nn.Module, second: nn.Module) -> None:
    held = {id(value): path for path, value in walk(first, inside) if isinstance(value, MUTABLE)}
    storages = {place: name for name, tensor in _tensors(first) for place in _places(tensor)}
    for name, tensor in _tensors(second):
        if any(place in storages for place in _places(tensor)):
            raise ValueError(
                f"Expected model={_name(model)} to make a new module whenever it is called; two "
                f"calls share {name}, so that one run would change the model of another. "
                f"{WAY_OUT}."
            )
    # A layer without values, such as one nn.ReLU() for all models, may be shared: should it keep
    # something while it is trained, that is found afterwards.
    shared = {id(layer) for layer in first.modules()} & {id(layer) for layer in second.modules()}
    for path, value in walk(second, lambda v: () if id(v) in shared else inside(v)):
        if id(value) in held and isinstance(value, MUTABLE):
            raise ValueError(
                f"Expected model={_name(model)} to make a new module whenever it is called; two "
                f"calls share the {type(value).__name__} {path!r}, which one run could fill for "
                "another. Copy it within the function, or use a tuple."
            )


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        yield f"the parameter {name!r}", parameter
    for name, buffer in module.named_buffers(remove_duplicate=False):
        yield f"the buffer {name!r}", buffer


def _tensors(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters, buffers, and tensors and arrays that are kept as attributes."""
    yield from _named(module)
    registered = {id(tensor) for _, tensor in _named(module)}
    for path, value in walk(module, inside):
        if isinstance(value, (Tensor, np.ndarray)) and id(value) not in registered:
            yield f"the attribute {path!r}", value


def _places(value: Any) -> Iterator[tuple[str, int]]:
    """What two tensors or arrays have in common where they share memory."""
    yield "object", id(value)
    if isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        if value.nbytes > 0:
            yield "cpu", value.__array_interface__["data"][0]
        return
    try:
        start = value.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse tensors have no storage of their own
        return
    if start != 0:
        yield str(value.device), start


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        if type(one) is not type(other) or one.dtype != other.dtype:
            return False
        return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if one.shape != other.shape or one.dtype != other.dtype or one.layout != other.layout:
        return False
    # NaN stands for "not set yet", and is equal to nothing.
    return torch.equal(one, other) or bool(
        ((one == other) | ((one != one) & (other != other))).all()
    )


def _copied(module: nn.Module) -> nn.Module:
    check_values(module, module)
    # `deepcopy` keeps tied weights and views tied, and calls the constructor of nothing. What it
    # does not copy, such as a list in the closure of a hook, is found by `check_alike` or when
    # it has changed: a copy by pickling would not copy a module's globals either.
    try:
        with torch.no_grad():
            copied: nn.Module = copy.deepcopy(module)
    except OWN_ERRORS as error:  # a module's own code may raise anything
        raise ValueError(
            f"Expected model={_name(module)} to be a module that can be copied: {error} Give a "
            "function that makes it, or clear what it keeps from earlier batches."
        ) from error
    for original, parameter in zip(module.parameters(), copied.parameters(), strict=True):
        # Scripted modules copy their parameters like results, which require none.
        parameter.requires_grad_(original.requires_grad)
        # Gradients of earlier batches are no part of the model.
        parameter.grad = None
    return copied


def _name(model: Model) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else repr(model)


def _nothing() -> None:
    return None


class _Alive:
    """The tensors and arrays that models of this process were made of, while they exist."""

    # Two calls show that they share nothing with each other. A factory that takes turns with a few
    # modules shows it only when one comes back.

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], weakref.ref[Any]] = {}

    def add(self, value: Any) -> None:
        for place in _places(value):
            self._known[place] = weakref.ref(value, functools.partial(self._forget, place))

    def has(self, value: Any) -> bool:
        places = set(_places(value))
        known = [self._known.get(place, _nothing)() for place in places]
        # A place is used again once its tensor was moved to a device.
        return any(other is not None and not places.isdisjoint(_places(other)) for other in known)

    def _forget(self, place: tuple[str, int], gone: weakref.ref[Any]) -> None:
        if self._known.get(place) is gone:
            del self._known[place]


_MADE = _Alive()
_STREAMS: weakref.WeakKeyDictionary[nn.Module, Stream] = weakref.WeakKeyDictionary()
